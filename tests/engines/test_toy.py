"""What CONTRIBUTING promises to a new family: by its registration alone the least one is trained, resumed, loaded,
drawn from, verified, captured and timed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastgen
from fastgen.architectures import ARCHITECTURES
from fastgen.bench.__main__ import main as bench
from fastgen.checkpoint import WEIGHTS_FILE, file_sha256
from fastgen.cli import main
from fastgen.families import FAMILIES
from fastgen.training import loop
from tests.engines import toy

RUN = ["--model", "toy_mlp", "--data", "two-moons", "--steps", "4", "--batch-size", "16", "--warmup", "1"]
RUN += ["--precision", "fp32", "--quiet", "--device", "cpu", "--preview-every", "0", "--save-every", "2"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "toy", toy.FAMILY)
    for name, architecture in toy.ARCHITECTURE.items():
        monkeypatch.setitem(ARCHITECTURES, name, architecture)


@pytest.fixture
def model(tmp_path: Path) -> str:
    assert main(["train", str(tmp_path / "model"), *RUN]) == 0
    return str(tmp_path / "model")


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = loop._train_step, []

    def twice(*arguments: object) -> None:
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(real(*arguments))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", twice)
        assert main(["train", str(tmp_path / "broken"), *RUN]) == 130
    assert main(["train", str(tmp_path / "broken"), "--resume", "--quiet"]) == 0
    assert file_sha256(tmp_path / "broken" / WEIGHTS_FILE) == file_sha256(Path(model) / WEIGHTS_FILE)
    assert (tmp_path / "broken" / loop.LOSS_FILE).read_text().startswith("step,generator,critic\n")


def test_the_command_draws_with_its_own_flag(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gain in (("one", "1"), ("two", "2")):
        out = str(tmp_path / f"{name}.npz")
        assert main(["sample", model, "-n", "3", "--seed", "5", "--gain", gain, "-o", out]) == 0
    one, two = (np.load(tmp_path / f"{name}.npz")["x"] for name in ("one", "two"))
    assert one.shape == (3, 2)
    assert not np.allclose(one, two)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["sample", model, "--solver", "ddim", "-o", str(tmp_path / "a.csv")])
    assert stop.value.code == 2
    assert "--solver" in capsys.readouterr().err


def test_verify_finds_it_right_and_a_fault_where_it_is(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", model, "--device", "cpu", "--json"]) == 0
    names = [check["name"] for check in json.loads(capsys.readouterr().out)["checks"]]
    assert {"generator.0", "critic.2", "sample", "score"} <= set(names)
    engine = fastgen.load(model, device="cpu", graph="recorded")
    found = engine.verify()
    assert found.passed
    assert {"captured sample", "captured score"} <= {check.name for check in found.checks}

    class Faulty(nn.Linear):  # its float64 copy is the truth that it is judged by
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1e-2 * (x.dtype == torch.float32)

    engine = fastgen.load(model, device="cpu")
    engine.networks["critic"][2].__class__ = Faulty
    assert [check.name for check in engine.verify().checks if not check.passed] == ["critic.2", "score"]


def test_a_captured_verb_gives_the_same_bits(model: str) -> None:
    engine = fastgen.load(model, device="cpu", graph="recorded", max_batch=4)
    plain = fastgen.load(model, device="cpu", graph=False, max_batch=4)
    request = engine.request(6, seed=3)  # in turns
    assert torch.equal(engine.draw(request), plain.draw(request))
    assert {entry["name"] for entry in engine.describe()["captured"]} == {"sample"}


def test_the_benchmark_has_a_row_for_each_verb(model: str, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    arguments = ["families", "--model", model, "--batch", "2", "--against", "eager", "--rounds", "3"]
    assert bench([*arguments, "--device", "cpu", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == ["sample 2", "score 2"]
    assert all("eager" in row["baselines"] for row in rows)


def test_a_layer_that_is_wrong_in_one_verb_alone(model: str) -> None:
    """A layer that two verbs run through is judged in both."""
    engine = fastgen.load(model, device="cpu")
    verbs = engine.verbs()
    both = {**verbs, "later": dataclasses.replace(verbs["sample"], name="later")}
    engine.verbs = lambda: both

    class Faulty(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Faulty.calls += x.dtype == torch.float32
            return super().forward(x) + 1e-2 * (x.dtype == torch.float32 and Faulty.calls > 1)

    engine.networks["generator"][0].__class__ = Faulty
    wrong = [check.name for check in engine.verify().checks if not check.passed]
    assert wrong == ["generator.0", "later"]
