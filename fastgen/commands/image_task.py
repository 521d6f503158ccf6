"""What commands that make an image of an image share: files and folders, what is done already, errors of single files.

``fastgen translate | stylize | upscale INPUT... -o OUT``: OUT is a file for one INPUT, or a folder. A file that cannot
be read or written is reported and the others are done; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, FastgenError, WriteError
from ..files import check_writable, held, make_folder, remove_leftovers
from .arguments import counted, load_model, one_line, positive
from .image_log import RECORD, ImageLog, differences
from .outputs import add_reporting, check_free

if TYPE_CHECKING:
    from torch import Tensor

    from ..families import Family
    from ..image_files import ImageFile

SHEET_PAIRS = 16
SHEET_CELL = 256  # pixels a side

Work = Callable[[list["ImageFile"]], "Sequence[Tensor]"]
Read = Callable[["Task"], "ImageFile"]


@dataclass(frozen=True)
class Task:
    """One image to make: of `source` the file `target`."""

    source: Path
    target: Path


@dataclass
class Outcome:
    """What became of the tasks: `done` now, `skipped` because they were done before, `failed` with the reason."""

    done: list[Task] = field(default_factory=list)
    skipped: list[Task] = field(default_factory=list)
    failed: list[tuple[Task, str]] = field(default_factory=list)
    seconds: float = 0.0


def add_image_files(parser: argparse.ArgumentParser, *, batch: int = 1) -> None:
    """The arguments that say which images become which files. batch: the default of --batch."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image files, folders of them")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="a file (.png, .jpg, .webp, .tif) for one image, or a folder",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "tif"),
        help="of files in a folder (default: each as its input, .png for what is not written)",
    )
    parser.add_argument("--batch", type=positive, default=batch, help=f"images at a time (default {batch})")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help=f"also a sheet of the first {SHEET_PAIRS}: before, after"
    )
    add_reporting(parser)


def load_engine(args: argparse.Namespace, family: str) -> Any:
    """The engine of the model that `args` name, of `family`. Raises ConfigError for one of another family."""

    def accept(found: Family) -> None:
        if found.name != family:
            raise ConfigError(
                f"is a {found.name} model; this command takes {family} models", argument=args.model
            )

    return load_model(args, accept)[1]


def record_of(engine: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on, for :func:`run_tasks`: the weights, their type, the command's settings."""
    facts = engine.metadata(SimpleNamespace(to_dict=lambda: dict(settings)))
    # Weights are told by their sha256, wherever the model lies.
    return {name: value for name, value in facts.items() if name not in ("fastgen", "model")}


def digest(path: Path) -> str:
    """The sha256 of a file that results depend on, for their record."""
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan(args: argparse.Namespace, beside: Sequence[Path] = ()) -> list[Task]:
    """What is to be made, in order. Raises ConfigError or DataError where names do not say that, before any work.

    beside: other files that are read, and must not be replaced, as the image of a style.
    """
    from ..image_files import WRITTEN, written_format

    out: Path = args.out
    single = len(args.inputs) == 1 and not args.inputs[0].is_dir() and not out.is_dir() and bool(out.suffix)
    if single:
        if args.format is not None:
            raise ConfigError(
                "belongs to a folder; the name of a single file says its format", argument="--format"
            )
        written_format(out)
        tasks = [Task(args.inputs[0], out)]
        check_free([out], args.overwrite)
    else:
        if out.suffix.lower() in WRITTEN and not out.is_dir():
            raise ConfigError("is a single file; several images need a folder", argument="--out")
        tasks = [
            Task(source, out / _named(name, args.format, WRITTEN))
            for source, name in _sources(args.inputs, out)
        ]
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {out.absolute().parent}", argument="--out")
    if out.exists() and not single and not out.is_dir():
        raise ConfigError("is a file; give a folder", argument="--out")
    made: dict[Path, Path] = {}
    for task in tasks:
        for path in (task.source, *beside):
            if _same_file(path, task.target):
                raise ConfigError("would be replaced by a result; choose another --out", argument=path)
        if task.target in made:
            raise ConfigError(
                f"{made[task.target]} and {task.source} would both become {task.target}; give them one by one, or "
                "another --format",
                argument="--out",
            )
        made[task.target] = task.source
    if args.sheet is not None:
        written_format(args.sheet)
        files = [*beside, *(path for task in tasks for path in (task.source, task.target))]
        if any(_same_file(args.sheet, path) for path in files):
            raise ConfigError("is one of the images; choose another name", argument="--sheet")
        if not args.sheet.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {args.sheet.absolute().parent}", argument="--sheet")
        check_writable(args.sheet.absolute().parent)
    return tasks


def _same_file(one: Path, other: Path) -> bool:
    """Whether two names are of one file, or will be."""
    if one.absolute() == other.absolute():
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there, or may not be looked at: its reader says so
        return False


def _sources(inputs: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """Every image, with its name below the output folder. What lies in that folder itself is left out."""
    from ..image_files import SUFFIXES
    from ..image_folders import image_paths

    for path in inputs:
        if not path.is_dir():
            yield path, Path(path.name)
            continue
        if path.resolve() == out.resolve():
            raise ConfigError("is the folder of the images themselves; choose another", argument="--out")
        own = out.resolve() if path.resolve() in out.resolve().parents else None  # of earlier results
        images = [
            file
            for file in image_paths(path, SUFFIXES)
            if own is None or own not in (file.parent.resolve(), *file.parent.resolve().parents)
        ]
        if not images:
            raise DataError("holds only the results of earlier runs", argument=path)
        yield from ((file, file.relative_to(path)) for file in images)


def _named(name: Path, form: str | None, written: Mapping[str, str]) -> Path:
    if form is not None:
        return name.with_suffix(f".{form}")
    return name if name.suffix.lower() in written else name.with_suffix(".png")


def run_tasks(
    args: argparse.Namespace,
    tasks: Sequence[Task],
    work: Work,
    *,
    record: Mapping[str, Any],
    what: str,
    device: Any,
    channels: int = 3,
    max_pixels: int | None = None,
    factor: float = 1.0,
) -> int:
    """Make the images of `tasks` by `work`, report, and return the exit code.

    work: images as they were read, at most --batch -> their results in order, float [C, H, W] in [-1, 1] or uint8, on
        any device. What it raises of FastgenError is the error of one file, told by trying them one by one.
    record: what the results depend on, as JSON: images that a run with the same record has made of the same sources
        are skipped; a folder of another record is refused without --overwrite. what: for people, "zoo:x, scale 4".
    channels, max_pixels: see ``read_image_file``. factor: by which results are larger than their sources, which a
        format may have no room for.
    """
    folder = None if len(tasks) == 1 and tasks[0].target == args.out else args.out

    def read(task: Task) -> ImageFile:
        from ..image_files import MAX_PIXELS, read_image_file, written_format
        from ..images import check_side

        image = read_image_file(task.source, channels, max_pixels=max_pixels or MAX_PIXELS)
        height, width = (round(side * factor) for side in image.size)
        check_side((width, height), written_format(task.target), task.target)  # before any work
        return image

    with _output(args, folder, tasks, record) as log:
        outcome = _make(args, tasks, log, read, work)
        sheet_failed = _try_sheet(args, tasks, outcome, log)
    _report(args, outcome, what, device)
    return 1 if outcome.failed or sheet_failed else 0


def _make(
    args: argparse.Namespace,
    tasks: Sequence[Task],
    log: ImageLog | None,
    read: Read,
    work: Work,
) -> Outcome:
    from tqdm import tqdm

    outcome, begun = Outcome(), time.perf_counter()
    bar = tqdm(total=len(tasks), unit="image", disable=args.quiet or len(tasks) == 1)
    with bar:
        for at in range(0, len(tasks), args.batch):
            group = tasks[at : at + args.batch]
            keep = log is not None and not args.overwrite
            before = [
                task for task in group if keep and log is not None and log.done(task.target, task.source)
            ]
            outcome.skipped += before
            wanted = [task for task in group if task not in before]
            for task, result in _group(wanted, log, read, work):
                if isinstance(result, FastgenError):
                    outcome.failed.append((task, str(result)))
                    with bar.external_write_mode(file=sys.stderr):
                        print(f"fastgen: {_named_error(task, result)}", file=sys.stderr)
                else:
                    outcome.done.append(task)
            bar.update(len(group))
    outcome.seconds = time.perf_counter() - begun
    return outcome


def _group(
    tasks: Sequence[Task], log: ImageLog | None, read: Read, work: Work
) -> Iterator[tuple[Task, FastgenError | None]]:
    """Read, make and write some images; each task with its error, None where there is none."""
    from ..image_files import write_image_file

    images: list[tuple[Task, ImageFile]] = []
    for task in tasks:
        try:
            images.append((task, read(task)))
        except (DataError, ConfigError) as error:
            yield task, error
    try:
        results = list(work([image for _, image in images])) if images else []
    except FastgenError as error:
        if len(images) == 1:
            yield images[0][0], error
            return
        for task, _ in images:  # one by one: the others are right
            yield from _group([task], log, read, work)
        return
    for (task, image), result in zip(images, results, strict=True):
        try:
            make_folder(task.target.parent, parents=True)
            if log is not None:
                log.add(task.target, task.source, done=False)
            write_image_file(result, task.target, image)
            if log is not None:
                log.add(task.target, task.source, done=True)
        except (WriteError, ConfigError) as error:
            yield task, error
        else:
            yield task, None


@contextmanager
def _output(
    args: argparse.Namespace, folder: Path | None, tasks: Sequence[Task], record: Mapping[str, Any]
) -> Iterator[ImageLog | None]:
    """Within the block images can be written; yields the folder's log, None for a single file.

    Raises ConfigError where the folder holds anything that these images would replace, unless --overwrite says so; and
    WriteError.
    """
    sheets = [args.sheet] if args.sheet is not None else []
    if folder is None:
        check_free(sheets, args.overwrite)
        check_writable(args.out.absolute().parent)
        remove_leftovers(args.out.absolute().parent, [args.out.name])
        yield None
        return
    make_folder(folder)
    with held(folder) as alone:
        if not alone:
            raise ConfigError(
                "another process writes into it; wait, or choose another folder", argument=folder
            )
        check_writable(folder)
        log = ImageLog(folder, record, args.overwrite)
        there = [path for path in (*(task.target for task in tasks), *sheets) if os.path.lexists(path)]
        if log.earlier is not None and not log.same and not args.overwrite:
            raise ConfigError(
                f"holds images made otherwise ({differences(log.earlier, record)}); choose another folder, or "
                "--overwrite",
                argument=folder,
            )
        if (others := [path for path in there if not log.made(path)]) and not args.overwrite:
            raise ConfigError(
                f"holds {counted(len(others), 'file')} of these names that no such run has made, the first is "
                f"{others[0].name}; choose another folder, or --overwrite",
                argument=folder,
            )
        for parent in {task.target.parent for task in tasks}:
            remove_leftovers(parent, [RECORD, *(task.target.name for task in tasks)])
        yield log


def _named_error(task: Task, error: FastgenError) -> str:
    """An error's message with the file that it is about in front."""
    text = str(error)
    named = str(task.source) in text or str(task.target) in text
    return one_line(text if named else f"{task.source}: {text}")


def _try_sheet(
    args: argparse.Namespace, tasks: Sequence[Task], outcome: Outcome, log: ImageLog | None
) -> bool:
    """Write the sheet, if one was asked for; whether that failed, which is reported."""
    made = {*outcome.done, *outcome.skipped}
    if args.sheet is None or not made:
        return False
    try:
        if log is not None:
            log.add(args.sheet, None, done=False)
        _write_sheet(args.sheet, [task for task in tasks if task in made][:SHEET_PAIRS])
    except FastgenError as error:
        print(f"fastgen: {one_line(f'{args.sheet}: {error}')}", file=sys.stderr)
        return True
    return False


def _write_sheet(path: Path, pairs: Sequence[Task]) -> None:
    """Before and after, side by side, each scaled into a cell."""
    import torch

    from ..image_files import read_image_file
    from ..images import save_grid

    files = [file for task in pairs for file in (task.source, task.target)]
    cells = [_cell(read_image_file(file, max_pixels=1 << 40)) for file in files]
    captions = [name for task in pairs for name in (task.source.name, "")]
    columns = 2 if len(pairs) <= 4 else 4
    save_grid(torch.stack(cells), path, columns=columns, captions=captions)


def _cell(image: ImageFile) -> Tensor:
    """The image, scaled to fit a square cell, on grey."""
    import torch
    from torch.nn import functional as F

    height, width = image.size
    factor = SHEET_CELL / max(height, width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    fitted = F.interpolate(image.tensor()[None], size, mode="bilinear", antialias=True)[0]
    top, left = (SHEET_CELL - size[0]) // 2, (SHEET_CELL - size[1]) // 2
    cell = torch.full((len(fitted), SHEET_CELL, SHEET_CELL), -0.75, dtype=torch.float32, device="cpu")
    cell[:, top : top + size[0], left : left + size[1]] = fitted
    return cell


def _report(args: argparse.Namespace, outcome: Outcome, what: str, device: Any) -> None:
    places = [args.out, *([args.sheet] if args.sheet is not None else [])]
    if args.json:
        facts = {
            "files": [str(task.target) for task in outcome.done],
            "skipped": [str(task.target) for task in outcome.skipped],
            "failed": [{"file": str(task.source), "reason": reason} for task, reason in outcome.failed],
            "sheet": None if args.sheet is None else str(args.sheet),
            "device": str(device),
            "seconds": round(outcome.seconds, 3),
        }
        print(json.dumps(facts))
        return
    count = len(outcome.done)
    speed = f"{outcome.seconds:.1f} s" + (f", {count / outcome.seconds:.2f} images/s" if count > 1 else "")
    parts = [f"{counted(count, 'image')}, {what} on {device}: {speed}"]
    if outcome.skipped:
        parts.append(f"{len(outcome.skipped)} done before")
    if outcome.failed:
        names = ", ".join(str(task.source) for task, _ in outcome.failed[:5])
        parts.append(f"{len(outcome.failed)} failed: {names}" + (", ..." if len(outcome.failed) > 5 else ""))
    print(one_line(f"{'; '.join(parts)} -> {', '.join(map(str, places))}"))
