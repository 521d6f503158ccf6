"""A family that is added at run time is trained by ``fastgen train`` like those that come with fastgen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from fastgen.architectures import ARCHITECTURES, Architecture
from fastgen.checkpoint import WEIGHTS_FILE, file_sha256, load_spec
from fastgen.cli import main
from fastgen.commands.family_flags import by_owners
from fastgen.commands.train import recipes
from fastgen.families import FAMILIES, Family, Flag
from fastgen.families.recipe import Recipe
from fastgen.training.loop import LOSS_FILE
from fastgen.training.run import STATE_FILE, saved_run

from .networks import ToyConfig, ToyNet, ToyRecipe
from .test_train import interrupt_in_step, sigint

__all__ = ["sigint"]

ARGUMENTS = ["--model", "toy_net", "--steps", "4", "--batch-size", "2", "--toy-channels", "3"]
ARGUMENTS += ["--precision", "fp32", "--device", "cpu", "--quiet", "--size", "4", "--channels", "1"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of pairs, side by side."""
    monkeypatch.setitem(ARCHITECTURES, "toy_net", Architecture(ToyConfig, ToyNet))
    monkeypatch.setitem(FAMILIES, "toy", Family("toy", "nowhere:Engine", recipes={"toy_net": ToyRecipe()}))
    (tmp_path / "pairs").mkdir()
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 256, (4, 8), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "pairs" / f"{i}.png")
    return str(tmp_path / "pairs")


def test_two_networks_from_the_command_line(toy: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert main(["train", str(folder), "--data", toy, "--side-by-side", *ARGUMENTS]) == 0
    spec, run = load_spec(folder), saved_run(folder)
    assert run is not None
    assert (spec.engine, set(spec.parts), set(run.auxiliary)) == ("toy", {"generator"}, {"critic"})
    assert (run.config.side_by_side, run.config.grad_clip, run.data["paired"]) == (True, 0.0, True)
    model, state = load_file(folder / WEIGHTS_FILE), load_file(folder / STATE_FILE)
    assert model["generator.layers.0.weight"].shape == (3, 1, 3, 3)
    assert not any("critic" in name for name in model)
    assert state["model.critic.layers.0.weight"].shape == (3, 1, 3, 3)
    assert (folder / LOSS_FILE).read_text().startswith("step,critic,generator\n1,")


@pytest.mark.usefixtures("sigint")
def test_resumed_by_what_the_run_says(toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", toy, "--side-by-side", *ARGUMENTS]
    assert main(["train", str(tmp_path / "whole"), *arguments]) == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        assert main(["train", str(tmp_path / "broken"), *arguments]) == 130
    assert main(["train", str(tmp_path / "broken"), "--resume", "--quiet", "--device", "cpu"]) == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["--model", "toy_net", "--widths", "8"], "--widths"),
        (["--model", "toy_net", "--label-dropout", "0"], "--label-dropout"),
        (["--toy-channels", "3", "--side-by-side"], "--side-by-side, --toy-channels"),
        (["--model", "glow", "--toy-channels", "3", "--layers", "1"], "--layers, --toy-channels"),
    ],
)
def test_flags_that_do_not_apply(
    toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], flags: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "m"), "--data", toy, *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith(flags)
    assert not (tmp_path / "m").exists()


def test_a_run_of_another_number_of_networks_is_refused(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / "m"), "--data", toy, "--side-by-side", *ARGUMENTS]) == 0
    monkeypatch.setattr(ToyRecipe, "parts", 1)
    assert main(["train", str(tmp_path / "m"), "--resume", "--quiet", "--device", "cpu"]) == 1
    assert str(tmp_path / "m") in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_help_has_a_group_of_flags_per_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("toy_net:")
    assert any("--toy-channels" in line for line in lines[at : at + 3])
    assert "unet:" in lines


@pytest.mark.usefixtures("toy")
def test_a_name_means_one_flag() -> None:
    class Other(Recipe):
        flags = (Flag("--toy-channels", {"type": float}),)

    models = {**recipes(), "other": (FAMILIES["toy"], Other())}
    with pytest.raises(ValueError, match="--toy-channels"):
        by_owners({name: recipe.flags for name, (_, recipe) in models.items()})


def test_recipes_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, fastgen.families; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
