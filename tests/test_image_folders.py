"""Which files of a folder are images: hidden ones, links, folders with the names of images, unreadable folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from fastgen import image_folders
from fastgen.cli import main
from fastgen.errors import DataError
from fastgen.image_folders import image_paths
from fastgen.metrics import sets
from fastgen.training.folders import images_in
from tests.refusals import refused

SUFFIXES = {".png", ".jpg"}


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_what_counts(tmp_path: Path) -> None:
    kept = [put(tmp_path / name) for name in ("b.png", "a/z.JPG", "a.png", "d.png/inner.png")]
    for name in (".hidden.png", "__MACOSX/a.png", "a/.cache/b.png", "__a.png", "a.txt", "no_suffix"):
        put(tmp_path / name)
    kept.append(tmp_path / "nothing.png")  # its reader says that it leads nowhere
    kept[-1].symlink_to(tmp_path / "absent")
    assert image_paths(tmp_path, SUFFIXES) == sorted(kept)
    assert image_paths(str(tmp_path), SUFFIXES) == sorted(kept)
    assert images_in(tmp_path) == sorted(kept)


def test_links(tmp_path: Path) -> None:
    """To files, and to folders, which are followed; a circle is refused."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    put(other / "a.png")
    folder.mkdir()
    (folder / "file.png").symlink_to(other / "a.png")
    (folder / "linked").symlink_to(other)
    assert image_paths(folder, SUFFIXES) == [folder / "file.png", folder / "linked" / "a.png"]
    (other / "back").symlink_to(tmp_path)
    with refused(DataError, folder / "linked" / "back"):
        image_paths(folder, SUFFIXES)
    (other / "back").unlink()
    (other / "back").symlink_to(folder)  # two links that lead to each other's folders
    with refused(DataError, folder / "linked" / "back"):
        image_paths(folder, SUFFIXES)
    with refused(DataError, other / "back" / "linked"):
        image_paths(other, SUFFIXES)


def test_nothing_in_it(tmp_path: Path) -> None:
    put(tmp_path / "a.txt")
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "a.txt"):
        with refused(DataError, folder):
            image_paths(folder, SUFFIXES)
        with refused(DataError, folder):
            images_in(folder)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are not left out in silence. (Root may read all folders: the system's answer is made here.)"""
    put(tmp_path / "a.png")
    put(tmp_path / "shut" / "b.png")
    real = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(image_folders.os, "scandir", scandir)
    for read in (images_in, lambda folder: list(sets.images(folder, 1, 1))):
        with refused(DataError, tmp_path / "shut", "Permission denied"):
            read(tmp_path)


def test_the_commands_follow_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A set of images leaves out what lies in __MACOSX; `fastgen compare` takes every format that is read."""
    for folder in ("one", "two"):
        for name in ("a.gif", "b.ppm", "__MACOSX/a.png"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 7).save(path)
    assert [len(batch) for batch in sets.images(tmp_path / "one", 1, 8)] == [2]
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2
