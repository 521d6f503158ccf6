"""Files that are no weights: every command refuses them in words, whatever PyTorch's unpickler stumbles over."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import fastgen
from fastgen.cli import main
from fastgen.errors import CheckpointError
from tests.refusals import names, refused

PASSWD = b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"  # "r" and what follows


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    return data.getvalue()


def archive(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(name, "hello")
    return data.getvalue()


def saved() -> bytes:
    data = io.BytesIO()
    torch.save({"weight": torch.zeros(300)}, data)
    return data.getvalue()


JUNK: dict[str, Callable[[], bytes]] = {
    "empty.pt": lambda: b"",
    "passwd.txt": lambda: PASSWD,
    "text.md": lambda: b"# A model\n\nIts weights are elsewhere.\n",
    "stop.bin": lambda: b".",  # the unpickler's stack is empty: IndexError
    "key.bin": lambda: b"h\n",  # KeyError
    "random.bin": lambda: np.random.default_rng(0).bytes(5000),
    "picture.jpg": jpeg,
    "archive.zip": lambda: archive("hello.txt"),
    "archive.pt": lambda: archive("archive/data.pkl"),
    "number.pkl": lambda: pickle.dumps(5, protocol=2),
    "stack.pkl": lambda: b"\x80\x02q\x00.",  # begins as a pickle: IndexError
    "cut.pt": lambda: saved()[:700],
    "cut.safetensors": lambda: save({"weight": torch.zeros(300)})[:200],
    "header.safetensors": lambda: save({"weight": torch.zeros(300)})[:20],
    "text.safetensors": lambda: PASSWD,
}


@pytest.mark.parametrize("name", JUNK)
def test_a_file_that_is_no_weights(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(JUNK[name]())
    with refused(CheckpointError, path):
        fastgen.load(path, device="cpu")
    with refused(CheckpointError, path):
        fastgen.convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    "command",
    [
        ["info"],
        ["sample", "-o", "out.png"],
        ["convert", "--to", "fastgen", "out"],
        ["export", "-o", "out"],
        ["evaluate", "--data", "digits"],
        ["verify"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_says_so(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_bytes(PASSWD)
    assert main([command[0], "p.txt", *command[1:]]) == 1
    said = capsys.readouterr().err
    assert names(said, "p.txt")
    assert len(said.splitlines()) == 1
    assert not Path("out").exists()
    assert not Path("out.png").exists()
