"""``fastgen verify``: is a model drawn right on this machine, layer by layer?"""

from __future__ import annotations

import argparse
import json
from typing import Any

from .arguments import add_model, load_model, positive


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "verify",
        help="compare a model as it runs here with plain float64",
        description="Compares every layer, the fused step and the captured graph with plain float64 on the CPU, on "
        "random input. Exit code 1 where something deviates by more than rounding explains.",
    )
    add_model(parser)
    parser.add_argument("--batch", type=positive, default=2, help="samples of random input (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the random input (default 0)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify the model that `args` name; returns the exit code."""
    _, engine = load_model(args)
    _, plain = load_model(argparse.Namespace(**{**vars(args), "device": "cpu", "dtype": "float32"}))
    found = engine.verify(reference=_network(plain), batch=args.batch, seed=args.seed)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    return 0 if found.passed else 1


def _network(engine: Any) -> Any:
    """The network that an engine's ``verify`` takes as the reference: its attribute `flow` or `network`."""
    return engine.flow if hasattr(engine, "flow") else engine.network
