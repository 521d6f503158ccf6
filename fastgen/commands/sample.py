"""``fastgen sample``: samples from a model of any family, as images or as rows of numbers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ConfigError, FastgenError
from ..families import Family
from ..families.family import given
from .arguments import add_model, integer_ranges, load_model
from .family_flags import add_owned_flags, every_flag, family_flags, refuse_others
from .layout import GIF_FRAMES, add_layout
from .outputs import (
    add_reporting,
    check_places,
    report,
    summary,
    write_gif,
    write_images,
    write_table,
    writing,
)
from .sample_task import COUNT, Task, complete, make_task, read_kept

if TYPE_CHECKING:
    from torch import Tensor

COMMAND = "sample"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        COMMAND,
        help="draw images or rows from a model",
        description="Draw samples. OUT decides what is written: a sheet (name.png, .jpg, .webp), a folder of single "
        "images, or numbers (.npz, .npy; .csv of rows). Folders, .npz and .npy take any number of samples; after a "
        "kill the same command goes on. PNG files keep their request: `fastgen sample --like image.png` repeats it.",
    )
    add_model(parser, optional=True)
    parser.add_argument(
        "-o",
        "--out",
        type=_place,
        help="sheet, folder, .npz or .npy for numbers of any shape, or .csv for rows (default sample.png)",
    )
    parser.add_argument("-n", "--count", type=int, help=f"how many (default: as many as seeds, else {COUNT})")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="sample k has seed SEED + k (default: random)")
    which.add_argument("--seeds", type=integer_ranges, metavar="0-63,99", help="the seeds themselves")
    which.add_argument("--like", type=Path, metavar="PNG", help="repeat the request kept in this file")
    parser.add_argument(
        "--labels", help="classes, names or numbers: 0-9 or 3,7 or ant,bee; repeated for all samples"
    )
    add_layout(parser)
    add_reporting(parser)
    add_owned_flags(parser, family_flags(COMMAND), "{} models")
    parser.set_defaults(run=partial(run, parser))


def _place(text: str) -> Path:
    """Where to write; `Path("")` would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError('expected a name, got ""; the current folder is .')
    return Path(text)


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Draw as `args` ask; returns the exit code."""
    started = time.perf_counter()
    flags = given(args, every_flag(COMMAND))
    gif = flags.pop("gif", None)
    kept = read_kept(args, [*flags]) if args.like is not None else {}
    complete(args, kept)
    check_places(args.out, gif, args.overwrite)

    def accept(family: Family) -> None:
        refuse_others(parser, args, COMMAND, family)
        if family.sampling is None:
            raise ConfigError(f"is a {family.name} model, which draws no samples", argument=args.model)

    family, engine = load_model(args, accept)
    task = make_task(args, kept, flags, gif, family, engine)
    loaded = time.perf_counter()
    written = _stream(task) if task.streamed else _draw_and_write(task)
    how, seed = str(task.request), task.metadata["request"].get("seed")  # a .csv file does not keep it
    if seed is not None:
        how += f", seed {seed}"
    places = [args.out, *([gif] if gif else [])]
    said = summary(written.drawn, task.unit, how, engine.device, written.seconds, places)
    if there := len(task.request.seeds) - written.drawn:
        said += f" ({there} were there already)"
    seconds = {"load": loaded - started, COMMAND: written.seconds}
    report(task.metadata, said, as_json=args.json, device=engine.device, files=written.files, seconds=seconds)
    return 0


class _Written(NamedTuple):
    """What has been done. seconds: of drawing."""

    files: list[Path]
    drawn: int
    seconds: float


def _stream(task: Task) -> _Written:
    """Draw and write batch by batch; where the place holds the beginning already, the rest."""
    args, began = task.args, time.perf_counter()
    kept = {"revision": args.revision}
    if task.layout is not None:
        kept["layout"] = dataclasses.asdict(task.layout)
    with writing([], f"{task.unit}s", task.hint):
        files, drawn = task.engine.draw_to(
            args.out, task.request, overwrite=args.overwrite, progress=_progress(args), metadata=kept
        )
    return _Written(files, drawn, time.perf_counter() - began)


def _draw_and_write(task: Task) -> _Written:
    """Draw all samples, then write them."""
    began = time.perf_counter()
    samples, frames = _draw(task)
    seconds = time.perf_counter() - began
    if not samples.isfinite().flatten(1).all(1).any():
        raise FastgenError(
            "no sample is finite (NaN or infinite); nothing is written", argument=task.args.model
        )
    files, gif, layout = task.files(), task.gif, task.layout
    every = [*files, *([gif] if gif else [])]
    with writing(every, f"{task.unit}s", task.hint):
        if layout is None:
            write_table(samples, task.args.out)
        else:
            write_images(samples, files, layout, task.metadata, task.request, task.class_names)
            if gif is not None:
                write_gif(frames, gif, layout)
    return _Written(every, len(samples), seconds)


def _progress(args: argparse.Namespace) -> bool:
    """Whether to show a bar."""
    return not (args.quiet or args.json) and sys.stderr.isatty()


def _draw(task: Task) -> tuple[Tensor, list[Tensor]]:
    """The samples, and where an animation is asked for, the states on the way."""
    from ..images import to_pictures

    frames: list[Tensor] = []

    def keep(step: int, total: int, images: Tensor) -> None:
        if step % -(-total // GIF_FRAMES) == 0 or step == total:
            frames.append(images)

    engine, options = task.engine, {}
    if task.has_steps:
        options = {"callback": keep if task.gif else None, "progress": _progress(task.args)}
    samples = to_pictures(engine.draw(task.request, **options), engine.value_range)
    return samples, [to_pictures(frame, engine.value_range) for frame in frames]
