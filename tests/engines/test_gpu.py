"""The engine on a CUDA device against the engine on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastgen
from tests.small import checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_float32_equals_the_cpu(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    call = {"seed": 3, "labels": [0, 1, 2, None], "guidance_scale": 2.0}
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        got = fastgen.load(folder, device="cuda", dtype="float32").sample(**call)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    want = fastgen.load(folder, device="cpu").sample(**call)
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-4)


def test_auto_is_cuda_and_bfloat16(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"))
    facts = engine.describe()
    assert facts["device"].startswith("cuda")
    assert facts["dtype"] == "bfloat16"
    assert facts["reverse_step"] == "triton"
    assert engine.sample(3, seed=0).isfinite().all()
