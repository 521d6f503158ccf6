"""Training: it learns, repeats itself under a seed, and goes on after any interruption as if there had been none."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import WEIGHTS_FILE, file_sha256
from fastgen.cli import main
from fastgen.training.data import Arrays
from fastgen.training.diffusion import LOSS_FILE, _batches, _rate
from fastgen.training.run import STATE_FILE, RunConfig, saved_config

FAST = [
    "--data",
    "digits",
    "--widths",
    "8,8",
    "--batch-size",
    "8",
    "--warmup",
    "2",
    "--preview-every",
    "0",
    "--precision",
    "fp32",
    "--quiet",
]


def train(folder: Path, *arguments: str) -> int:
    return main(["train", str(folder), *arguments])


def losses(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / LOSS_FILE, delimiter=",", skiprows=1)[:, 1]


def test_the_loss_falls_and_the_model_samples(tmp_path: Path) -> None:
    assert train(tmp_path, *FAST, "--steps", "150", "--lr", "4e-3", "--batch-size", "32") == 0
    curve = losses(tmp_path)
    assert curve[-30:].mean() < 0.6 * curve[:10].mean()
    engine = fastgen.load(tmp_path)
    assert engine.settings.num_classes == 10
    assert engine.sample(2, labels=[3, 7], seed=0, steps=4).shape == (2, 1, 8, 8)
    assert engine.spec.provenance["run"]["steps"] == 150


def test_same_seed_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, *FAST, "--steps", "4", "--seed", str(seed))
    a, b, c = (file_sha256(tmp_path / n / WEIGHTS_FILE) for n in "abc")
    assert a == b
    assert a != c


def test_users_random_numbers_are_left_alone(tmp_path: Path) -> None:
    from fastgen.diffusion import NoiseSchedule
    from fastgen.training.diffusion import train as train_network
    from tests.small import network, spec, unet_config

    config = unet_config(dropout=0.2)
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    data = Arrays(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    net = network(config)
    torch.manual_seed(5)
    run = RunConfig(steps=2, batch_size=2)
    train_network(net, spec(config), NoiseSchedule(), data, run, tmp_path, null_class=3, progress=False)
    assert torch.equal(torch.rand(1), want)


def test_interrupt_saves_and_resume_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", *FAST, "--steps", "9", "--save-every", "4")
    from fastgen.training import diffusion

    real_step, calls = diffusion._train_step, []

    def interrupted(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        real_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(diffusion, "_train_step", interrupted)
    assert train(tmp_path / "broken", *FAST, "--steps", "9", "--save-every", "4") == 130
    assert len(losses(tmp_path / "broken")) == 6  # Ctrl-C saved what was done, between two regular saves
    monkeypatch.setattr(diffusion, "_train_step", real_step)
    assert train(tmp_path / "broken", "--resume", "--quiet") == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


def test_sigkill_and_resume_end_the_same(tmp_path: Path) -> None:
    arguments = [*FAST, "--steps", "40", "--save-every", "3"]
    train(tmp_path / "whole", *arguments)
    folder, kills = tmp_path / "killed", 0
    for attempt in range(20):
        more = ["--resume", "--quiet"] if (folder / STATE_FILE).exists() else arguments
        process = subprocess.Popen(
            [sys.executable, "-m", "fastgen", "train", str(folder), *more],
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        before = _mark(folder)
        # killed while it works: after its first new save, and a little later each time
        while process.poll() is None and (attempt > 2 or _mark(folder) == before):
            time.sleep(0.002)
        time.sleep(0.01 * attempt)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
        assert fastgen.load(folder).sample(1, seed=0, steps=1).isfinite().all()
    assert kills >= 2
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(folder / name) == file_sha256(tmp_path / "whole" / name), name


def _mark(folder: Path) -> float:
    path = folder / LOSS_FILE  # the last file of a save
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, *FAST, "--steps", "2")
    digest = file_sha256(tmp_path / WEIGHTS_FILE)
    assert train(tmp_path, *FAST, "--steps", "2") == 1
    assert "holds a training run; resume it, or choose another folder" in capsys.readouterr().err
    assert train(tmp_path, "--resume", "--steps", "5") == 1
    assert "leave out --steps" in capsys.readouterr().err
    assert train(tmp_path / "new", "--resume") == 1
    assert "no training run to resume" in capsys.readouterr().err
    assert train(tmp_path / "new") == 1
    assert "--data says what to train on" in capsys.readouterr().err
    assert file_sha256(tmp_path / WEIGHTS_FILE) == digest


def test_a_damaged_state_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, *FAST, "--steps", "2")
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:100])
    assert train(tmp_path, "--resume") == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps: expected 1 to"),
        (["--lr", "nan"], "lr: expected a finite number"),
        (["--precision", "int8"], "precision: expected one of auto, fp32, bf16"),
        (["--widths", "5,8"], "must be even"),
        (["--widths", "8,8,8,8,8"], "must be divisible by 16"),
        (["--beta-schedule", "cosine"], "beta_schedule: expected one of linear"),
        (["--data", "nowhere"], "no such file or folder"),
        (["--layers", "99"], "layers_per_block: expected 1 to 8"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    import re

    assert train(tmp_path / "m", *FAST, "--steps", "1", *arguments) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "m").exists()


def test_previews_are_drawn(tmp_path: Path) -> None:
    train(tmp_path, *FAST, "--steps", "3", "--preview-every", "2")
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == [
        "step-0000002.png",
        "step-0000003.png",
    ]


def test_batches_are_shuffled_epochs_wherever_they_start() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    config = RunConfig(steps=10, batch_size=4)
    whole = [x for x, _ in _batches(Arrays(images), config, 0)]
    seen = torch.cat(whole).flatten().add(1).mul(127.5).round().int()
    for epoch in seen.split(10):
        assert epoch.sort().values.tolist() == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()
    late = [x for x, _ in _batches(Arrays(images), config, 7)]
    assert all(torch.equal(a, b) for a, b in zip(late, whole[7:], strict=True))


def test_flips_half() -> None:
    images = torch.zeros(64, 1, 1, 2, dtype=torch.uint8)
    images[..., 0] = 255
    ((x, _),) = _batches(Arrays(images), RunConfig(steps=1, batch_size=64, flip=True), 0)
    flipped = int((x[:, 0, 0, 0] < 0).sum())
    assert 16 <= flipped <= 48


def test_rate_warms_up_and_falls_to_zero() -> None:
    config = RunConfig(steps=100, warmup=10)
    rates = [_rate(step, config) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == 1.0 == rates[10]
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_folder_remembers_its_run(tmp_path: Path) -> None:
    assert saved_config(tmp_path) is None
    train(tmp_path, *FAST, "--steps", "2", "--subset", "5-40")
    config = saved_config(tmp_path)
    assert config is not None
    assert config.subset == (5, 40)
    assert config.precision == "fp32"
