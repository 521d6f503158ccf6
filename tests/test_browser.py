"""The page in docs/browser: what it is made of, and digits drawn in headless Chromium beside the engine's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastgen
from fastgen.engines import DiffusionEngine

PAGE = Path(__file__).parents[1] / "docs" / "browser"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
MISSING = [
    what
    for what, there in (
        ("node", shutil.which("node") is not None),
        (CHROMIUM, Path(CHROMIUM).exists()),
        (
            "docs/browser/node_modules (npm ci --ignore-scripts)",
            (PAGE / "node_modules/playwright-core").exists(),
        ),
    )
    if not there
]
# One after the other on one page, which keeps what is not said again. The first is drawn by the model's defaults.
CHOICES: list[dict[str, Any]] = [
    {"seed": "7", "label": 3},
    {"seed": "7", "label": 3, "guidance": 3},
    {"seed": str(2**64 - 1), "label": 8, "table": "tables/ddpm-10.json", "guidance": 2},
    {"seed": "12345678901", "label": 5, "table": "tables/unipc-10.json", "guidance": 1},
]


def serve_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser_serve", PAGE / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lock_file_names_no_host_and_fixes_every_package() -> None:
    lock = (PAGE / "package-lock.json").read_text()
    assert "resolved" not in lock
    assert "://" not in lock
    wanted = json.loads((PAGE / "package.json").read_text())
    for name, version in (wanted["dependencies"] | wanted["devDependencies"]).items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), name
        entry = json.loads(lock)["packages"][f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")


def test_the_page_names_nothing_outside_of_its_folder() -> None:
    module = serve_module()
    for name in module.PAGE:
        assert "://" not in (PAGE / name).read_text(), name


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with serve_module().server(folder, 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


def visit(address: str, choices: list[dict[str, Any]], *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", PAGE / "visit.mjs", address, json.dumps(choices), *more],
        env={**os.environ, "CHROMIUM": CHROMIUM},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_page_draws_the_digits_of_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = tmp_path / "page"
    subprocess.run([sys.executable, PAGE / "serve.py", "--prepare", "--out", folder], check=True)
    with served(folder) as address:
        done = visit(address, CHOICES, str(tmp_path / "page.png"))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert all(request.startswith(address) for request in seen["requests"])
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu")
    assert isinstance(engine, DiffusionEngine)
    for choice, drawing in zip(CHOICES, seen["drawings"], strict=True):
        arguments: dict[str, Any] = {"seeds": [int(choice["seed"])], "labels": [choice["label"]]}
        if "table" in choice:
            solver, steps = choice["table"][len("tables/") : -len(".json")].rsplit("-", 1)
            arguments |= {"solver": solver, "steps": int(steps)}
        if "guidance" in choice:
            arguments["guidance_scale"] = choice["guidance"]
        image = engine.sample(1, output_type="np", **arguments)
        want = np.rint(255 * np.asarray(image).reshape(28, 28))
        got = np.array(drawing["pixels"]).reshape(28, 28)
        assert want.max() > 128, "a digit"
        assert np.abs(got - want).max() <= 2, choice
    assert (tmp_path / "page.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    module = serve_module()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    module.prepare(tmp_path)  # a model that is there stays
    (tmp_path / "model" / "model.json").unlink()
    with served(tmp_path) as address:
        done = visit(address, [])
    assert done.returncode != 0
    assert "It failed: model/" in done.stderr
