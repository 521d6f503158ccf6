"""The stage that runs exported models on a GPU, on a CPU."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import fastgen
from bench.gpu_stages import onnx
from bench.gpu_stages.stage import Stage, read

pytest.importorskip("onnxruntime")


def stage(folder: Path) -> Stage:
    return Stage("onnx", folder, time.time() + 600, True, {})


def test_a_dry_run_says_why_it_is_skipped(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime may run on CUDA")
    onnx.run(stage(tmp_path))
    (item,) = [item for item in read(tmp_path / "results.jsonl") if item["kind"] == "skipped"]
    assert "onnxruntime-gpu" in item["reason"]


@pytest.mark.slow
def test_ways_are_checked_and_timed(tmp_path: Path, digits: Path) -> None:
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu", dtype="float32")
    for way in onnx.WAYS[:2]:
        onnx.measure(stage(tmp_path), way, engine, digits, "cpu", way, 2)
    items = read(tmp_path / "results.jsonl")
    assert [item["outcome"] for item in items if item["kind"] == "check"] == ["passed", "passed"]
    assert all(item["values"]["images/s"] > 0 for item in items if item["kind"] == "probe")
