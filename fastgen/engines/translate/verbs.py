"""The verbs of a translate engine: `translate`, `translate_dropout` and `score`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen_kernels.noise import bits

from ..verb import Tensors, Verb

if TYPE_CHECKING:
    from .engine import TranslateEngine

TRIAL_SIDE = 128  # of random trials, or the least side that a network takes


def generator_verbs(engine: TranslateEngine, generator: Any, norm_mode: str) -> dict[str, Verb]:
    """Of x float32 [B, C, H, W], H and W as the network takes them; seeds int64 [B]."""
    side = max(generator.multiple, generator.least, TRIAL_SIDE // 2)

    def reference(networks: nn.ModuleDict, x: Tensor) -> Tensors:
        network = networks["generator"]
        return (network(x.to(_dtype(network)), None, norm_mode).to(_wide(x)),)

    def of_noise(networks: nn.ModuleDict, x: Tensor, seeds: Tensor, *, noise: Tensor) -> Tensors:
        network = networks["generator"]
        return (network(x.to(_dtype(network)), noise > 0, norm_mode).to(_wide(x)),)

    def fast(x: Tensor) -> Tensors:
        return (engine.run("generator", norm_mode, x.to(engine.dtype), None).float(),)

    def masked(x: Tensor, seeds: Tensor) -> Tensors:
        kept = bits(seeds, "dropout", generator.dropout_count(*x.shape[2:]))
        return (engine.run("generator", norm_mode, x.to(engine.dtype), kept).float(),)

    def noise(x: Tensor, seeds: Tensor) -> Tensor:
        """Above 0 where an activation is kept, as normal noise is half of the time."""
        return bits(seeds, "dropout", generator.dropout_count(*x.shape[2:])).float().mul_(2).sub_(1)

    def trial(batch: int, random: torch.Generator) -> Tensors:
        return (_images(engine, batch, generator.config.in_channels, side, random),)

    def seeded(batch: int, random: torch.Generator) -> Tensors:
        seeds = torch.randint(1 << 62, (batch,), generator=random, device="cpu").to(engine.device)
        return (*trial(batch, random), seeds)

    verbs = {"translate": Verb("translate", ("x",), ("y",), fast, reference, trial)}
    if generator.config.dropout:
        verbs["translate_dropout"] = Verb(
            "translate_dropout", ("x", "seeds"), ("y",), masked, of_noise, seeded, noise
        )
    return verbs


def score_verb(engine: TranslateEngine, discriminator: Any, norm_mode: str) -> Verb:
    """Of (x, y), or y alone where the discriminator sees nothing else: float32 [B], the mean logit."""
    config = discriminator.config
    names = ("x", "y") if config.in_channels else ("y",)
    side = max(discriminator.least, TRIAL_SIDE)

    def reference(networks: nn.ModuleDict, *images: Tensor) -> Tensors:
        network = networks["discriminator"]
        given = [image.to(_dtype(network)) for image in images]
        logits = network(given[0] if len(given) == 2 else None, given[-1], norm_mode)
        return (logits.mean((1, 2, 3), dtype=_wide(logits)),)

    def fast(*images: Tensor) -> Tensors:
        given = [image.to(engine.dtype) for image in images]
        return (engine.run("discriminator", norm_mode, *given),)

    def trial(batch: int, random: torch.Generator) -> Tensors:
        channels = [n for n in (config.in_channels, config.out_channels) if n]
        return tuple(_images(engine, batch, n, side, random) for n in channels)

    return Verb("score", names, ("score",), fast, reference, trial)


def _images(engine: TranslateEngine, batch: int, channels: int, side: int, random: torch.Generator) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.rand(batch, channels, 8, 8, generator=random, dtype=torch.float32, device="cpu")
    smooth = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 2 - 1).to(engine.device)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)
