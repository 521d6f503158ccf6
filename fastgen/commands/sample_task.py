"""What ``fastgen sample`` is asked for, by flags or by the image of ``--like``: all of it checked before any work."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import shown
from ..errors import ConfigError
from ..families import GIF, Family, Sampling
from .arguments import flag_names, given_flags
from .layout import Layout, is_sheet
from .outputs import ARRAYS, TABLES, check_free, image_files, is_array, is_table

COUNT = 16


@dataclass(frozen=True)
class Task:
    """What to draw, and as what to write it, checked.

    form: see ``Sampling.check``. layout: of images, None for numbers. hint: the seed, where only the program knows it.
    has_steps: see ``families.GIF``.
    """

    args: argparse.Namespace
    gif: Path | None
    engine: Any
    form: str
    request: Any
    metadata: dict[str, Any]
    layout: Layout | None
    hint: int | None
    class_names: Sequence[str] | None
    has_steps: bool

    @property
    def streamed(self) -> bool:
        return _is_streamed(self.form, self.gif)

    @property
    def unit(self) -> str:
        return "row" if len(self.engine.shape) == 1 else "image"

    def files(self) -> list[Path]:
        """Of the samples, without the animation."""
        return [self.args.out] if self.layout is None else image_files(self.args.out, self.request.seeds)


def make_task(
    args: argparse.Namespace,
    kept: dict[str, Any],
    flags: dict[str, Any],
    gif: Path | None,
    family: Family,
    engine: Any,
) -> Task:
    """What `args` and `kept`, of the image of ``--like``, ask of `engine`. Raises ConfigError before any work."""
    from ..streaming import compact, open_output

    assert family.sampling is not None
    sampling = family.sampling.of(engine)
    form = _form(args, engine.shape, gif)
    known = args.like is not None or args.seed is not None or args.seeds is not None
    if _is_streamed(form, gif) and not known:
        args.seed = open_output(args.out).seed_to_go_on(args.overwrite)
    request = _request(args, kept, flags, sampling, engine)
    metadata = {**engine.metadata(request), "revision": args.revision}
    if args.like is not None and kept.get("sha256") != metadata["sha256"]:
        raise ConfigError(
            f"was drawn by weights with sha256 {shown(kept.get('sha256'))}, those of {args.model} have "
            f"{metadata['sha256']}",
            argument=args.like,
        )
    sampling.check(engine, request, form)
    layout = None
    if form in ("table", "numbers"):
        metadata["request"] = compact(request)
    else:
        layout = Layout.chosen(args, kept.get("layout"), engine.shape[2])
        layout.check(args.out, request.labels, engine.shape[1:])
        if gif is not None:
            layout.check_gif(gif, len(request.seeds), engine.shape[1:], max(request.evaluations()))
    task = Task(
        args,
        gif,
        engine,
        form,
        request,
        metadata,
        layout,
        hint=None if known else request.seeds[0],
        class_names=sampling.class_names(engine),
        has_steps=GIF in family.flags.get("sample", ()),
    )
    if layout is not None and not task.streamed:
        check_free(task.files(), args.overwrite)
    return task


def complete(args: argparse.Namespace, kept: Mapping[str, Any]) -> None:
    """Fill in what the command line leaves out, from what the image of ``--like`` says, or by default."""
    if not args.model:
        args.model, args.revision = kept.get("model"), args.revision or kept.get("revision")
    args.dtype = args.dtype or kept.get("dtype")
    if not args.model:
        raise ConfigError("which MODEL? A folder, a hub id, or for a start: zoo:ddpm-mnist", argument="MODEL")
    if args.out is None:
        args.out = Path("sample.png") if args.like is None else args.like.with_stem(args.like.stem + "-again")


def read_kept(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
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


def _is_streamed(form: str, gif: Path | None) -> bool:
    """Whether samples are written batch by batch, of which one is in memory."""
    return form == "numbers" or (form == "images" and gif is None)
