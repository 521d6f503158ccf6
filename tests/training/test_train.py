"""Training: it learns, repeats itself under a seed, and goes on after any interruption as if there had been none."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import WEIGHTS_FILE, file_sha256, load_spec
from fastgen.cli import main
from fastgen.diffusion import NoiseSchedule
from fastgen.training import loop
from fastgen.training import run as training_run
from fastgen.training.arrays import Arrays
from fastgen.training.data import describe
from fastgen.training.diffusion import Denoising
from fastgen.training.loop import LOSS_FILE, batches
from fastgen.training.optimizers import rate
from fastgen.training.run import STATE_FILE, saved_run
from fastgen.training.settings import RunConfig
from tests.refusals import names

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
IMAGES = Denoising(NoiseSchedule(), None)


def train(folder: Path, *arguments: str) -> int:
    return main(["train", str(folder), *arguments])


def losses(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / LOSS_FILE, delimiter=",", skiprows=1, ndmin=2)[:, 1]


def test_the_loss_falls_and_the_model_samples(tmp_path: Path) -> None:
    assert train(tmp_path, *FAST, "--steps", "150", "--lr", "4e-3", "--batch-size", "32") == 0
    curve = losses(tmp_path)
    assert curve[-30:].mean() < 0.6 * curve[:10].mean()
    engine = fastgen.load(tmp_path)
    assert engine.settings.num_classes == 10
    assert engine.sample(2, labels=[3, 7], seed=0, steps=4).shape == (2, 1, 8, 8)
    assert load_spec(tmp_path).provenance["run"]["steps"] == 150


def test_same_seed_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, *FAST, "--steps", "4", "--seed", str(seed))
    a, b, c = (file_sha256(tmp_path / n / WEIGHTS_FILE) for n in "abc")
    assert a == b
    assert a != c


def test_users_random_numbers_are_left_alone(tmp_path: Path) -> None:
    from tests.small import network, spec, unet_config

    config = unet_config(dropout=0.2)
    data = Arrays(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    net = torch.nn.ModuleDict({"unet": network(config)})
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    run = training_run.Run(RunConfig(steps=2, batch_size=2), spec(config), describe(data))
    loop.train(net, run, Denoising(NoiseSchedule(), 3), data, tmp_path, progress=False)
    assert torch.equal(torch.rand(1), want)


def interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C while step `number` is under way."""
    calls = []
    before = loop._train_step

    def interrupted(*arguments: object) -> None:
        calls.append(1)
        before(*arguments)  # type: ignore[arg-type]
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "_train_step", interrupted)


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background, where shells have Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("number", [1, 6, 8])
def test_interrupt_saves_and_resume_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    train(tmp_path / "whole", *FAST, "--steps", "9", "--save-every", "4")
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, number)
        assert train(tmp_path / "broken", *FAST, "--steps", "9", "--save-every", "4") == 130
    assert losses(tmp_path / "broken").size == number  # the step was ended and saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(tmp_path / "broken", "--resume", "--quiet") == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


@pytest.mark.usefixtures("sigint")
def test_a_background_job_is_not_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt_in_step(monkeypatch, 1)
    assert train(tmp_path, *FAST, "--steps", "3") == 0
    assert len(losses(tmp_path)) == 3
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("saved", range(6))
def test_killed_within_the_first_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int) -> None:
    """Five files are written in a save; whatever is there when it stops, the command that began can go on."""
    written = []
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if len(written) == saved:
            raise OSError("the power is gone")
        written.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    code = train(tmp_path / "m", *FAST, "--steps", "2", "--save-every", "2")
    assert code == (1 if saved < 5 else 0)
    monkeypatch.undo()
    if saved == 0:
        assert train(tmp_path / "m", *FAST, "--steps", "2") == 0
    else:
        assert train(tmp_path / "m", "--resume", "--quiet") == 0
    assert fastgen.load(tmp_path / "m").sample(1, seed=0, steps=1).isfinite().all()
    assert len(losses(tmp_path / "m")) == 2


def test_an_error_before_the_first_step_leaves_nothing_behind(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    arguments = [
        "--data",
        str(tmp_path / "images"),
        "--size",
        "8",
        *FAST[2:],
        "--steps",
        "1",
        "--batch-size",
        "1",
    ]
    assert train(tmp_path / "m", *arguments) == 1
    assert "a.png" in capsys.readouterr().err
    fastgen.save_image(torch.zeros(3, 8, 8), tmp_path / "images" / "a.png")
    assert train(tmp_path / "m", *arguments) == 0


def test_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, *FAST, "--steps", "2")
    digest = file_sha256(tmp_path / WEIGHTS_FILE)
    assert train(tmp_path, *FAST, "--steps", "2") == 1
    assert str(tmp_path) in capsys.readouterr().err
    for flag in (
        ["--preview-every", "0"],
        ["--steps", "5"],
        ["--flip"],
        ["--widths", "16,16"],
        ["--size", "9"],
        ["--data", "digits"],
    ):
        assert train(tmp_path, "--resume", *flag) == 1
        assert flag[0] in capsys.readouterr().err
    assert train(tmp_path / "new", "--resume") == 1
    assert str(tmp_path / "new") in capsys.readouterr().err
    assert train(tmp_path / "new") == 1
    assert "--data" in capsys.readouterr().err
    assert file_sha256(tmp_path / WEIGHTS_FILE) == digest


def test_a_model_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, *FAST, "--steps", "2")
    (tmp_path / STATE_FILE).unlink()  # as a model is published
    digest = file_sha256(tmp_path / WEIGHTS_FILE)
    assert train(tmp_path, *FAST, "--steps", "2") == 1
    assert names(capsys.readouterr().err, tmp_path, "config.json, model.safetensors, loss.csv")
    assert file_sha256(tmp_path / WEIGHTS_FILE) == digest


def test_other_images_are_not_taken_for_the_runs_own(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    for name in ("ant/1", "bee/1", "bee/2"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        fastgen.save_image(torch.zeros(3, 8, 8), tmp_path / "images" / f"{name}.png")
    arguments = ["--data", str(tmp_path / "images"), "--size", "8", *FAST[2:], "--steps", "1"]
    assert train(tmp_path / "m", *arguments) == 0
    (tmp_path / "images" / "cat").mkdir()
    (tmp_path / "images" / "bee" / "2.png").rename(tmp_path / "images" / "cat" / "2.png")
    assert train(tmp_path / "m", "--resume") == 1
    assert names(capsys.readouterr().err, tmp_path / "m", "num_classes 2", 3)


def test_a_relative_path_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    assert train(Path("m"), "--data", "a.npz", *FAST[2:], "--steps", "1") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(tmp_path / "m", "--resume", "--quiet") == 0


def test_previews_leave_the_average_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "without", *FAST, "--steps", "4")
    # on a GPU the default dtype is another one; an engine must not convert the network in training
    monkeypatch.setattr("fastgen.engines.base.choose_dtype", lambda dtype, device: torch.bfloat16)
    train(tmp_path / "with", *FAST, "--steps", "4", "--preview-every", "1")
    for name in (WEIGHTS_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "with" / name) == file_sha256(tmp_path / "without" / name)


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    train(tmp_path, *FAST, "--steps", "1")
    (tmp_path / ".model.safetensors.x1.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_text("mine")
    train(tmp_path, "--resume", "--quiet")
    assert [p.name for p in tmp_path.glob(".*.tmp")] == [".notes.tmp"]


@pytest.mark.parametrize("name", ["loss.csv", "previews"])
def test_other_files_are_not_overwritten(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    assert train(tmp_path, *FAST, "--steps", "1") == 1
    assert names(capsys.readouterr().err, tmp_path, name)
    assert (tmp_path / name).read_text() == "mine"


def test_a_damaged_state_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, *FAST, "--steps", "2")
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:100])
    assert train(tmp_path, "--resume") == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["--steps", "0"], "steps"),
        (["--lr", "nan"], "lr"),
        (["--precision", "int8"], "precision"),
        (["--widths", "8,8000"], "block_out_channels[1]"),
        (["--widths", "8,8,8,8,8"], "16"),
        (["--beta-schedule", "cosine"], "beta_schedule"),
        (["--data", "nowhere"], "nowhere"),
        (["--attention", "-1"], "--attention"),
        (["--labels", "x"], "digits"),
        (["--layers", "99"], "layers_per_block"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], mention: str
) -> None:
    assert train(tmp_path / "m", *FAST, "--steps", "1", *arguments) == 1
    assert mention in capsys.readouterr().err
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
    whole = [x for x, *_ in batches(Arrays(images), IMAGES, config, 0)]
    seen = torch.cat(whole).flatten().add(1).mul(127.5).round().int()
    for epoch in seen.split(10):
        assert epoch.sort().values.tolist() == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()
    late = [x for x, *_ in batches(Arrays(images), IMAGES, config, 7)]
    assert all(torch.equal(a, b) for a, b in zip(late, whole[7:], strict=True))


def test_flips_half() -> None:
    images = torch.zeros(64, 1, 1, 2, dtype=torch.uint8)
    images[..., 0] = 255
    ((x, *_),) = batches(Arrays(images), IMAGES, RunConfig(steps=1, batch_size=64, flip=True), 0)
    flipped = int((x[:, 0, 0, 0] < 0).sum())
    assert 16 <= flipped <= 48


def test_rate_warms_up_and_falls_to_zero() -> None:
    config = RunConfig(steps=100, warmup=10)
    rates = [rate(step, config) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == 1.0 == rates[10]
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_folder_remembers_its_run(tmp_path: Path) -> None:
    assert saved_run(tmp_path) is None
    arguments = [a for a in FAST if a not in ("--precision", "fp32")]
    train(tmp_path, *arguments, "--steps", "2", "--subset", "5-40")
    run = saved_run(tmp_path)
    assert run is not None
    assert run.config.subset == (5, 40)
    assert run.config.precision in ("fp32", "bf16")  # auto was settled
    assert run.spec.provenance["run"]["precision"] == run.config.precision
    assert run.data == {"pictures": 36, "shape": [1, 8, 8], "num_classes": 10, "class_names": None}
