"""How a diffusion model of rows of numbers is made and trained (``fastgen train --model diffusion_mlp``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from . import denoising
from .family import given
from .recipe import OPTION, Recipe
from .values import assignments

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..training.batch import Dataset
    from ..training.diffusion import Denoising
    from ..training.run import Run
    from ..training.settings import RunConfig

# Fields of the configuration that are the user's; data and process decide the others.
OWN = ("hidden", "blocks", "frequencies")
EDM_TIME = 250.0  # c_noise = log(sigma) / 4 runs from about -1.5 to 1.1; log(sigma) four times as far
STEPS = 40


class DiffusionMLPRecipe(Recipe):
    """A perceptron that denoises rows of a table, of one class or several."""

    flags = (OPTION, *denoising.FLAGS)
    run_defaults: Mapping[str, Any] = {
        "weight_decay": 0.0,
        "precision": "fp32",
    }  # small perceptrons are slower in bf16
    refused = ("--flip", "--size", "--channels")
    previews = False

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..checkpoint import Part, Spec
        from ..engines.diffusion.settings import DiffusionSettings
        from ..models.diffusion_mlp import DiffusionMLPConfig
        from ..training.spread import standard

        if len(dataset.shape) != 1:
            raise DataError(
                "holds images; --model unet is trained on them, not diffusion_mlp", argument=config.data
            )
        if hasattr(args, "preview_every") and args.preview_every:
            raise ConfigError(
                "a preview is a sheet of images, and a diffusion_mlp draws rows of numbers",
                argument="--preview-every",
            )
        options = assignments(given(args, [OPTION]).get("option", []), DiffusionMLPConfig, "--option")
        if decided := sorted(set(options) - set(OWN)):
            raise ConfigError(
                f"is none of {', '.join(OWN)}; data and process decide the others",
                argument=f"--option {decided[0]}",
            )
        shift, scale = standard(dataset)
        asked = denoising.chosen(args, dataset, (shift, scale), config.data)
        classes = dataset.num_classes
        scale_of = {"edm": EDM_TIME, "ve": EDM_TIME / 4}  # of a ve that is told log(sigma)
        network = {
            **options,
            "features": dataset.shape[0],
            "learned_variance": asked.variance is not None,
            "time_embedding_type": "fourier" if asked.tells_sigma else "positional",
            "time_scale": 1.0 if asked.tells_sigma else scale_of.get(asked.process, 1.0),
            "num_class_embeds": None if classes is None else classes + 1,  # the last is the null class
        }
        settings = DiffusionSettings(
            schedule=asked.schedule,
            num_classes=classes,
            null_class=classes,
            class_names=None if dataset.class_names is None else tuple(dataset.class_names),
            steps=STEPS,
            variance=asked.variance,
            value_range=None,
            shift=tuple(shift.tolist()),
            scale=tuple(scale.tolist()),
        )
        network = to_dict(from_dict(DiffusionMLPConfig, network, "train"))
        provenance = denoising.of_provenance(provenance, asked.loss)
        return Spec("diffusion", {"network": Part("diffusion_mlp", network)}, to_dict(settings), provenance)

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Denoising:
        """See ``Recipe``."""
        return denoising.objective(run)
