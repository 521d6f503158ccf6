"""docs/from-diffusers.md says what the code does: both scripts run, names and tables are those of the code.

python -m tests.converters.test_docs    writes the table of schedulers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fastgen
from fastgen.converters.diffusers.rules import OFF, RULES
from tests.diffusion.deviations import block, replace_block

from .folders import saved

PAGE = Path(__file__).parents[2] / "docs" / "from-diffusers.md"


def schedulers_table() -> str:
    """The table of schedulers, as Markdown."""
    lines = [
        "| scheduler | solver | steps, if not said | options that are mapped | only these values |",
        "|---|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        options = ", ".join(f"`{option}`" for option in rule.options)
        only = ", ".join(
            f"`{key}` {'False' if values == OFF else ', '.join('null' if v is None else str(v) for v in values)}"
            for key, values in rule.only.items()
        )
        solvers = ", ".join(f"`{solver}`" for solver in rule.solvers)
        process = "" if rule.process is None else f" on the process `{rule.process}`"
        lines.append(f"| `{name}` | {solvers}{process} | {rule.steps} | {options or '-'} | {only or '-'} |")
    return "\n".join(lines)


def script(name: str) -> str:
    return block(PAGE.read_text(), name).removeprefix("```python\n").removesuffix("```")


def test_table_is_current() -> None:
    assert block(PAGE.read_text(), "schedulers") == schedulers_table(), (
        "run: python -m tests.converters.test_docs"
    )


def test_both_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub id is a folder here, which goes first in both libraries."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "google" / "ddpm-cifar10-32")
    found: list[dict[str, Any]] = []
    for name in ("before", "after"):
        found.append({})
        shorter = script(name).replace("num_inference_steps=50", "num_inference_steps=3")
        exec(compile(shorter, f"{PAGE.name}, {name}", "exec"), found[-1])
        assert (tmp_path / "sample.png").stat().st_size > 0
        (tmp_path / "sample.png").unlink()
    before, after = (values["images"] for values in found)
    assert [(i.size, i.mode) for i in before] == [(i.size, i.mode) for i in after]


def test_names(tmp_path: Path) -> None:
    """What the table of names says, in fastgen's column."""
    folder = saved(tmp_path / "m")
    engine = fastgen.load(folder, dtype="bfloat16", device="cpu", local_files_only=True)
    assert engine.describe()["dtype"] == "bfloat16"
    engine = fastgen.load(folder, device="cpu")
    drawn = engine.sample(4, num_inference_steps=2, seed=7)
    assert drawn.shape == (4, 3, 8, 8)
    torch.testing.assert_close(drawn[1:2], engine.sample(1, steps=2, seed=8), rtol=1e-4, atol=1e-4)
    engine.sample(1, solver="ddim", eta=0.5, use_clipped_model_output=True, steps=2)
    engine.sample(1, solver="euler", steps=2)
    assert engine.network(torch.zeros(2, 3, 8, 8), torch.tensor([3, 4])).shape == (2, 3, 8, 8)
    fastgen.convert(folder, tmp_path / "ours")
    fastgen.convert(tmp_path / "ours", tmp_path / "theirs", to="diffusers")
    from diffusers import DDPMPipeline

    assert DDPMPipeline.from_pretrained(tmp_path / "theirs").unet.config.sample_size == 8


if __name__ == "__main__":
    PAGE.write_text(replace_block(PAGE.read_text(), "schedulers", schedulers_table()))
