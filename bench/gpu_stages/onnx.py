"""Exported models on this device: sampler.onnx, step.onnx with I/O binding, step.onnx in a CUDA graph."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fastgen
from fastgen import onnx_runtime
from fastgen.errors import ConfigError

from .stage import Stage

STEPS = 20
WAYS = ("sampler", "steps", "captured steps")
BOUND = 1e-3  # of pictures in [-1, 1], float32 against float32


def run(stage: Stage) -> None:
    """Report for every way and batch the error beside the engine and the images a second."""
    if missing := [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]:
        stage.add("skipped", "onnx", reason=f"not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder, stage.attempt("onnx: export"):
        exported = Path(folder)
        # A dry run exports no network, which takes longer than the stage has on a busy machine.
        fastgen.export(
            "zoo:ddpm-mnist", exported, what="tables" if stage.dry else "all", tables=[f"ddim:{STEPS}"]
        )
        try:
            onnx_runtime.load(exported, "cuda")
        except ConfigError as error:
            stage.add("skipped", "onnx", reason=str(error))
            return
        engine = fastgen.load("zoo:ddpm-mnist", device="cuda", dtype="float32")
        for way in WAYS:
            for batch in (1, 16, 64):
                name = f"onnx {way} batch {batch}"
                if stage.begins(name, 3.0):
                    with stage.attempt(name):
                        measure(stage, name, engine, exported, "cuda", way, batch)


def measure(stage: Stage, name: str, engine: Any, exported: Path, device: str, way: str, batch: int) -> None:
    """One way, checked before it is timed."""
    model = onnx_runtime.load(exported, device, cuda_graph=way == "captured steps")
    assert isinstance(model, onnx_runtime.DiffusionModel)
    callback = (lambda step, total, states: None) if way == "steps" else None
    arguments: dict[str, Any] = {
        "seed": 0,
        "labels": [k % 10 for k in range(batch)],
        "solver": "ddim",
        "steps": STEPS,
    }

    def draw() -> np.ndarray:
        return model.sample(batch, guidance_scale=1.0, callback=callback, **arguments)

    images = draw()
    wanted = engine.sample(batch, guidance_scale=1.0, **arguments).cpu().numpy()
    error = float(np.abs(images - wanted).max())
    stage.add("check", name, error=error / BOUND, outcome="passed" if error <= BOUND else "failed")
    times = []
    for _ in range(2 if stage.dry else 10):
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    seconds = float(np.median(times))
    provider = model.describe()["provider"]
    stage.add(
        "probe",
        name,
        values={"provider": provider, "ms a step": 1e3 * seconds / STEPS, "images/s": batch / seconds},
    )
