"""`fastgen sample` of a family that is made known while the program runs, by FAMILIES and ARCHITECTURES alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.architectures import ARCHITECTURES, Architecture
from fastgen.checkpoint import Part, Spec, save
from fastgen.cli import main, parser
from fastgen.config import bounded
from fastgen.engines.verb import Verb
from fastgen.errors import ConfigError
from fastgen.families import FAMILIES, Family, Flag, Sampling
from fastgen.images import read_metadata
from tests.engines.toy import GAIN, ToyEngine, ToyRequest


@dataclass(frozen=True)
class ToyConfig:
    """width: of a sample; a height of 0 means that samples are rows of `width` numbers."""

    width: int = bounded(1, 64, default=8)
    height: int = bounded(0, 64, default=8)


class ToyNet(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.gain = nn.Parameter(torch.ones(1))


class NoiseEngine(ToyEngine):
    """Draws noise that depends on the seed, in the shape that its network says."""

    classes = 3

    def __init__(self, networks: nn.ModuleDict, *arguments: Any, **options: Any) -> None:
        config: Any = networks["net"].config
        self.shape = (1, config.height, config.width) if config.height else (config.width,)
        super().__init__(networks, *arguments, **options)

    def verbs(self) -> dict[str, Verb]:
        return {}

    def draw(self, request: ToyRequest) -> Tensor:
        draws = [torch.randn(self.shape, generator=torch.Generator().manual_seed(s)) for s in request.seeds]
        gain: Any = self.networks["net"].gain
        return torch.stack(draws) * gain.detach() * request.gain


TOY = Family(
    name="toy",
    engine=f"{__name__}:NoiseEngine",
    flags={"sample": (GAIN,)},
    sampling=Sampling(kept=("seeds", "labels", "gain"), labels=lambda engine: [0, 1, 2]),
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for models, where the family is known."""
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    monkeypatch.setitem(ARCHITECTURES, "toy_net", Architecture(ToyConfig, ToyNet))
    return tmp_path


def model(folder: Path, **config: int) -> str:
    save(folder, Spec("toy", {"net": Part("toy_net", config)}, {}), {"net.gain": torch.ones(1)})
    return str(folder)


def test_images_and_the_same_again(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sheet = model(toy / "m"), str(toy / "a.png")
    assert main(["sample", folder, "-n", "4", "--seed", "3", "--gain", "0.5", "-o", sheet]) == 0
    assert "4 images, " in capsys.readouterr().out
    asked = {"seeds": [3, 4, 5, 6], "labels": [0, 1, 2, 0], "gain": 0.5}
    assert read_metadata(sheet)["request"] == asked
    assert main(["sample", "--like", sheet, "-o", str(toy / "b.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"] == asked
    assert Path(sheet).read_bytes() == (toy / "b.png").read_bytes()
    assert main(["sample", folder, "--seeds", "7,9", "-o", str(toy / "all")]) == 0
    assert [p.name for p in sorted((toy / "all").glob("*.png"))] == ["00000-seed7.png", "00001-seed9.png"]


def test_rows(toy: Path) -> None:
    folder = model(toy / "m", width=5, height=0)
    assert main(["sample", folder, "-n", "6", "--seed", "3", "-o", str(toy / "a.npz")]) == 0
    assert np.load(toy / "a.npz")["x"].shape == (6, 5)


@pytest.mark.parametrize("flag", [["--solver", "ddim"], ["--gif", "a.gif"], ["--temperature", "1"]])
def test_flags_of_other_families(toy: Path, flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(toy / "m")
    (toy / "m" / "model.safetensors").unlink()  # it is known before weights are read
    with pytest.raises(SystemExit) as stop:
        main(["sample", folder, *flag])
    assert stop.value.code == 2
    assert f"unrecognized arguments for a toy model: {flag[0]}\n" in capsys.readouterr().err


def test_help_shows_the_flags_of_each_family(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    said = capsys.readouterr().out
    headings = re.findall(r"^(.*) models:$", said, re.MULTILINE)
    owners = [name for heading in headings for name in heading.split(", ")]
    assert {"diffusion", "flow", "toy"} <= set(owners)
    assert headings[-1] == "toy"  # in the order of FAMILIES
    assert said.index("factor of the noise") > said.index("\ntoy models:\n")


def test_families_share_a_flag_if_it_is_equal(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = Flag(GAIN.name, dict(GAIN.options))
    monkeypatch.setitem(FAMILIES, "other", Family("other", TOY.engine, {"sample": (same,)}))
    assert parser().parse_args(["sample", "m", "--gain", "2"]).gain == 2
    other = Flag(GAIN.name, {"type": int})
    monkeypatch.setitem(FAMILIES, "other", Family("other", TOY.engine, {"sample": (other,)}))
    with pytest.raises(ConfigError) as refusal:
        parser()
    assert refusal.value.argument == "--gain"


def test_families_need_no_torch() -> None:
    code = "import sys, fastgen.families; print('torch' in sys.modules, 'numpy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False False\n"
