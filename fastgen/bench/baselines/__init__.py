"""Other ways to do fastgen's work: who they are, and what keeps them from running here.

A module for each project, imported always, which imports the project itself inside its functions. They give calls that
return what the engine's verb returns, with the engine's weights and noise; NotApplicable where there is no such thing.
"""

from __future__ import annotations

import importlib.util

import torch

from ..contest import no_compiler

# name -> the package that it needs, None for what comes with PyTorch
BASELINES: dict[str, str | None] = {
    "eager": None,
    "compile": None,
    "diffusers": "diffusers",
    "onnxruntime": "onnxruntime",
}


def missing(baseline: str, device: torch.device) -> str:
    """Why a baseline cannot run here, or ""."""
    package = BASELINES[baseline]
    if baseline == "compile":
        return no_compiler(device)
    if baseline == "onnxruntime" and importlib.util.find_spec("onnxscript") is None:
        return "onnxscript, which writes its models, is not installed"
    return f"{package} is not installed" if package and importlib.util.find_spec(package) is None else ""
