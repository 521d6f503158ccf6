"""``fastgen evaluate``: how likely a flow finds data that it was not trained on."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .arguments import add_model, counted, positive, span

if TYPE_CHECKING:
    from torch import Tensor

    from ..engines.flow.engine import FlowEngine
    from ..training.data import Dataset

CHUNK = 256  # samples handed to the engine at a time, between two moves of the progress bar


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="how likely a flow finds your data",
        description="Bits per dimension of pictures, nats of rows of a table, with the standard error of the mean. For "
        "pictures it is a bound by dequantisation, the tighter the more --samples; for rows it is exact. Where the "
        "flow knows classes it is the likelihood given the label.",
    )
    add_model(parser)
    parser.add_argument("--data", required=True, help="as for `fastgen train`")
    parser.add_argument("--labels", help="IDX file of labels, where it does not lie beside the pictures")
    parser.add_argument("--subset", type=span, metavar="FIRST-LAST", help="use only these samples of a file")
    parser.add_argument(
        "--samples", type=positive, metavar="K", help="dequantisation samples a picture (default 1)"
    )
    parser.add_argument("--seed", type=int, help="of the dequantisation noise (default 0)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate as `args` ask; returns the exit code."""
    from ..engines.arguments import MAX_SEED

    started = time.perf_counter()
    engine = load_flow(args, "evaluate")
    if engine.flow.levels is None and args.samples is not None:
        raise ConfigError(
            "--samples are dequantisations; the likelihood of real numbers is exact", argument="evaluate"
        )
    if engine.flow.levels is None and args.seed is not None:
        raise ConfigError(
            "--seed is of dequantisation noise; the likelihood of real numbers is exact", argument="evaluate"
        )
    dataset = load_data(engine, args.data, args.labels, args.subset)
    seed, last = args.seed or 0, MAX_SEED + 1 - len(dataset)
    if not 0 <= seed <= last:
        raise ConfigError(
            f"expected a number from 0 to {last}, for {counted(len(dataset), 'picture')} with a seed each, "
            f"got {seed}",
            argument="--seed",
        )
    report = evaluate(engine, dataset, args.samples or 1, seed, progress=not (args.quiet or args.json))
    report |= {
        "model": engine.source,
        "sha256": engine.provenance.get("sha256"),
        "given": "labels" if engine.flow.classes else None,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if args.json:
        print(json.dumps(report))
        return 0
    unit = "bits_per_dim" if "bits_per_dim" in report else "nats"
    error = report["standard_error"]
    spread = "" if error is None else f" +- {error:.4f}"
    draws = "" if unit == "nats" or report["samples"] == 1 else f" of {report['samples']} samples"
    given = " given the label" if report["given"] else ""
    print(
        f"{counted(report['count'], 'picture' if unit == 'bits_per_dim' else 'row')}: {report[unit]:.4f}{spread} "
        f"{unit.replace('bits_per_dim', 'bits/dim')} ({report['kind']}{draws}{given})"
    )
    return 0


def load_flow(args: argparse.Namespace, command: str) -> FlowEngine:
    """The engine that `args` name. Raises ConfigError where it is no flow."""
    from ..api import load
    from ..engines.flow.engine import FlowEngine

    if args.model is None:
        raise ConfigError("which MODEL? A folder, a hub id or zoo:NAME", argument=command)
    engine = load(
        args.model,
        device=args.device,
        dtype=args.dtype or "auto",
        revision=args.revision,
        local_files_only=args.local_files_only,
    )
    if not isinstance(engine, FlowEngine):
        kind = engine.describe()["engine"]
        raise ConfigError(f"{args.model} is a {kind} model; densities are what flows have", argument=command)
    return engine


def load_data(
    engine: FlowEngine, source: str, labels: str | None = None, subset: tuple[int, int] | None = None
) -> Dataset:
    """Data of the shape that `engine` models. Raises DataError or ConfigError."""
    from ..training import data

    shape = engine.flow.data_shape
    size, channels = ((shape[1], shape[2]), shape[0]) if len(shape) == 3 else (None, None)
    dataset = data.load(source, labels=labels, subset=subset, size=size, channels=channels)
    if len(shape) == 1 and len(dataset.shape) == 3:
        raise ConfigError(f"--data {source}: holds pictures, the model rows of {shape[0]} numbers")
    if tuple(dataset.shape) != tuple(shape):
        raise ConfigError(
            f"--data {source}: its rows have {dataset.shape[0]} columns, the model's {shape[0]}"
        )
    if engine.flow.levels not in (None, 256):
        raise ConfigError(
            f"--data {source}: has 256 levels, the model {engine.flow.levels}; FlowEngine.bits_per_dim takes levels "
            "as integers"
        )
    return dataset


def evaluate(
    engine: FlowEngine, dataset: Dataset, samples: int = 1, seed: int = 0, progress: bool = False
) -> dict[str, Any]:
    """The mean of ``engine.bits_per_dim`` over `dataset` (of rows: of the negative log-density, ``nats``).

    Also its standard error (None for one sample), `kind` (see ``BitsPerDim``), `samples` and `count`.
    """
    import torch
    from tqdm import tqdm

    values: list[Tensor] = []
    kind = "exact"
    bar = tqdm(total=len(dataset), disable=not (progress and sys.stderr.isatty()), unit="sample")
    for start in range(0, len(dataset), CHUNK):
        x, labels, _ = dataset.batch(range(start, min(start + CHUNK, len(dataset))))
        labels = labels if engine.flow.classes else None
        if engine.flow.levels is None:
            values.append(-engine.log_prob(x, labels=labels).double().cpu())
        else:
            found = engine.bits_per_dim(x, samples, labels=labels, seed=seed + start)
            kind = found.kind
            values.append(found.values)
        bar.update(len(x))
    bar.close()
    whole = torch.cat(values)
    error = float(whole.std() / math.sqrt(len(whole))) if len(whole) > 1 else None
    unit = "nats" if engine.flow.levels is None else "bits_per_dim"
    return {
        unit: float(whole.mean()),
        "standard_error": error,
        "kind": kind,
        "samples": samples,
        "count": len(whole),
    }
