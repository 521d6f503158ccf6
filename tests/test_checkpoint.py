"""Folders on disk: what is saved is what is loaded, and what is damaged is refused with a reason."""

from __future__ import annotations

import itertools
import json
import os
import threading
from pathlib import Path

import pytest
import torch

from fastgen import checkpoint as files
from fastgen.architectures import builders
from fastgen.checkpoint import load_spec
from fastgen.errors import CheckpointError, ConfigError
from fastgen.files import write_atomic
from tests.refusals import refused
from tests.small import checkpoint, network, spec, unet_config


def load(folder: Path) -> dict:
    return files.load(folder, builders)[1]


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(tmp_path: Path) -> None:
    saved = network(unet_config()).state_dict()
    loaded = load(checkpoint(tmp_path / "m"))["unet"]
    assert {n: t.tolist() for n, t in loaded.state_dict().items()} == {
        n: t.tolist() for n, t in saved.items()
    }
    assert not any(p.requires_grad for p in loaded.parameters())


def test_half_precision_weights_load_as_float32(tmp_path: Path) -> None:
    config = unet_config()
    state = {f"unet.{n}": t.half() for n, t in network(config).state_dict().items()}
    files.save(tmp_path, spec(config), state)
    loaded = load(tmp_path)["unet"].state_dict()
    assert all(
        t.dtype == torch.float32 and torch.equal(t, state[f"unet.{n}"].float()) for n, t in loaded.items()
    )


def test_digest_is_of_the_file(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    assert load_spec(folder).provenance["sha256"] == files.file_sha256(folder / "model.safetensors")


@pytest.mark.parametrize("survives", [0, 1, 2, 3])
def test_killed_while_saving_leaves_a_folder_that_loads(tmp_path: Path, monkeypatch, survives: int) -> None:
    folder = checkpoint(tmp_path / "m")
    config = unet_config()
    new = {f"unet.{n}": t for n, t in network(config, seed=9).state_dict().items()}
    done: list[Path] = []

    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if len(done) == survives:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    if survives < 3:
        with pytest.raises(KeyboardInterrupt):
            files.save(folder, spec(config), new)
    else:
        files.save(folder, spec(config), new)
    weight = load(folder)["unet"].conv_in.weight
    assert torch.equal(weight, network(config, seed=9 if survives >= 2 else 0).conv_in.weight)


def test_readers_meet_writers(tmp_path: Path) -> None:
    config = unet_config()
    states = [{f"unet.{n}": t for n, t in network(config, seed=s).state_dict().items()} for s in (0, 1)]
    files.save(tmp_path, spec(config), states[0])
    stop = threading.Event()

    def write() -> None:
        for k in itertools.count():
            files.save(tmp_path, spec(config), states[k % 2])
            if stop.wait(0.05):
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(40):
            weight = load(tmp_path)["unet"].conv_in.weight
            assert any(torch.equal(weight, s["unet.conv_in.weight"]) for s in states)
    finally:
        stop.set()
        writer.join()


def test_atomic_write_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomic(target, "no bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_wrong_folders(tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "nowhere", "config.json"):
        load_spec(tmp_path / "nowhere")
    with refused(CheckpointError, tmp_path, "config.json"):
        load_spec(tmp_path)
    checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with refused(CheckpointError, tmp_path / "m", "model.safetensors"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "kind", "place", "mention"),
    [
        ({"format_version": 2}, CheckpointError, "PATH", "format_version 2"),
        ({"parts": {}}, ConfigError, "PATH: parts", ""),
        (  # its networks become a ModuleDict, which has such an attribute
            {"parts": {"training": {"architecture": "unet", "config": {}}}},
            ConfigError,
            "PATH: parts",
            "training",
        ),
        ({"parts": {"unet": {"architecture": "unet"}}}, ConfigError, "PATH: parts.unet", "config"),
        (
            {"parts": {"unet": {"architecture": "vgg", "config": {}}}},
            ConfigError,
            "parts.unet",
            "'vgg'",
        ),
        ({"surprise": 1}, ConfigError, "PATH", "surprise"),
        ({"settings": []}, ConfigError, "PATH: settings", "dict"),
    ],
)
def test_wrong_config(tmp_path: Path, changes: dict, kind: type[Exception], place: str, mention: str) -> None:
    folder = checkpoint(tmp_path / "m")
    edit(folder, **changes)
    with refused(kind, place.replace("PATH", str(folder / "config.json")), mention):
        load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\x01", '{"format_version": NaN', "[" * 100_000])
def test_config_that_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with refused(CheckpointError, tmp_path / "config.json"):
        load_spec(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights(tmp_path: Path, keep: int) -> None:
    folder = checkpoint(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with refused(CheckpointError, path):
        load(folder)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with refused(CheckpointError, path, "sha256"):
        load(folder)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    config = unet_config()
    state = {f"unet.{n}": t for n, t in network(config).state_dict().items()}
    bias = "unet.conv_in.bias"
    wrong = (
        ([1, bias], {n: t for n, t in state.items() if n != bias}),
        ([1, "unet.extra"], {**state, "unet.extra": torch.zeros(1)}),
        ([bias, [3]], {**state, bias: torch.zeros(3)}),
        ([bias, "int64"], {**state, bias: torch.zeros(16, dtype=torch.int64)}),
        ([bias], {**state, bias: torch.full((16,), float("nan"))}),
    )
    for mentions, tensors in wrong:
        files.save(tmp_path, spec(config), tensors)
        with refused(CheckpointError, tmp_path / "model.safetensors", *mentions):
            load(tmp_path)


def test_absurd_sizes_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    raw["parts"]["unet"]["config"]["block_out_channels"] = [10**9, 10**9]
    edit(folder, parts=raw["parts"])
    with refused(ConfigError, "parts.unet.config: block_out_channels[0]", 10**9):
        load(folder)
