"""``fastgen evaluate``: how likely a model finds data that it was not trained on, and what it has learnt of a table."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..families import Family
from ..families.family import given
from ..families.values import integers
from .arguments import add_model, counted, given_flags, load_model, positive, span
from .family_flags import add_owned_flags, every_flag, family_flags, refuse_others
from .outputs import add_reporting
from .plots import check_plot, columns_shown, write_plot, write_terms

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ..training.data import Dataset

COMMAND = "evaluate"
COUNT = 2000  # of samples, and of rows of data, that a plot shows
PLOT_FLAGS = ("columns", "count", "temperature", "overwrite")
DATA_FLAGS = ("labels", "subset", "samples", "background")


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        COMMAND,
        help="how likely a model finds your data, and a plot of what it has learnt of a table",
        description="Of models that have a likelihood: bits per dimension of images, nats of rows of a table, with the "
        "standard error of the mean. For images it is a bound by dequantisation, the tighter the more --samples; for "
        "rows it is exact; of a VAE it is a bound of either; of a diffusion model by the probability flow or by the "
        "variational bound. Where the model knows classes it is the likelihood given the label. --plot draws the terms "
        "of the variational bound by timestep, or what the model has learnt of rows: of two columns a heat map of the "
        "density, with samples and, if they are given, data on it; of more the distributions of single columns "
        "and pairs of them, samples beside data.",
    )
    add_model(parser)
    parser.add_argument("--data", help="as for `fastgen train`")
    parser.add_argument("--labels", help="IDX file of labels, where it does not lie beside the images")
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="what lies under transparent pixels of a folder (default white)",
    )
    parser.add_argument("--subset", type=span, metavar="FIRST-LAST", help="use only these samples of a file")
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="K",
        help="samples of dequantisation, of a VAE's latents, and of a diffusion model's noise (default 1)",
    )
    parser.add_argument(
        "--label", help="the class, name or number, that is plotted, and of data without labels"
    )
    parser.add_argument(
        "--seed", type=int, help="of the dequantisation noise, or of the plotted samples (default 0)"
    )
    add_owned_flags(parser, family_flags(COMMAND), "{} models")
    plot = parser.add_argument_group("plot (needs matplotlib); all but --plot is of rows")
    plot.add_argument("--plot", type=Path, metavar="FILE", help="PNG, PDF or SVG to write")
    plot.add_argument("--columns", type=integers, metavar="1,2,5", help="which to show, the first is 1")
    plot.add_argument("-n", "--count", type=positive, help=f"samples to show (default {COUNT})")
    plot.add_argument("--temperature", type=float, help="of the samples (default 1)")
    add_reporting(parser)
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Evaluate as `args` ask; returns the exit code."""
    from ..engines.arguments import MAX_SEED, class_number

    started = time.perf_counter()
    if args.data is None and args.plot is None:
        parser.error("the following arguments are required: --data or --plot")
    for value, flag, own in ((args.plot, "--plot", PLOT_FLAGS), (args.data, "--data", DATA_FLAGS)):
        if value is None and (wrong := given_flags(args, own)):
            raise ConfigError(f"is missing, to which {wrong} belong", argument=flag)
    if args.plot is not None:
        check_plot(args.plot, args.overwrite)

    options = given(args, every_flag(COMMAND))

    def accept(family: Family) -> None:
        if not family.likelihood:
            raise ConfigError(f"a {family.name} model has no likelihood", argument=args.model)
        refuse_others(parser, args, COMMAND, family)

    family, engine = load_model(args, accept)
    facts = engine.describe()
    by_terms = args.plot is not None and options.get("method") == "bound"
    if by_terms:
        if args.data is None:
            raise ConfigError("is missing: the terms are those of data", argument="--data")
        if wrong := given_flags(args, [name for name in PLOT_FLAGS if name != "overwrite"]):
            raise ConfigError("is of a plot of rows", argument=wrong)
    exact, seed = facts["levels"] is None and not facts.get("bound", False), args.seed or 0
    for name in ("samples", "seed"):
        if exact and getattr(args, name) is not None and not (name == "seed" and args.plot is not None):
            raise ConfigError(
                "is of dequantisation; the likelihood of real numbers is exact", argument=f"--{name}"
            )
    dataset = (
        None if args.data is None else load_data(engine, args.data, args.labels, args.subset, args.background)
    )
    if args.label is not None and not facts["classes"]:
        raise ConfigError("this model has no classes", argument="--label")
    if args.label is not None:
        args.label = class_number(args.label, facts["classes"], engine.settings.class_names)
    if args.label is not None and args.plot is None and dataset is not None and dataset.num_classes:
        raise ConfigError("the data has labels of its own", argument="--label")
    last = MAX_SEED if dataset is None else MAX_SEED + 1 - len(dataset)
    if dataset is not None and not exact and not 0 <= seed <= last:
        raise ConfigError(
            f"expected a number from 0 to {last}, for {counted(len(dataset), 'image')} with a seed each, "
            f"got {seed}",
            argument="--seed",
        )
    report = {"model": engine.source, "sha256": engine.provenance.get("sha256")}
    if args.plot is not None and not by_terms:
        said = _plot(args, engine, dataset, seed, options)
        if not args.json:
            print(said)
    if dataset is not None:
        progress = not (args.quiet or args.json)
        found = evaluate(
            engine,
            dataset,
            args.samples or 1,
            seed,
            label=args.label,
            progress=progress,
            chunk=family.chunk,
            **options,
        )
        terms = found.pop("terms", None)
        report |= found
        report["given"] = None
        if facts["classes"]:
            report["given"] = "labels" if args.label is not None or dataset.num_classes else "no label"
        if not args.json:
            print(_words(report))
        if by_terms:
            write_terms(args.plot, terms, _words(report))
            if not args.json:
                print(args.plot)
    if args.plot is not None:
        report["plot"] = str(args.plot)
    if args.json:
        print(json.dumps({**report, "seconds": round(time.perf_counter() - started, 3)}))
    return 0


def _words(report: dict[str, Any]) -> str:
    """The result of `evaluate` for people."""
    unit = "bits_per_dim" if "bits_per_dim" in report else "nats"
    error = report["standard_error"]
    spread = "" if error is None else f" +- {error:.4f}"
    draws = "" if report["kind"] == "exact" or report["samples"] == 1 else f" of {report['samples']} samples"
    noise = f" by {report['dequantisation']} dequantisation" if report.get("dequantisation") else ""
    told = {None: "", "labels": " given the label", "no label": " without a label"}[report["given"]]
    return (
        f"{counted(report['count'], 'image' if unit == 'bits_per_dim' else 'row')}: {report[unit]:.4f}{spread} "
        f"{unit.replace('bits_per_dim', 'bits/dim')} ({report['kind']}{noise}{draws}{told})"
    )


def _plot(
    args: argparse.Namespace, engine: Any, dataset: Dataset | None, seed: int, options: Mapping[str, Any]
) -> str:
    """Draw samples, and what there is of data beside them; returns what was done, for people."""
    if len(engine.shape) != 1:
        raise ConfigError(
            f"is of rows of numbers, or of a variational bound (--method bound); {args.model} models images, which "
            "`fastgen sample` shows",
            argument="--plot",
        )
    columns = columns_shown(args.columns, engine.shape[0])
    count = args.count or COUNT
    data = None if dataset is None else _rows(dataset, args.label)
    samples = engine.sample(count, seed=seed, labels=args.label, temperature=args.temperature)
    heat = engine.shape[0] == 2 and args.columns is None
    shown = None if heat else columns
    write_plot(args.plot, engine, samples.numpy(force=True), data, shown, args.label, **options)
    beside = "" if data is None else f", {counted(len(data), 'row')} of data"
    return f"{counted(count, 'sample')}{beside} -> {args.plot}"


def _rows(dataset: Dataset, label: int | None) -> NDArray[Any]:
    """At most `COUNT` rows of the data [n, D], those of class `label` where it has labels. Raises ConfigError."""
    values, labels, _ = dataset.batch(range(len(dataset)))
    if label is not None and labels is not None:
        values = values[labels == label]
        if not len(values):
            raise ConfigError(f"no row of the data has label {label}", argument="--data")
    step = max(1, len(values) // COUNT)
    rows: NDArray[Any] = values[::step][:COUNT].numpy()
    return rows


def load_data(
    engine: Any,
    source: str,
    labels: str | None = None,
    subset: tuple[int, int] | None = None,
    background: str | None = None,
) -> Dataset:
    """Data of the shape that `engine` models. Raises DataError or ConfigError."""
    from ..training import data

    shape, levels = engine.shape, engine.describe()["levels"]
    size, channels = ((shape[1], shape[2]), shape[0]) if len(shape) == 3 else (None, None)
    names = engine.settings.class_names
    dataset = data.load(
        source,
        labels=labels,
        subset=subset,
        size=size,
        channels=channels,
        background=background,
        class_names=names,
    )
    found = dataset.class_names
    if names and found and (strange := [name for name in found if name not in names]):
        raise ConfigError(
            f"{source} has a folder {strange[0]}, which is no class of the model; its classes are "
            f"{', '.join(names[:20])}",
            argument="--data",
        )
    if len(shape) == 1 and len(dataset.shape) == 3:
        raise ConfigError(f"{source} holds images, the model rows of {shape[0]} numbers", argument="--data")
    if tuple(dataset.shape) != tuple(shape):
        raise ConfigError(
            f"{source}: its rows have {dataset.shape[0]} columns, the model's {shape[0]}", argument="--data"
        )
    if levels not in (None, 256):
        raise ConfigError(
            f"{source} has 256 levels, the model {levels}; the engine's bits_per_dim takes levels as integers",
            argument="--data",
        )
    return dataset


def evaluate(
    engine: Any,
    dataset: Dataset,
    samples: int = 1,
    seed: int = 0,
    *,
    label: int | None = None,
    progress: bool = False,
    chunk: int = 256,
    **options: Any,
) -> dict[str, Any]:
    """The mean of ``engine.bits_per_dim`` over `dataset` (of rows: of the negative log-density, ``nats``).

    Also its standard error (None for one sample), `kind` (see ``BitsPerDim``), `samples` and `count`; of a model that
    says it `dequantisation`, and of a variational bound `terms`, its means: "prior", and by timestep, lists of the same
    length, "times" and "values" (None where a term was not evaluated). label: the class of all samples, where `dataset`
    has no labels. chunk: samples handed to the engine at a time. options: of the engine's verb.
    """
    import torch
    from tqdm import tqdm

    from ..images import PICTURES

    facts = engine.describe()
    values: list[Tensor] = []
    terms: list[Any] = []
    kind = "exact"
    said: dict[str, Any] = {}
    bar = tqdm(total=len(dataset), disable=not (progress and sys.stderr.isatty()), unit="sample")
    for start in range(0, len(dataset), chunk):
        x, own, _ = dataset.batch(range(start, min(start + chunk, len(dataset))))
        labels = None if not facts["classes"] else label if own is None else own
        if facts["levels"] is None and not facts.get("bound", False):
            values.append(-engine.log_prob(x, labels=labels, **options).double().cpu())
            bar.update(len(x))
            continue
        if facts["levels"] is None:
            found = engine.log_prob(x, samples, labels=labels, seed=seed + start, **options)
            values.append(-found.values)
        else:
            if engine.value_range not in (None, PICTURES):
                x = (x + 1).mul(127.5).round().to(torch.uint8)
            found = engine.bits_per_dim(x, samples, labels=labels, seed=seed + start, **options)
            values.append(found.values)
        kind = found.kind
        if hasattr(found, "dequantisation"):
            said["dequantisation"] = found.dequantisation
        if getattr(found, "terms", None) is not None:
            terms.append(found.terms)
        bar.update(len(x))
    bar.close()
    whole = torch.cat(values)
    error = float(whole.std() / math.sqrt(len(whole))) if len(whole) > 1 else None
    unit = "nats" if facts["levels"] is None else "bits_per_dim"
    if terms:
        means = torch.cat([part.by_timestep for part in terms]).nanmean(0).tolist()
        said["terms"] = {
            "prior": float(torch.cat([part.prior for part in terms]).mean()),
            "times": terms[0].times.tolist(),
            "values": [None if math.isnan(value) else value for value in means],
        }
    return {
        unit: float(whole.mean()),
        "standard_error": error,
        "kind": kind,
        "samples": samples,
        "count": len(whole),
        **said,
    }
