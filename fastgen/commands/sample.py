"""``fastgen sample``: pictures from a model, as a sheet, single files or an animation."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..config import bounded, from_dict, shown
from ..errors import ConfigError, WriteError
from ..files import check_writable, make_folder, remove_leftovers
from . import sample_flow
from .arguments import add_model, integer_ranges, positive

if TYPE_CHECKING:
    from torch import Tensor

    from ..engines.diffusion.engine import DiffusionEngine
    from ..engines.diffusion.request import Request
    from ..engines.flow.request import FlowRequest

CELL = 64  # small pictures are enlarged on sheets and in animations, to about this many pixels
GIF_FRAMES = 60  # more are thinned out
REQUEST_OPTIONS = (
    "count",
    "labels",
    "solver",
    "steps",
    "guidance_scale",
    "guidance_interval",
    "guidance_sigmas",
    "guidance_rescale",
    "eta",
    "temperature",
)


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "sample",
        help="draw pictures from a model",
        description="Draw pictures. OUT decides what is written: a sheet (name.png, .jpg, .webp) or a folder of "
        "single files. PNG files remember their request: `fastgen sample --like picture.png` repeats it.",
    )
    add_model(parser)
    parser.add_argument(
        "-o", "--out", type=Path, help="sheet, folder, or .csv or .npz for rows (default sample.png)"
    )
    parser.add_argument("-n", "--count", type=int, help="how many (default: as many as seeds, else 16)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="sample k has seed SEED + k (default: random)")
    which.add_argument("--seeds", type=integer_ranges, metavar="0-63,99", help="the seeds themselves")
    which.add_argument("--like", type=Path, metavar="PNG", help="repeat the request kept in this file")
    parser.add_argument("--labels", help="classes, numbers or names: 0-9 or 3,7; repeated to fill the sheet")
    parser.add_argument(
        "--solver", help="see `fastgen info --solvers`; ddim,euler: in turn, repeated like labels"
    )
    parser.add_argument("--steps", help="network evaluations; 10,20: in turn")
    parser.add_argument("--guidance-scale", help="classifier-free guidance, 1 = none; 1,3: in turn")
    parser.add_argument(
        "--guidance-interval", metavar="A,B", help="guided only from A to B, fractions of the run: 0.2,0.8"
    )
    parser.add_argument(
        "--guidance-sigmas",
        metavar="A,B",
        help="guided only at noise levels above A, up to B: 0.3,5 or 0.3,inf",
    )
    parser.add_argument(
        "--guidance-rescale", type=float, help="of the guided output's spread, 0 to 1, 0 = none"
    )
    parser.add_argument("--eta", help="DDIM's noise, 0 to 1; 0,0.5: in turn")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the solver; repeatable",
    )
    parser.add_argument("--temperature", type=float, help="of a flow: below 1 closer to the mode (default 1)")
    parser.add_argument("--gif", type=Path, metavar="FILE", help="also write an animation of the denoising")
    parser.add_argument("--columns", type=positive, help="pictures a row of the sheet")
    parser.add_argument("--scale", type=positive, help="enlarge pictures of a sheet by this whole factor")
    parser.add_argument("--no-captions", action="store_true", help="no labels under the pictures of a sheet")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw as `args` ask; returns the exit code."""
    from ..api import load
    from ..engines.flow.engine import FlowEngine

    started = time.perf_counter()
    like = args.like is not None
    kept = _kept(args) if like else {}
    source = args.model or kept.get("model")
    if not source:
        raise ConfigError(
            "which MODEL? A folder, a hub id, or for a start: zoo:ddpm-mnist", argument="sample"
        )
    if args.out is None:
        args.out = Path("sample.png") if args.like is None else args.like.with_stem(args.like.stem + "-again")
    if not sample_flow.is_table(args.out):
        _check_names(args.out, args.gif)
    _check_free([args.out, *([args.gif] if args.gif else [])], args.overwrite)
    _check_places(args.out, args.gif)

    revision = args.revision or (None if args.model else kept.get("revision"))
    engine = load(
        source,
        device=args.device,
        dtype=args.dtype or kept.get("dtype", "auto"),
        revision=revision,
        local_files_only=args.local_files_only,
    )
    if isinstance(engine, FlowEngine):
        return sample_flow.run(args, engine, kept, started)
    if args.temperature is not None or sample_flow.is_table(args.out):
        raise ConfigError(
            f"{source} is no flow; --temperature and tables (.csv, .npz) are for flows", argument="sample"
        )
    request = engine.request(**(_kept_arguments(args, kept) if like else _arguments(args)))
    metadata = {**engine.metadata(request), "revision": revision}
    if like and kept.get("sha256") != metadata["sha256"]:
        raise ConfigError(
            f"was drawn by weights with sha256 {shown(kept.get('sha256'))}, those of {source} have "
            f"{metadata['sha256']}",
            argument=args.like,
        )
    layout = Layout.chosen(args, kept.get("layout"), engine.shape)
    if layout.single and request.coupled and len(request.seeds) > 1:
        raise ConfigError(
            f"--out {args.out}: step_size=batch makes each picture depend on those drawn with it, so that a file of "
            "its own could not repeat it; write a sheet (.png), or take step_size=sample"
        )
    evaluations = max(request.evaluations())
    _check_sheets(args.out, args.gif, layout, request, engine.shape, evaluations)
    pictures = _picture_files(args.out, request, layout)
    _check_free(pictures, args.overwrite)
    loaded = time.perf_counter()
    images, frames = _draw(engine, request, args)
    drawn = time.perf_counter()
    places = [*pictures, *([args.gif] if args.gif else [])]
    for folder in {path.parent for path in places}:
        remove_leftovers(folder, [path.name for path in places])  # of a run that was killed
    try:
        files = _write(
            images, frames, pictures, args.gif, layout, metadata, request, engine.settings.class_names
        )
    except WriteError as error:
        if not like and args.seed is None and args.seeds is None:  # else nobody could draw them again
            error.args = (f"{error}. The same pictures again: --seed {request.seeds[0]}",)
        raise
    report = {
        **metadata,
        "files": [str(f) for f in files],
        "device": str(engine.device),
        "seconds": {"load": round(loaded - started, 3), "sample": round(drawn - loaded, 3)},
    }
    if args.json:
        print(json.dumps(report))
    else:
        per_second = len(images) / (drawn - loaded)
        written = ", ".join(str(p) for p in (args.out, args.gif) if p)
        print(
            f"{len(images)} pictures, {request} on {engine.device}: "
            f"{drawn - loaded:.1f} s, {per_second:.1f} images/s -> {written}"
        )
    return 0


@dataclass(frozen=True)
class Layout:
    """How pictures lie in a file: by themselves, or on a sheet."""

    single: bool = False
    columns: int | None = bounded(1, 10_000, default=None)
    scale: int = bounded(1, 64, default=1)
    captions: bool = True

    @classmethod
    def chosen(cls, args: argparse.Namespace, kept: Any, shape: tuple[int, int, int]) -> Layout:
        """What the command line says, then what the picture that is repeated was, then what suits small pictures."""
        layout = cls(scale=max(1, -(-CELL // shape[2])))
        if kept is not None:
            layout = from_dict(cls, kept, f"{args.like}: layout")
        if not _is_sheet(args.out):
            return cls(single=True, scale=layout.scale)
        changes = {n: getattr(args, n) for n in ("columns", "scale") if getattr(args, n) is not None}
        if args.no_captions:
            changes["captions"] = False
        return from_dict(cls, {**dataclasses.asdict(layout), **changes}, "sample")


def _kept(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--like`` 's picture says of how it was made, checked: anybody may have written it."""
    from ..images import read_metadata

    given = [n for n in REQUEST_OPTIONS if getattr(args, n) is not None]
    if given or args.option:
        names = ", ".join("--" + n.replace("_", "-") for n in given) or "--option"
        raise ConfigError(f"--like repeats a request as it was; leave out {names}", argument="sample")
    kept = read_metadata(args.like)
    for name in ("model", "sha256", "dtype", "revision"):
        if not isinstance(kept.get(name, ""), str | None):
            raise ConfigError(
                f"its fastgen request is damaged: {name} is {shown(kept[name])}", argument=args.like
            )
    return kept


def _kept_arguments(args: argparse.Namespace, kept: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``sample`` that the picture asks for."""
    request = kept.get("request")
    if not isinstance(request, dict) or not {"seeds", "labels", "solver", "steps"} <= set(request):
        raise ConfigError(
            "its fastgen request is damaged: no seeds, labels, solver and steps in it", argument=args.like
        )
    if not isinstance(request["seeds"], list):  # else a count may follow, which is anybody's claim
        raise ConfigError("its fastgen request is damaged: seeds are no list", argument=args.like)
    known = {"seeds", "labels", "solver", "steps", "classifier_scale", *_solver_options()}
    known |= {"guidance_scale", "guidance_interval", "guidance_sigmas", "guidance_rescale"}
    if unknown := sorted(set(request) - known):
        raise ConfigError(
            f"its fastgen request is damaged: it asks for {shown(unknown[0])}", argument=args.like
        )
    return request


def _is_sheet(out: Path) -> bool:
    from ..images import FORMATS

    return out.suffix.lower() in FORMATS


def _check_names(out: Path, gif: Path | None) -> None:
    """Before any work is done: the names (a sheet or a folder, perhaps an animation) say what to write and where."""
    from ..images import FORMATS

    if gif is not None and gif.suffix.lower() != ".gif":
        raise ConfigError(f"--gif {gif}: expected a name that ends in .gif")
    for path in (out, *([gif] if gif else [])):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {path.absolute().parent}", argument=path)
        if path.is_dir() and (path is gif or _is_sheet(path)):
            raise ConfigError("is a folder", argument=path)
    if not _is_sheet(out) and not out.is_dir() and (out.suffix or out.exists()):
        raise ConfigError(
            f"--out {out}: expected a sheet ({', '.join(FORMATS)}) or a folder; an animation is --gif FILE"
        )


def _check_places(out: Path, gif: Path | None) -> None:
    """Before any work is done: a new file can be made where the pictures go (a folder is made beside its place)."""
    for folder in {out if out.is_dir() else out.absolute().parent, *([gif.absolute().parent] if gif else [])}:
        check_writable(folder)


def _check_free(paths: list[Path], overwrite: bool) -> None:
    """Before any work is done: nothing of the user's is replaced."""
    for path in paths:
        if os.path.lexists(path) and not path.is_dir() and not overwrite:  # a pipe, too, or a link to nothing
            raise ConfigError(f"{path} is there already; choose another name, or --overwrite")


def _check_sheets(
    out: Path,
    gif: Path | None,
    layout: Layout,
    request: Request,
    shape: tuple[int, int, int],
    evaluations: int,
) -> None:
    """Before any work is done: sheets are of a size that their files can have."""
    from ..images import FORMATS, check_frames, check_side, sheet_size

    size = partial(sheet_size, len(request.seeds), shape[1:], columns=layout.columns, scale=layout.scale)
    if not layout.single:
        captions = layout.captions and any(label is not None for label in request.labels)
        kind = FORMATS[out.suffix.lower()]
        check_side(size(captions=captions), kind, out)
    if gif is not None:
        check_frames(min(evaluations, GIF_FRAMES + 1), size(), gif)


def _picture_files(out: Path, request: Request, layout: Layout) -> list[Path]:
    """The sheet, or one file a sample: its number keeps two samples of one seed apart and the order as asked."""
    if _is_sheet(out):
        if layout.single and len(request.seeds) > 1:
            raise ConfigError(
                f"--out {out}: {len(request.seeds)} pictures do not fit one file without a sheet"
            )
        return [out]
    return [out / f"{i:05d}-seed{seed}.png" for i, seed in enumerate(request.seeds)]


def _arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``sample`` that the command line asks for."""
    from ..engines.arguments import MAX_COUNT

    labels = None if args.labels is None else _labels(args.labels)
    count = args.count
    if count is None:
        count = len(args.seeds) if args.seeds is not None else 16
    if not 1 <= count <= MAX_COUNT:
        raise ConfigError(
            f"expected at least 1 and at most {MAX_COUNT}, got {shown(count)}", argument="--count"
        )
    if labels is not None:
        labels = [labels[i % len(labels)] for i in range(count)]
    arguments = {
        "n": count,
        "seed": args.seed,
        "seeds": args.seeds,
        "labels": labels,
        "solver": _in_turn(args.solver, count, str),
        "steps": _in_turn(args.steps, count, partial(_number, "--steps", int)),
        "guidance_scale": _in_turn(args.guidance_scale, count, partial(_number, "--guidance-scale", float)),
        "guidance_interval": _pair("--guidance-interval", args.guidance_interval),
        "guidance_sigmas": _pair("--guidance-sigmas", args.guidance_sigmas),
        "guidance_rescale": args.guidance_rescale,
        "eta": _in_turn(args.eta, count, partial(_number, "--eta", float)),
    }
    options = _solver_options() - set(arguments)
    for option in args.option:
        name, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"--option {option}: expected NAME=VALUE")
        if name not in options:
            raise ConfigError(
                f"--option {shown(option)}: is not an option of a solver; see `fastgen info --solvers` and "
                "`fastgen sample --help`"
            )
        arguments[name] = _value(value)
    return arguments


def _in_turn(text: str | None, count: int, read: Callable[[str], Any]) -> Any:
    """One value, or where there are commas as many as there are pictures."""
    if text is None or "," not in text:
        return None if text is None else read(text.strip())
    values = [read(part.strip()) for part in text.split(",")]
    return [values[i % len(values)] for i in range(count)]


def _number(name: str, kind: type, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(
            f"expected {'a whole number' if kind is int else 'a number'}, got {shown(text)}", argument=name
        ) from None


def _pair(name: str, text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(_number(name, float, part) for part in text.split(","))


def _solver_options() -> set[str]:
    """The name of every option that some solver has."""
    from ..diffusion.solvers import SOLVERS

    return {option.name for solver in SOLVERS.values() for option in solver.options}


def _labels(text: str) -> list[int | str]:
    try:
        return list(integer_ranges(text))
    except argparse.ArgumentTypeError:
        return [name.strip() for name in text.split(",")]  # names; the engine knows which exist


def _value(text: str) -> Any:
    """A JSON number or boolean, else the text itself."""
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _draw(engine: DiffusionEngine, request: Request, args: argparse.Namespace) -> tuple[Tensor, list[Tensor]]:
    """The pictures, and where an animation is asked for, the noisy states on the way."""
    frames: list[Tensor] = []

    def keep(step: int, total: int, images: Tensor) -> None:
        if step % -(-total // GIF_FRAMES) == 0 or step == total:
            frames.append(images)

    progress = not (args.quiet or args.json) and sys.stderr.isatty()
    images = engine.draw(request, callback=keep if args.gif else None, progress=progress)
    return cast("Tensor", images), frames


def _write(
    images: Tensor,
    frames: list[Tensor],
    pictures: list[Path],
    gif: Path | None,
    layout: Layout,
    metadata: dict[str, Any],
    request: Request | FlowRequest,
    names: tuple[str, ...] | None,
) -> list[Path]:
    from ..images import save_gif, save_grid, save_image

    metadata = {**metadata, "layout": dataclasses.asdict(layout)}
    labels = request.labels
    if layout.single:
        make_folder(pictures[0].parent)
        for i, (image, path) in enumerate(zip(images, pictures, strict=True)):
            save_image(image, path, metadata={**metadata, "request": request.only(i).to_dict()})
    else:
        captions = None
        if layout.captions and any(label is not None for label in labels):
            captions = ["" if i is None else names[i] if names else str(i) for i in labels]
        save_grid(
            images,
            pictures[0],
            columns=layout.columns,
            captions=captions,
            scale=layout.scale,
            metadata=metadata,
        )
    if gif is None:
        return pictures
    save_gif(frames, gif, columns=layout.columns, scale=layout.scale)
    return [*pictures, gif]
