"""``fastgen sample`` of a flow: pictures as of any model, or rows of numbers as CSV or NPZ."""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import shown
from ..errors import ConfigError
from ..files import check_writable, remove_leftovers, write_atomic
from .arguments import counted

if TYPE_CHECKING:
    from torch import Tensor

    from ..engines.flow.engine import FlowEngine
    from ..engines.flow.request import FlowRequest

TABLES = (".csv", ".npz")  # what rows of numbers are written as
DIFFUSION_OPTIONS = (
    *("solver", "steps", "guidance_scale", "guidance_interval", "guidance_sigmas", "guidance_rescale"),
    *("eta", "option", "gif"),
)
SHEET_OPTIONS = ("columns", "scale", "no_captions")


def is_table(out: Path | None) -> bool:
    """Whether `out` is a file for rows of numbers."""
    return out is not None and out.suffix.lower() in TABLES


def run(args: argparse.Namespace, engine: FlowEngine, kept: dict[str, Any], started: float) -> int:
    """Draw as `args` ask; returns the exit code. kept: what the picture of ``--like`` says of itself."""
    if wrong := _given(args, DIFFUSION_OPTIONS):
        raise ConfigError(f"a flow draws in one pass; leave out {wrong}", argument="sample")
    if engine.flow.context:
        raise ConfigError(
            f"this flow needs a context of {engine.flow.context} numbers a sample; FlowEngine.sample takes it",
            argument="sample",
        )
    rows = len(engine.flow.data_shape) == 1
    if rows and args.like is not None:
        raise ConfigError(
            "--like repeats a picture; this flow draws rows of numbers, and tables carry no request: give the "
            "--seed that was printed with them",
            argument="sample",
        )
    request = _request(args, engine, kept)
    if rows:
        return _run_rows(args, engine, request, started)
    if engine.flow.levels is None or engine.flow.data_shape[0] not in (1, 3):
        raise ConfigError(
            f"this flow's data, {'x'.join(map(str, engine.flow.data_shape))}, is no grey or RGB picture; "
            "FlowEngine.sample gives it as a tensor",
            argument="sample",
        )
    return _run_pictures(args, engine, request, kept, started)


def _run_pictures(
    args: argparse.Namespace,
    engine: FlowEngine,
    request: FlowRequest,
    kept: dict[str, Any],
    started: float,
) -> int:
    from ..errors import WriteError
    from .sample import Layout, _check_free, _check_sheets, _picture_files, _write

    if is_table(args.out):
        raise ConfigError(f"--out {args.out}: this flow draws pictures; give a sheet (name.png) or a folder")
    shape = engine.flow.data_shape
    metadata = {**engine.metadata(request), "revision": args.revision or kept.get("revision")}
    if kept and kept.get("sha256") != metadata["sha256"]:
        raise ConfigError(
            f"was drawn by weights with sha256 {shown(kept.get('sha256'))}, those of {engine.source} have "
            f"{metadata['sha256']}",
            argument=args.like,
        )
    layout = Layout.chosen(args, kept.get("layout"), shape)  # type: ignore[arg-type]
    _check_sheets(args.out, None, layout, request, shape, 0)  # type: ignore[arg-type]
    pictures = _picture_files(args.out, request, layout)  # type: ignore[arg-type]
    _check_free(pictures, args.overwrite)
    loaded = time.perf_counter()
    images: Any = engine.sample(**request.to_dict())
    drawn = time.perf_counter()
    for folder in {path.parent for path in pictures}:
        remove_leftovers(folder, [path.name for path in pictures])  # of a run that was killed
    try:
        files = _write(images, [], pictures, None, layout, metadata, request, engine.settings.class_names)
    except WriteError as error:
        if not kept and args.seed is None and args.seeds is None:  # else nobody could draw them again
            error.args = (f"{error}. The same pictures again: --seed {request.seeds[0]}",)
        raise
    return _report(args, engine, metadata, files, len(images), "picture", (started, loaded, drawn))


def _run_rows(args: argparse.Namespace, engine: FlowEngine, request: FlowRequest, started: float) -> int:
    from .sample import _check_free

    if not is_table(args.out):
        raise ConfigError(
            f"this flow draws rows of {engine.flow.data_shape[0]} numbers; write them with "
            f"--out name{' or name'.join(TABLES)}",
            argument="sample",
        )
    if wrong := _given(args, SHEET_OPTIONS):
        raise ConfigError(f"rows of numbers have no sheet; leave out {wrong}", argument="sample")
    _check_free([args.out], args.overwrite)
    check_writable(args.out.absolute().parent)
    loaded = time.perf_counter()
    rows: Any = engine.sample(**request.to_dict())
    drawn = time.perf_counter()
    remove_leftovers(args.out.parent, [args.out.name])  # of a run that was killed
    write_atomic(args.out, _table(rows, request, args.out.suffix.lower()))
    metadata = engine.metadata(request)
    first, last = request.seeds[0], request.seeds[-1]
    if request.seeds == tuple(range(first, last + 1)):  # one number says the same as a hundred thousand
        labels = None if request.labels[0] is None else list(request.labels)
        asked = {"n": len(request.seeds), "seed": first, "labels": labels, "temperature": request.temperature}
        metadata["request"] = asked
    return _report(args, engine, metadata, [args.out], len(rows), "row", (started, loaded, drawn))


def _request(args: argparse.Namespace, engine: FlowEngine, kept: dict[str, Any]) -> FlowRequest:
    """What the command line asks for, or the picture of ``--like``, which anybody may have written."""
    from ..engines.arguments import MAX_COUNT
    from .sample import _labels

    if args.like is not None:
        request = kept.get("request")
        if (
            not isinstance(request, dict)
            or set(request) != {"seeds", "labels", "temperature"}
            or not isinstance(request["seeds"], list)
        ):
            raise ConfigError(
                "its fastgen request is damaged, or was drawn by another kind of model: expected seeds, "
                "labels and a temperature in it",
                argument=args.like,
            )
        return engine.request(**request)
    count = args.count
    if count is None:
        count = len(args.seeds) if args.seeds is not None else 16
    if not 1 <= count <= MAX_COUNT:
        raise ConfigError(
            f"expected at least 1 and at most {MAX_COUNT}, got {shown(count)}", argument="--count"
        )
    labels = None if args.labels is None else _labels(args.labels)
    if labels is None and engine.flow.classes:
        labels = list(range(engine.flow.classes))  # a flow that knows classes has no "no label"
    if labels is not None:
        labels = [labels[i % len(labels)] for i in range(count)]
    return engine.request(
        count, seed=args.seed, seeds=args.seeds, labels=labels, temperature=args.temperature
    )


def _table(rows: Tensor, request: FlowRequest, suffix: str) -> bytes:
    """Rows [n, D], as ``fastgen train`` reads them: CSV with a line of names, or NPZ with ``x`` (and ``labels``)."""
    values = rows.float().numpy(force=True)
    labels = None if request.labels[0] is None else np.array(request.labels, dtype=np.int64)
    if suffix == ".npz":
        buffer = io.BytesIO()
        arrays = {"x": values} if labels is None else {"x": values, "labels": labels}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()
    names = ",".join(f"x{i + 1}" for i in range(values.shape[1]))
    lines = (",".join(f"{value:.9g}" for value in row) for row in values)  # 9 digits hold every float32
    return ("\n".join([names, *lines]) + "\n").encode()


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> str:
    """The flags out of `names` that were given, for a message."""
    given = [n for n in names if getattr(args, n) not in (None, False, [])]
    return ", ".join("--" + n.replace("_", "-") for n in given)


def _report(
    args: argparse.Namespace,
    engine: FlowEngine,
    metadata: dict[str, Any],
    files: list[Path],
    count: int,
    what: str,
    times: tuple[float, float, float],
) -> int:
    started, loaded, drawn = times
    report = {
        **metadata,
        "files": [str(f) for f in files],
        "device": str(engine.device),
        "seconds": {"load": round(loaded - started, 3), "sample": round(drawn - loaded, 3)},
    }
    if args.json:
        print(json.dumps(report))
        return 0
    asked = metadata["request"]
    seed = f", seed {asked['seed']}" if "seed" in asked else ""  # which a table does not carry
    print(
        f"{counted(count, what)}, temperature {asked['temperature']:g}{seed} on {engine.device}: "
        f"{drawn - loaded:.1f} s, {count / (drawn - loaded):.1f} a second -> {args.out}"
    )
    return 0
