"""How a diffusion model with a U-Net is made and trained (``fastgen train --model unet``)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from . import denoising, distill_recipe
from .family import Flag, given
from .recipe import WIDTHS, Recipe

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Part, Spec
    from ..training.batch import Dataset
    from ..training.diffusion import Denoising
    from ..training.distillation import Distillation
    from ..training.run import Run
    from ..training.settings import RunConfig

DEFAULTS: dict[str, Any] = {
    "widths": (32, 64, 96),
    "layers": 1,
    "attention": 0,
    "dropout": 0.0,
}


class UNetRecipe(Recipe):
    """A U-Net that denoises images, of one class or several; with a teacher, one that needs few steps."""

    parts = None  # one, and the teacher
    flags = (
        *distill_recipe.FLAGS,
        WIDTHS,
        Flag("--layers", {"type": int, "help": "residual blocks per level (default 1)"}),
        Flag(
            "--attention",
            {
                "type": int,
                "help": "how many of the coarsest levels attend (default 0; the middle always does)",
            },
        ),
        Flag("--dropout", {"type": float, "help": "share of activations dropped (default 0)"}),
        *denoising.FLAGS,
    )

    def defaults(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """See ``Recipe``."""
        if "teacher" in given(args, self.flags):
            return distill_recipe.RUN_DEFAULTS
        return self.run_defaults

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..checkpoint import Part, Spec
        from ..engines.diffusion.settings import DiffusionSettings
        from ..models.unet import UNetConfig

        if len(dataset.shape) != 3:
            raise DataError(
                "a unet is trained on images, these are rows of numbers; --model diffusion_mlp and --model vector_flow "
                "take them",
                argument=config.data,
            )
        if config.teacher is not None:
            known = (*distill_recipe.FLAGS, denoising.LOSS_WEIGHTING)
            others = [flag for flag in self.flags if flag not in known]
            return distill_recipe.new_spec(args, others, dataset, config, provenance)
        if alone := [f.name for f in distill_recipe.FLAGS if f.dest in given(args, distill_recipe.FLAGS)]:
            raise ConfigError("belongs to --teacher", argument=", ".join(alone))
        chosen = DEFAULTS | given(args, self.flags)
        channels, height, width = dataset.shape
        classes, widths = dataset.num_classes, chosen["widths"]
        levels, common = len(widths), math.gcd(*widths)
        if not 0 <= chosen["attention"] <= levels:
            raise ConfigError(
                f"expected 0 to {levels} (levels), got {chosen['attention']}", argument="--attention"
            )
        attended = [i >= levels - chosen["attention"] for i in range(levels)]
        asked = denoising.chosen(args, dataset, None, config.data)
        unet = {
            "sample_size": [height, width],
            "in_channels": channels,
            "out_channels": channels if asked.variance is None else 2 * channels,
            "block_out_channels": list(widths),
            "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
            "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
            "layers_per_block": chosen["layers"],
            "attention_head_dim": math.gcd(common, 32),
            "norm_num_groups": math.gcd(common, 8),
            "dropout": chosen["dropout"],
            "num_class_embeds": None if classes is None else classes + 1,  # the last is the null class
            "time_embedding_type": "fourier" if asked.tells_sigma else "positional",
        }
        unet = to_dict(from_dict(UNetConfig, unet, "train"))
        settings = DiffusionSettings(
            schedule=asked.schedule,
            num_classes=classes,
            null_class=classes,
            class_names=None if dataset.class_names is None else tuple(dataset.class_names),
            guidance_scale=1.0 if classes is None else 1.5,
            variance=asked.variance,
        )
        provenance = denoising.of_provenance(provenance, asked.loss)
        return Spec("diffusion", {"unet": Part("unet", unet)}, to_dict(settings), provenance)

    def auxiliary(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> dict[str, Part]:
        """See ``Recipe``: the teacher of a student."""
        return {} if config.teacher is None else distill_recipe.auxiliary(config)

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Denoising | Distillation:
        """See ``Recipe``."""
        if run.config.teacher is not None:
            return distill_recipe.objective(run)
        return denoising.objective(run)
