"""Large requests beside what lies there: other weights, damaged files, what a kill left, names that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen import DiffusionEngine
from fastgen.cli import main
from fastgen.engines import base, fingerprint
from fastgen.errors import ConfigError, FastgenError
from fastgen.streaming import ArrayFile, compact
from tests.refusals import names, refused
from tests.small import SCHEDULE, TinyNet, checkpoint

from .test_streams import MANY, PLACES, CutError, contents, cut_after, overwritten_in_part, raises_cut


def engine_of(net: nn.Module, **options: Any) -> DiffusionEngine:
    given: dict[str, Any] = {"value_range": (-1, 1), "max_batch": 4, **options}
    return DiffusionEngine.from_module(net, SCHEDULE, "v_prediction", (1, 6, 5), **given)


@pytest.fixture
def engine() -> DiffusionEngine:
    return engine_of(TinyNet())


def begin(engine: DiffusionEngine, path: Path, parts: int = 1, **changes: Any) -> None:
    """`engine` writes `parts` parts of the request to `path`, and is cut short."""
    with pytest.MonkeyPatch.context() as patch:
        cut_after(engine, parts, patch)
        with pytest.raises(CutError):
            engine.sample_to(path, **{**MANY, **changes})


def values_of(path: Path) -> np.ndarray:
    loaded = np.load(path)
    return loaded["x"] if path.suffix == ".npz" else loaded


def scale(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)


# Weights.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parts", [1, 3])
def test_other_weights_are_another_request(place: str, parts: int, tmp_path: Path) -> None:
    net, path = TinyNet(), tmp_path / place
    engine = engine_of(net)
    if parts == 1:
        begin(engine, path)
    else:
        engine.sample_to(path, **MANY)
    before = contents(tmp_path)
    scale(net)
    with pytest.raises(ConfigError) as refusal:
        engine.sample_to(path, **MANY)
    assert names(str(refusal.value), "sha256", "--overwrite")
    assert contents(tmp_path) == before
    assert engine.sample_to(path, **MANY, overwrite=True).drawn == 11
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    engine_of(net).sample_to(fresh / place, **MANY)  # the same weights elsewhere
    assert {n: d for n, d in contents(tmp_path).items() if not n.startswith("fresh")} == contents(fresh)


def test_two_networks_of_a_class_are_two_models(tmp_path: Path) -> None:
    other = TinyNet()
    scale(other)
    first, second, alike = engine_of(TinyNet()), engine_of(other), engine_of(TinyNet())
    first.sample_to(tmp_path / "out", **MANY)
    with refused(ConfigError, tmp_path / "out", "sha256"):
        second.sample_to(tmp_path / "out", **MANY)
    assert alike.sample_to(tmp_path / "out", **MANY).drawn == 0


def test_other_settings_of_one_network_are_two_models(tmp_path: Path) -> None:
    engine_of(TinyNet()).sample_to(tmp_path / "out", **MANY)
    with refused(ConfigError, tmp_path / "out", "value_range"):
        engine_of(TinyNet(), value_range=(-2, 2)).sample_to(tmp_path / "out", **MANY)
    assert (
        engine_of(TinyNet(), steps=7).sample_to(tmp_path / "out", **MANY).drawn == 0
    )  # `steps` is asked for


class Classifier(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(torch.randn(30, 4, generator=generator))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1) @ self.rows


def test_another_classifier_is_another_request(engine: DiffusionEngine, tmp_path: Path) -> None:
    path, asked = tmp_path / "a.npz", {**MANY, "labels": 1, "classifier_scale": 2.0}
    engine.guide(Classifier(0))
    engine.sample_to(path, **asked)
    engine.guide(Classifier(1))
    with refused(ConfigError, path, "classifier"):
        engine.sample_to(path, **asked)
    engine.guide(again := Classifier(0))
    assert engine.sample_to(path, **asked).drawn == 0
    scale(again)
    with refused(ConfigError, path, "classifier"):
        engine.sample_to(path, **asked)
    engine.sample_to(tmp_path / "b.npz", **MANY)  # where it does not guide, it does not matter
    engine.guide(None)
    assert engine.sample_to(tmp_path / "b.npz", **MANY).drawn == 0


def test_weights_are_read_once_a_state_and_never_where_a_file_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(network: nn.Module) -> str:
        read.append(fingerprint.fingerprint(network))
        return read[-1]

    monkeypatch.setattr(base, "fingerprint", counted)

    def digest(engine: DiffusionEngine) -> Any:
        return engine.metadata(engine.request(2, seed=0))["sha256"]

    loaded = fastgen.load(checkpoint(tmp_path / "m"), device="cpu")
    file = fastgen.checkpoint.file_sha256(tmp_path / "m" / "model.safetensors")
    loaded.sample(1, steps=1)
    assert digest(loaded) == file
    assert not read
    scale(loaded.networks)
    loaded.sample(1, steps=1)
    changed = [digest(loaded), digest(loaded)]
    assert changed == [read[0]] * 2
    assert len(read) == 1
    assert changed[0] != file
    with torch.no_grad():
        next(loaded.networks.parameters()).data.add_(1)  # which nobody sees
    loaded.refresh()
    assert digest(loaded) not in (changed[0], file)

    read.clear()
    live = engine_of(TinyNet())
    assert [digest(live), digest(live)] == [fingerprint.fingerprint(live.networks)] * 2
    assert len(read) == 1


def test_a_fingerprint_tells_values_names_types_and_classes_apart() -> None:
    def made(*changes: object) -> str:
        net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Conv2d(3, 2, 2))
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(torch.arange(p.numel(), dtype=p.dtype).view(p.shape) + i)
        net.register_buffer("table", torch.tensor(2.0), persistent=False)
        for change in changes:
            change(net)  # type: ignore[operator]
        return fingerprint.fingerprint(net)

    def last_bit(net: nn.Module) -> None:
        with torch.no_grad():
            net[2].bias[1] *= 1 + 2.0**-23

    same = made()
    assert made() == same
    assert made(lambda net: net.to(memory_format=torch.channels_last)) == same
    others = [
        made(last_bit),
        made(lambda net: net.table.add_(1)),
        made(lambda net: net.bfloat16()),
        made(lambda net: setattr(net, "1", nn.GELU())),
        made(lambda net: setattr(net[0], "bias", None)),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize("place", PLACES)
def test_a_model_is_the_same_by_another_path(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "model")
    shutil.copytree(model, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    engines = [fastgen.load(source, device="cpu", max_batch=4) for source in (model, "model", "copy")]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    engines[0].sample_to(f"whole/{place}", **MANY)
    begin(engines[0], Path(f"cut/{place}"))
    begin(engines[1], Path(f"cut/{place}"))
    assert engines[2].sample_to(f"cut/{place}", **MANY).drawn == 3
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    settings = json.loads((tmp_path / "copy" / "config.json").read_text())
    settings["settings"]["schedule"] = {**settings["settings"]["schedule"], "beta_schedule": "linear"}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(settings))
    with refused(ConfigError, place, "schedule"):
        monkeypatch.chdir(tmp_path / "cut")
        fastgen.load(tmp_path / "copy", device="cpu", max_batch=4).sample_to(place, **MANY)


# Labels.


@pytest.mark.parametrize("labels", [[0, None], [None, 2], [1, 2], [None, None]])
def test_samples_without_a_label_beside_others(labels: list[int | None], tmp_path: Path) -> None:
    engine = engine_of(TinyNet(), num_classes=4, null_class=4)
    engine.sample_to(tmp_path / "a.npz", labels=labels, seed=5, steps=2)
    with np.load(tmp_path / "a.npz") as archive:
        if labels == [None, None]:
            assert "labels" not in archive
        else:
            assert archive["labels"].dtype == np.int64
            assert archive["labels"].tolist() == [-1 if label is None else label for label in labels]
        request = json.loads(str(archive["request"]))["request"]
        assert np.array_equal(engine.sample(**request).numpy(), archive["x"])
    kept = compact(engine.request(2, labels=labels, seed=5))["labels"]
    assert kept == (None if labels == [None, None] else labels)


# What a kill leaves in the last moments, and what is lost afterwards.

LEFT = [("x.npy",), ("x.npy", "done"), ("x.npy", "done", "record.json"), ()]


@pytest.mark.parametrize("place", ["a.npz", "a.npy"])
@pytest.mark.parametrize("gone", LEFT)
def test_killed_while_the_work_is_removed(
    engine: DiffusionEngine, place: str, gone: tuple[str, ...], tmp_path: Path
) -> None:
    engine.sample_to(tmp_path / place, **MANY)
    whole = contents(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayFile, "_clear", raises_cut)
        with pytest.raises(CutError):
            engine.sample_to(tmp_path / place, **MANY)
    work = tmp_path / f".{place}.part"
    for name in gone:
        (work / name).unlink(missing_ok=True)
    kept = work.with_name("kept")
    shutil.copytree(work, kept)
    assert engine.sample_to(tmp_path / place, **MANY).drawn == 0
    kept.rename(work)
    for path in tmp_path.glob(f"{place}*"):  # somebody has moved the result away
        path.unlink()
    still_there = place == "a.npz" and not gone  # a .npy file is made of the numbers themselves
    assert engine.sample_to(tmp_path / place, **MANY).drawn == (0 if still_there else 11)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("place", ["a.npz", "a.npy"])
@pytest.mark.parametrize("size", [0, 100, 128 + 4 * 30 * 5, 128 + 4 * 30 * 8 - 1])
def test_numbers_that_were_lost_are_drawn_again(
    engine: DiffusionEngine, place: str, size: int, tmp_path: Path
) -> None:
    """Of two parts of four samples of 30 numbers, behind a header of 128 bytes."""
    path = tmp_path / place
    begin(engine, path, 2)
    work = tmp_path / f".{place}.part" / "x.npy"
    data = work.read_bytes()
    assert len(data) == 128 + 4 * 30 * 8
    work.write_bytes(data[:size])
    assert engine.sample_to(path, **MANY).drawn == (7 if size > 128 else 11)
    assert np.array_equal(values_of(path), engine.sample(**MANY).numpy())


def test_an_older_file_never_lies_beside_a_newer_record(engine: DiffusionEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    overwritten_in_part(engine, path)
    shutil.rmtree(tmp_path / ".a.npy.part")
    assert engine.sample_to(path, **MANY).drawn == 11
    assert np.array_equal(values_of(path), engine.sample(**MANY).numpy())


# Damaged files.


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\n", "cut", "flipped", "other"])
def test_damaged_images_are_drawn_again(engine: DiffusionEngine, damage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    files = engine.sample_to(folder, **MANY).files
    whole = contents(tmp_path)
    if damage == "cut":
        damage = files[5].read_bytes()[:-20]
    elif damage == "flipped":
        damage = bytearray(files[5].read_bytes())
        damage[-20] ^= 1  # of the pixels
    elif damage == "other":
        fastgen.save_image(torch.zeros(1, 9, 9), tmp_path / "other.png")
        damage = (tmp_path / "other.png").read_bytes()
        (tmp_path / "other.png").unlink()
    files[5].write_bytes(damage)
    assert engine.sample_to(folder, **MANY, overwrite=True).drawn == 4  # its part
    assert contents(tmp_path) == whole
    assert engine.sample_to(folder, **MANY, overwrite=True).drawn == 0


@pytest.mark.parametrize("place", ["a.npz", "a.npy"])
@pytest.mark.parametrize("damage", ["empty", "cut", "bytes"])
def test_damaged_arrays_are_refused_and_drawn_again(
    engine: DiffusionEngine, place: str, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / place
    engine.sample_to(path, **MANY)
    whole, data = contents(tmp_path), bytearray(path.read_bytes())
    if damage == "bytes":
        data[80 if place == "a.npy" else 900] ^= 1  # of the header; of the numbers, whose sum is in the file
    path.write_bytes({"empty": b"", "cut": data[:-100]}.get(damage, data))
    if (place, damage) != ("a.npz", "bytes"):  # not every call reads all of it
        with refused(ConfigError, path, "--overwrite"):
            engine.sample_to(path, **MANY)
    assert engine.sample_to(path, **MANY, overwrite=True).drawn == 11
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(("place", "record"), [("out", "out/.fastgen.json"), ("a.npy", "a.npy.json")])
@pytest.mark.parametrize("damage", ["{", "[]", '{"request": {}}'])
def test_a_damaged_record_is_replaced_if_asked(
    engine: DiffusionEngine, place: str, record: str, damage: str, tmp_path: Path
) -> None:
    engine.sample_to(tmp_path / place, **MANY)
    whole = contents(tmp_path)
    (tmp_path / record).write_text(damage)
    for asked in (MANY, {"n": 11, "steps": 2}):
        with refused(ConfigError, tmp_path / record, "--overwrite"):
            engine.sample_to(tmp_path / place, **asked)
    assert engine.sample_to(tmp_path / place, **MANY, overwrite=True).drawn == 11
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("name", ["record.json", "done"])
def test_damaged_work_is_replaced_if_asked(engine: DiffusionEngine, name: str, tmp_path: Path) -> None:
    path, work = tmp_path / "a.npz", tmp_path / ".a.npz.part"
    begin(engine, path)
    (work / name).write_text("[]")
    with refused(ConfigError, work / name if name == "record.json" else work, "--overwrite"):
        engine.sample_to(path, **MANY)
    assert engine.sample_to(path, **MANY, overwrite=True).drawn == 11
    assert np.array_equal(values_of(path), engine.sample(**MANY).numpy())


def test_a_record_of_somebody_else_beside_the_name_is_not_replaced(
    engine: DiffusionEngine, tmp_path: Path
) -> None:
    (tmp_path / "a.npy.json").write_text("[1, 2]")
    with refused(ConfigError, tmp_path / "a.npy.json", "--overwrite"):
        engine.sample_to(tmp_path / "a.npy", **MANY)
    assert contents(tmp_path) == {"a.npy.json": b"[1, 2]"}


@pytest.mark.parametrize("place", PLACES)
def test_a_record_with_nothing_done_is_in_nobodys_way(
    engine: DiffusionEngine, place: str, tmp_path: Path
) -> None:
    begin(engine, tmp_path / place, 0)
    assert engine.sample_to(tmp_path / place, **{**MANY, "steps": 3}).drawn == 11

    class Broken(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * torch.nan

    other = tmp_path / "other"
    other.mkdir()
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(FastgenError):
        engine_of(Broken()).sample_to(other / place, 5, seed=0, steps=2)
    assert engine.sample_to(other / place, **MANY).drawn == 11


# Names.


def test_places_that_cannot_be(
    engine: DiffusionEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError, "path"):
        engine.sample_to("", **MANY)
    for name in ("gone/out", "gone/a.npy"):
        with refused(ConfigError, name, tmp_path / "gone"):
            engine.sample_to(name, **MANY)
    with refused(ConfigError, "run.v2", ".npz"):
        engine.sample_to("run.v2", **MANY)
    assert not list(tmp_path.iterdir())
    (tmp_path / "run.v2").mkdir()
    assert engine.sample_to("run.v2", **MANY).drawn == 11
    assert engine.sample_to(".", **MANY, overwrite=True).drawn == 11


def test_the_command_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", "zoo:ddpm-mnist", "-n", "2", "-o", ""])
    assert ended.value.code == 2
    assert "--out" in capsys.readouterr().err
