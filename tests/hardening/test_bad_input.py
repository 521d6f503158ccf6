"""Files that are not what their names say: refused with a reason, never run, never waited for, never unpacked."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.cli import main
from fastgen.config import MAX_DEPTH, parse_json
from fastgen.errors import CheckpointError, ConfigError, DataError, FastgenError
from fastgen.files import remove_leftovers, write_atomic
from fastgen.images import read_metadata
from fastgen.tensor_file import MAX_HEADER_BYTES, TensorFile
from fastgen.training.arrays import read_idx
from fastgen.training.data import load
from fastgen.training.decode import MAX_PIXELS
from tests.refusals import names, refused
from tests.small import checkpoint

from . import children, runs
from .guard import guard

NOT_FILES: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "random": lambda path: path.symlink_to("/dev/urandom"),
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to("/no/such/file"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
}
READERS: dict[str, Callable[[Path], object]] = {
    "config.json": lambda model: fastgen.load(model, device="cpu"),
    "model.safetensors": lambda model: fastgen.load(model, device="cpu"),
    "training.safetensors": lambda model: TensorFile(model / "training.safetensors"),
    "a.png": lambda model: read_metadata(model / "a.png"),
    "idx": lambda model: read_idx(model / "idx"),
    "a.npz": lambda model: load(str(model / "a.npz")),
}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def read_what_is_no_file(model: Path, name: str) -> None:
    os.chdir(model)  # a socket's name must be short
    for kind, make in NOT_FILES.items():
        Path(name).unlink(missing_ok=True)
        make(Path(name))
        print(kind)
        with (
            guard(0),
            pytest.raises(FastgenError, match=re.escape(name)),
        ):  # neither endless data nor a pipe that says nothing
            READERS[name](model)
        if kind == "folder":
            Path(name).rmdir()


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    code, said = children.run(tmp_path / "output", read_what_is_no_file, checkpoint(tmp_path / "m"), name)
    assert code == 0, said


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pickle", "torch", "zip of pickles", "numpy"])
def test_no_pickle_is_ever_opened(tmp_path: Path, name: str, kind: str) -> None:
    model, made = checkpoint(tmp_path / "m"), tmp_path / "made"
    data = io.BytesIO()
    if kind == "pickle":
        pickle.dump(Bomb(made), data)
    elif kind == "torch":
        torch.save(Bomb(made), data)
    elif kind == "numpy":
        np.savez(data, images=np.array([Bomb(made)], dtype=object))
    else:
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("images.npy", pickle.dumps(Bomb(made)))
    (model / name).write_bytes(data.getvalue())
    with pytest.raises(FastgenError):
        READERS[name](model)
    assert not made.exists()
    pickle.loads(pickle.dumps(Bomb(made)))  # it is live
    assert made.exists()


@pytest.mark.parametrize(
    ("header", "mentions"),
    [
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            ["[2]", "F32", 4],
        ),
        ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, [2**40, "F32", 8]),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, ["'a'", 4, 0]),
        (
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            [4, 8],
        ),
        (
            {n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"},
            ["'b'", 0, 8],
        ),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}, ["'a'", "[-2]"]),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, ["'a'", "[True, 2]"]),
        ({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, ["'a'", "[1, 1, 1"]),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, ["'a'", "data_offsets", "[0]"]),
        ({"a": {"dtype": "O8", "shape": [2], "data_offsets": [0, 8]}}, ["'a'", "F64", "'O8'"]),
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": 1}},
            ["'a'", "data_offsets"],
        ),
        ({"a": 1}, ["'a'", "data_offsets"]),
        ({"__metadata__": {"a": 1}}, ["__metadata__"]),
        ([], []),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: object, mentions: list) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with refused(CheckpointError, tmp_path / "a", *mentions):
        TensorFile(tmp_path / "a")


def read_tensors(path: Path, size: int, mentions: list) -> None:
    with guard(size), refused(CheckpointError, path, *mentions):
        TensorFile(path)


def test_a_header_of_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for claimed, size, limit in ((2**63, 16, 16), (MAX_HEADER_BYTES + 1, 1 << 33, MAX_HEADER_BYTES)):
        mentions = [claimed, limit]
        with path.open("wb") as file:
            file.write(struct.pack("<Q", claimed))
            file.truncate(size)  # a file with a hole
        code, said = children.run(tmp_path / "output", read_tensors, path, 0, mentions)
        assert code == 0, said


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ('{"a": 1, "a": 2}', ["key a "]),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), [MAX_DEPTH]),
        ("[" * 200_000, []),
        ('{"a": NaN}', ["NaN"]),
        ("[-Infinity]", ["-Infinity"]),
        ('"\\ud800"', ["ud800"]),
        (b'"\xff"', ["0xff"]),
        ("9" * 5000, []),
    ],
)
def test_json_that_means_nothing_good(text: str | bytes, mentions: list) -> None:
    with refused(ConfigError, "here", *mentions):
        parse_json(text, "here")


def test_json_may_be_as_deep_as_said() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "here")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, with chunks before its (missing) pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(width + 1) * min(height, 10))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_images_of_too_many_pixels(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(side + 1, side))
    with refused(DataError, folder / "a.png", side + 1, side, MAX_PIXELS):
        load(str(folder), size=(8, 8)).batch([0])


def test_a_request_is_read_without_decoding_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(9000, 9000, (b"tEXt", b'fastgen\0{"model": "m"}')))
    assert read_metadata(tmp_path / "a.png") == {"model": "m"}  # whose pixels are not even there


def test_a_bomb_in_a_images_text(tmp_path: Path) -> None:
    bomb = b"fastgen\0\0" + zlib.compress(b"1" * (64 << 20))
    (tmp_path / "a.png").write_bytes(png(8, 8, (b"zTXt", bomb)))
    with refused(DataError, tmp_path / "a.png"):
        read_metadata(tmp_path / "a.png")


def test_postscript_is_not_handed_to_anybody(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with Image.open(folder / "a.png") as image:
        assert image.format == "EPS"  # as Pillow sees it, whatever its name
    with refused(DataError, folder / "a.png"):
        load(str(folder), size=(8, 8)).batch([0])


def read_bomb(path: Path, place: str) -> None:
    with guard(path.stat().st_size), refused(DataError, place):
        load(str(path))


@pytest.mark.parametrize("kind", ["npz", "npz that lies", "gz"])
def test_data_that_expands(tmp_path: Path, kind: str) -> None:
    import gzip

    path = tmp_path / ("a.gz" if kind == "gz" else "a.npz")
    size = 320 << 20
    header = (
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", 118)
        + repr({"descr": "|u1", "fortran_order": False, "shape": (size // 64, 8, 8)}).ljust(117).encode()
        + b"\n"
    )
    if kind == "gz":
        with gzip.open(path, "wb") as packed:
            packed.write(b"\0\0\x08\x03" + struct.pack(">III", size // 64, 8, 8) + bytes(1 << 20))
    else:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("images.npy", "w") as file,
        ):
            file.write(header)
            for _ in range(1 if kind == "npz that lies" else size >> 20):
                file.write(bytes(1 << 20))
    place = f"{path}: images" if kind == "npz" else str(path)
    code, said = children.run(tmp_path / "output", read_bomb, path, place)
    assert code == 0, said


def test_a_training_that_diverges_keeps_its_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastgen.training import loop

    step = loop._train_step

    def diverges(state, *given: object) -> None:  # type: ignore[no-untyped-def]
        step(state, *given)  # type: ignore[arg-type]
        if state.step == 5:
            with torch.no_grad():
                next(state.networks.parameters()).fill_(float("nan"))

    arguments = runs.train_arguments(tmp_path / "m", runs.images(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_step", diverges)
        assert main(arguments) == 1
    assert names(capsys.readouterr().err, tmp_path / "m", "step 6")
    runs.check_run(tmp_path / "m")
    assert len((tmp_path / "m" / "loss.csv").read_text().splitlines()) == 1 + 3
    assert main(runs.resume_arguments(tmp_path / "m")) == 0


def test_what_a_file_says_is_harmless_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fastgen.save_image(torch.zeros(1, 8, 8), tmp_path / "a.png", metadata={"model": "\x1b[2J\nnowhere"})
    assert main(["sample", "--like", str(tmp_path / "a.png")]) == 1
    said = capsys.readouterr().err
    assert "\\x1b[2J\\nnowhere" in said
    assert said.count("\n") == 1


def test_a_count_in_an_image_is_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoint(tmp_path / "m")
    request = {"seeds": None, "seed": 0, "n": 10**12, "labels": None, "solver": "ddim", "steps": 2}
    metadata = {"model": str(model), "request": request}
    fastgen.save_image(torch.zeros(1, 8, 8), tmp_path / "a.png", metadata=metadata)
    assert main(["sample", "--like", str(tmp_path / "a.png"), "--device", "cpu"]) == 1
    assert names(capsys.readouterr().err, "a.png", "seeds")


def test_leftovers_of_the_dead_go_and_of_the_living_stay(tmp_path: Path) -> None:
    import fcntl

    names = [".a.png.0011aabb.tmp", ".b.png.0011aabb.tmp", ".a.png.tmp", ".notes.tmp"]
    for name in names:
        (tmp_path / name).write_text("half")
    with (tmp_path / names[0]).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers(tmp_path, ["a.png"])
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    remove_leftovers(tmp_path, ["a.png"])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])


def test_files_are_as_private_as_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
