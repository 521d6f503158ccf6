"""Batches in shares: accumulated gradients and several processes make the run that one whole batch makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.cli import main
from fastgen.errors import ConfigError
from fastgen.tensor_file import TensorFile
from fastgen.training import loop
from fastgen.training.distributed import Processes, own_device
from fastgen.training.loop import LOSS_FILE
from fastgen.training.objective import Step
from fastgen.training.run import STATE_FILE
from fastgen.training.settings import RunConfig
from fastgen.training.shares import check_drawn, shared
from tests.refusals import names

COMMON = ["--batch-size", "8", "--warmup", "2", "--preview-every", "0", "--precision", "fp32", "--quiet"]
ON_CPU = ["--device", "cpu"]
# A loss is a sum of some thousand float32 terms in another order, 1e-6; Adam divides gradients by their own size, which
# makes a difference of that size a difference of the weights, and ten steps add up. The file keeps six decimals.
NEAR = {"rtol": 2e-4, "atol": 2e-6}


def train(folder: Path, *arguments: str) -> int:
    return main(["train", str(folder), *arguments])


def losses(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / LOSS_FILE, delimiter=",", skiprows=1, ndmin=2)


def weights(folder: Path) -> dict[str, Tensor]:
    with TensorFile(folder / "model.safetensors") as file:
        return dict(file.read({}))


MODELS = {
    "unet": ["--data", "digits", "--widths", "8,8", "--flip"],
    "glow": [
        *["--data", "digits", "--model", "glow"],
        *["--option", "steps_per_scale=1", "--option", "hidden_channels=8"],
    ],
    "vector_flow": ["--data", "two-moons", "--model", "vector_flow", "--widths", "8", "--option", "steps=2"],
}


def asked(model: str, steps: int = 6) -> list[str]:
    return [*MODELS[model], *COMMON, "--steps", str(steps), "--save-every", "3"]


@pytest.mark.parametrize("model", MODELS)
def test_accumulated_gradients_are_those_of_the_batch(model: str, tmp_path: Path) -> None:
    for name, parts in (("whole", "1"), ("two", "2"), ("eight", "8")):
        assert train(tmp_path / name, *asked(model), *ON_CPU, "--accumulate", parts) == 0
    whole = losses(tmp_path / "whole")
    assert len(np.unique(whole[:, 1])) == 6
    for name in ("two", "eight"):
        np.testing.assert_allclose(losses(tmp_path / name), whole, **NEAR)


def steps_of(size: int, accumulate: int, batch: loop.Batch, number: int = 3) -> list[Step]:
    """All shares of a batch of 12, those of the first process first."""
    config = RunConfig(batch_size=12, accumulate=accumulate)
    found = []
    for rank in range(size):
        processes = Processes(rank, size)
        rows = processes.rows(12)
        own = slice(rows.start, rows.stop)
        part = loop.Batch(batch.x[own], None if batch.label is None else batch.label[own], batch.target)
        found += shared(part, config, number, processes, lambda: torch.Generator().manual_seed(5))
    return found


@pytest.mark.parametrize(("size", "accumulate"), [(1, 3), (2, 1), (2, 3), (4, 3)])
def test_shares_draw_what_the_whole_draws(size: int, accumulate: int) -> None:
    batch = loop.Batch(torch.arange(12.0)[:, None], torch.arange(12))
    (whole,) = steps_of(1, 1, batch)
    parts = steps_of(size, accumulate, batch)
    assert len(parts) == size * accumulate
    assert torch.equal(torch.cat([step.x for step in parts]), batch.x)
    assert torch.equal(torch.cat([step.label for step in parts]), batch.label)  # type: ignore[misc]
    draws: list[Callable[[Step], Tensor]] = [
        lambda step: step.normal(2, 3),
        lambda step: step.uniform(),
        lambda step: step.integers(-2, 9, 2),
        lambda step: step.normal(),
    ]
    for draw in draws:  # one after the other from the same generators
        assert torch.equal(torch.cat([draw(step) for step in parts]), draw(whole))
    check_drawn(parts)
    torch.rand(1, generator=parts[-1].generator)
    with pytest.raises(ConfigError) as error:
        check_drawn(parts)
    assert error.value.argument == "batch_size"


def test_what_cannot_be_shared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    digits = ["--data", "digits", *COMMON, "--steps", "2", "--accumulate"]
    refused = {
        "no multiple": ["--widths", "8", *digits, "3"],
        "batch norm": ["--model", "dcgan", *digits, "2"],
        "free bits": ["--model", "vae", "--free-bits", "0.1", *digits, "2"],
        "tcvae": ["--model", "vae", "--loss", "tcvae", *digits, "2"],
        "updates": ["--model", "dcgan", "--updates", "2", *digits, "2"],
    }
    for name, arguments in refused.items():
        assert train(tmp_path / name.replace(" ", "-"), *arguments, *ON_CPU) == 1
        assert names(capsys.readouterr().err, "batch_size"), name
        assert not (tmp_path / name.replace(" ", "-")).exists()


def test_processes_that_end_are_told_of() -> None:
    assert own_device("cuda:1") == "cuda:1"  # not under torchrun
    alone = Processes()
    assert alone.on_first(lambda: 7) == 7
    assert alone.largest(3) == 3
    assert alone.data_error(None) is None
    values = torch.tensor([1.0, 2.0])
    alone.mean([values])
    assert values.tolist() == [1.0, 2.0]


# torchrun for real


def torchrun(folder: Path, *arguments: str, processes: int = 2) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, "-m", "fastgen", "train", str(folder), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that a test has started, ended whatever becomes of it."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_make_the_run_of_one(
    model: str, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    assert train(tmp_path / "one", *asked(model), *ON_CPU) == 0
    started.append(torchrun(tmp_path / "two", *asked(model), *ON_CPU, "--accumulate", "2"))
    said = ended(started[-1])
    assert said.count("saved ") == 1  # the first process alone reports
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), **NEAR)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(
        p.name for p in (tmp_path / "two").iterdir()
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_together_and_resumed(
    number: int, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    """A signal to one worker alone stops both after the same step, which is saved; a kill leaves the last save.

    Either way the run ends, byte for byte, as two processes end it that nothing has stopped.
    """
    arguments = [*asked("unet", 300)[:-1], "10", *ON_CPU]
    folder, whole = tmp_path / "run", tmp_path / "whole"
    started.append(torchrun(folder, *arguments))
    deadline = time.monotonic() + 300
    while not (folder / LOSS_FILE).exists() and time.monotonic() < deadline:
        assert started[-1].poll() is None, started[-1].communicate()[0]
        time.sleep(0.05)
    os.kill(workers(started[-1].pid)[-1], number)
    said, _ = started[-1].communicate(timeout=300)
    assert started[-1].returncode != 0
    done = len(losses(folder))
    assert 10 <= done < 300, said
    if number == signal.SIGKILL:
        assert done % 10 == 0
    for place, more in ((folder, ["--resume", "--quiet", *ON_CPU]), (whole, arguments)):
        started.append(torchrun(place, *more))
        ended(started[-1])
    for name in (STATE_FILE, LOSS_FILE):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def workers(launcher: int) -> list[int]:
    """The processes that torchrun has started."""
    found = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in found if b"fastgen" in Path(f"/proc/{pid}/cmdline").read_bytes()]
