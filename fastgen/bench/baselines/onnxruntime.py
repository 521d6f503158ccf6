"""onnxruntime: the network as one ONNX file, the solver's arithmetic in PyTorch around it."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...engines import DiffusionEngine
from ..contest import NotApplicable


@lru_cache(maxsize=1)  # an export takes half a minute
def network(engine: DiffusionEngine) -> Callable[..., Tensor]:
    """The engine's network in float32, exported with a dynamic batch and run by onnxruntime on the engine's device."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it writes files at import otherwise
    import onnxruntime  # type: ignore[import-untyped]

    provider = "CUDAExecutionProvider" if engine.device.type == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise NotApplicable(f"this onnxruntime has no {provider}")
    labelled = engine.settings.num_classes is not None
    net = copy.deepcopy(engine.network).to("cpu", torch.float32)
    inputs: list[Tensor] = [
        torch.zeros(2, *engine.shape, dtype=torch.float32, device="cpu"),
        torch.zeros(2, dtype=torch.float32, device="cpu"),
    ]
    names = ["x", "t"]
    if labelled:
        inputs.append(torch.zeros(2, dtype=torch.int64, device="cpu"))
        names.append("label")
    batch = torch.export.Dim("batch", min=1, max=4096)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks about names that it gives
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            net,
            tuple(inputs),
            str(path),
            input_names=names,
            output_names=["F"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider:  # it falls back to the CPU without a word
        raise NotApplicable(f"{provider} was asked for, onnxruntime runs {session.get_providers()[0]}")

    def call(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        given = [x, t] if label is None else [x, t, label]
        arrays = {name: value.contiguous().cpu().numpy() for name, value in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0]).to(x.device)

    return call
