"""Commands that make an image of an image: what becomes which file, what is skipped, and errors of single files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgen.commands.image_log import LOG, RECORD
from fastgen.commands.image_task import add_image_files, plan, run_tasks
from fastgen.errors import ConfigError, DataError, OutOfMemoryError, WriteError
from fastgen.image_files import ImageFile
from tests.refusals import names, refused

CALLS: list[list[str]] = []  # the names of the files of each call of `inverted`


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def inverted(images: Sequence[ImageFile]) -> list[Tensor]:
    CALLS.append([image.path.name for image in images])
    if any(image.size[0] == 1 for image in images):
        raise ConfigError("is too small", argument="images")
    if len(images) > 1 and sum(image.size[0] for image in images) > 100:
        raise OutOfMemoryError("together they are too large")
    return [-image.tensor() for image in images]


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_image_files(parser)
    return parser.parse_args([*map(str, arguments), "--quiet"])


def run(*arguments: object, **options: Any) -> int:
    args = parsed(*arguments)
    given: dict[str, Any] = {"record": {"model": "inverse"}, "what": "inverse", "device": "cpu", **options}
    return run_tasks(args, plan(args), inverted, **given)


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (4, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def is_inverse(made: Path, source: Path) -> bool:
    with Image.open(made) as one, Image.open(source) as other:
        return bool((np.asarray(one.convert("RGB")) == 255 - np.asarray(other.convert("RGB"))).all())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("b.png", "a.bmp", "inner/c.png", "inner/deep/d.gif")):
        draw(tmp_path / "in" / name, i)
    for name in ("notes.txt", ".hidden.png", "__MACOSX/e.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("no image")
    return tmp_path / "in"


def test_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = draw(tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "b.png") == 0
    assert is_inverse(tmp_path / "b.png", source)
    assert names(capsys.readouterr().out, "inverse", tmp_path / "b.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    with refused(ConfigError, tmp_path / "b.png", "--overwrite"):
        run(source, "-o", tmp_path / "b.png")
    assert run(source, "-o", tmp_path / "b.png", "--overwrite") == 0


def test_a_folder_keeps_its_shape(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "-o", tmp_path / "out") == 0
    made = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert made == {"a.bmp", "b.png", "inner/c.png", "inner/deep/d.png", RECORD, LOG}
    assert is_inverse(tmp_path / "out/inner/c.png", folder / "inner/c.png")
    assert [name for call in CALLS for name in call] == ["a.bmp", "b.png", "c.png", "d.gif"]


def test_files_and_folders_in_one_format(folder: Path, tmp_path: Path) -> None:
    extra = draw(tmp_path / "f.png")
    assert run(folder, extra, "-o", tmp_path / "out", "--format", "tif", "--batch", "3") == 0
    assert (tmp_path / "out/inner/deep/d.tif").exists()
    assert (tmp_path / "out/f.tif").exists()
    assert [len(call) for call in CALLS] == [3, 2]


def test_what_is_done_is_skipped(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(folder, "-o", out) == 0
    CALLS.clear()
    (out / "inner/c.png").unlink()
    os.utime(folder / "b.png", ns=(10, 10))  # another one has taken its place, an older one
    capsys.readouterr()
    assert run(folder, "-o", out, "--json") == 0
    assert CALLS == [["b.png"], ["c.png"]]
    facts = json.loads(capsys.readouterr().out)
    assert [len(facts[name]) for name in ("files", "skipped", "failed")] == [2, 2, 0]
    CALLS.clear()
    assert run(folder, "-o", out, "--overwrite") == 0
    assert len(CALLS) == 4


def test_images_of_other_settings_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(folder, "-o", out) == 0
    with refused(ConfigError, out, "--overwrite", "inverse"):
        run(folder, "-o", out, record={"model": "another"})
    assert run(folder, "-o", out, "--overwrite", record={"model": "another"}) == 0
    assert json.loads((out / RECORD).read_text()) == {"model": "another"}


def test_another_input_of_the_same_name_is_another_image(tmp_path: Path) -> None:
    for day, seed in (("one", 1), ("two", 2)):
        draw(tmp_path / day / "a.png", seed)
        assert run(tmp_path / day, "-o", tmp_path / "out") == 0
        assert is_inverse(tmp_path / "out/a.png", tmp_path / day / "a.png")


def test_an_overwriting_run_that_was_killed_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the old settings made counts as nothing, with or without --overwrite."""
    from fastgen import image_files

    assert run(folder, "-o", tmp_path / "out") == 0
    real, written = image_files.write_atomic, []

    def killed(path: Path, data: bytes) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(real(path, data))  # type: ignore[func-returns-value]

    other = {"model": "another"}
    with monkeypatch.context() as patch:
        patch.setattr(image_files, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "-o", tmp_path / "out", "--overwrite", record=other)
    CALLS.clear()
    assert run(folder, "-o", tmp_path / "out", record=other) == 0
    assert CALLS == [["c.png"], ["d.gif"]]
    CALLS.clear()
    assert run(folder / "b.png", "-o", tmp_path / "out", "--overwrite") == 0  # back to the first, one of them
    assert run(folder, "-o", tmp_path / "out") == 0
    assert CALLS == [["b.png"], ["a.bmp"], ["c.png"], ["d.gif"]]


def test_a_log_that_was_cut(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "-o", tmp_path / "out") == 0
    log = tmp_path / "out" / LOG
    log.write_bytes(log.read_bytes()[:-9])
    CALLS.clear()
    assert run(folder, "-o", tmp_path / "out") == 0
    assert CALLS == [["d.gif"]]
    CALLS.clear()
    assert run(folder, "-o", tmp_path / "out") == 0
    assert CALLS == []


def test_files_that_are_no_results_are_kept(folder: Path, tmp_path: Path) -> None:
    mine = draw(tmp_path / "out/b.png", 9)
    before = mine.read_bytes()
    with refused(ConfigError, tmp_path / "out", "b.png", "--overwrite"):
        run(folder, "-o", tmp_path / "out")
    assert mine.read_bytes() == before
    mine.rename(tmp_path / "out/mine.png")  # beside them is no harm
    assert run(folder, "-o", tmp_path / "out") == 0
    assert (tmp_path / "out/mine.png").read_bytes() == before


def test_an_output_within_the_input_is_no_input(folder: Path) -> None:
    assert run(folder, "-o", folder / "out") == 0
    CALLS.clear()
    assert run(folder, "-o", folder / "out", "--overwrite") == 0
    assert len(CALLS) == 4


def test_single_files_fail_and_the_others_are_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.png").write_text("no image")
    draw(folder / "small.png", size=(1, 1))
    frames = [Image.fromarray(np.full((4, 4, 3), i, np.uint8)) for i in (0, 200)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", (4, 4)).save(folder / "print.tif")
    assert run(folder, "-o", tmp_path / "out", "--batch", "3") == 1
    said = capsys.readouterr()
    for name in ("text.png", "small.png", "moving.gif"):
        assert names(said.err, folder / name)
        assert names(said.out, folder / name)
    for name in ("a.bmp", "b.png", "deep.png", "print.tif", "inner/c.png", "inner/deep/d.png"):
        assert (tmp_path / "out" / name).exists(), name
    assert not (tmp_path / "out/small.png").exists()


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "a.png")
    assert run(tmp_path / "a.png", tmp_path / "no.png", "-o", tmp_path / "out", "--json") == 1
    said = capsys.readouterr()
    assert [fault["file"] for fault in json.loads(said.out)["failed"]] == [str(tmp_path / "no.png")]


def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen import image_files

    real = image_files.write_atomic

    def full(path: Path, data: bytes) -> None:
        if path.name == "b.png":
            raise WriteError("cannot be written: No space left on device", argument=path)
        real(path, data)

    monkeypatch.setattr(image_files, "write_atomic", full)
    assert run(folder, "-o", tmp_path / "out") == 1
    assert not (tmp_path / "out/b.png").exists()
    assert (tmp_path / "out/inner/c.png").exists()


def test_images_that_fit_only_one_by_one(tmp_path: Path) -> None:
    for i in range(3):
        draw(tmp_path / f"in/{i}.png", i, size=(60, 4))
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--batch", "3") == 0
    assert CALLS == [["0.png", "1.png", "2.png"], ["0.png"], ["1.png"], ["2.png"]]


def test_a_sheet_of_before_and_after(folder: Path, tmp_path: Path) -> None:
    draw(folder / "wide.png", size=(8, 64))
    assert run(folder, "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png") == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > sheet.height / 2
    inside = tmp_path / "out" / "sheet.png"  # a sheet in the folder does not keep the run from going on
    for _ in range(2):
        assert run(folder, "-o", tmp_path / "out", "--sheet", inside) == 0
    assert inside.exists()


def test_a_sheet_that_fails_is_not_all_that_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgen import images

    def full(path: Path, data: bytes) -> None:
        raise WriteError("cannot be written: No space left on device", argument=path)

    monkeypatch.setattr(images, "write_atomic", full)
    assert run(folder, "-o", tmp_path / "out", "--sheet", tmp_path / "sheet.png", "--json") == 1
    said = capsys.readouterr()
    assert len(json.loads(said.out)["files"]) == 4
    assert names(said.err, tmp_path / "sheet.png")


def test_names_are_harmless_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a\x1b[31m\n.png").write_text("no image")
    draw(tmp_path / "in" / "b.png")
    assert run(tmp_path / "in", "-o", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert len(said.err.splitlines()) == len(said.out.splitlines()) == 1


def test_names_that_do_not_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "other/b.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[type[Exception], object, tuple[object, ...]]] = [
        (ConfigError, "--out", (folder, "-o", tmp_path / "one.png")),  # several images, one file
        (ConfigError, "--out", (folder, other, "-o", tmp_path / "out")),  # two of one name
        (ConfigError, "--out", (folder, "-o", tmp_path / "no/out")),
        (ConfigError, "--out", (folder, "-o", folder / "notes.txt")),
        (ConfigError, "--out", (folder, "-o", folder)),  # its own input
        (ConfigError, other, (other, "-o", other.parent)),
        (ConfigError, other, (other, "-o", other, "--overwrite")),
        (ConfigError, "--sheet", (other, "-o", tmp_path / "x.png", "--sheet", other, "--overwrite")),
        (ConfigError, "--sheet", (other, "-o", tmp_path / "x.png", "--sheet", tmp_path / "x.png")),
        (ConfigError, "--sheet", (other, "-o", tmp_path / "x.png", "--sheet", tmp_path / "no" / "s.png")),
        (ConfigError, "--format", (other, "-o", tmp_path / "x.png", "--format", "png")),
        (ConfigError, tmp_path / "x.xyz", (other, "-o", tmp_path / "x.xyz")),
        (
            ConfigError,
            tmp_path / "sheet.txt",
            (other, "-o", tmp_path / "x.png", "--sheet", tmp_path / "sheet.txt"),
        ),
        (DataError, empty, (empty, "-o", tmp_path / "out")),
    ]
    for kind, argument, arguments in cases:
        with refused(kind, argument):
            run(*arguments)
    assert CALLS == []
    assert not (tmp_path / "out").exists()


def test_a_damaged_record(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).write_text("{")
    with refused(ConfigError, tmp_path / "out" / RECORD):
        run(folder, "-o", tmp_path / "out")
    assert run(folder, "-o", tmp_path / "out", "--overwrite") == 0
    assert run(folder, "-o", tmp_path / "out") == 0


def test_grey_is_asked_for(tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    assert run(source, "-o", tmp_path / "b.png", channels=1) == 0
    with Image.open(tmp_path / "b.png") as file, Image.open(source) as original:
        assert file.mode == "L"
        difference = np.asarray(file).astype(int) + np.asarray(original.convert("L"))
    assert torch.equal(torch.from_numpy(difference), torch.full((4, 6), 255))
