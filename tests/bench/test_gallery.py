"""The sheet of all solvers: nothing is forgotten, and a cell is what `sample` draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import fastgen
from bench import gallery
from fastgen.diffusion import SOLVERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "solvers.md"


@pytest.fixture(scope="module")
def engine() -> fastgen.DiffusionEngine:
    return fastgen.load(gallery.MODEL, device="cpu")


def test_every_solver_is_drawn_or_named_as_left_out(engine: fastgen.DiffusionEngine) -> None:
    cells, left_out = gallery.plan(engine, list(SOLVERS), gallery.EVALUATIONS)
    drawn = {cell.title for cell in cells}
    assert drawn.isdisjoint(left_out)
    assert drawn | left_out.keys() == SOLVERS.keys()
    # Only those for models of another kind: none is missing because it refused a number of steps.
    assert left_out.keys() == {name for name in SOLVERS if SOLVERS[name].sde} | set(gallery.DISTILLED)
    section = PAGE.read_text(encoding="utf-8").split("## Gallery")[1].split("\n## ")[0]
    assert all(f"`{name}`" in section for name in left_out), "the page says what the image leaves out"


def test_captions_tell_evaluations_from_steps(engine: fastgen.DiffusionEngine) -> None:
    cells, _ = gallery.plan(engine, ["ddim", "heun", "pndm"], [6])
    assert [cell.caption for cell in cells] == [
        "ddim, 6 steps",
        "heun, 3 steps (5 evaluations)",
        "pndm, 4 steps (5 evaluations)",
    ]


def test_a_solver_that_refuses_is_left_out_with_its_reason(engine: fastgen.DiffusionEngine) -> None:
    cells, left_out = gallery.plan(engine, ["ddim", "euler_maruyama"], [5, 2])
    assert [cell.caption for cell in cells] == ["ddim, 5 steps", "ddim, 2 steps"]
    assert "SDE" in left_out["euler_maruyama"]


def test_a_cell_is_what_sample_draws(engine: fastgen.DiffusionEngine) -> None:
    """Alone, by the solver's name: the sheet's samples step together, which moves the last bits only."""
    cells, _ = gallery.plan(engine, ["ddim", "dpm++2m"], [2, 3])
    images = gallery.draw(engine, cells)
    assert images.shape == (4, 1, 28, 28 * len(gallery.LABELS))
    arguments = {"seed": gallery.SEED, "guidance_scale": gallery.GUIDANCE, "labels": gallery.LABELS}
    alone = engine.sample(solver="dpm++2m", steps=3, **arguments)
    torch.testing.assert_close(images[3], torch.cat(list(alone), dim=-1), rtol=1e-3, atol=1e-3)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert gallery.main(["--solvers", "ddim", "unipc", "lcm", "--evaluations", "1,2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"left out: lcm: {gallery.FOR_DISTILLED}" in printed
    assert "2 rows" in printed
    with Image.open(out) as sheet:
        width = 28 * len(gallery.LABELS) * gallery.SCALE
        assert sheet.mode == "L"
        assert sheet.width == 2 * (width + 2) + 2
        digits = sheet.crop((0, 0, sheet.width, 28 * gallery.SCALE))
        assert digits.getextrema()[1] > 200  # of 255; captions lie below


def test_nothing_to_draw_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert gallery.main(["--solvers", "tcd", "--out", str(out)]) == 1
    assert not out.exists()
    assert "nothing to draw" in capsys.readouterr().err
