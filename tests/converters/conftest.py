"""Exports that tests share, each made once."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastgen


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that ``fastgen export`` writes of zoo:ddpm-mnist."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx") / "digits"
    fastgen.export("zoo:ddpm-mnist", folder, tables=["unipc:12"])
    return folder


@pytest.fixture(scope="session")
def glow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that ``fastgen export`` writes of zoo:glow-mnist."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx") / "glow"
    fastgen.export("zoo:glow-mnist", folder)
    return folder
