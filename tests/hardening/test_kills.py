"""Killed at any moment, every file on disk is whole, and whoever goes on ends where nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastgen.cli import main
from fastgen.streaming import open_output
from tests.small import checkpoint

from . import children
from .runs import check_image, check_run, digests, images, next_arguments, train_arguments

KILLS = 50


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return images(tmp_path)


def sample_arguments(model: Path, out: Path, *more: str) -> list[str]:
    words = ["--seeds", "0-4", "--steps", "2", "--device", "cpu", "--quiet"]
    return ["sample", str(model), *words, "-o", str(out), "--gif", str(out / "all.gif"), *more]


def killed_at(event: int, arguments: list[str]) -> int:
    """The command, with SIGKILL at the `event`-th step of writing: made, half written, whole, renamed."""
    from fastgen import files
    from fastgen.streaming import arrays, folder

    events = 0

    def happens() -> None:
        nonlocal events
        events += 1
        if events == event:
            os.kill(os.getpid(), signal.SIGKILL)

    class Half:
        """A file that may be killed with half of its bytes on disk."""

        def __init__(self, file) -> None:  # type: ignore[no-untyped-def]
            self.file, self.begun = file, False

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def fileno(self) -> int:
            return self.file.fileno()

        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return getattr(self.file, name)

        def write(self, data: bytes) -> None:
            half = 0 if self.begun else len(data) // 2  # of the first write, where there are many
            if not self.begun:
                self.begun = True
                self.file.write(data[:half])
                self.file.flush()
                happens()
            self.file.write(data[half:])

    class Os:
        """`os`, as fastgen.files sees it."""

        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return getattr(os, name)

        def fdopen(self, descriptor: int, mode: str):  # type: ignore[no-untyped-def]
            file = os.fdopen(descriptor, mode)
            if mode == "rb":
                return file
            happens()  # the file is there, empty
            return Half(file)

        def replace(self, source: Path, target: Path) -> None:
            happens()
            os.replace(source, target)
            happens()

    class OsOfStreams(Os):
        """The same, as those see it who remove what they have made, name by name."""

        def unlink(self, path: Path) -> None:
            happens()
            os.unlink(path)
            happens()

    files.os = Os()  # type: ignore[assignment]
    arrays.os = folder.os = OsOfStreams()  # type: ignore[assignment]
    code = main(arguments)
    print(f"events {events}")
    return code


def events_of(tmp_path: Path, arguments: list[str]) -> int:
    """How many moments `killed_at` can choose from."""
    code, said = children.run(tmp_path / "output", killed_at, 0, arguments)
    assert code == 0, said
    return int(said.rsplit("events ", 1)[1])


@pytest.mark.parametrize(
    ("preview_every", "saves", "previews", "stride"),
    [(2, 3, 3, 36), pytest.param(6, 2, 1, 1, marks=pytest.mark.slow)],
)
def test_train_killed_at_every_step_of_writing(
    tmp_path: Path, data: Path, preview_every: int, saves: int, previews: int, stride: int
) -> None:
    count = events_of(tmp_path, train_arguments(tmp_path / "whole", data, preview_every))
    whole = digests(tmp_path / "whole")
    assert count == 4 * (5 * saves + previews)  # four moments a file, five files a save
    for event in range(1, count + 1, stride):
        folder = tmp_path / f"at-{event}"
        begin = train_arguments(folder, data, preview_every)
        code, said = children.run(tmp_path / "output", killed_at, event, begin)
        assert code == -signal.SIGKILL, said
        check_run(folder)
        code, said = children.run(tmp_path / "output", children.command, *next_arguments(folder, begin))
        assert code == 0, said
        assert digests(folder) == whole, event


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_sample_killed_at_every_step_of_writing(tmp_path: Path, stride: int) -> None:
    model = checkpoint(tmp_path / "model")
    (tmp_path / "whole").mkdir()
    count = events_of(tmp_path, sample_arguments(model, tmp_path / "whole"))
    whole = digests(tmp_path / "whole")
    assert count == 4 * (5 + 1)
    for event in range(1, count + 1, stride):
        folder = tmp_path / f"at-{event}"
        folder.mkdir()
        code, said = children.run(tmp_path / "output", killed_at, event, sample_arguments(model, folder))
        assert code == -signal.SIGKILL, said
        check_and_draw_again(tmp_path, model, folder, whole)


def check_and_draw_again(tmp_path: Path, model: Path, folder: Path, whole: dict[str, str]) -> None:
    """What a killed `sample` left is whole and right; the same command ends the same, and sweeps up."""
    there = {name: digest for name, digest in digests(folder).items() if not name.endswith(".tmp")}
    assert there.items() <= whole.items()
    for name in there:
        check_image(folder / name)
    code, said = children.run(
        tmp_path / "output", children.command, *sample_arguments(model, folder, "--overwrite")
    )
    assert code == 0, said
    assert digests(folder) == whole


def timed(arguments: list[str]) -> int:
    """The command, and how many seconds it took, without those that a first child waits for its parent."""
    began = time.perf_counter()
    code = main(arguments)
    print(f"seconds {time.perf_counter() - began}")
    return code


def seconds_of(tmp_path: Path, arguments: list[str], *around: Callable[..., int]) -> float:
    code, said = children.run(tmp_path / "output", *around, timed, arguments)
    assert code == 0, said
    return float(said.rsplit("seconds ", 1)[1])


FINISHED = {
    "pictures": {
        f"pictures/{name}" for name in (".fastgen.json", *(f"{i:05d}-seed{3 + i}.png" for i in range(4)))
    },
    "a.npz": {"a.npz"},
    "a.npy": {"a.npy", "a.npy.json"},
}  # files where all is there
PLACES = tuple(FINISHED)


def stream_arguments(model: Path, out: Path) -> list[str]:
    """A request in two batches, see `two_at_a_time`."""
    words = ["-n", "4", "--labels", "0,2", "--steps", "2", "--device", "cpu", "--quiet"]
    return ["sample", str(model), *words, "-o", str(out)]


def two_at_a_time(work: Callable[..., int], *arguments: object) -> int:
    """`work`, with batches of two samples."""
    from fastgen.engines import streams

    streams.fitting = lambda free, bytes_each, most: 2
    return work(*arguments)


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", PLACES)
def test_stream_killed_at_every_step_of_writing(tmp_path: Path, place: str, stride: int) -> None:
    """The same command ends with the same bytes, also where it is killed again, early, as it goes on."""
    model, whole = checkpoint(tmp_path / "model"), tmp_path / "whole"

    def run(folder: Path, event: int) -> tuple[int, str]:
        arguments = [*stream_arguments(model, folder / place), "--seed", "3"]
        return children.run(tmp_path / "output", two_at_a_time, killed_at, event, arguments)

    whole.mkdir()
    code, said = run(whole, 0)
    assert code == 0, said
    count, wanted = int(said.rsplit("events ", 1)[1]), digests(whole)
    assert set(wanted) == FINISHED[place]
    for event in range(1, count + 1, stride):
        folder = tmp_path / f"at-{event}"
        folder.mkdir()
        code, said = run(folder, event)
        assert code == -signal.SIGKILL, said
        for path in folder.glob("pictures/*.png"):
            check_image(path)
        if event % 8 == 1:
            code, said = run(folder, 3)
            assert code == -signal.SIGKILL or (code == 0 and digests(folder) == wanted), said
        code, said = run(folder, 0)
        assert code == 0, said
        assert digests(folder) == wanted, event


@pytest.mark.parametrize("place", PLACES)
def test_stream_killed_goes_on_with_its_own_seed(tmp_path: Path, place: str) -> None:
    """After the tenth step of writing the record of the request is there, whatever the place."""
    model, cut, whole = checkpoint(tmp_path / "model"), tmp_path / "cut", tmp_path / "whole"
    cut.mkdir()
    whole.mkdir()
    arguments = stream_arguments(model, cut / place)
    code, said = children.run(tmp_path / "output", two_at_a_time, killed_at, 10, arguments)
    assert code == -signal.SIGKILL, said
    seed = open_output(cut / place).seed_to_go_on(overwrite=False)
    assert seed is not None
    for folder, more in ((cut, []), (whole, ["--seed", str(seed)])):
        arguments = [*stream_arguments(model, folder / place), *more]
        code, said = children.run(tmp_path / "output", two_at_a_time, main, arguments)
        assert code == 0, said
    assert digests(cut) == digests(whole)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_stream_killed_at_random(tmp_path: Path, place: str) -> None:
    model, chance, done, missed = checkpoint(tmp_path / "model"), random.Random(2), 0, 0
    kills = KILLS // 5

    def arguments(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        return [*stream_arguments(model, folder / place), "--seed", "3"]

    longest = seconds_of(tmp_path, arguments(tmp_path / "whole"), two_at_a_time)
    wanted, folder = digests(tmp_path / "whole"), tmp_path / "0"
    while done < kills:
        assert missed <= 2 * kills + 10, "most kills come too late"
        child = children.start(tmp_path / "output", two_at_a_time, main, arguments(folder))
        if kill_at_random(child, longest, chance):
            done += 1
        else:  # it came to its end, after several kills perhaps
            assert digests(folder) == wanted
            missed += 1
            folder = tmp_path / str(missed)
    code, said = children.run(tmp_path / "output", two_at_a_time, main, arguments(folder))
    assert code == 0, said
    assert digests(folder) == wanted


def kill_at_random(child: children.Child, longest: float, chance: random.Random) -> bool:
    """SIGKILL within `longest` seconds; False where the child has ended before."""
    time.sleep(chance.uniform(0, longest))
    child.signal(signal.SIGKILL)
    code = child.wait()
    assert code in (0, -signal.SIGKILL), child.said()
    return code != 0


@pytest.mark.slow
def test_train_killed_at_random(tmp_path: Path, data: Path) -> None:
    longest = seconds_of(tmp_path, train_arguments(tmp_path / "whole", data))
    whole, chance, done, folder = digests(tmp_path / "whole"), random.Random(0), 0, tmp_path / "0"
    missed = 0
    while done < KILLS:
        assert missed <= 2 * KILLS + 10, "most kills come too late"
        arguments = next_arguments(folder, train_arguments(folder, data))
        child = children.start(tmp_path / "output", children.command, *arguments)
        if kill_at_random(child, longest, chance):
            done += 1
            check_run(folder)
        else:  # it came to its end, after several kills perhaps
            assert digests(folder) == whole
            missed += 1
            folder = tmp_path / f"{done}-{missed}"
    arguments = next_arguments(folder, train_arguments(folder, data))
    code, said = children.run(tmp_path / "output", children.command, *arguments)
    assert code == 0, said
    assert digests(folder) == whole


@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_sample_killed_at_random(tmp_path: Path, kills: int) -> None:
    model = checkpoint(tmp_path / "model")
    (tmp_path / "whole").mkdir()
    longest = seconds_of(tmp_path, sample_arguments(model, tmp_path / "whole"))
    whole, chance, done, tries = digests(tmp_path / "whole"), random.Random(1), 0, 0
    while done < kills:
        tries += 1
        assert tries <= 3 * kills + 10, "most kills come too late"
        folder = tmp_path / str(tries)
        folder.mkdir()
        child = children.start(tmp_path / "output", children.command, *sample_arguments(model, folder))
        done += kill_at_random(child, longest, chance)
        check_and_draw_again(tmp_path, model, folder, whole)
