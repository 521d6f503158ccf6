"""``--tensorboard``: losses and rates of every step, what a resumed run hides, the refusal without a package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fastgen.cli import main
from fastgen.training.loop import LOSS_FILE
from fastgen.training.optimizers import rate
from fastgen.training.settings import RunConfig
from fastgen.training.tensorboard import FOLDER
from tests.refusals import names

ARGUMENTS = [
    "--data",
    "two-moons",
    "--model",
    "vector_flow",
    "--widths",
    "8",
    "--option",
    "steps=2",
    "--warmup",
    "2",
]
ARGUMENTS += [
    "--steps",
    "5",
    "--batch-size",
    "8",
    "--preview-every",
    "0",
    "--save-every",
    "2",
    "--device",
    "cpu",
]


class Recorder:
    """Stands for SummaryWriter."""

    made: list[Recorder]

    def __init__(self, folder: str, **options: Any) -> None:
        self.folder, self.options, self.scalars = folder, options, {}  # type: ignore[var-annotated]
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((step, value))

    def flush(self) -> None:
        """Nothing is kept back."""


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    module = ModuleType("torch.utils.tensorboard")
    Recorder.made = []
    module.SummaryWriter = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Recorder.made


def test_every_step_is_written(
    tmp_path: Path, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", str(tmp_path / "m"), *ARGUMENTS, "--quiet", "--tensorboard"]) == 0
    (recorder,) = recorders
    assert recorder.folder == str(tmp_path / "m" / FOLDER)
    assert recorder.options == {}
    losses = np.loadtxt(tmp_path / "m" / LOSS_FILE, delimiter=",", skiprows=1)
    steps, values = zip(*recorder.scalars["loss/loss"], strict=True)
    assert list(steps) == losses[:, 0].tolist()
    np.testing.assert_allclose(values, losses[:, 1], atol=5e-7)  # the file's decimals
    config = RunConfig(steps=5, warmup=2)
    expected = [config.lr * rate(step, config) for step in range(5)]
    assert [value for _, value in recorder.scalars["lr/loss"]] == pytest.approx(expected)


def test_a_resumed_run_hides_what_was_never_saved(
    tmp_path: Path, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastgen.training.loop as loop

    before = loop._train_step

    def stops(state: loop.RunState, *rest: Any) -> Any:
        if state.step == 3:
            raise KeyboardInterrupt
        return before(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", stops)
        assert main(["train", str(tmp_path / "m"), *ARGUMENTS, "--quiet", "--tensorboard"]) == 130
    assert [step for step, _ in recorders[0].scalars["loss/loss"]] == [1, 2, 3]  # the third was not saved
    assert (
        main(["train", str(tmp_path / "m"), "--resume", "--quiet", "--tensorboard", "--device", "cpu"]) == 0
    )
    assert recorders[1].options == {"purge_step": 3}
    assert [step for step, _ in recorders[1].scalars["loss/loss"]] == [3, 4, 5]


def test_without_a_package_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["train", str(tmp_path / "m"), *ARGUMENTS, "--tensorboard"]) == 1
    assert names(capsys.readouterr().err, "--tensorboard")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_event_files_can_be_read(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(["train", str(tmp_path / "m"), *ARGUMENTS, "--quiet", "--tensorboard"]) == 0
    found = reader.EventAccumulator(str(tmp_path / "m" / FOLDER)).Reload()
    assert [event.step for event in found.Scalars("loss/loss")] == [1, 2, 3, 4, 5]
