"""A full disk, a folder that may not be written to: one clear line, nothing of the user's lost, nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fastgen
from fastgen.checkpoint import save
from fastgen.errors import WriteError
from tests.small import network, spec, unet_config

from . import children, places, runs

PAGE = 4096  # of a tmpfs, whose files take whole pages
WAYS = ["full", "limited"]


def at_a_full_disk(
    way: str, folder: Path, before: Path | None, work: Callable[..., int | None], *arguments: object
) -> int | None:
    """`work` where `folder` (with the files of `before` in it) has no room; afterwards they must be as they were."""
    how = places.full(folder, 1 << 20) if way == "full" else "limit"
    if before is not None:
        shutil.copytree(before, folder, dirs_exist_ok=True)
    kept = runs.digests(folder)
    if how == "tmpfs":
        with (folder / "other").open(
            "wb", buffering=0
        ) as file:  # somebody else's: all the room but a page or two
            fill(file.fileno(), os.statvfs(folder).f_bavail * PAGE - 2 * PAGE)
    else:
        places.limit(
            1200
        )  # bytes per file: room for the words of this process, not for an image or a network
    code = work(*arguments)
    (folder / "other").unlink(missing_ok=True)
    left = runs.digests(folder)
    assert kept.items() <= left.items()
    for name in left.keys() - kept.keys():  # images that were whole before the room was gone
        if Path(name).suffix in (".png", ".jpg", ".gif"):  # else the record of what was asked
            runs.check_image(folder / name)
    print(how)
    return code


def fill(descriptor: int, size: int) -> None:
    for _ in range(size // PAGE):
        os.write(descriptor, bytes(PAGE))


def in_a_read_only(folder: Path, work: Callable[..., int | None], *arguments: object) -> int | None:
    """`work` where `folder` may not be written to."""
    kept = runs.digests(folder)
    how = places.read_only(folder)
    code = work(*arguments)
    assert runs.digests(folder) == kept
    print(how)
    return code


def check_one_line(outcome: tuple[int, str], path: Path, reason: str) -> None:
    """One line that says what, where and what to do."""
    code, said = outcome
    assert code == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("fastgen: error: ")]
    assert str(path) in line
    assert reason in line
    assert "Traceback" not in said


REASONS = "No space left on device", "File too large", "Read-only file system", "Permission denied"


def reason(said: str) -> str:
    """The system's words for what `places` did, whose own word is the last line."""
    by = {"tmpfs": REASONS[0], "limit": REASONS[1], "mount": REASONS[2], "mode": REASONS[3]}
    return by[said.split()[-1]]


def noisy_model(folder: Path) -> Path:
    """A model whose images of noise take more than half a page each."""
    config = unet_config(sample_size=(48, 48))
    save(folder, spec(config), {f"unet.{n}": t for n, t in network(config).state_dict().items()})
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return noisy_model(tmp_path / "model")


@pytest.fixture
def passable() -> Iterator[Path]:
    """A folder that a process may enter that has given up root's rights: pytest's own are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | 0o700)  # what a test has made read-only
    shutil.rmtree(folder)


def large(model: Path, *more: str) -> list[str]:
    """A request whose images take more than two pages, on a sheet or by themselves."""
    return ["sample", str(model), "-n", "12", "--steps", "1", "--device", "cpu", "--quiet", *more]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "names", [["-o", "{}/a.png"], ["-o", "{}"], ["-o", "{}/a.jpg"], ["-o", "x.png", "--gif", "{}/a.gif"]]
)
def test_sample_on_a_full_disk(tmp_path: Path, model: Path, way: str, names: list[str]) -> None:
    folder, before = tmp_path / "out", tmp_path / "before"
    folder.mkdir()
    before.mkdir()
    for name in ("a.png", "a.jpg", "a.gif", "00000-seed1.png"):
        (before / name).write_bytes(b"mine" * 500)
    if way == "limited":
        shutil.copytree(before, folder, dirs_exist_ok=True)
    out = [name.format(folder) for name in names]
    arguments = large(model, *out, "--overwrite")
    outcome = children.run(
        tmp_path / "output",
        at_a_full_disk,
        way,
        folder,
        before,
        children.command_in,
        str(tmp_path),
        arguments,
    )
    # where the limit is on every file of the process, the sheet is the first that is too large
    limited = outcome[1].split()[-1] == "limit"
    check_one_line(outcome, Path("x.png") if limited and "x.png" in names else folder, reason(outcome[1]))
    assert "--seed " in outcome[1]


@pytest.mark.parametrize("way", WAYS)
def test_train_on_a_full_disk(tmp_path: Path, way: str) -> None:
    data, folder, before = runs.images(tmp_path), tmp_path / "run", tmp_path / "before"
    outcome = children.run(
        tmp_path / "output", stopped_training, str(before), runs.train_arguments(before, data)
    )
    assert outcome[0] == 0, outcome[1]
    folder.mkdir()
    if way == "limited":
        shutil.copytree(before, folder, dirs_exist_ok=True)
    work = children.command_in, str(tmp_path), runs.resume_arguments(folder)
    outcome = children.run(tmp_path / "output", at_a_full_disk, way, folder, before, *work)
    check_one_line(outcome, folder, reason(outcome[1]))
    code, said = children.run(tmp_path / "output", children.command, *runs.resume_arguments(before))
    assert code == 0, said  # with room it goes on


def stopped_training(folder: str, arguments: list[str]) -> int:
    """Train up to the first save."""
    from fastgen import cli
    from fastgen.training import loop

    publish = loop._publish

    def stop(*given: object) -> None:
        publish(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    loop._publish = stop  # type: ignore[assignment]
    return 0 if cli.main(arguments) == 130 else 1


@pytest.mark.parametrize(
    "names", [["-o", "{}/a.png"], ["-o", "{}"], ["-o", "{}/new"], ["-o", "x.png", "--gif", "{}/a.gif"]]
)
def test_sample_into_a_read_only_folder(passable: Path, names: list[str]) -> None:
    model, folder = noisy_model(passable / "model"), passable / "out"
    folder.mkdir()
    (folder / "a.png").write_text("mine")
    arguments = large(model, *[name.format(folder) for name in names], "--overwrite")
    outcome = children.run(
        passable / "output", in_a_read_only, folder, children.command_in, str(passable), arguments
    )
    check_one_line(outcome, folder, reason(outcome[1]))
    assert not (passable / "x.png").exists()  # it is known before anything is drawn


@pytest.mark.parametrize("name", [".", "new"])
def test_train_in_a_read_only_folder(passable: Path, name: str) -> None:
    data, folder = runs.images(passable), passable / "run"
    folder.mkdir()
    arguments = runs.train_arguments(folder / name, data)
    outcome = children.run(
        passable / "output", in_a_read_only, folder, children.command_in, str(passable), arguments
    )
    check_one_line(outcome, folder, reason(outcome[1]))


def writes_by_name(folder: str) -> None:
    """The library's own functions that write."""
    config = unet_config()
    tensors = {f"unet.{n}": t for n, t in network(config).state_dict().items()}
    noise = torch.rand(4, 3, 128, 128)
    for write in (
        lambda: fastgen.save_grid(noise, f"{folder}/grid.png"),
        lambda: fastgen.save_image(noise[0], f"{folder}/image.webp"),
        lambda: fastgen.save_gif([noise], f"{folder}/animation.gif"),
        lambda: save(folder, spec(config), tensors),
    ):
        with pytest.raises(WriteError, match=re.escape(folder)):
            write()


@pytest.mark.parametrize("way", WAYS)
def test_the_library_on_a_full_disk(tmp_path: Path, way: str) -> None:
    folder, before = tmp_path / "out", tmp_path / "before"
    folder.mkdir()
    config = unet_config()
    old = {f"unet.{n}": t for n, t in network(config, seed=7).state_dict().items()}
    for where in (before, folder) if way == "limited" else (before,):
        save(where, spec(config), old)
    (before / "grid.png").write_text("mine")
    if way == "limited":
        (folder / "grid.png").write_text("mine")
    code, said = children.run(
        tmp_path / "output", at_a_full_disk, way, folder, before, writes_by_name, str(folder)
    )
    assert code == 0, said


def mounts_by_half() -> None:
    def refused_at_the_end() -> bool:
        places._libc.unshare(places.CLONE_NEWUSER | places.CLONE_NEWNS)
        return False

    def fails() -> bool:
        refused_at_the_end()
        raise PermissionError

    before = os.readlink("/proc/self/ns/user"), os.getresuid(), os.getresgid()
    assert not places._tried(refused_at_the_end)
    assert not places._tried(fails)
    assert (os.readlink("/proc/self/ns/user"), os.getresuid(), os.getresgid()) == before


def test_half_a_mount_leaves_the_process_its_rights(tmp_path: Path) -> None:
    code, said = children.run(tmp_path / "output", mounts_by_half)
    assert code == 0, said
