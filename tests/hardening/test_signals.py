"""Ctrl-C and SIGTERM: the step is ended and saved, files are whole, and the exit code says what came."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fastgen.cli import main
from tests.refusals import names
from tests.small import checkpoint

from . import children, runs

SIGNALS = [signal.SIGINT, signal.SIGTERM]
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def train_signalled(arguments: list[str], step: int, *numbers: int) -> int:
    """Train; within step `step` the signals `numbers` come, one after the other."""
    from fastgen.training import loop

    train_step, steps = loop._train_step, []

    def signalled(*given: object) -> None:
        steps.append(1)
        if len(steps) == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        train_step(*given)  # type: ignore[arg-type]

    loop._train_step = signalled  # type: ignore[assignment]
    return main(arguments)


@pytest.mark.parametrize("number", SIGNALS)
def test_training_ends_its_step_and_saves(tmp_path: Path, number: int) -> None:
    data, folder, whole = runs.images(tmp_path), tmp_path / "run", tmp_path / "whole"
    code, said = children.run(
        tmp_path / "output", train_signalled, runs.train_arguments(folder, data), 2, number
    )
    assert code == 128 + number, said
    assert f"fastgen: {WORDS[signal.Signals(number)]}; " in said
    assert names(said, f"step 2 of {runs.STEPS}", f"fastgen train {folder} --resume")
    runs.check_run(folder)
    for arguments in (runs.train_arguments(whole, data), runs.resume_arguments(folder)):
        code, said = children.run(tmp_path / "output", children.command, *arguments)
        assert code == 0, said
    assert runs.digests(folder) == runs.digests(whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_interrupts_at_once(tmp_path: Path, number: int) -> None:
    data, folder = runs.images(tmp_path), tmp_path / "run"
    code, said = children.run(
        tmp_path / "output", train_signalled, runs.train_arguments(folder, data), 5, signal.SIGTERM, number
    )
    assert code == 128 + number, said
    assert f" of {runs.STEPS}" not in said
    assert f"fastgen train {folder} --resume" in said
    assert len((folder / "loss.csv").read_text().splitlines()) == 1 + 3  # of the save before


def background_job(arguments: list[str]) -> int:
    """As a shell starts it with `&`: Ctrl-C is ignored, SIGTERM is not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return train_signalled(arguments, 2, signal.SIGINT, signal.SIGTERM)


def test_a_background_job_can_be_terminated(tmp_path: Path) -> None:
    arguments = runs.train_arguments(tmp_path / "run", runs.images(tmp_path))
    code, said = children.run(tmp_path / "output", background_job, arguments)
    assert code == 128 + signal.SIGTERM, said
    assert f"step 2 of {runs.STEPS}" in said


def sample_signalled(arguments: list[str], number: int) -> int:
    """Sample; the signal comes when the third image is on disk and has no name yet."""
    from fastgen import files

    replaced = []

    class Os:
        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return getattr(os, name)

        def replace(self, source: Path, target: Path) -> None:
            replaced.append(target)
            if len(replaced) == 3:
                os.kill(os.getpid(), number)
            os.replace(source, target)

    files.os = Os()  # type: ignore[assignment]
    code = main(arguments)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return code


@pytest.mark.parametrize("number", SIGNALS)
def test_sampling_leaves_whole_files(tmp_path: Path, number: int) -> None:
    model, out = checkpoint(tmp_path / "model"), tmp_path / "out"
    words = ["--seeds", "0-5", "--steps", "1", "--device", "cpu", "--quiet"]
    code, said = children.run(
        tmp_path / "output", sample_signalled, ["sample", str(model), *words, "-o", str(out)], number
    )
    assert code == 128 + number, said
    assert said.splitlines()[-1] == f"fastgen: {WORDS[signal.Signals(number)]}"
    images = sorted(
        path for path in out.iterdir() if not path.name.startswith(".")
    )  # beside the run's record
    assert [path.name for path in images] == [f"{k:05d}-seed{k}.png" for k in range(len(images))]
    assert 1 <= len(images) < 6
    for path in images:
        runs.check_image(path)
