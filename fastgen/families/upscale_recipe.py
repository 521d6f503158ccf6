"""How a super-resolution network is made and trained (``fastgen train --model srresnet | rrdbnet | ...``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .family import Flag, given
from .recipe import OPTION, Recipe
from .values import assignments

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..checkpoint import Part, Spec
    from ..training.batch import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig
    from ..training.upscale import SuperResolution

PREVIEW_IMAGES = 8  # on a sheet: enlarged by the network's factor without it, the result, the truth
OBJECTIVE = ("pixel_loss", "pixel_weight", "adversarial", "adversarial_weight", "perceptual_weight")
FLAGS = (
    OPTION,
    Flag("--pixel-loss", {"help": "l1 or mse (default l1)"}),
    Flag("--pixel-weight", {"type": float, "help": "weight of the pixels' loss (default 1)"}),
    Flag(
        "--adversarial",
        {"help": "second stage, against a discriminator: non-saturating (SRGAN) or relativistic (ESRGAN)"},
    ),
    Flag("--adversarial-weight", {"type": float, "help": "weight of the adversarial loss (default 0.001)"}),
    Flag(
        "--perceptual-weight",
        {"type": float, "help": "weight of the distance of features of a small fixed network (default 0)"},
    ),
    Flag("--judge-channels", {"type": int, "help": "of the discriminator's first layer (default 64)"}),
    Flag("--init", {"metavar": "FOLDER", "help": "begin with the weights of this model, of the first stage"}),
)


class UpscaleRecipe(Recipe):
    """A generator alone, or with a discriminator; the data's images are the large ones."""

    flags = FLAGS
    parts = None  # one, and the discriminator
    refused = ("--labels", "--label-dropout")
    # Ledig et al. 2017, section 3.2: Adam, 1e-4, batches of 16.
    run_defaults: Mapping[str, Any] = {
        "steps": 100_000,
        "batch_size": 16,
        "lr": 1e-4,
        "warmup": 0,
        "grad_clip": 0.0,
        "save_every": 1000,
        "preview_every": 2000,
    }

    def __init__(self, model: str) -> None:
        self.model = model

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..architectures import ARCHITECTURES
        from ..checkpoint import Part, Spec
        from ..training.upscale import SuperResolutionConfig

        if len(dataset.shape) != 3:
            raise DataError("images are needed, not rows of a table", argument=config.data)
        chosen, kind = given(args, self.flags), ARCHITECTURES[self.model].config
        channels, height, width = dataset.shape
        options = assignments(chosen.get("option", []), kind, "--option")
        values = {"in_channels": channels, "out_channels": channels, **options}
        network: Any = from_dict(kind, values, "train")
        side = network.scale * (4 if self.model == "rrdbnet" and network.scale < 4 else 1)
        if height % side or width % side:
            raise ConfigError(f"expected multiples of {side}, got {height}x{width}", argument="--size")
        names = {n: chosen[n] for n in OBJECTIVE if n in chosen}
        objective = from_dict(SuperResolutionConfig, names, "train")
        return Spec(
            "upscale",
            {"upscaler": Part(self.model, to_dict(network))},
            {},
            {**provenance, "objective": to_dict(objective)},
        )

    def auxiliary(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> dict[str, Part]:
        """See ``Recipe``: the discriminator of the second stage."""
        from ..checkpoint import Part
        from ..models.upscale.discriminator import SRDiscriminatorConfig

        chosen = given(args, self.flags)
        if chosen.get("adversarial", "none") == "none":
            return {}
        values = {"in_channels": dataset.shape[0], "channels": chosen.get("judge_channels", 64)}
        fitting = max(1, min(4, min(dataset.shape[1:]).bit_length() - 2))  # halvings that leave some pixels
        judge = from_dict(SRDiscriminatorConfig, {**values, "stages": fitting}, "train")
        return {"discriminator": Part("sr_discriminator", to_dict(judge))}

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> SuperResolution:
        """See ``Recipe``."""
        from ..training.upscale import SuperResolution, SuperResolutionConfig

        values = run.spec.provenance.get("objective", {})
        config = from_dict(SuperResolutionConfig, values, "provenance.objective")
        return SuperResolution(config, init=None if run.config.init is None else Path(run.config.init))

    def sheet(self, engine: Any, dataset: Dataset) -> tuple[Tensor, int]:
        """See ``Recipe``: rows of the small image, enlarged bicubically, the result, the truth."""
        import torch
        from torch.nn import functional as F

        from ..training.upscale import shrunk

        truth = dataset.batch(range(min(PREVIEW_IMAGES, len(dataset)))).x.float() / 127.5 - 1
        small = shrunk(truth, engine.upscaler.scale)
        simple = F.interpolate(small, truth.shape[2:], mode="bicubic").clamp(-1, 1)
        return torch.stack([simple, engine.upscale(small).cpu(), truth], dim=1).flatten(0, 1), 6


RECIPES = {model: UpscaleRecipe(model) for model in ("srresnet", "msrresnet", "rrdbnet", "srvgg")}
