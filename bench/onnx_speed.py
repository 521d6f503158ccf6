"""Exported samplers beside PyTorch on this CPU: ``python -m bench.onnx_speed`` brings docs/onnx.md up to date.

Ways are run in turns, so that other work on the machine meets all of them; what is compared are medians of wall time
and of processor time. bench/results/onnx-cpu.json keeps every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastgen
from fastgen import onnx_runtime
from fastgen.bench.environment import environment
from fastgen.diffusion import run as run_table
from fastgen_kernels import normals

from .pages import write_between

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "onnx.md"
RESULTS = ROOT / "bench" / "results" / "onnx-cpu.json"
MARKS = ("<!-- speed: python -m bench.onnx_speed -->\n", "<!-- end of speed -->")
SOLVER, STEPS, LABEL, SEED = "dpm++2m", 20, 3, 0


def ways(folder: Path, threads: int) -> dict[str, Callable[[], np.ndarray]]:
    """Each draws the same picture."""
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu", dtype="float32")
    model = onnx_runtime.load(folder, "cpu", threads=threads)
    assert isinstance(model, onnx_runtime.DiffusionModel)
    arguments: dict[str, Any] = {
        "seed": SEED, "labels": LABEL, "solver": SOLVER, "steps": STEPS, "guidance_scale": 1.0,
    }  # fmt: skip
    table = engine.request(1, **arguments).plans[0].table
    (network,) = engine.networks.values()
    label = torch.tensor([LABEL])

    @torch.inference_mode()
    def eager() -> np.ndarray:
        def denoise(x: torch.Tensor, t: float) -> torch.Tensor:
            return network(x, torch.tensor([t]), label)

        x = normals([SEED], 0, "initial", engine.shape) * table.initial_scale
        image: torch.Tensor = run_table(table, denoise, x, [x] * len(table))
        return image.clamp(-1, 1).numpy()

    return {
        "PyTorch, eager": eager,
        "fastgen's engine": lambda: engine.sample(1, **arguments).numpy(),
        "step.onnx in a Python loop": lambda: model.sample(1, callback=lambda *_: None, **arguments),
        "sampler.onnx": lambda: model.sample(1, **arguments),
    }


def measure(rounds: int, threads: int, exported: Path | None) -> dict[str, Any]:
    """Seconds a picture, of each way."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if exported is None:
            exported = Path(folder) / "onnx"
            fastgen.export("zoo:ddpm-mnist", exported)
        draw = ways(exported, threads)
        first = {name: way() for name, way in draw.items()}  # warms up, too
        worst = max(float(np.abs(image - first["PyTorch, eager"]).max()) for image in first.values())
        if worst > 1e-3:
            raise RuntimeError(f"the pictures differ by {worst:.2g}: nothing to compare")
        wall: dict[str, list[float]] = {name: [] for name in draw}
        processor: dict[str, list[float]] = {name: [] for name in draw}
        for _ in range(rounds):
            for name, way in draw.items():
                began, used = time.perf_counter(), time.process_time()
                way()
                wall[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - used)
    return {
        "environment": environment(torch.device("cpu")),
        "threads": threads,
        "rounds": rounds,
        "difference": worst,
        "wall": wall,
        "processor": processor,
    }


def table(found: dict[str, Any]) -> str:
    """The page's table."""
    lines = ["| | ms a step | processor ms a step | beside eager |\n", "|---|---|---|---|\n"]
    wall, processor = (
        {n: float(np.median(v)) for n, v in found[kind].items()} for kind in ("wall", "processor")
    )
    for name, seconds in wall.items():
        ratio = wall["PyTorch, eager"] / seconds
        ms = 1e3 / STEPS
        lines.append(f"| {name} | {seconds * ms:.2f} | {processor[name] * ms:.2f} | {ratio:.2f}x |\n")
    where = found["environment"]
    lines.append(f"\n{found['threads']} thread(s), torch {where['torch']}, {found['rounds']} rounds.\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.onnx_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--exported", type=Path, help="what fastgen export wrote of zoo:ddpm-mnist, to save its time"
    )
    args = parser.parse_args()
    found = measure(args.rounds, args.threads, args.exported)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, MARKS, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
