"""Shared by all tests. Triton reads TRITON_INTERPRET when first imported, which may be during collection."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores; two threads each would fight over them


@pytest.fixture(autouse=True)
def _cpu_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that are not about a GPU give the same results on a machine that has one."""
    if torch.cuda.is_available() and request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name, model, options) -> the folder NAME with all that ``fastgen export`` writes, made once for all workers."""
    pytest.importorskip("onnxruntime")
    import fcntl

    import fastgen

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in it

    def make(name: str, model: str, **options: object) -> Path:
        folder = root / "exported" / name
        folder.parent.mkdir(exist_ok=True)
        with (folder.parent / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "model.json").exists():  # written last
                fastgen.export(model, folder, **options)
        return folder

    return make


@pytest.fixture(scope="session")
def digits(exported: Callable[..., Path]) -> Path:
    """Exported zoo:ddpm-mnist. Tests read it only."""
    return exported("digits", "zoo:ddpm-mnist", tables=["unipc:12", "ddim:20"])


@pytest.fixture(scope="session")
def glow(exported: Callable[..., Path]) -> Path:
    """Exported zoo:glow-mnist. Tests read it only."""
    return exported("glow", "zoo:glow-mnist")
