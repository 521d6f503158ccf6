"""Models that ``fastgen export`` wrote, run by onnxruntime: NumPy in and out, no PyTorch.

>>> model = fastgen.onnx_runtime.load("exported", device="cpu")
>>> images = model.sample(16, solver="dpm++2m", steps=20, seed=0)  # float32 [16, C, H, W] in [-1, 1]

Needs ``pip install onnxruntime numpy`` (or onnxruntime-gpu). onnxruntime's telemetry is off unless the environment
sets ORT_DISABLE_TELEMETRY=0 before it is first imported.
"""

from __future__ import annotations

from pathlib import Path

from ..config import check_flags
from ..errors import ConfigError
from .diffusion import DiffusionModel
from .flow import FlowModel
from .manifest import MANIFEST, read_manifest
from .sessions import Sessions

KINDS: dict[str, type[DiffusionModel] | type[FlowModel]] = {"diffusion": DiffusionModel, "flow": FlowModel}

__all__ = ["MANIFEST", "DiffusionModel", "FlowModel", "load", "read_manifest"]


def load(
    folder: str | Path,
    device: str = "auto",
    *,
    max_batch: int = 64,
    threads: int | None = None,
    cuda_graph: bool = False,
) -> DiffusionModel | FlowModel:
    """The model in a folder of ``fastgen export``: a `DiffusionModel` or a `FlowModel`, whose verbs are the engine's.

    device: "cpu"; "cuda"; "auto": CUDA where onnxruntime can really run there. ``model.describe()["provider"]`` says
    what does. max_batch: samples that are computed together; more are divided. threads: of the CPU, by default as many
    as onnxruntime finds cores. cuda_graph: on CUDA capture ``step.onnx``, which then samples in place of
    ``sampler.onnx`` (a Loop cannot be captured).

    Files are read when they are first needed, and compared with their SHA-256 in ``model.json``. Raises ConfigError,
    which names the missing library where "cuda" cannot be, and CheckpointError for a folder that holds no export, and
    for a damaged file.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    kind = manifest.get("family")
    if kind not in KINDS:
        raise ConfigError(f"expected one of {', '.join(KINDS)}, got {kind!r}", argument="family")
    if type(max_batch) is not int or max_batch < 1:
        raise ConfigError(f"expected an int of at least 1, got {max_batch!r}", argument="max_batch")
    check_flags(cuda_graph=cuda_graph)
    sessions = Sessions(folder, manifest, device, threads=threads, cuda_graph=cuda_graph)
    return KINDS[kind](manifest, sessions, max_batch)
