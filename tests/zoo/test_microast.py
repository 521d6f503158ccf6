"""``zoo:microast`` beside the authors' files and outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastgen
from fastgen import zoo
from fastgen.converters import build, detect
from fastgen.image_files import read_image_file
from tests import real

FOLDER = Path(zoo.folder("microast"))


def test_what_ships() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3_000_000
    licence = (FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "MIT License" in licence
    assert "Copyright (c) 2022 Zhizhong Wang" in licence
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{Path(file).name}`" in page for file in zoo.EXAMPLES.values())


@pytest.mark.real
def test_the_authors_outputs() -> None:
    """Also with alpha 0.5, by their formula, whose values go from -2.5 to 14.7."""
    expected = torch.load(real.folder() / "expected/microast.pt", weights_only=True)
    net = fastgen.load("zoo:microast", device="cpu").network
    with torch.no_grad():
        for key, alpha in (("out", 1.0), ("out_alpha05", 0.5)):
            found = net(expected["content"], expected["style"], alpha)
            assert float((found - expected[key]).abs().max()) < 1e-4
    made = fastgen.load("zoo:microast", device="cpu").stylize(
        expected["content"] * 2 - 1, expected["style"] * 2 - 1
    )
    assert float((made / 2 + 0.5 - expected["out"].clamp(0, 1)).abs().max()) < 1e-4


@pytest.mark.real
def test_the_weights_are_the_authors() -> None:
    path = real.folder() / "weights/microast"
    converter = detect(path)
    assert converter is not None
    theirs = build(converter.read(path))["network"].state_dict()
    ours = fastgen.load("zoo:microast", device="cpu").network.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.real
def test_weaker_styles_are_pictures() -> None:
    """The engine's alpha, on photographs: between the content and the style, where the authors' formula is none."""
    engine = fastgen.load("zoo:microast", device="cpu")
    content, style = (
        read_image_file(real.folder() / f"data/kodak/kodim{n}.png").tensor()[:, :256, :256]
        for n in ("01", "23")
    )
    code = engine.encode_style([style])
    (none, half, whole) = (engine.stylize([content], code, alpha=a)[0] for a in (0.0, 0.5, 1.0))
    assert float((none - content).abs().mean()) < 0.25
    between = [float((half - end).square().mean()) for end in (none, whole)]
    assert max(between) < float((none - whole).square().mean())
