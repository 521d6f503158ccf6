"""What commands write, and report: images on a sheet or in a folder, animations, tables. Checked before any work."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, WriteError
from ..files import check_writable, make_folder, remove_leftovers, write_atomic
from .arguments import counted
from .layout import Layout, is_sheet

if TYPE_CHECKING:
    from torch import Tensor

ARRAYS = (".npz", ".npy")  # for numbers of any shape
TABLES = (".csv", *ARRAYS)  # what rows of numbers are written as


def add_reporting(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what may be replaced, and what is printed."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def is_table(out: Path) -> bool:
    """Whether `out` is a file for rows of numbers, by its name."""
    return out.suffix.lower() in TABLES


def is_array(out: Path) -> bool:
    """Whether `out` is a file for numbers of any shape, by its name."""
    return out.suffix.lower() in ARRAYS


def _begun(out: Path, overwrite: bool) -> bool:
    """Whether `out` holds samples of an earlier run, which the same request would go on with."""
    from ..streaming import open_output

    return is_array(out) and os.path.isfile(out) and open_output(out).earlier(overwrite) is not None


def check_places(out: Path, gif: Path | None, overwrite: bool) -> None:
    """Whether names say what to write, nothing of the user's would be replaced, and files can be made there.

    Raises ConfigError or WriteError.
    """
    from ..images import FORMATS

    if gif is not None and gif.suffix.lower() != ".gif":
        raise ConfigError(f"expected a name that ends in .gif, got {gif}", argument="--gif")
    paths = [out] if gif is None else [out, gif]
    for path in paths:
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {path.absolute().parent}", argument=path)
        if path.is_dir() and (path is gif or is_sheet(path) or is_table(path)):
            raise ConfigError("is a folder", argument=path)
    if not (is_sheet(out) or is_table(out) or out.is_dir()) and (out.suffix or out.exists()):
        raise ConfigError(
            f"expected a sheet ({', '.join(FORMATS)}), numbers ({', '.join(TABLES)}) or a folder, got {out}; "
            "an animation is --gif FILE, and a new folder with a dot in its name has to be made first",
            argument="--out",
        )
    check_free([path for path in paths if path is gif or not _begun(path, overwrite)], overwrite)
    for path in paths:  # a new folder is made beside its place
        check_writable(path if path.is_dir() else path.absolute().parent)


def check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Whether nothing of the user's would be replaced. Raises ConfigError."""
    for path in paths:
        if os.path.lexists(path) and not path.is_dir() and not overwrite:  # a pipe, too, or a link to nothing
            raise ConfigError("exists already; choose another name, or --overwrite", argument=path)


def image_files(out: Path, seeds: Sequence[int]) -> list[Path]:
    """The sheet, or one file per sample."""
    from ..streaming import file_names

    return [out] if is_sheet(out) else [out / name for name in file_names(seeds)]


@contextmanager
def writing(files: Sequence[Path], what: str, seed: int | None) -> Iterator[None]:
    """The block writes `files`. First removes what killed runs left of them.

    seed: of the samples, which nobody but the program knows: a WriteError then says how to get the same `what` again.
    """
    for folder in {path.parent for path in files}:
        remove_leftovers(folder, [path.name for path in files])
    try:
        yield
    except WriteError as error:
        if seed is not None:
            error.args = (f"{error}. The same {what} again: --seed {seed}",)
        raise


def write_images(
    images: Tensor,
    files: Sequence[Path],
    layout: Layout,
    metadata: Mapping[str, Any],
    request: Any,
    class_names: Sequence[str] | None,
) -> None:
    """Write images, float [n, C, H, W] in [-1, 1], as a sheet or one per file, each with the request that repeats it.

    request: has `labels`, one per image, `only(i)` and `to_dict`; metadata: what else is kept in PNG files.
    """
    from ..images import save_grid, save_image

    metadata = {**metadata, "layout": dataclasses.asdict(layout)}
    if layout.single:
        make_folder(files[0].parent)
        for i, (image, path) in enumerate(zip(images, files, strict=True)):
            save_image(image, path, metadata={**metadata, "request": request.only(i).to_dict()})
        return
    captions = None
    if layout.captions and any(label is not None for label in request.labels):
        captions = [
            "" if label is None else class_names[label] if class_names else str(label)
            for label in request.labels
        ]
    (path,) = files
    save_grid(images, path, columns=layout.columns, captions=captions, scale=layout.scale, metadata=metadata)


def write_gif(frames: Sequence[Tensor], path: Path, layout: Layout) -> None:
    """Write sheets of [n, C, H, W] in [-1, 1] as an animation."""
    from ..images import save_gif

    save_gif(frames, path, columns=layout.columns, scale=layout.scale)


def write_table(rows: Tensor, path: Path) -> None:
    """Write rows [n, D] as ``fastgen train`` reads them: CSV with a line of names."""
    values = rows.float().numpy(force=True)
    names = ",".join(f"x{i + 1}" for i in range(values.shape[1]))
    lines = (",".join(f"{value:.9g}" for value in row) for row in values)  # 9 digits hold every float32
    write_atomic(path, ("\n".join([names, *lines]) + "\n").encode())


def report(
    facts: Mapping[str, Any],
    said: str,
    *,
    as_json: bool,
    device: Any,
    files: Sequence[Path],
    seconds: Mapping[str, float],
) -> None:
    """Print what was done: for people `said`, as JSON `facts`, `files` that were written, `device` and `seconds`."""
    timing = {name: round(value, 3) for name, value in seconds.items()}
    whole = {**facts, "files": list(map(str, files)), "device": str(device), "seconds": timing}
    print(json.dumps(whole) if as_json else said)


def summary(count: int, unit: str, how: str, device: Any, seconds: float, places: Sequence[Path]) -> str:
    """``16 images, ddim x 20 on cpu: 1.0 s, 16.0 images/s -> sample.png``; unit: "image" or "row"."""
    where = ", ".join(map(str, places))
    speed = f"{seconds:.1f} s, {count / seconds:.1f} {unit}s/s"
    return f"{counted(count, unit)}, {how} on {device}: {speed} -> {where}"
