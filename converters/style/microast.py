"""EndyWon/MicroAST: a folder with the weights of two encoders, the modulator and the decoder, a file each.

The two encoders have the same tensors: "content_encoder" and "style_encoder" in the files' names tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastgen.config import from_dict
from fastgen.models.style.microast import MicroASTConfig

from .folder import Piece, Source, both, channels_of, converter

ENCODER = {
    **{f"first.{i}": f"enc1.{i}.conv_layer" for i in (0, 2, 4, 6, 8)},
    **{f"first.10.conv{i}": f"enc1.10.conv{i}.conv_layer" for i in (1, 2)},
    **{f"last.conv{i}": f"enc2.0.conv{i}.conv_layer" for i in (1, 2)},
}
MODULATOR = {
    f"{ours}.{i}": f"{theirs}{i + 1}.0.conv_layer"
    for ours, theirs in (("weights", "weight"), ("biases", "bias"))
    for i in (0, 1)
}
DECODER = {
    **{f"residual.{i}.conv{j}": f"dec{i + 1}.conv{j}.conv_layer" for i in (0, 1) for j in (1, 2)},
    **{f"decoder.{i}": f"dec3.{i}.conv_layer" for i in (1, 3, 6, 8, 10)},
}


def _piece(layers: Mapping[str, str], word: str = "") -> Piece:
    wanted = {f"{name}.{kind}" for name in layers.values() for kind in ("weight", "bias")}

    def recognises(names: Iterable[str]) -> bool:
        return wanted == set(names)

    return Piece(recognises, word)


def _config(shapes: Mapping[str, Mapping[str, tuple[int, ...]]], where: str) -> MicroASTConfig:
    channels = channels_of(shapes, "content encoder", "enc1.0.conv_layer.weight", 0, where)
    return from_dict(MicroASTConfig, {"channels": channels}, where)


def _names(config: MicroASTConfig) -> dict[str, tuple[str, str]]:
    names = {f"content_encoder.{ours}": ("content encoder", theirs) for ours, theirs in ENCODER.items()}
    names |= {f"style_encoder.{ours}": ("style encoder", theirs) for ours, theirs in ENCODER.items()}
    names |= {f"modulator.{ours}": ("modulator", theirs) for ours, theirs in MODULATOR.items()}
    names |= {ours: ("decoder", theirs) for ours, theirs in DECODER.items()}
    return both(names)


CONVERTER = converter(
    Source(
        name="microast",
        architecture="microast",
        about="EndyWon/MicroAST: a folder with the .pth.tar files of both encoders, the modulator and the decoder",
        pieces={
            "content encoder": _piece(ENCODER, "content_encoder"),
            "style encoder": _piece(ENCODER, "style_encoder"),
            "modulator": _piece(MODULATOR),
            "decoder": _piece(DECODER),
        },
        config=_config,
        names=_names,
    )
)
