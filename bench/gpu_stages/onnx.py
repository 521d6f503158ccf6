"""Exported models on this device: sampler.onnx, step.onnx with I/O binding, step.onnx in a CUDA graph."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastgen
from fastgen import onnx_runtime
from fastgen.checkpoint import Part, Spec, save
from fastgen.config import to_dict
from fastgen.errors import ConfigError
from fastgen.models.unet import UNet, UNetConfig

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
        source: str | Path = small_model(Path(folder) / "model") if stage.dry else "zoo:ddpm-mnist"
        exported = Path(folder) / "onnx"
        fastgen.export(source, exported, tables=[f"ddim:{STEPS}"])
        device = "cpu" if stage.dry else "cuda"
        try:
            onnx_runtime.load(exported, device)
        except ConfigError as error:
            stage.add("skipped", "onnx", reason=str(error))
            return
        engine = fastgen.load(source, device=device, dtype="float32")
        for way in WAYS if device == "cuda" else WAYS[:2]:
            for batch in (1,) if stage.dry else (1, 16, 64):
                name = f"onnx {way} batch {batch}"
                if stage.begins(name, 5.0):
                    with stage.attempt(name):
                        measure(stage, name, engine, exported, device, way, batch)


def measure(stage: Stage, name: str, engine: Any, exported: Path, device: str, way: str, batch: int) -> None:
    """One way, checked before it is timed."""
    model = onnx_runtime.load(exported, device, cuda_graph=way == "captured steps")
    assert isinstance(model, onnx_runtime.DiffusionModel)
    callback = (lambda step, total, states: None) if way == "steps" else None
    arguments: dict[str, Any] = {
        "seed": 0,
        "labels": [k % 3 for k in range(batch)],
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


def small_model(folder: Path) -> Path:
    """For a dry run: a U-Net of two levels with random weights."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    config = UNetConfig(
        sample_size=(8, 8), in_channels=1, out_channels=1, block_out_channels=(16, 16), norm_num_groups=4,
        num_class_embeds=4, **blocks,
    )  # fmt: skip
    torch.manual_seed(0)
    settings = {"schedule": {"beta_schedule": "linear"}, "num_classes": 3, "null_class": 3}
    spec = Spec("diffusion", {"unet": Part("unet", to_dict(config))}, settings)
    save(folder, spec, {f"unet.{name}": value for name, value in UNet(config).state_dict().items()})
    return folder
