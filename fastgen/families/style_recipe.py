"""How a network for style transfer is made and trained (``fastgen train --model adain``)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError, DataError
from .family import Flag, given
from .recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..checkpoint import Spec
    from ..models.style.adain import AdaINTransferConfig
    from ..training.batch import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig
    from ..training.style import StyleTransfer


class AdaINRecipe(Recipe):
    """A decoder for a VGG encoder that is given: contents from --data, styles from --styles."""

    flags = (
        Flag(
            "--styles",
            {"help": "folder of images whose styles are learned; those of --data are the contents"},
        ),
        Flag(
            "--encoder",
            {"help": "the encoder's weights: pytorch-AdaIN's vgg_normalised.pth, or an AdaIN model's folder"},
        ),
        Flag("--content-weight", {"type": float, "help": "weight of the content loss (default 1)"}),
        Flag("--style-weight", {"type": float, "help": "weight of the style loss (default 10)"}),
    )
    refused = ("--labels", "--subset", "--label-dropout")
    previews = False
    # pytorch-AdaIN's train.py.
    run_defaults: Mapping[str, Any] = {
        "steps": 160_000,
        "batch_size": 8,
        "lr": 1e-4,
        "warmup": 0,
        "grad_clip": 0.0,
        "save_every": 1000,
    }

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        """See ``Recipe``."""
        from ..checkpoint import Part, Spec
        from ..training.style import StyleLossConfig

        if len(dataset.shape) != 3 or dataset.shape[0] != 3:
            raise DataError("RGB images are needed, in a folder", argument=config.data)
        if config.styles is None:
            raise ConfigError("says which folder has the styles", argument="--styles")
        if config.encoder is None:
            raise ConfigError(
                "says where the encoder's weights are: pytorch-AdaIN's vgg_normalised.pth, or an AdaIN model's folder",
                argument="--encoder",
            )
        _styles(config, dataset)
        network, _ = _encoder(config.encoder)
        least = 2 ** len(network.depths) + 1
        if min(dataset.shape[1:]) < least:
            raise ConfigError(
                f"expected images of {least}x{least} at least, got {dataset.shape[1]}x{dataset.shape[2]}",
                argument="--size",
            )
        names = ("content_weight", "style_weight")
        chosen = given(args, self.flags)
        objective = from_dict(StyleLossConfig, {n: chosen[n] for n in names if n in chosen}, "train")
        recorded = {**provenance, "objective": to_dict(objective)}
        return Spec("style", {"network": Part("adain", to_dict(network))}, {}, recorded)

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> StyleTransfer:
        """See ``Recipe``."""
        from ..training.style import StyleLossConfig, StyleTransfer

        config = from_dict(StyleLossConfig, run.spec.provenance.get("objective", {}), "provenance.objective")

        def encoder() -> dict[str, Any]:
            assert run.config.encoder is not None
            return _encoder(run.config.encoder)[1]

        return StyleTransfer(config, _styles(run.config, dataset), encoder)


def _encoder(path: str) -> tuple[AdaINTransferConfig, dict[str, Tensor]]:
    """As ``open_encoder``. Raises CheckpointError that names the flag and the file."""
    from ..converters.style.adain import open_encoder

    try:
        return open_encoder(Path(path))
    except CheckpointError as error:
        raise CheckpointError(error, argument="--encoder") from error


def _styles(config: RunConfig, dataset: Dataset) -> Dataset:
    """The styles, of the contents' size. Raises DataError."""
    from ..training import data

    channels, height, width = dataset.shape
    assert config.styles is not None
    return data.load(config.styles, size=(height, width), channels=channels, background=config.background)


RECIPES = {"adain": AdaINRecipe()}
