"""fastgen.convert into folders that hold something, and conversions that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastgen
from fastgen import converters
from fastgen.converters import form
from fastgen.errors import CheckpointError, ConfigError
from fastgen.sources import find
from tests.refusals import refused

from .folders import pipeline, saved

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return saved(tmp_path / "theirs")


@pytest.fixture
def ours(theirs: Path, tmp_path: Path) -> Path:
    fastgen.convert(theirs, tmp_path / "ours")
    return tmp_path / "ours"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def set_solver(folder: Path, solver: str) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["settings"] |= {"solver": solver, "solver_options": None, "steps": 20}
    path.write_text(json.dumps(raw))


def test_one_form_does_not_replace_another(theirs: Path, ours: Path, tmp_path: Path) -> None:
    for source, target, to, held in (
        (theirs, theirs, "fastgen", "diffusers"),
        (ours, ours, "diffusers", "fastgen"),
    ):
        full = Path(shutil.copytree(target, tmp_path / to))
        before = files(full)
        with refused(ConfigError, full, held, to):
            fastgen.convert(source, full, to=to, overwrite=True)
        assert files(full) == before


@pytest.mark.parametrize("layout", ["bare", "unet"])
def test_nor_a_network_alone(theirs: Path, tmp_path: Path, layout: str) -> None:
    full = tmp_path / "full"
    shutil.copytree(theirs / "unet", full if layout == "bare" else full / "unet")
    with refused(ConfigError, full, "diffusers"):
        fastgen.convert(theirs, full, overwrite=True)


def test_nothing_of_the_old_model_stays(theirs: Path, ours: Path, tmp_path: Path) -> None:
    """A pipeline with a variant, shards and our settings gives way to a folder without an index."""
    old = tmp_path / "old"
    made = pipeline()
    made.save_pretrained(old)
    made.save_pretrained(old, variant="fp16")
    made.unet.save_pretrained(old / "unet", max_shard_size="30KB")
    (old / "fastgen.json").write_text("{}")
    (old / "README.md").write_text("mine")
    set_solver(ours, "euler")
    fastgen.convert(ours, old, to="diffusers", overwrite=True)
    assert sorted(files(old)) == [
        "README.md",
        "fastgen.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        str(WEIGHTS),
    ]
    assert fastgen.load(old, device="cpu").settings.solver == "euler"
    fastgen.convert(theirs, ours, overwrite=True)
    assert fastgen.load(ours, device="cpu").settings.solver == "ddpm"


@pytest.mark.parametrize("to", ["fastgen", "diffusers"])
def test_a_conversion_that_fails_leaves_nothing(theirs: Path, tmp_path: Path, to: str) -> None:
    state = load_file(theirs / WEIGHTS)
    state["conv_out.bias"][0] = 1e6
    save_file(state, theirs / WEIGHTS)
    source = theirs
    if to == "diffusers":
        source = tmp_path / "large"
        fastgen.convert(theirs, source)
    target = tmp_path / "target"
    first = f"{source / WEIGHTS}: unet.conv_out.bias"
    if to == "diffusers":
        first = f"{source / 'model.safetensors'}: conv_out.bias"
    with refused(CheckpointError, first, "float16"):
        fastgen.convert(source, target, to=to, dtype="float16")
    assert not target.exists()
    fastgen.convert(source, target, to=to, dtype="bfloat16")
    before = files(target)
    with refused(CheckpointError, first, "float16"):
        fastgen.convert(source, target, to=to, dtype="float16", overwrite=True)
    assert files(target) == before
    assert form(target) == to
    assert not list(tmp_path.glob(".convert*"))


def test_what_was_written_is_looked_at(tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "x", "diffusers"):
        converters.replace(tmp_path / "x", "diffusers", lambda path: (path / "config.json").write_text("{}"))
    assert not (tmp_path / "x").exists()


def test_weights_as_they_are(theirs: Path, tmp_path: Path) -> None:
    """dtype=None keeps the types of our own files, too."""
    fastgen.convert(theirs, tmp_path / "half", dtype="float16")
    fastgen.convert(tmp_path / "half", tmp_path / "back", to="diffusers")
    assert {t.dtype for t in load_file(tmp_path / "back" / WEIGHTS).values()} == {torch.float16}


def test_our_own_source_is_checked(ours: Path, tmp_path: Path) -> None:
    whole = load_file(ours / "model.safetensors")
    save_file({**whole, "unet.conv_in.bias": whole["unet.conv_in.bias"] + 1}, ours / "model.safetensors")
    with refused(CheckpointError, ours / "model.safetensors", "sha256"):
        fastgen.convert(ours, tmp_path / "x", to="diffusers")
    with refused(ConfigError, "variant", "fp16"):
        fastgen.convert(ours, tmp_path / "x", to="diffusers", variant="fp16")
    converted = converters.read_ours(find("zoo:ddpm-mnist"), "zoo")
    assert converted.tensors.get("unet.conv_in.weight").isfinite().all()
    (ours / "model.safetensors").unlink()
    with refused(CheckpointError, ours, "model.safetensors", "config.json"):
        fastgen.convert(ours, tmp_path / "x", to="diffusers")


def test_a_source_that_changes_while_it_is_read(ours: Path) -> None:
    converted = converters.read_ours(ours, "x")
    save_file(load_file(ours / "model.safetensors"), ours / "new")
    (ours / "new").replace(ours / "model.safetensors")
    with refused(CheckpointError, ours / "model.safetensors"):
        converted.tensors.get("unet.conv_in.weight")
