"""``fastgen sample``: samples from a model of any family, as images or as rows of numbers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import shown
from ..errors import ConfigError, FastgenError
from ..families import GIF, Family, Sampling
from ..families.family import given
from .arguments import add_model, flag_names, given_flags, integer_ranges, load_model
from .family_flags import add_owned_flags, every_flag, family_flags, refuse_others
from .layout import GIF_FRAMES, Layout, add_layout, is_sheet
from .outputs import (
    ARRAYS,
    TABLES,
    add_reporting,
    check_free,
    check_places,
    image_files,
    is_array,
    is_table,
    report,
    summary,
    write_gif,
    write_images,
    write_table,
    writing,
)

if TYPE_CHECKING:
    from torch import Tensor

COMMAND = "sample"
COUNT = 16


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
        type=Path,
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


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Draw as `args` ask; returns the exit code."""
    from ..streaming import compact, open_output

    started = time.perf_counter()
    flags = given(args, every_flag(COMMAND))
    gif = flags.pop("gif", None)
    kept = _kept(args, [*flags]) if args.like is not None else {}
    if not args.model:  # the image of --like knows
        args.model, args.revision = kept.get("model"), args.revision or kept.get("revision")
    args.dtype = args.dtype or kept.get("dtype")
    if not args.model:
        raise ConfigError("which MODEL? A folder, a hub id, or for a start: zoo:ddpm-mnist", argument="MODEL")
    if args.out is None:
        args.out = Path("sample.png") if args.like is None else args.like.with_stem(args.like.stem + "-again")
    check_places(args.out, gif, args.overwrite)

    def accept(family: Family) -> None:
        refuse_others(parser, args, COMMAND, family)
        if family.sampling is None:
            raise ConfigError(f"is a {family.name} model, which draws no samples", argument=args.model)

    family, engine = load_model(args, accept)
    sampling = family.sampling
    assert sampling is not None
    form = _form(args, engine.shape, gif)
    streamed = form == "numbers" or (form == "images" and gif is None)
    known = args.like is not None or args.seed is not None or args.seeds is not None
    if streamed and not known:
        args.seed = open_output(args.out).seed_to_go_on(args.overwrite)
    request = _request(args, kept, flags, sampling, engine)
    metadata = {**engine.metadata(request), "revision": args.revision}
    if args.like is not None and kept.get("sha256") != metadata["sha256"]:
        raise ConfigError(
            f"was drawn by weights with sha256 {shown(kept.get('sha256'))}, those of {args.model} have "
            f"{metadata['sha256']}",
            argument=args.like,
        )
    layout = None
    sampling.check(engine, request, form)
    if form in ("table", "numbers"):
        files, metadata["request"] = [args.out], compact(request)
    else:
        layout = Layout.chosen(args, kept.get("layout"), engine.shape[2])
        files = image_files(args.out, request.seeds)
        layout.check(args.out, request.labels, engine.shape[1:])
        if gif is not None:
            layout.check_gif(gif, len(request.seeds), engine.shape[1:], max(request.evaluations()))
        if not streamed:
            check_free(files, args.overwrite)

    loaded = time.perf_counter()
    unit, more_files = "row" if len(engine.shape) == 1 else "image", [gif] if gif else []
    seed = metadata["request"].get("seed")  # a table keeps none
    how = str(request) if seed is None else f"{request}, seed {seed}"
    hint = None if known else request.seeds[0]
    if streamed:
        kept_too = {"revision": args.revision}
        if layout is not None:
            kept_too["layout"] = dataclasses.asdict(layout)
        with writing([], f"{unit}s", hint):
            done = engine.draw_to(
                args.out, request, overwrite=args.overwrite, progress=_progress(args), metadata=kept_too
            )
        drawn = time.perf_counter()
        seconds = {"load": loaded - started, COMMAND: drawn - loaded}
        said = summary(done.drawn, unit, how, engine.device, drawn - loaded, [args.out])
        if there := len(request.seeds) - done.drawn:
            said += f" ({there} were there already)"
        report(metadata, said, as_json=args.json, device=engine.device, files=done.files, seconds=seconds)
        return 0
    samples, frames = _draw(engine, request, args, GIF in family.flags.get(COMMAND, ()), gif)
    drawn = time.perf_counter()
    if not samples.isfinite().flatten(1).all(1).any():
        raise FastgenError("no sample is finite (NaN or infinite); nothing is written", argument=args.model)
    with writing([*files, *more_files], f"{unit}s", hint):
        if layout is None:
            write_table(samples, args.out)
        else:
            write_images(samples, files, layout, metadata, request, sampling.class_names(engine))
            if gif is not None:
                write_gif(frames, gif, layout)
    seconds = {"load": loaded - started, COMMAND: drawn - loaded}
    said = summary(len(samples), unit, how, engine.device, drawn - loaded, [args.out, *more_files])
    files += more_files
    report(metadata, said, as_json=args.json, device=engine.device, files=files, seconds=seconds)
    return 0


def _kept(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """What the image of ``--like`` says of how it was made, checked: anybody may have written it.

    flags: names of the families' flags that were given, which would change the request.
    """
    from ..images import read_metadata

    names = [name for name in ("count", "labels") if getattr(args, name) is not None] + flags
    if names:
        raise ConfigError(f"repeats a request as it was; leave out {flag_names(names)}", argument="--like")
    kept = read_metadata(args.like)
    for name in ("model", "sha256", "dtype", "revision"):
        if not isinstance(kept.get(name, ""), str | None):
            raise ConfigError(
                f"its fastgen request is damaged: {name} is {shown(kept[name])}", argument=args.like
            )
    return kept


def _request(
    args: argparse.Namespace, kept: dict[str, Any], flags: dict[str, Any], sampling: Sampling, engine: Any
) -> Any:
    """What the image of ``--like`` asks for, whose metadata is `kept`, or what the command line asks for."""
    from ..engines.arguments import MAX_COUNT, written_labels

    if args.like is not None:
        return engine.request(**_kept_request(kept.get("request"), sampling, args.like))
    count = args.count
    if count is None:
        count = COUNT if args.seeds is None else len(args.seeds)
    if not 1 <= count <= MAX_COUNT:
        raise ConfigError(
            f"expected at least 1 and at most {MAX_COUNT}, got {shown(count)}", argument="--count"
        )
    classes: Sequence[int | str] | None = sampling.labels(engine)
    if args.labels is not None:
        classes = written_labels(args.labels, sampling.class_names(engine))
    repeated = None if classes is None else [classes[i % len(classes)] for i in range(count)]
    own = sampling.arguments(flags, count)
    return engine.request(count, seed=args.seed, seeds=args.seeds, labels=repeated, **own)


def _kept_request(request: Any, sampling: Sampling, path: Path) -> dict[str, Any]:
    """The request kept in the image `path`, as keyword arguments of ``engine.request``."""
    damaged = "its fastgen request is damaged, or of another kind of model"
    if not isinstance(request, dict) or not set(sampling.kept) <= set(request):
        raise ConfigError(f"{damaged}: expected {', '.join(sampling.kept)} in it", argument=path)
    if not isinstance(request["seeds"], list):  # else an untrusted count may follow
        raise ConfigError(f"{damaged}: expected a list of seeds", argument=path)
    if unknown := sorted(set(request) - {*sampling.kept, *sampling.may_keep()}):
        raise ConfigError(f"{damaged}: it asks for {shown(unknown[0])}", argument=path)
    return request


def _form(args: argparse.Namespace, shape: tuple[int, ...], gif: Path | None) -> str:
    """What samples of `shape` become, see ``Sampling.check``. Raises ConfigError where `args` do not fit them."""
    size, picture = "x".join(map(str, shape)), len(shape) == 3 and shape[0] in (1, 3)
    if is_table(args.out):
        if not is_array(args.out) and len(shape) != 1:
            raise ConfigError(
                f"samples of {size} are no rows; numbers of any shape are written to name"
                f"{' or name'.join(ARRAYS)}{', images to a sheet or a folder' if picture else ''}",
                argument="--out",
            )
        if not picture and args.like is not None:
            raise ConfigError(
                "no image keeps a request of this model, which draws numbers: give the --seed that was printed with "
                "them",
                argument="--like",
            )
        if wrong := given_flags(args, ("columns", "scale", "no_captions")) or ("--gif" if gif else ""):
            raise ConfigError("numbers have no sheet and no animation; leave it out", argument=wrong)
        return "numbers" if is_array(args.out) else "table"
    if not picture:
        raise ConfigError(
            f"samples of {size} are no grey or RGB images; write them as numbers: name"
            f"{' or name'.join(TABLES if len(shape) == 1 else ARRAYS)}",
            argument="--out",
        )
    return "sheet" if is_sheet(args.out) else "images"


def _progress(args: argparse.Namespace) -> bool:
    """Whether to show a bar."""
    return not (args.quiet or args.json) and sys.stderr.isatty()


def _draw(
    engine: Any, request: Any, args: argparse.Namespace, has_steps: bool, gif: Path | None
) -> tuple[Tensor, list[Tensor]]:
    """The samples, and where an animation is asked for, the states on the way. has_steps: see ``families.GIF``."""
    from ..images import to_pictures

    frames: list[Tensor] = []

    def keep(step: int, total: int, images: Tensor) -> None:
        if step % -(-total // GIF_FRAMES) == 0 or step == total:
            frames.append(images)

    options = {"callback": keep if gif else None, "progress": _progress(args)} if has_steps else {}
    samples = to_pictures(engine.draw(request, **options), engine.value_range)
    return samples, [to_pictures(frame, engine.value_range) for frame in frames]
