"""What the figures belong to: the device, its clocks, the versions and tools that are there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess

import torch

from fastgen.bench.environment import environment
from fastgen.commands.info import doctor

from .stage import Stage

TOOLS = {
    "nvidia-smi": ["nvidia-smi"],
    "clocks": [
        "nvidia-smi",
        "--query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu",
        "--format=csv",
    ],
    "nvcc": ["nvcc", "--version"],
    "ptxas": ["ptxas", "--version"],
    "compute-sanitizer": ["compute-sanitizer", "--version"],
    "gcc": ["gcc", "--version"],
}
PACKAGES = (
    "diffusers",
    "normflows",
    "zuko",
    "nflows",
    "onnx",
    "onnxruntime",
    "scipy",
    "sklearn",
    "matplotlib",
    "xdist",
)


def run(stage: Stage) -> None:
    """Report versions, tools and what the device is."""
    stage.add("environment", "environment", values=environment(stage.device), dry=stage.dry)
    stage.add("fact", "doctor", values=doctor())
    found = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
    stage.add("fact", "packages", values=found, cores=os.cpu_count())
    if stage.device.type == "cuda":
        properties = torch.cuda.get_device_properties(stage.device)
        names = [name for name in dir(properties) if not name.startswith("_")]
        stage.add("fact", "device", values={name: getattr(properties, name) for name in names})
    for name, command in TOOLS.items():
        if shutil.which(command[0]) is None:
            stage.add("fact", name, missing=True)
            continue
        with stage.attempt(name):
            out = subprocess.run(command, capture_output=True, text=True, check=False, timeout=8)
            stage.add("fact", name, text=(out.stdout + out.stderr)[-2000:])
