"""Other ways to do fastgen's work: who they are, and what keeps them from running here.

A module for each project, imported always, which imports the project itself inside its functions. They give calls that
return what the engine's verb returns, with the engine's weights and noise; NotApplicable where there is no such thing.
"""

from __future__ import annotations

import importlib.util
import shutil

import torch

# name -> the packages that it needs
BASELINES: dict[str, tuple[str, ...]] = {
    "eager": (),
    "compile": (),
    "diffusers": ("diffusers",),
    "onnxruntime": ("onnxruntime", "onnxscript"),  # the latter writes its models
}


def missing(baseline: str, device: torch.device) -> str:
    """Why a baseline cannot run here, or ""."""
    packages = BASELINES[baseline]
    if baseline == "compile" and device.type == "cuda":
        packages = ("triton",)
    elif baseline == "compile" and not (shutil.which("g++") or shutil.which("clang++")):
        return "no C++ compiler"
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"{', '.join(lacking)} is not installed" if lacking else ""
