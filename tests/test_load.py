"""Where ``fastgen.load`` looks: folders, the zoo, the hub's cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastgen
from fastgen.training.loop import train
from fastgen.zoo import ZOO, folder
from tests.refusals import refused
from tests.small import SCHEDULE, TinyNet, checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache as the hub's own library lays it out, holding owner/model; no network."""
    repo = tmp_path / "cache" / "models--owner--model"
    checkpoint(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hub_id_from_the_cache(hub: Path) -> None:
    engine = fastgen.load("owner/model", local_files_only=True)
    assert engine.describe()["source"] == "owner/model"
    assert fastgen.load("owner/model", local_files_only=True, revision=COMMIT).describe()["sha256"]


def test_hub_misses_say_what_to_do(hub: Path) -> None:
    with refused(fastgen.CheckpointError, "owner/other", "local_files_only=True"):
        fastgen.load("owner/other", local_files_only=True)
    with refused(fastgen.CheckpointError, "owner/model"):
        fastgen.load("owner/model", local_files_only=True, revision="v9")


def test_a_folder_goes_before_the_hub(hub: Path) -> None:
    shutil.copytree(hub / "cache" / "models--owner--model" / "snapshots" / COMMIT, hub / "owner" / "model")
    config = hub / "owner" / "model" / "config.json"
    raw = json.loads(config.read_text())
    raw["settings"]["steps"] = 3
    config.write_text(json.dumps(raw))
    assert fastgen.load("owner/model").settings.steps == 3


def test_names_that_are_nothing(tmp_path: Path) -> None:
    with refused(fastgen.CheckpointError, "zoo:ddpm-cats", "zoo:ddpm-mnist"):
        fastgen.load("zoo:ddpm-cats")
    with refused(fastgen.CheckpointError, "no-such-thing", "config.json"):
        fastgen.load("no-such-thing")
    with refused(fastgen.CheckpointError, tmp_path / "owner" / "model", "config.json"):
        fastgen.load(tmp_path / "owner" / "model")


def test_a_revision_is_not_ignored(tmp_path: Path) -> None:
    for source in ("zoo:ddpm-mnist", checkpoint(tmp_path / "m")):
        with refused(fastgen.ConfigError, "revision", "v1"):
            fastgen.load(source, revision="v1")


def waiting(engine: Any, wait: Any) -> None:
    with engine.session() as session:
        next(session.results(wait=wait))


def every_flag(folder: Path) -> dict[str, Callable[[Any], object]]:
    """By name of a boolean argument, a call with a value of it."""
    engine = fastgen.load(folder, device="cpu")
    module: tuple[Any, ...] = (TinyNet(), SCHEDULE, "v_prediction", (1, 4, 4))
    request = engine.request(1, steps=1)
    out = folder.parent / "out"
    return {
        "local_files_only": lambda wrong: fastgen.load(folder, local_files_only=wrong),
        "local_files_only ": lambda wrong: fastgen.convert(folder, out, local_files_only=wrong),
        "overwrite": lambda wrong: fastgen.convert(folder, out, to="diffusers", overwrite=wrong),
        "channels_last": lambda wrong: fastgen.load(folder, channels_last=wrong),
        "graph": lambda wrong: fastgen.load(folder, graph=wrong),
        "compile": lambda wrong: fastgen.load(folder, compile=wrong),
        "channels_last ": lambda wrong: fastgen.DiffusionEngine.from_module(*module, channels_last=wrong),
        "integer_time": lambda wrong: fastgen.DiffusionEngine.from_module(*module, integer_time=wrong),
        "progress": lambda wrong: engine.sample(1, steps=1, progress=wrong),
        "progress ": lambda wrong: engine.draw(request, progress=wrong),
        "progress  ": lambda wrong: engine.sample_to(out, 1, progress=wrong),
        "wait": lambda wrong: waiting(engine, wrong),
        "resume": lambda wrong: train(nn.ModuleDict(), *[None] * 3, out, resume=wrong),  # type: ignore[arg-type]
        "changed_data": lambda wrong: train(nn.ModuleDict(), *[None] * 3, out, changed_data=wrong),  # type: ignore[arg-type]
        "overwrite ": lambda wrong: engine.draw_to(out, request, overwrite=wrong),
    }


def test_the_string_no_is_not_true(tmp_path: Path) -> None:
    for name, call in every_flag(checkpoint(tmp_path / "m")).items():
        for wrong in ("no", "x", 1, None):
            with refused(fastgen.ConfigError, name.strip(), *([wrong] if isinstance(wrong, str) else [])):
                call(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_unknown_engine(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["engine"] = "steam"
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with refused(fastgen.ConfigError, tmp_path, "steam", "diffusion"):
        fastgen.load(tmp_path)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_models_load_and_are_small(name: str) -> None:
    assert (folder(name) / "model.safetensors").stat().st_size < 4_000_000
    assert (folder(name) / "README.md").exists()
    engine = fastgen.load(f"zoo:{name}", device="cpu")
    for verb in engine.verbs().values():
        given = verb.trial(1, torch.Generator().manual_seed(0))
        assert all(bool(result.isfinite().all()) for result in engine.call(verb.name, *given)), verb.name
