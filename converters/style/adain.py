"""naoto0804/pytorch-AdaIN: a folder with decoder.pth and vgg_normalised.pth.

vgg: a Sequential with convolutions at 0, 2, 5, ..., 29 up to relu4_1; those behind it are not run
decoder: a Sequential with convolutions at 1, 5, 8, ..., 28
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from fastgen.architectures import part_config
from fastgen.checkpoint import is_ours
from fastgen.config import from_dict
from fastgen.errors import CheckpointError
from fastgen.models.style.adain import AdaINTransferConfig

from .. import weights
from .folder import Piece, Source, both, channels_of, converter

ENCODER = ((2,), (5, 9), (12, 16), (19, 22, 25, 29))  # the convolutions of each level
DECODER = (1, 5, 8, 11, 14, 18, 21, 25, 28)
DEPTHS = (2, 2, 4)


def _layers(numbers: Iterable[int]) -> set[str]:
    return {f"{number}.{kind}" for number in numbers for kind in ("weight", "bias")}


def is_encoder(names: Iterable[str]) -> bool:
    """Whether these are names of the encoder, whole or cut off behind relu4_1."""
    return _layers([0, *(number for level in ENCODER for number in level)]) <= set(names)


def is_decoder(names: Iterable[str]) -> bool:
    """Whether these are names of the decoder."""
    return _layers(DECODER) == set(names)


def _config(shapes: Mapping[str, Mapping[str, tuple[int, ...]]], where: str) -> AdaINTransferConfig:
    channels = [channels_of(shapes, "encoder", f"{level[-1]}.weight", 0, where) for level in ENCODER]
    return from_dict(AdaINTransferConfig, {"channels": channels, "depths": list(DEPTHS)}, where)


def _names(config: AdaINTransferConfig) -> dict[str, tuple[str, str]]:
    names = {"encoder.colours": ("encoder", "0")}
    for i, level in enumerate(ENCODER):
        for j, number in enumerate(level):
            # In front of the last convolution of a level stands the pooling.
            place = 0 if i == 0 else 2 * j + (1 if j == len(level) - 1 else 0)
            names[f"encoder.levels.{i}.{place}"] = ("encoder", str(number))
    # Without their layers for padding.
    ours = (0, 3, 5, 7, 9, 12, 14, 17, 19)
    names |= {f"decoder.{i}": ("decoder", str(n)) for i, n in zip(ours, DECODER, strict=True)}
    return both(names)


def open_encoder(path: Path) -> tuple[AdaINTransferConfig, dict[str, Tensor]]:
    """The configuration of a network and the weights of its encoder, by their names in the encoder.

    path: an AdaIN model of fastgen's, a folder of pytorch-AdaIN, or its file with the encoder alone. Raises
    CheckpointError.
    """
    if path.is_dir():
        from .. import read_ours

        converted = read_ours(path, str(path)) if is_ours(path) else CONVERTER.read(path, None)
        ((part, network),) = converted.spec.parts.items()
        if network.architecture != "adain":
            raise CheckpointError(f"is a {network.architecture}, not an AdaIN model", argument=path)
        names = [name for name in converted.tensors.shapes if name.startswith(f"{part}.encoder.")]
        found = {name.removeprefix(f"{part}.encoder."): converted.tensors.get(name).clone() for name in names}
        return part_config(network, "parts"), found
    try:
        opened = weights.open_weights(weights.Found((path,)), is_encoder)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", argument=path) from error
    config = _config({"encoder": opened.shapes}, str(path))
    taken = {ours: theirs for ours, (piece, theirs) in _names(config).items() if piece == "encoder"}
    return config, {
        ours.removeprefix("encoder."): opened.get(theirs).clone() for ours, theirs in taken.items()
    }


CONVERTER = converter(
    Source(
        name="pytorch-adain",
        architecture="adain",
        about="naoto0804/pytorch-AdaIN: a folder with decoder.pth and vgg_normalised.pth",
        pieces={"encoder": Piece(is_encoder), "decoder": Piece(is_decoder)},
        config=_config,
        names=_names,
    )
)
