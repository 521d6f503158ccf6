"""How ``fastgen train`` makes and trains a model. Importing it needs no PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .family import Flag
from .values import integers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..checkpoint import Part, Spec
    from ..training.batch import Dataset
    from ..training.objective import Objective
    from ..training.run import Run
    from ..training.settings import RunConfig

WIDTHS = Flag(
    "--widths",
    {
        "type": integers,
        "help": "channels of a unet, finest level first (default 32,64,96), or of the networks in a flow's couplings",
    },
)
OPTION = Flag(
    "--option",
    {
        "action": "append",
        "metavar": "NAME=VALUE",
        "help": "a field of the model's configuration, as steps_per_scale=8 or hidden_channels=64,96; "
        "repeatable",
    },
)
PAIRS = (  # flags of a recipe that trains on pairs of images
    Flag("--target", {"help": "folder of targets: the images of the same names as those of --data"}),
    Flag("--side-by-side", {"action": "store_true", "help": "each file is a pair: input left, target right"}),
)
GAN_LOSS = Flag(
    "--gan-loss",
    {"help": "minimax, non-saturating, lsgan, hinge or, of GANs, wasserstein (default: the paper's)"},
)
PREVIEW_SAMPLES = 32  # on a sheet of a model without classes
PREVIEW_ROWS = 4  # of each class
PREVIEW_COLUMNS = 16  # at most: classes of a sheet


class Recipe:
    """How one model is made and trained; a family has one per architecture that can be trained.

    A subclass says what differs; its modules import what needs PyTorch within functions.
    """

    flags: ClassVar[Sequence[Flag]] = ()  # that only some models have; `PAIRS` for one that trains on pairs
    # Fields of RunConfig that differ from its own defaults.
    run_defaults: Mapping[str, Any] = {}
    refused: Sequence[str] = ()  # flags of every run that mean nothing to this model, such as "--flip"
    parts: int | None = 1  # networks of a run, auxiliary ones too; None: as many as `new_spec` says
    previews: bool = True  # whether sheets are drawn during a run

    def defaults(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """`run_defaults`, where these depend on flags."""
        return self.run_defaults

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """The model that `args` ask for, of the data's shape and classes. Raises ConfigError or DataError.

        args: those of this recipe's flags that the user has given, and no others of its flags.
        """
        raise NotImplementedError

    def auxiliary(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> dict[str, Part]:
        """Networks that are trained with the model and are no part of it, such as a discriminator, by name."""
        return {}

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Objective:
        """What trains `networks`, the parts of the run's model and its auxiliary ones. Raises FastgenError."""
        raise NotImplementedError

    def gauge(self, engine: Any, dataset: Dataset) -> dict[str, float]:
        """Numbers that a preview adds to ``previews/gauge.csv``, the same ones every time; none by default."""
        return {}

    def sheet(self, engine: Any, dataset: Dataset) -> tuple[Tensor, int]:
        """What a preview shows, by the same seeds and labels every time: images [N, C, H, W] in [-1, 1], columns."""
        classes = engine.settings.num_classes
        if classes is None:
            return engine.sample(PREVIEW_SAMPLES, seed=0), 8
        columns = min(classes, PREVIEW_COLUMNS)
        labels = [i % classes for i in range(PREVIEW_ROWS * columns)]
        return engine.sample(len(labels), seed=0, labels=labels), columns
