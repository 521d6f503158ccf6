"""``fastgen info``: a model, the solvers, or what this machine has and which path will run."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .arguments import add_model, load_model


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help="what a model is, what this machine has",
        description="Without arguments: the models that ship with fastgen.",
    )
    add_model(parser, optional=True)
    parser.add_argument(
        "--doctor", action="store_true", help="GPU, triton, CPU features, versions, which path runs"
    )
    parser.add_argument("--solvers", action="store_true", help="the solvers and their options")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what `args` ask for; returns the exit code, 1 where the doctor finds something broken."""
    facts: dict[str, Any] = {}
    if args.doctor:
        facts["doctor"] = doctor()
    if args.solvers:
        facts["solvers"] = solvers()
    if args.model is not None:
        facts["model"] = load_model(args)[1].describe()
    if not facts:
        from ..zoo import ZOO

        facts["zoo"] = {f"zoo:{name}": text for name, text in ZOO.items()}
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        for title, values in facts.items():
            print(title)
            _print(values, 1)
    return 1 if facts.get("doctor", {}).get("problems") else 0


def doctor() -> dict[str, Any]:
    """What this machine offers fastgen, which path runs its operations, and what is wrong."""
    import os
    import platform
    from importlib import metadata

    import torch

    import fastgen_kernels

    from ..runtime.device import choose_device, choose_dtype, cpu_features

    versions = {}
    for package in ("fastgen", "torch", "triton", "numpy", "safetensors", "huggingface_hub", "pillow"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            f"{properties.name}, {properties.total_memory >> 30} GiB, sm_{properties.major}{properties.minor}, "
            f"{properties.multi_processor_count} SMs"
        )
    device = choose_device("auto")
    problems, path = [], "none"
    try:
        path = fastgen_kernels.select(device.type)
    except RuntimeError as error:
        problems.append(str(error))
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "cpu": {
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "features": [name for name, present in cpu_features().items() if present],
        },
        "gpu": gpus or ["none that PyTorch sees"],
        "will run": {
            "device": str(device),
            "dtype": str(choose_dtype("auto", device)).removeprefix("torch."),
            "operations": f"{path} ({', '.join(fastgen_kernels.OPS)})",
        },
        "problems": problems,
    }


def solvers() -> dict[str, Any]:
    """The solvers, their papers and options."""
    from ..diffusion.solvers import SOLVERS

    return {
        name: {
            "source": solver.paper,
            **{o.name: f"{o.type}, {o.allowed}, default {o.default}" for o in solver.options},
        }
        for name, solver in SOLVERS.items()
    }


def _print(values: Any, depth: int) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            print(f"{'  ' * depth}{key}")
            _print(value, depth + 1)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{'  ' * depth}{key}: {'none' if shown == '' or shown is None else shown}")
