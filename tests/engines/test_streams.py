"""Large requests: the same files however often they were cut short, nobody else's touched, little memory."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen import DiffusionEngine, FlowEngine
from fastgen.errors import ConfigError, FastgenError, WriteError
from fastgen.images import read_metadata
from fastgen.runtime import memory
from fastgen.streaming import ArrayFile
from tests.engines import flows
from tests.refusals import refused
from tests.small import SCHEDULE, TinyNet, checkpoint

MANY = {"n": 11, "seed": 5, "steps": 2}
PLACES = ["folder", "a.npz", "a.npy"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder = checkpoint(tmp_path_factory.mktemp("model") / "m", solver="ddpm")
    return fastgen.load(folder, device="cpu", max_batch=4)


def tiny(channels: int, **options: Any) -> DiffusionEngine:
    return DiffusionEngine.from_module(
        TinyNet(channels), SCHEDULE, "v_prediction", (channels, 6, 5), max_batch=4, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in `folder`, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class CutError(Exception):
    """What stands for a kill: raised where it may not be caught."""


def raises_cut(*given: object) -> None:
    raise CutError


def cut_after(engine: Any, parts: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`engine` draws `parts` parts of a request, and is then cut short; returns how many samples each call drew."""
    draw, sizes = type(engine).draw, []

    def drawn(self: Any, request: Any, **options: Any) -> Any:
        if len(sizes) == parts:
            raise CutError
        sizes.append(len(request.seeds))
        return draw(self, request, **options)

    monkeypatch.setattr(type(engine), "draw", drawn)
    return sizes


def test_parts_are_the_whole(engine: DiffusionEngine) -> None:
    parts = list(engine.sample_batches(**MANY))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), engine.sample(**MANY))


def test_parts_keep_labels_solvers_and_seeds(engine: DiffusionEngine) -> None:
    asked = {"seeds": [9, 3, 3, 0, 2**64 - 1], "labels": [0, 1, 2, 0, 1], "steps": [2, 3, 4, 2, 3]}
    parts = torch.cat(list(engine.sample_batches(**asked)))
    each = [
        engine.sample(seeds=[s], labels=[label], steps=n)[0]
        for s, label, n in zip(*asked.values(), strict=True)
    ]
    assert torch.allclose(parts, torch.stack(each), atol=1e-5)  # alone another algorithm may round


def test_the_engine_is_free_between_parts(engine: DiffusionEngine) -> None:
    parts = engine.sample_batches(**MANY)
    first = next(parts)
    again = engine.sample(4, seed=5, steps=2)
    assert torch.equal(first, again)
    assert torch.equal(next(parts), engine.sample(4, seed=9, steps=2))


def test_wrong_arguments_are_known_at_once(engine: DiffusionEngine) -> None:
    with refused(ConfigError, "steps"):
        engine.sample_batches(3, steps=0)
    sde = DiffusionEngine.from_module(TinyNet(), {"process": "vp_sde"}, "epsilon", (1, 4, 4), max_batch=4)
    coupled = {"solver": "predictor_corrector", "step_size": "batch", "steps": 30}
    with refused(ConfigError, "step_size", "4 at a time"):
        sde.sample_batches(5, **coupled)
    assert len(next(sde.sample_batches(4, **coupled))) == 4  # together they are what `sample` draws
    flow = FlowEngine.from_module(flows.make("vector_flow").flow, device="cpu")
    with refused(ConfigError, "context"):
        flow.sample_batches(3)


@pytest.mark.parametrize("place", PLACES)
def test_cut_short_anywhere_it_goes_on_to_the_same_files(
    engine: DiffusionEngine, place: str, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    done = engine.sample_to(whole / place, **MANY)
    assert done.drawn == 11
    for parts in (0, 1, 1):  # of three
        with pytest.MonkeyPatch.context() as patch:
            cut_after(engine, parts, patch)
            with pytest.raises(CutError):
                engine.sample_to(cut / place, **MANY)
    assert engine.sample_to(cut / place, **MANY).drawn == 3
    assert contents(cut) == contents(whole)
    with pytest.MonkeyPatch.context() as patch:
        cut_after(engine, 0, patch)
        done = engine.sample_to(cut / place, **MANY)  # it is all there
    assert done.drawn == 0
    assert done.files == engine.sample_to(cut / place, **MANY).files
    assert contents(cut) == contents(whole)


@pytest.mark.parametrize("place", ["a.npz", "a.npy"])
def test_cut_short_while_the_work_is_removed(engine: DiffusionEngine, place: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    engine.sample_to(whole / place, **MANY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayFile, "_clear", raises_cut)
        with pytest.raises(CutError):
            engine.sample_to(cut / place, **MANY)
    assert contents(cut) != contents(whole)
    assert engine.sample_to(cut / place, **MANY).drawn == 0
    assert contents(cut) == contents(whole)


def overwritten_in_part(engine: DiffusionEngine, path: Path) -> None:
    """Another request's .npy file, and the attempt to overwrite it, cut short before the numbers get their name."""
    engine.sample_to(path, **{**MANY, "steps": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgen.streaming.arrays.replace_by", raises_cut)
        with pytest.raises(CutError):
            engine.sample_to(path, **MANY, overwrite=True)


def test_numbers_of_another_request_are_not_taken_for_those_asked_for(
    engine: DiffusionEngine, tmp_path: Path
) -> None:
    """Cut short when the record of the new ones is beside the file, and in the file are the old ones still."""
    path = tmp_path / "a.npy"
    overwritten_in_part(engine, path)
    assert engine.sample_to(path, **MANY).drawn == 0
    assert np.array_equal(np.load(path), engine.sample(**MANY).numpy())


def test_images_of_a_folder_say_how_to_repeat_them(engine: DiffusionEngine, tmp_path: Path) -> None:
    files = engine.sample_to(tmp_path / "out", seeds=[3, 9], labels=[2, None], steps=2).files
    assert [f.name for f in files] == ["00000-seed3.png", "00001-seed9.png"]
    kept = read_metadata(files[1])
    assert kept["request"]["seeds"] == [9]
    again = engine.sample(**kept["request"])
    alone = tmp_path / "again.png"
    fastgen.save_image(again[0], alone)
    assert np.abs(pixels(alone).astype(int) - pixels(files[1])).max() <= 1


def pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path))


def test_arrays_hold_what_sample_returns(engine: DiffusionEngine, tmp_path: Path) -> None:
    asked = {**MANY, "labels": [0, 1, 2] * 3 + [0, 1]}
    engine.sample_to(tmp_path / "a.npz", **asked)
    engine.sample_to(tmp_path / "a.npy", **asked)
    wanted = engine.sample(**asked).numpy()
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive.files) == {"x", "labels", "request"}
        assert np.array_equal(archive["x"], wanted)
        assert archive["x"].dtype == np.float32
        assert archive["labels"].tolist() == asked["labels"]
        record = json.loads(str(archive["request"]))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert np.array_equal(mapped, wanted)
    assert json.loads((tmp_path / "a.npy.json").read_text()) == record
    assert record["request"]["seed"] == 5
    assert np.array_equal(engine.sample(**record["request"]).numpy(), wanted)


@pytest.mark.parametrize(("channels", "place"), [(4, "a.npz"), (2, "a.npy")])
def test_any_number_of_channels_as_numbers(channels: int, place: str, tmp_path: Path) -> None:
    engine = tiny(channels, value_range=None)
    drawn: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionEngine, "draw", lambda *given: drawn.append(given))
        with refused(ConfigError, tmp_path / "pictures", f"{channels}x6x5", ".npz", ".npy"):
            engine.sample_to(tmp_path / "pictures", 3)
    assert not drawn
    assert not (tmp_path / "pictures").exists()
    engine.sample_to(tmp_path / place, 6, seed=1, steps=2)
    values = np.load(tmp_path / place)
    values = values["x"] if place.endswith("z") else values
    assert np.array_equal(values, engine.sample(6, seed=1, steps=2).numpy())


def test_flows_stream_too(tmp_path: Path) -> None:
    case = flows.make("vector_flow, halves")
    engine = FlowEngine.from_module(case.flow, device="cpu", max_batch=4)
    asked = {"n": 10, "seed": 2}
    assert torch.equal(torch.cat(list(engine.sample_batches(**asked))), engine.sample(**asked))
    engine.sample_to(tmp_path / "rows.npz", **asked)
    assert np.array_equal(np.load(tmp_path / "rows.npz")["x"], engine.sample(**asked).float().numpy())
    with refused(ConfigError, tmp_path / "folder", ".npz"):
        engine.sample_to(tmp_path / "folder", **asked)


def test_without_a_seed_it_goes_on_with_that_of_the_beginning(
    engine: DiffusionEngine, tmp_path: Path
) -> None:
    for place in PLACES:
        path = tmp_path / place
        with pytest.MonkeyPatch.context() as patch:
            cut_after(engine, 1, patch)
            with pytest.raises(CutError):
                engine.sample_to(path, 7, steps=2)
        assert engine.sample_to(path, 7, steps=2).drawn == 3
        assert engine.sample_to(path, 7, steps=2).drawn == 0
        before = contents(tmp_path)
        assert engine.sample_to(path, 7, steps=2, overwrite=True).drawn == 7  # other ones
        assert contents(tmp_path) != before


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("parts", [1, 3])
def test_another_request_is_refused_by_name(
    engine: DiffusionEngine, place: str, parts: int, tmp_path: Path
) -> None:
    path = tmp_path / place
    with pytest.MonkeyPatch.context() as patch:
        cut_after(engine, parts, patch)
        try:
            engine.sample_to(path, **MANY)
        except CutError:
            assert parts == 1
    before = contents(tmp_path)
    for change, said in ({"steps": 3}, "steps is 2 there, 3"), ({"n": 12}, "n is 11 there, 12"):
        with pytest.raises(ConfigError) as refusal:
            engine.sample_to(path, **{**MANY, **change})
        assert place in str(refusal.value.argument)
        for word in (said, "--overwrite", "another"):
            assert word in str(refusal.value)
        assert contents(tmp_path) == before
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    engine.sample_to(fresh / place, **{**MANY, "steps": 3})
    assert engine.sample_to(path, **{**MANY, "steps": 3}, overwrite=True).drawn == 11
    new, wanted = contents(tmp_path), contents(fresh)
    assert {name: data for name, data in new.items() if not name.startswith("fresh")} == wanted


def test_something_else_is_refused_and_never_touched(engine: DiffusionEngine, tmp_path: Path) -> None:
    folder, array = tmp_path / "out", tmp_path / "a.npz"
    folder.mkdir()
    (folder / ".hidden").write_text("nobody minds")
    (folder / "mine.txt").write_text("mine")
    np.savez(array, x=np.zeros(3))
    (tmp_path / "b.npy").write_text("mine")
    before = contents(tmp_path)
    for path, word in (folder, "mine.txt"), (array, "exists already"), (tmp_path / "b.npy", "exists already"):
        with refused(ConfigError, path, word, "--overwrite"):
            engine.sample_to(path, **MANY)
    assert contents(tmp_path) == before
    engine.sample_to(folder, **MANY, overwrite=True)
    assert (folder / "mine.txt").read_text() == "mine"
    engine.sample_to(array, **MANY, overwrite=True)
    assert len(np.load(array)["x"]) == 11
    with refused(ConfigError, tmp_path / "a.jpg", ".npz"):
        engine.sample_to(tmp_path / "a.jpg", 2)


@pytest.mark.parametrize(
    "record", ["{", "[]", '{"request": {}}', '{"request": {"n": 1e99, "seed": 0}, "batch": 1}']
)
def test_a_damaged_record_is_an_error_in_words(engine: DiffusionEngine, record: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".fastgen.json").write_text(record)
    with pytest.raises(ConfigError):
        engine.sample_to(folder, **MANY)


@pytest.mark.parametrize("place", PLACES)
def test_two_at_a_time_are_refused(engine: DiffusionEngine, place: str, tmp_path: Path) -> None:
    path, inside = tmp_path / place, threading.Event()
    let_go, draw = threading.Event(), DiffusionEngine.draw

    def slowly(self: Any, request: Any, **options: Any) -> Any:
        inside.set()
        assert let_go.wait(60)
        return draw(self, request, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionEngine, "draw", slowly)
        thread = threading.Thread(target=lambda: engine.sample_to(path, **MANY))
        thread.start()
        assert inside.wait(60)
        try:
            with refused(ConfigError, path, "another process"):
                engine.sample_to(path, **MANY)
        finally:
            let_go.set()
            thread.join()


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_keeps_what_was_written(
    engine: DiffusionEngine, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from fastgen import files

    path, whole = tmp_path / place, tmp_path / "whole"
    whole.mkdir()
    engine.sample_to(whole / place, **MANY)
    fsync, left = files.os.fsync, [9]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(WriteError) as error:
            engine.sample_to(path, **MANY)
    assert error.value.errno == errno.ENOSPC
    assert "No space left on device" in str(error.value)
    assert "are kept" in str(error.value)
    assert 0 < engine.sample_to(path, **MANY).drawn < 11
    assert {n: d for n, d in contents(tmp_path).items() if not n.startswith("whole")} == contents(whole)


def test_nothing_is_written_where_nothing_is_finite(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * torch.nan

    engine = DiffusionEngine.from_module(Broken(), SCHEDULE, "v_prediction", (1, 4, 4), max_batch=2)
    with pytest.warns(UserWarning, match="not finite"), pytest.raises(FastgenError):
        engine.sample_to(tmp_path / "out", 5, seed=0, steps=2)
    assert not list((tmp_path / "out").glob("*.png"))


class Halving(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x


def test_memory_holds_one_part(tmp_path: Path) -> None:
    """A thousand samples of 64 KB are 64 MB; what grows is less than a few parts of four."""
    engine = DiffusionEngine.from_module(Halving(), SCHEDULE, "v_prediction", (1, 128, 128), max_batch=4)
    engine.sample_to(tmp_path / "warm.npy", 8, seed=0, steps=1)
    most, before = 0, resident()
    for _ in engine.sample_batches(1000, seed=0, steps=1):
        most = max(most, resident() - before)
    assert most < 24 << 20
    before = resident()
    engine.sample_to(tmp_path / "a.npy", 1000, seed=0, steps=1)
    assert resident() - before < 24 << 20
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (1000, 1, 128, 128)


def resident() -> int:
    """Bytes of memory that this process holds."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        pytest.skip("no /proc here")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))


def test_as_many_together_as_fit_into_free_memory(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.samples_at_a_time() == 4
    monkeypatch.setattr("fastgen.engines.streams.free_memory", lambda device: 0)
    assert engine.samples_at_a_time() == 1
    monkeypatch.setattr("fastgen.engines.streams.free_memory", lambda device: None)  # the system does not say
    assert engine.samples_at_a_time() == 4
    assert memory.fitting(1000, 100, 8) == 4  # half of it holds 5
    assert memory.fitting(1600, 100, 8) == 8


def test_bytes_of_layers() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2).double().float())
    x = torch.zeros(7, 3)
    assert memory.output_bytes([network, network], lambda: network(x)) == 4 * 7 * (5 + 5 + 2)
    assert not any(layer._forward_hooks for layer in network.modules())
    free = memory.free_memory(torch.device("cpu"))
    assert free is None or 0 < free < 1 << 60


@pytest.mark.slow
@pytest.mark.parametrize(("model", "count"), [("small", 10_000), ("zoo:ddpm-mnist", 330)])
def test_many_samples_are_those_of_smaller_calls(model: str, count: int, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / model) if model == "small" else model
    engine = fastgen.load(source, device="cpu", max_batch=64)
    asked = {"steps": 2, "guidance_scale": 1.0, "labels": 2}
    whole = engine.sample(count, seed=7, **asked)
    third = count // 64 // 3 * 64
    parts, seed = [], 7
    for size in (third, 64, third, count - 2 * third - 64):  # the same batches of 64
        parts.append(engine.sample(size, seed=seed, **asked))
        seed += size
    assert torch.equal(torch.cat(parts), whole)
    odd = engine.sample(100, seed=7 + 33, **asked)
    assert torch.allclose(odd, whole[33:133], atol=1e-4)  # in other batches, where libraries round otherwise
    streamed = torch.cat(list(engine.sample_batches(count, seed=7, **asked)))
    assert torch.equal(streamed, whole)
