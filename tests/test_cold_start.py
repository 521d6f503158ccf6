"""The first image of a fresh process: what it may not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastgen

SLOW = ("torch._dynamo", "torch._inductor", "sympy", "triton", "diffusers", "huggingface_hub")
OURS = ("fastgen.converters", "fastgen.training.loop", "fastgen.bench")


def imported(code: str) -> set[str]:
    """The modules that a fresh process has at the end of `code`."""
    whole = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("model", "others"),
    [
        ("zoo:ddpm-mnist", ("fastgen.engines.flow", "PIL")),
        ("zoo:glow-mnist", ("fastgen.engines.diffusion", "fastgen.diffusion", "fastgen.models.unet", "PIL")),
    ],
)
def test_loading_and_drawing_imports_nothing_that_is_not_needed(model: str, others: tuple[str, ...]) -> None:
    found = imported(f"import fastgen; fastgen.load({model!r}, device='cpu').sample(1, labels=3)")
    assert f"fastgen.engines.{fastgen.load(model, device='cpu').kind}.engine" in found
    assert sorted(found & {*SLOW, *OURS, *others}) == []


def test_the_command_imports_nothing_that_is_not_needed(tmp_path: Path) -> None:
    arguments = [
        "sample",
        "zoo:ddpm-mnist",
        "-o",
        str(tmp_path / "a.png"),
        "-n",
        "1",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    found = imported(f"from fastgen.cli import main\nassert main({arguments!r}) == 0")
    assert (tmp_path / "a.png").exists()
    assert sorted(found & {*SLOW, *OURS}) == []


def test_engines_are_imported_when_they_are_looked_up() -> None:
    found = imported("import fastgen; assert 'flow' in list(fastgen.ENGINES)")
    assert not {name for name in found if name.startswith("fastgen.engines.")}
    assert fastgen.ENGINES["flow"] is fastgen.FlowEngine
    assert "nothing" not in fastgen.ENGINES
