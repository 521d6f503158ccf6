"""Wrong use of the library and the command line that must be refused before it costs anything, in fastgen's words."""

from __future__ import annotations

import errno
import json
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
from fastgen import files
from fastgen.checkpoint import save
from fastgen.cli import main
from fastgen.errors import ArgumentError, CheckpointError, ConfigError, DataError, OutOfMemoryError
from fastgen.files import exists, held, remove_leftovers, write_atomic
from fastgen.images import MAX_SHEET, grid, sheet_size
from fastgen.training import loop
from tests.refusals import names, refused
from tests.small import checkpoint, network, spec, unet_config

from . import children, runs

IMAGES = torch.zeros(2, 1, 8, 8)


def image_folder(folder: Path, *classes: bytes) -> Path:
    """A folder of 8x8 images, two in each of `classes`."""
    for name in classes:
        inner = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        inner.mkdir(parents=True)
        for i in range(2):
            fastgen.save_image(IMAGES[0], inner / f"{i}.png")
    return folder


def test_a_class_whose_name_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = image_folder(tmp_path / "images", b"cat\xe9", b"dog")
    arguments = runs.train_arguments(tmp_path / "m", data)
    assert main([*arguments, "--size", "8"]) == 1
    said = capsys.readouterr()
    assert names(said.err, data, "UTF-8")
    assert not (tmp_path / "m").exists()


def test_data_whose_path_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    folder.mkdir()
    assert main(runs.train_arguments(tmp_path / "m", runs.images(folder))) == 1
    assert "--data: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "provenance", [{"note": "\ud800"}, {"note": float("nan")}, {"note": "x" * (1 << 20)}, {"note": {1}}]
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, provenance: dict) -> None:
    from dataclasses import replace

    folder, config = checkpoint(tmp_path / "m"), unet_config()
    before = runs.digests(folder)
    tensors = {f"unet.{n}": t for n, t in network(config, seed=3).state_dict().items()}
    with refused(ConfigError, folder / "config.json"):
        save(folder, replace(spec(config), provenance=provenance), tensors)
    assert runs.digests(folder) == before


def test_a_run_that_could_not_be_resumed_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(loop, "_train_step", lambda *given: steps.append(1))
    monkeypatch.setattr("fastgen.training.data.describe", lambda dataset: {"pictures": 0})
    assert main(runs.train_arguments(tmp_path / "m", runs.images(tmp_path))) == 1
    assert not steps


def test_one_run_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    assert main(runs.train_arguments(folder, runs.images(tmp_path))) == 0
    with held(folder) as alone:
        assert alone
        assert main(runs.resume_arguments(folder)) == 1
        assert str(folder) in capsys.readouterr().err
    assert main(runs.resume_arguments(folder)) == 0


def test_memory_that_runs_out_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = loop._train_step

    def starved(state, *given: object) -> None:  # type: ignore[no-untyped-def]
        if state.step == 4:
            torch.empty(1 << 60, dtype=torch.uint8)
        step(state, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_train_step", starved)
    assert main(runs.train_arguments(tmp_path / "m", runs.images(tmp_path))) == 1
    said = capsys.readouterr().err
    assert names(said, tmp_path / "m", "cpu", 4, "--batch-size", "--resume")
    assert issubclass(OutOfMemoryError, fastgen.FastgenError)


def test_a_file_where_the_run_should_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = runs.images(tmp_path)
    assert main(runs.train_arguments(data, data)) == 1
    assert names(capsys.readouterr().err, data, "--data")


@pytest.mark.parametrize(
    ("source", "argument"), [("x" * 5000, "x" * 5000 + "/config.json"), ("a\0b", "a\0b"), ("", ".")]
)
def test_names_that_cannot_be(source: str, argument: str) -> None:
    for form in (source, Path(source)):
        with refused(CheckpointError, argument):
            fastgen.load(form)


def test_data_names_that_cannot_be() -> None:
    from fastgen.training.data import load

    with refused(DataError, "x" * 5000):
        load("x" * 5000)


def without_rights(folder: str) -> None:
    from fastgen.training.data import load
    from fastgen.training.run import saved_run

    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    for form in (f"{folder}/m", Path(folder) / "m"):
        with pytest.raises(CheckpointError, match="Permission denied"):
            fastgen.load(form)
    with pytest.raises(CheckpointError, match="Permission denied"):
        saved_run(Path(folder) / "m")
    with pytest.raises(DataError, match="Permission denied"):
        load(f"{folder}/m")


def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    checkpoint(tmp_path / "private" / "m")
    (tmp_path / "private").chmod(0)
    try:
        code, said = children.run(tmp_path / "output", without_rights, str(tmp_path / "private"))
    finally:
        (tmp_path / "private").chmod(0o700)
    assert code == 0, said


def test_an_argument_that_no_engine_takes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()  # it is not even looked for
    with refused(ArgumentError, "foo", "channels_last"):
        fastgen.load(folder, device="cpu", foo=1)
    with refused(ArgumentError, "sha256"):
        fastgen.load(folder, sha256="0")


@pytest.mark.parametrize(
    ("change", "mentions"),
    [({"engine": "absent"}, ["'absent'"]), ({"parts": 2}, ["unet, two"])],
)
def test_the_engine_is_known_before_weights_are_read(tmp_path: Path, change: dict, mentions: list) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    raw = json.loads((folder / "config.json").read_text())
    if "parts" in change:
        change = {"parts": {**raw["parts"], "two": raw["parts"]["unet"]}}
    (folder / "config.json").write_text(json.dumps({**raw, **change}))
    with refused(ConfigError, "parts" if "parts" in change else str(folder), *mentions):
        fastgen.load(folder)


def test_class_names_are_short(tmp_path: Path) -> None:
    with refused(ConfigError, "settings: class_names[1]", 256, 257):
        fastgen.load(checkpoint(tmp_path / "m", class_names=["a", "b" * 257, "c"]))


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["--scale", "1000000"], "scale"),
        (["--scale", "64", "-n", "5000"], "scale"),
        (["--scale", "64", "-n", "64", "--columns", "64", "-o", "a.webp"], "16383"),
        (["--scale", "64", "-n", "300", "--gif", "a.gif"], "a.gif"),
        (["--columns", "10001"], "columns"),
        (["-n", "100000000000", "--labels", "0"], "1000000"),
    ],
)
def test_sizes_are_known_before_anything_is_drawn(
    tmp_path: Path,
    arguments: list[str],
    mention: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn: list[int] = []
    monkeypatch.setattr(fastgen.DiffusionEngine, "draw", lambda *given, **options: drawn.append(1))
    began = time.perf_counter()
    assert main(["sample", str(checkpoint(tmp_path / "m")), "--device", "cpu", *arguments]) == 1
    assert mention in capsys.readouterr().err
    assert not drawn
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_neither_a_pipe_nor_a_link_is_replaced(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = out.lstat()
    assert main(["sample", str(checkpoint(tmp_path / "m")), "--device", "cpu", "-o", str(out)]) == 1
    assert str(out) in capsys.readouterr().err
    after = out.lstat()  # whose time of the last reading may be another
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        before.st_ino,
        before.st_mode,
        before.st_mtime_ns,
    )


@pytest.mark.parametrize(
    ("write", "about"),
    [
        (lambda: fastgen.save_grid(IMAGES, "a.png", scale=1.5), ("scale",)),
        (lambda: fastgen.save_grid(IMAGES, "a.png", scale=True), ("scale",)),
        (lambda: fastgen.save_grid(IMAGES, "a.png", columns="3"), ("columns", "'3'")),
        (lambda: fastgen.save_grid(IMAGES, "a.png", scale=10**5), ("scale", MAX_SHEET)),
        (lambda: fastgen.save_grid(IMAGES.numpy(), "a.png"), ("images", "ndarray")),
        (lambda: fastgen.save_image(IMAGES.numpy()[0], "a.png"), ("image", "ndarray")),
        (lambda: fastgen.save_grid(torch.zeros(1, 1, 0, 8), "a.png"), ("images", "[1, 1, 0, 8]")),
        (lambda: fastgen.save_grid(torch.zeros(1, 1, 1, 65501), "a.jpg"), ("a.jpg", 65500)),
        (lambda: fastgen.save_grid(torch.zeros(1, 1, 1, 16384), "a.webp"), ("a.webp", 16383)),
        (lambda: fastgen.save_grid(IMAGES, "a.png", captions=[1, 2]), ("captions", 1)),
        (lambda: fastgen.save_grid(IMAGES, "a.png", metadata={"a": float("nan")}), ("metadata",)),
        (lambda: fastgen.save_grid(IMAGES, "a.png", metadata={"a": IMAGES}), ("metadata",)),
        (lambda: fastgen.save_gif([IMAGES], "a.xyz"), ("a.xyz", ".gif")),
        (lambda: fastgen.save_gif([IMAGES], "a.gif", milliseconds=10**7), ("milliseconds", 655350)),
        (lambda: fastgen.save_gif([IMAGES], "a.gif", hold=-5), ("hold", 655350, -5)),
        (lambda: fastgen.save_gif([torch.zeros(1, 1, 1, 65536)], "a.gif"), ("a.gif", 65535)),
    ],
)
def test_images_that_no_file_holds(write, about: tuple, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError, *about):
        write()
    assert not list(tmp_path.iterdir())


def test_the_largest_sheet_and_the_largest_side(tmp_path: Path) -> None:
    assert sheet_size(1, (8, 16), scale=2) == grid(torch.zeros(1, 1, 8, 16), scale=2).size
    side = int(MAX_SHEET**0.5) - 4
    assert sheet_size(1, (side, side)) == (side + 4, side + 4)
    fastgen.save_image(torch.zeros(1, 1, 65500), tmp_path / "a.jpg")
    fastgen.save_gif([IMAGES], tmp_path / "a.gif", milliseconds=655_350, hold=0)


def test_captions_are_cut_to_their_images() -> None:
    images = torch.full((2, 1, 40, 40), -1.0)
    long = np.asarray(grid(images, captions=["W" * 10_000, ""]))
    assert (long[:, 44:] == np.asarray(grid(images, captions=["", ""]))[:, 44:]).all()
    grid(images, captions=["a\nb\x1b", "c"])  # two lines have no anchor


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path, flags: int, *mode: int) -> int:  # type: ignore[no-untyped-def]
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return before(path, flags, *mode)

    before = os.open
    monkeypatch.setattr(os, "open", refuses)
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("how", ["ENOSYS", "no module"])
def test_where_nothing_can_be_locked(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*given: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    if how == "ENOSYS":
        monkeypatch.setattr("fcntl.flock", flock)
    else:
        monkeypatch.setattr(files, "fcntl", None)
    write_atomic(tmp_path / "a", b"new")
    leftover = tmp_path / ".a.0011aabb.tmp"
    leftover.write_text("half")
    remove_leftovers(tmp_path, ["a"])
    assert leftover.exists()  # its writer may live
    with held(tmp_path) as one, held(tmp_path) as other:
        assert one
        assert other


def test_what_may_be_there(tmp_path: Path) -> None:
    assert exists(tmp_path)
    assert exists("x" * 5000)
    assert not exists(tmp_path / "nothing")
    assert not exists("a\0b")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """``fastgen LINE`` as a shell runs it."""
    command = f"exec {sys.executable} -m fastgen {line}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=children.PATIENCE)


def test_the_command_line_needs_no_torch() -> None:
    code = "import sys; from fastgen.cli import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=children.PATIENCE).returncode == 0


def test_an_early_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastgen.cli.parser", interrupted)
    assert main(["info"]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "fastgen: interrupted\n"


def test_output_that_is_closed_or_full() -> None:
    closed = shell("info >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    full = shell("info >/dev/full")
    assert full.returncode == 1
    assert full.stderr == "fastgen: error: standard output: cannot be written: No space left on device\n"
