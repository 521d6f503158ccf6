"""Editing with zoo:ddpm-mnist: what docs/editing.md states of it."""

from __future__ import annotations

import re

import pytest
import torch

import fastgen
from tests.diffusion.deviations import block

from . import editing


@pytest.fixture(scope="module")
def engine() -> fastgen.DiffusionEngine:
    return fastgen.load(editing.MODEL, device="cpu")


def test_known_pixels_come_out_bit_for_bit(engine: fastgen.DiffusionEngine) -> None:
    images = engine.sample(2, seed=0, labels=[3, 7], steps=4)
    mask = editing.right_half()
    for call in ({"steps": 3, "method": "replace"}, {"steps": 4, "jump_length": 1, "resamples": 2}):
        made = engine.inpaint(images, mask, seed=1, labels=[3, 7], guidance_scale=2.0, **call)
        assert torch.equal(made[..., : editing.EDGE], images[..., : editing.EDGE])
        assert not torch.equal(made[..., editing.EDGE :], images[..., editing.EDGE :])


def test_encoding_finds_the_way_back(engine: fastgen.DiffusionEngine) -> None:
    """Of few steps, coarsely: each iteration closer."""
    images, labels = engine.sample(1, seed=0, labels=3, steps=8), [3]
    errors = [
        float(engine.round_trip(images, labels=labels, steps=6, iterations=count).rms) for count in (1, 6)
    ]
    assert errors[1] < errors[0] / 2


def cells(name: str) -> list[list[str]]:
    rows = block(editing.PAGE.read_text(), name).splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_page_says_what_was_measured() -> None:
    """RePaint sees the label more often than replacement, also at as many evaluations."""
    filled = [row for row in cells("inpaint") if row[1]]
    assert [row[0] for row in filled] == [way.name for way in editing.WAYS]
    replaced, longer, repainted = (int(row[2]) for row in filled)
    assert repainted > max(replaced, longer)
    coded = cells("encode")
    assert [row[0] for row in coded] == list(editing.CODINGS)
    for row in coded:
        errors = [float(re.match(r"[\d.]+", cell).group()) for cell in row[1:]]
        assert errors[-1] == min(errors)
    assert min(float(row[-1].split()[0]) for row in coded) <= 0.01


@pytest.mark.slow
def test_what_the_page_says_is_so(engine: fastgen.DiffusionEngine) -> None:
    """On fewer digits: RePaint is ahead of replacement, and 100 steps bring an image back."""
    images, labels = editing.digits(engine, 30)
    seen = [
        editing.agreeing(engine.inpaint(images, editing.right_half(), seed=0, **way.arguments), labels)
        for way in editing.WAYS[::2]
    ]
    assert seen[1] > seen[0]
    trip = engine.round_trip(images[:2], labels=labels[:2].tolist(), steps=100)
    assert float(trip.rms.max()) <= 0.02
