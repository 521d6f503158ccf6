"""``fastgen metrics``: how a set of generated images differs from a set of real ones."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..metrics import METRICS
from .arguments import counted, positive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

BATCH = 64


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "metrics",
        help="Fréchet and kernel distance, classifier score, precision and recall of generated images",
        description="Compares two sets of images by the features of a network: folders, or IDX, NPY or NPZ files. With "
        "the weights of torch-fidelity's Inception in a file (--features FILE) the numbers are FID, KID and Inception "
        "score; with the small classifier of digits that ships they have other names, for they are other numbers. "
        "Precision and recall: Kynkaanniemi et al. 2019; density and coverage: Naeem et al. 2020.",
    )
    parser.add_argument("real", type=Path, metavar="REAL", help="real images")
    parser.add_argument("fake", type=Path, metavar="FAKE", help="generated images")
    parser.add_argument(
        "--features",
        default="digits",
        help="digits (default), or a file: Inception's weights, or TorchScript",
    )
    parser.add_argument("--metrics", help=f"some of {','.join(METRICS)} (default: all)")
    parser.add_argument("--batch", type=positive, default=BATCH, help=f"images at a time (default {BATCH})")
    parser.add_argument("--subset-size", type=positive, help="of the kernel distance (default 1000, or all)")
    parser.add_argument("--neighbours", type=positive, default=5, help="of precision and recall (default 5)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare what `args` name; returns the exit code."""
    from ..metrics import sets
    from ..metrics.features import open_features
    from ..runtime.device import choose_device

    started = time.perf_counter()
    metrics = None if args.metrics is None else tuple(name.strip() for name in args.metrics.split(","))
    try:
        sets.check_metrics(metrics or ())
        network = open_features(args.features, choose_device(args.device))
        real, fake = (
            sets.describe(
                network, _shown(args, sets.images(path, network.channels, args.batch), path), metrics
            )
            for path in (args.real, args.fake)
        )
        found = sets.compare(
            real,
            fake,
            metrics=metrics,
            inception=network.inception,
            subset_size=args.subset_size,
            neighbours=args.neighbours,
        )
    except ConfigError as error:
        raise ConfigError(error.reason, argument=_given(args, error.argument)) from error
    report: dict[str, Any] = {"features": network.name, "real": len(real), "fake": len(fake), **found}
    if args.json:
        print(json.dumps({**report, "seconds": round(time.perf_counter() - started, 3)}))
        return 0
    print(f"{counted(len(real), 'image')} beside {counted(len(fake), 'image')}, features: {network.name}")
    for name, value in found.items():
        if not name.endswith("_std"):
            spread = f" +- {found[f'{name}_std']:.4g}" if f"{name}_std" in found else ""
            print(f"  {name.replace('_', ' ')}: {value:.6g}{spread}")
    return 0


def _given(args: argparse.Namespace, name: str | None) -> str | None:
    """What an argument of ours is to someone who types the command: the files, or a flag."""
    said = {
        "real": str(args.real),
        "fake": str(args.fake),
        "metrics": "--metrics",
        "subset_size": "--subset-size",
    }
    return said.get(name or "", name)


def _shown(args: argparse.Namespace, batches: Iterator[Tensor], path: Path) -> Iterator[Tensor]:
    """The batches, with a count of images as they come."""
    from tqdm import tqdm

    with tqdm(unit="image", desc=path.name, disable=args.quiet or args.json) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
