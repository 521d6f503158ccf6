"""Models that are a folder with one file for each part, and the converters made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen.checkpoint import Part, Spec
from fastgen.config import to_dict
from fastgen.errors import CheckpointError, ConfigError

from .. import weights
from ..base import Converted, Converter, Report, Tensors

SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
MOST = 64  # files of a folder that are looked into
SHOWN = 4  # that could not be read, in a message


@dataclass(frozen=True)
class Piece:
    """One file of a model.

    recognises(names): whether a state dict with these names is such a piece. word: what its file's name has in it,
    where another piece has the same tensors.
    """

    recognises: Callable[[Iterable[str]], bool]
    word: str = ""


@dataclass(frozen=True)
class Source:
    """One kind of model. pieces: by name.

    config(shapes, where): the configuration, from shapes by piece and name; CheckpointError where they do not fit.
    names(config): (piece, name in its file) by the names of the network's tensors. What the files hold besides, such
    as layers of an encoder that are not run, is reported.
    """

    name: str
    architecture: str
    about: str
    pieces: Mapping[str, Piece]
    config: Callable[[Mapping[str, Mapping[str, tuple[int, ...]]], str], Any]
    names: Callable[[Any], Mapping[str, tuple[str, str]]]


def converter(source: Source) -> Converter:
    """The converter of folders of `source`."""

    def detect(path: Path) -> bool:
        try:
            return path.is_dir() and any(_of(source, path)[0].values())
        except (CheckpointError, OSError, ValueError):
            return False

    def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
        if assume:
            raise ConfigError(
                f"{path} says everything itself, leave out {', '.join(assume)}", argument="assume"
            )
        report = Report(f"a network of {source.name} -> fastgen")
        pieces_found, failed = _of(source, path)
        files = {name: _only(name, found, path, failed) for name, found in pieces_found.items()}
        pieces = {
            name: weights.open_weights(
                weights.Found((file,)), source.pieces[name].recognises, report, variant
            )
            for name, file in files.items()
        }
        config = source.config({name: piece.shapes for name, piece in pieces.items()}, str(path))
        names = source.names(config)
        for name, piece in pieces.items():
            taken = {theirs for of, theirs in names.values() if of == name}
            if left := [theirs for theirs in piece.shapes if theirs not in taken]:
                report.ignored.append(
                    f"{files[name].name}: {len(left)} tensors of layers that are not run: {', '.join(left[:3])}"
                )
        report.renamed.append(f"{len(names)} tensors of {', '.join(file.name for file in files.values())}")
        digests = [weights.sha256(weights.Found((file,))) for file in files.values()]
        origin = {
            "converted_from": source.name,
            "weights": [file.name for file in files.values()],
            "sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        }
        if variant is not None:
            origin["variant"] = variant
        spec = Spec("style", {"network": Part(source.architecture, to_dict(config))}, {}, origin)
        return Converted(spec, _tensors(names, pieces, path), report)

    return Converter(source.name, source.about, detect, read)


def _of(source: Source, folder: Path) -> tuple[dict[str, list[Path]], dict[Path, str]]:
    """The files in `folder` that hold each piece, and why others could not be read."""
    failed: dict[Path, str] = {}
    found: dict[str, list[Path]] = {name: [] for name in source.pieces}
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    for path in files[:MOST]:
        for name, piece in source.pieces.items():
            if piece.word in path.name:
                try:
                    if weights.hold(weights.Found((path,)), piece.recognises):
                        found[name].append(path)
                except CheckpointError as error:  # said if a piece is missing in the end
                    failed[path] = str(error)
    return found, failed


def _only(name: str, found: list[Path], folder: Path, failed: Mapping[Path, str]) -> Path:
    if not found:
        unread = list(failed.values())[:SHOWN]
        why = f"; what could not be read: {'; '.join(unread)}" if unread else "; is the download complete?"
        raise CheckpointError(f"no file with the weights of the {name}{why}", argument=folder)
    if len(found) > 1:
        raise CheckpointError(
            f"several files with weights of the {name}: {', '.join(path.name for path in found[:8])}; leave one of "
            "them in the folder",
            argument=folder,
        )
    return found[0]


def _tensors(names: Mapping[str, tuple[str, str]], pieces: Mapping[str, Tensors], folder: Path) -> Tensors:
    for piece, theirs in names.values():
        if theirs not in pieces[piece].shapes:
            raise CheckpointError(f"{theirs} of the {piece} is missing; is the file whole?", argument=folder)
    ours = {f"network.{name}": place for name, place in names.items()}
    return Tensors(
        {name: pieces[piece].shapes[theirs] for name, (piece, theirs) in ours.items()},
        lambda name: pieces[ours[name][0]].get(ours[name][1]),
        str(folder),
        {
            name: pieces[piece].dtypes[theirs]
            for name, (piece, theirs) in ours.items()
            if theirs in pieces[piece].dtypes
        },
    )


def channels_of(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], piece: str, name: str, axis: int, where: str
) -> int:
    """Channels of a convolution's weight [out, in, k, k] on `axis`. Raises CheckpointError."""
    shape = shapes[piece].get(name)
    if shape is None or len(shape) != 4:
        raise CheckpointError(
            f"{name} of the {piece} is {'missing' if shape is None else f'of shape {list(shape)}'}, expected "
            "[out, in, height, width]",
            argument=where,
        )
    return shape[axis]


def both(names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Weights and biases of layers, from the layers' names."""
    return {
        f"{ours}.{kind}": (piece, f"{theirs}.{kind}")
        for ours, (piece, theirs) in names.items()
        for kind in ("weight", "bias")
    }
