"""The page's table of default levels beside diffusers' is what `python -m tests.diffusion.defaults` finds."""

from __future__ import annotations

import pytest

from . import defaults
from .deviations import PAGE, block

NOTHING = 5  # runs of 100 that a difference may be without meaning anything


@pytest.fixture(scope="module")
def judge() -> defaults.Judge:
    return defaults.Judge()


@pytest.mark.parametrize(
    ("name", "kind"), [("heun", "squaredcos_cap_v2"), ("pndm", "linear"), ("rk4", "vp_sde")]
)
def test_the_page_says_what_is_found(name: str, kind: str, judge: defaults.Judge) -> None:
    process = defaults.PROCESSES[kind]
    wanted = judge.wanted(process)
    found = [judge.agreement(name, process, 10, wanted, **o) for o in ({}, {"as_diffusers": True})]
    row = next(line for line in block(PAGE.read_text(), "defaults").split("\n") if f"`{name}`, 10 " in line)
    said = row.strip("| ").split(" | ")[1 + list(defaults.PROCESSES).index(kind)]
    assert found == pytest.approx([int(part) for part in said.split(" / ")], abs=2)
    assert found[0] > found[1] + NOTHING


def test_no_default_is_worse_than_diffusers() -> None:
    lines = block(PAGE.read_text(), "defaults").split("\n")[2:]
    assert len(lines) == len(defaults.NAMES) * len(defaults.EVALUATIONS)
    for line in lines:
        for cell in line.strip("| ").split(" | ")[1:]:
            if cell != "-":
                ours, theirs = map(int, cell.split(" / "))
                assert ours >= theirs - NOTHING, line


def test_exact_paths_end_at_images(judge: defaults.Judge) -> None:
    """The exact denoiser led by small steps: whichever method, the same images."""
    process = defaults.PROCESSES["linear"]
    table = defaults.SOLVERS["dpm++2m"](process, 200)
    assert (judge.ends(table, 0.0) == judge.wanted(process)).sum() >= defaults.RUNS - 2
