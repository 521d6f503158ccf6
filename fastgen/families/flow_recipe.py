"""How a normalising flow is made and trained (``fastgen train --model glow | realnvp | nice | vector_flow``)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .family import given
from .recipe import OPTION, WIDTHS, Recipe
from .values import assignments

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..training.batch import Dataset
    from ..training.flow import MaximumLikelihood
    from ..training.run import Run
    from ..training.settings import RunConfig

# Decay would pull the scales of ActNorms and 1x1 convolutions towards 0, where they have no inverse.
RUN_DEFAULTS: dict[str, Any] = {"weight_decay": 0.0, "label_dropout": 0.0}
VECTOR_RUN_DEFAULTS = {**RUN_DEFAULTS, "precision": "fp32"}  # small perceptrons are slower in bf16
OF_THE_DATA = ("sample_size", "in_channels", "levels", "features", "num_classes", "context_features")
GREY_ALPHA = 1e-6
# What differs from the configurations' own defaults, which are the papers': what trains well in hours, not days.
GLOW = {"hidden_channels": (64,), "prior": "conv", "scale": "tanh", "rescale": True}
REALNVP = {"hidden_channels": (64,), "prior": "channel"}
VECTOR = {"layers": ("actnorm", "lu", "coupling"), "act_fn": "silu", "standardise": True}
OWN: dict[str, dict[str, Any]] = {"glow": GLOW, "realnvp": REALNVP, "nice": {}, "vector_flow": VECTOR}


class FlowRecipe(Recipe):
    """A flow of images, or with `model` vector_flow of rows of a table, trained by maximum likelihood."""

    flags = (
        WIDTHS,
        OPTION,
    )

    def __init__(self, model: str) -> None:
        vectors = model == "vector_flow"
        self.model, self.previews = model, not vectors
        self.run_defaults = VECTOR_RUN_DEFAULTS if vectors else RUN_DEFAULTS
        self.refused = ("--label-dropout", *(("--flip", "--size", "--channels") if vectors else ()))

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..architectures import ARCHITECTURES
        from ..checkpoint import Part, Spec
        from ..engines.flow.request import FlowSettings

        rows, vectors = len(dataset.shape) == 1, self.model == "vector_flow"
        if rows != vectors:
            takes, takers = (
                ("rows of a table", "vector_flow") if rows else ("images", "glow, realnvp or nice")
            )
            raise DataError(
                f"holds {takes}; --model {takers} is trained on them, not {self.model}", argument=config.data
            )
        if rows and hasattr(args, "preview_every") and args.preview_every:
            raise ConfigError(
                "a preview is a sheet of images, and a vector_flow draws rows of numbers",
                argument="--preview-every",
            )
        kind = ARCHITECTURES[self.model].config
        flags = given(args, self.flags)
        options = assignments(flags.get("option", []), kind, "--option")
        if decided := sorted(set(options) & set(OF_THE_DATA)):
            raise ConfigError("the data decides it; leave it out", argument=f"--option {decided[0]}")
        if "widths" in flags:
            name = "hidden_channels" if self.model in ("glow", "realnvp") else "hidden_features"
            if name in options:
                raise ConfigError(f"--option {name} is the same; give one of them", argument="--widths")
            options[name] = flags["widths"]
        values = {**_of_the_data(dataset, kind), **OWN[self.model], **options}
        network = to_dict(from_dict(kind, {k: _plain(v) for k, v in values.items()}, "train"))
        if "coupling" not in network.get("layers", ["coupling"]):
            print(
                "train: warning: --option layers has no coupling: without one a flow is an affine map, and fits "
                "one normal distribution",
                file=sys.stderr,
            )
        classes = network.get("num_classes")  # a NICE takes no labels
        names = None if dataset.class_names is None or classes is None else tuple(dataset.class_names)
        settings = to_dict(FlowSettings(num_classes=classes, class_names=names))
        return Spec("flow", {"flow": Part(self.model, network)}, settings, provenance)

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> MaximumLikelihood:
        """See ``Recipe``."""
        from ..models.flow.flow import Flow
        from ..training.flow import maximum_likelihood

        (network,) = networks.values()
        assert isinstance(network, Flow)
        return maximum_likelihood(network, run, dataset)


def _of_the_data(dataset: Dataset, kind: type) -> dict[str, Any]:
    """The fields of configuration `kind` that the data decides, and what suits its images."""
    names = {field.name for field in dataclasses.fields(kind)}
    classes = {"num_classes": dataset.num_classes} if "num_classes" in names else {}
    if len(dataset.shape) == 1:
        return {"features": dataset.shape[0], **classes}
    channels, height, width = dataset.shape
    values: dict[str, Any] = {
        "sample_size": (height, width),
        "in_channels": channels,
        "levels": 256,
        **classes,
    }
    if dataset.num_classes and classes:
        values |= {"class_priors": "all", "class_couplings": True}
    if "num_scales" in names:
        values["num_scales"] = _scales(height, width)
    # Flat areas, such as paper around a digit, are a narrow peak of the density, which a logit spreads.
    if channels == 1:
        values |= {"preprocessing": "logit", "alpha": GREY_ALPHA}
    return values


def _scales(height: int, width: int) -> int:
    """How often both sides can be halved, at most 3 times; 1 where they cannot, which the model refuses in words."""
    count = 0
    while count < 3 and height % 2 == width % 2 == 0:
        count, height, width = count + 1, height // 2, width // 2
    return max(count, 1)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


RECIPES = {model: FlowRecipe(model) for model in OWN}
