"""How GANs are made and trained (``fastgen train --model dcgan``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .family import Flag, given
from .recipe import GAN_LOSS, Recipe
from .values import assignments

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..checkpoint import Spec
    from ..training.batch import Dataset
    from ..training.gan import Adversarial
    from ..training.run import Run
    from ..training.settings import RunConfig

GAUGED = 64  # samples whose distances the gauge takes
FLAGS: tuple[Flag, ...] = (
    Flag("--latent", {"type": int, "help": "numbers of z (default 100, of biggan and sagan 128)"}),
    GAN_LOSS,
    Flag("--penalty", {"help": "none, gradient (WGAN-GP) or r1 (default: the paper's)"}),
    Flag("--penalty-weight", {"type": float, "help": "of the penalty (default 10)"}),
    Flag("--clip", {"type": float, "help": "WGAN's limit of the discriminator's weights (default 0: none)"}),
    Flag(
        "--updates", {"type": int, "help": "of the discriminator in a step, each by its share of the batch"}
    ),
    Flag("--d-lr", {"type": float, "help": "learning rate of the discriminator over that of the generator"}),
    Flag("--orthogonal", {"type": float, "help": "weight of BigGAN's regularisation of the generator"}),
    Flag("--unlabelled", {"action": "store_true", "help": "a model without classes, of data that has them"}),
    Flag(
        "--generator",
        {"nargs": "+", "metavar": "NAME=VALUE", "help": "options of the generator, such as widths=128,64"},
    ),
    Flag("--discriminator", {"nargs": "+", "metavar": "NAME=VALUE", "help": "options of the discriminator"}),
)
OBJECTIVE = ("gan_loss", "penalty", "penalty_weight", "clip", "updates", "d_lr", "orthogonal")


class GANRecipe(Recipe):
    """A generator and its discriminator, both of which the model keeps.

    architectures: of the two. objective_defaults: fields of ``GANConfig`` as in the model's paper.
    """

    flags = FLAGS
    parts = 2
    refused = ("--label-dropout", "--weight-decay")
    architectures = ("dcgan", "dcgan_discriminator")
    objective_defaults: Mapping[str, Any] = {}
    # Radford et al. 2016, section 4.
    run_defaults: Mapping[str, Any] = {
        "steps": 20_000,
        "batch_size": 128,
        "lr": 2e-4,
        "warmup": 0,
        "decay": "linear",
        "grad_clip": 0.0,
        "save_every": 500,
        "preview_every": 1000,
    }

    def networks(
        self, side: int, channels: int, classes: int | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of both networks for images of `side` pixels, before those that the user gives."""
        widths, kernels, strides, paddings = pyramid(side)
        generator = {
            "out_channels": channels,
            "widths": widths,
            "kernels": kernels,
            "strides": strides,
            "paddings": paddings,
        }
        discriminator = {
            "in_channels": channels,
            "size": side,
            "widths": widths[::-1],
            "kernels": kernels[::-1],
            "strides": strides[::-1],
            "paddings": paddings[::-1],
        }
        if classes is not None:
            generator |= {"num_classes": classes, "embedding": 32}
            discriminator |= {"num_classes": classes, "conditioning": "projection"}
        return generator, discriminator

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..architectures import ARCHITECTURES
        from ..checkpoint import Part, Spec
        from ..training.gan import GANConfig

        if len(dataset.shape) != 3 or dataset.shape[1] != dataset.shape[2]:
            raise DataError(
                f"expected images as wide as high, got samples of {'x'.join(map(str, dataset.shape))}",
                argument=config.data,
            )
        chosen = given(args, self.flags)
        classes = None if chosen.get("unlabelled") else dataset.num_classes
        own = self.networks(dataset.shape[1], dataset.shape[0], classes)
        if "latent" in chosen:
            own[0]["latent"] = chosen["latent"]
        parts = {}
        for name, architecture, options in zip(
            ("generator", "discriminator"), self.architectures, own, strict=True
        ):
            kind = ARCHITECTURES[architecture].config
            options |= assignments(chosen.get(name, []), kind, f"--{name}")
            parts[name] = Part(architecture, to_dict(from_dict(kind, options, f"--{name}")))
            found: Any = from_dict(kind, options, f"--{name}")
            if tuple(found.shape) != tuple(dataset.shape):
                raise ConfigError(
                    f"is for images of {'x'.join(map(str, found.shape))}, the data's are "
                    f"{'x'.join(map(str, dataset.shape))}",
                    argument=f"--{name}",
                )
        values = {**self.objective_defaults, **{name: chosen[name] for name in OBJECTIVE if name in chosen}}
        objective = from_dict(GANConfig, values, "train")
        if objective.penalty != "none" and parts["discriminator"].config.get("norm") == "batch":
            raise ConfigError(
                "of single samples has no meaning behind a batch norm, which mixes them; take --discriminator "
                "norm=layer, instance or none",
                argument="--penalty",
            )
        settings: dict[str, Any] = {}
        if classes is not None:
            settings = {"num_classes": classes}
            if dataset.class_names is not None:
                settings["class_names"] = list(dataset.class_names)
        return Spec("gan", parts, settings, {**provenance, "objective": to_dict(objective)})

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Adversarial:
        """See ``Recipe``."""
        from ..training.gan import Adversarial, GANConfig

        config = from_dict(GANConfig, run.spec.provenance.get("objective", {}), "provenance.objective")
        return Adversarial(config, run.config.lr)

    def gauge(self, engine: Any, dataset: Dataset) -> dict[str, float]:
        """See ``Recipe``: mean distance of two samples of fixed seeds, and of two images of the data, per element.

        A generator that has collapsed draws the same image for every seed, and the first number falls to 0.
        """
        count = min(GAUGED, len(dataset))
        batch = dataset.batch(range(count))
        labels = None
        if engine.classes is not None:
            assert batch.label is not None
            labels = batch.label.tolist()
        drawn = engine.sample(count, seed=0, labels=labels)
        return {
            "samples": mean_distance(drawn.cpu()),
            "data": mean_distance(batch.x.float() / 127.5 - 1),
        }


class WGANRecipe(GANRecipe):
    """WGAN-GP: as algorithm 1 of Gulrajani et al. 2017; with --clip 0.01 --penalty none, Arjovsky et al. 2017."""

    architectures = ("wgan_gp", "wgan_critic")
    objective_defaults: Mapping[str, Any] = {
        "gan_loss": "wasserstein",
        "penalty": "gradient",
        "updates": 5,
        "beta1": 0.0,
        "beta2": 0.9,
    }
    run_defaults: Mapping[str, Any] = {**GANRecipe.run_defaults, "batch_size": 320, "lr": 1e-4}


class ResidualRecipe(GANRecipe):
    """SAGAN, BigGAN and BigGAN-deep. deep: whether stages have the blocks of the latter; its discriminator's first
    layer has a width of its own.
    """

    deep = False
    part = 0  # of a hierarchical z, of each stage

    def networks(
        self, side: int, channels: int, classes: int | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``GANRecipe``."""
        if self.architectures[0] != "sagan" and classes is None:
            raise ConfigError(
                "shares an embedding of classes, and this data has none; take sagan", argument="--model"
            )
        _, (first, *rest), _, _ = pyramid(side)
        doublings = len(rest)
        small = doublings < 4
        if doublings > 7:
            raise ConfigError(f"images of {side} pixels are too large", argument="--size")
        wide = (1, 2, 4, 8, 8, 16, 16, 16) if doublings > 5 else (1, 2, 4, 8, 16, 16)
        judged = (4,) * (3 if self.deep else 4) if small else wide[1 if self.deep else 0 : doublings + 1]
        # Where the image has half its side, 64 pixels at most, as the papers have it.
        attended = [i for i in range(doublings - 1) if first << (i + 1) <= 64][-1:]
        generator: dict[str, Any] = {
            "out_channels": channels,
            "bottom": first,
            "multipliers": (4,) * (doublings + 1) if small else MULTIPLIERS[doublings - 4],
            "num_classes": classes,
            "attention": attended,
        }
        if self.part:
            generator["latent"] = self.part * (doublings + 1)
        discriminator = {
            "in_channels": channels,
            "size": side,
            "multipliers": judged,
            "halvings": min(2, doublings) if small else doublings,
            "num_classes": classes,
            "attention": [0] if side % 4 == 0 and doublings > 1 else [],
        }
        return generator, discriminator


class SAGANRecipe(ResidualRecipe):
    """Zhang et al. 2019, section 4: hinge loss, two learning rates."""

    architectures = ("sagan", "sagan_discriminator")
    objective_defaults: Mapping[str, Any] = {"gan_loss": "hinge", "beta1": 0.0, "beta2": 0.9, "d_lr": 4.0}
    run_defaults: Mapping[str, Any] = {**GANRecipe.run_defaults, "batch_size": 64, "lr": 1e-4}


class BigGANRecipe(ResidualRecipe):
    """Brock et al. 2019, appendix C: hinge loss, two updates of the discriminator, orthogonal regularisation."""

    part = 20
    architectures = ("biggan", "biggan_discriminator")
    objective_defaults: Mapping[str, Any] = {
        "gan_loss": "hinge",
        "beta1": 0.0,
        "beta2": 0.999,
        "d_lr": 4.0,
        "updates": 2,
        "orthogonal": 1e-4,
    }
    run_defaults: Mapping[str, Any] = {
        **GANRecipe.run_defaults,
        "batch_size": 128,
        "lr": 5e-5,
        "ema_decay": 0.9999,
    }


class BigGANDeepRecipe(BigGANRecipe):
    """The same with BigGAN-deep."""

    part, deep = 0, True
    architectures = ("biggan_deep", "biggan_deep_discriminator")


# Channels of a generator's stages, by how often the image is doubled: 4, 5, 6, 7 (Brock et al. 2019, tables 4-6).
MULTIPLIERS = (
    (16, 16, 8, 4, 2),
    (16, 16, 8, 4, 2, 1),
    (16, 16, 8, 8, 4, 2, 1),
    (16, 16, 8, 8, 4, 2, 1, 1),
)


def pyramid(side: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(widths, kernels, strides, paddings) of a generator of images of `side` pixels: doublings from 4 to 7 pixels."""
    first, doublings = side, 0
    while first % 2 == 0 and first > 7:
        first, doublings = first // 2, doublings + 1
    if not 2 <= first <= 7 or doublings < 1:
        raise ConfigError(
            f"images of {side} pixels are not a small side doubled; take --size 28, 32, 64 or another one of 4 to 7 "
            "times a power of two",
            argument="--size",
        )
    widths = tuple(64 * 2**i for i in reversed(range(doublings)))
    return widths, (first, *[4] * doublings), (1, *[2] * doublings), (0, *[1] * doublings)


def mean_distance(images: Tensor) -> float:
    """The root mean square difference per element of two of `images` [n, ...], over all pairs; 0 for a single one."""
    rows = images.double().flatten(1)
    count = len(rows)
    if count < 2:
        return 0.0
    import torch

    return float(torch.pdist(rows).mean() / rows.shape[1] ** 0.5)


RECIPES: dict[str, Recipe] = {
    "dcgan": GANRecipe(),
    "wgan_gp": WGANRecipe(),
    "sagan": SAGANRecipe(),
    "biggan": BigGANRecipe(),
    "biggan_deep": BigGANDeepRecipe(),
}
