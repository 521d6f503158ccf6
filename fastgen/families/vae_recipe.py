"""How a variational autoencoder is made and trained (``fastgen train --model vae | vector_vae | hvae``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .family import Flag, given
from .recipe import OPTION, Recipe
from .values import assignments

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..training.batch import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig
    from ..training.vae import Variational

FLAGS = (
    OPTION,
    Flag("--loss", {"help": "elbo, beta or tcvae (default elbo)"}),
    Flag(
        "--beta", {"type": float, "help": "weight of the KL, of tcvae of the total correlation (default 1)"}
    ),
    Flag("--free-bits", {"type": float, "help": "nats of each latent that cost nothing (default 0)"}),
    Flag(
        "--anneal",
        {"type": int, "metavar": "STEPS", "help": "steps in which the KL's weight grows to 1 (default 0)"},
    ),
    Flag(
        "--shift",
        {"type": int, "metavar": "PIXELS", "help": "move images at random by up to so many (default 0)"},
    ),
    Flag(
        "--temperature",
        {
            "type": float,
            "help": "of samples that are drawn without one: factor of the prior's deviations (default 1)",
        },
    ),
)
OF_THE_DATA = ("sample_size", "in_channels", "levels", "features", "num_classes")
# What differs from the configurations' defaults, which are disentangling-vae's.
OWN: dict[str, dict[str, Any]] = {"vae": {"likelihood": "logistic"}, "hvae": {}, "vector_vae": {}}


class VAERecipe(Recipe):
    """A VAE of images, or with `model` vector_vae of rows of a table."""

    flags = FLAGS
    run_defaults: Mapping[str, Any] = {"weight_decay": 0.0, "label_dropout": 0.0}

    def __init__(self, model: str) -> None:
        vectors = model == "vector_vae"
        self.model, self.previews = model, not vectors
        if vectors:
            self.run_defaults = {**self.run_defaults, "precision": "fp32"}
        self.refused = ("--label-dropout", *(("--flip", "--size", "--channels") if vectors else ()))

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..architectures import ARCHITECTURES
        from ..checkpoint import Part, Spec
        from ..engines.vae.request import VAESettings
        from ..training.vae import VariationalConfig

        rows, vectors = len(dataset.shape) == 1, self.model == "vector_vae"
        if rows != vectors:
            takes, takers = ("rows of a table", "vector_vae") if rows else ("images", "vae or hvae")
            raise DataError(
                f"holds {takes}; --model {takers} is trained on them, not {self.model}", argument=config.data
            )
        if rows and hasattr(args, "preview_every") and args.preview_every:
            raise ConfigError(
                "a preview is a sheet of images, and a vector_vae draws rows of numbers",
                argument="--preview-every",
            )
        kind = ARCHITECTURES[self.model].config
        flags = given(args, self.flags)
        options = assignments(flags.pop("option", []), kind, "--option")
        if decided := sorted(set(options) & set(OF_THE_DATA)):
            raise ConfigError("the data decides it; leave it out", argument=f"--option {decided[0]}")
        network = {**_of_the_data(dataset, self.model), **OWN[self.model], **options}
        network = to_dict(from_dict(kind, network, "train"))
        names = None if dataset.class_names is None else tuple(dataset.class_names)
        known = {"num_classes": dataset.num_classes, "class_names": names}
        if "temperature" in flags:
            known["temperature"] = flags.pop("temperature")
        settings = to_dict(from_dict(VAESettings, known, "train"))
        objective = to_dict(from_dict(VariationalConfig, flags, "train"))
        provenance = {**provenance, "objective": objective}
        return Spec("vae", {"vae": Part(self.model, network)}, settings, provenance)

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Variational:
        """See ``Recipe``."""
        from ..models.vae.vae import VAE
        from ..training.vae import VariationalConfig, variational

        (network,) = networks.values()
        assert isinstance(network, VAE)
        stated = run.spec.provenance.get("objective", {})
        return variational(network, from_dict(VariationalConfig, stated, "provenance.objective"), dataset)


def _of_the_data(dataset: Dataset, model: str) -> dict[str, Any]:
    """The fields of the model's configuration that the data decides, and what suits its images."""
    if len(dataset.shape) == 1:
        return {"features": dataset.shape[0], "num_classes": dataset.num_classes}
    channels, height, width = dataset.shape
    values = {"sample_size": [height, width], "in_channels": channels, "num_classes": dataset.num_classes}
    halvings = min((side & -side).bit_length() - 1 for side in (height, width))
    depth = min(halvings, 2 if model == "hvae" else 3 + (min(height, width) >= 64))
    if model == "vae":
        return {**values, "channels": [32] * depth}
    return {**values, "channels": [32, 64][:depth], "latents": [2, 8][:depth], "groups": [1] * depth}


RECIPES = {model: VAERecipe(model) for model in OWN}
