"""Whatever is in a file, it loads or is refused with one clear line: no other exception, no hang, no large allocation.

Each test runs in a child process that cannot allocate more than twice what the file claims (see `guard`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastgen.errors import FastgenError
from fastgen.runtime.device import out_of_memory
from tests.small import checkpoint

from . import children, runs
from .damage import as_json, broken, broken_tensors, mutated
from .guard import guard

CONFIGS, WEIGHTS, STATES, IMAGES = 1000, 500, 300, 300
PLAIN = pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])


def attempts(count: int, damage: st.SearchStrategy, read: Callable[[Any], bool]) -> None:
    """`read` every one of `count` damaged things: True where it loads; prints how many did."""
    outcomes: list[bool] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(damage)
    def attempt(thing: Any) -> None:
        try:
            outcomes.append(read(thing))
        except FastgenError as error:
            refusal = error
        else:
            return
        outcomes.append(False)
        said = str(refusal)
        assert not starved(refusal), f"refused for want of memory: {said}"
        assert said.isprintable(), repr(said)
        assert len(said) < 2000, len(said)

    attempt()
    print(f"{len(outcomes)} read, {sum(outcomes)} loaded")


def starved(error: BaseException | None) -> bool:
    """Whether the guard's limit is behind an error, perhaps in the guise of a damaged file."""
    while error is not None:
        if out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def passed(tmp_path: Path, function: Callable[..., None], *arguments: object) -> tuple[int, int]:
    """(things read, things loaded) by `function` in a child, which must not fail."""
    code, said = children.run(tmp_path / "output", function, *arguments)
    assert code == 0, f"{said[:3000]} ... {said[-3000:]}"
    words = said.split()
    return int(words[-4]), int(words[-2])


def claim(folder: Path) -> int:
    """Bytes of a model's files."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.is_file())


def load(folder: Path) -> None:
    """Load a model; where its images are small, draw one."""
    import fastgen

    with guard(claim(folder)):
        engine = fastgen.load(folder, device="cpu")
        if math.prod(engine.shape) > 4096:
            return  # no file backs the size of its images: drawing takes what the user asks for
        labels = None if engine.settings.num_classes is None else 0
        steps = min(2, engine.settings.noise_schedule.num_train_timesteps)
        images = engine.sample(1, seed=0, labels=labels, steps=steps)
        assert isinstance(images, torch.Tensor)
        assert images.shape == (1, *engine.shape)


def fuzz_configs(folder: str, count: int) -> None:
    path = checkpoint(Path(folder)) / "config.json"
    text = path.read_bytes()
    raw = json.loads(text)

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        load(path.parent)
        return True

    attempts(count, st.one_of(*[mutated(raw).map(as_json)] * 4, broken(text)), read)


def fuzz_weights(folder: str, count: int) -> None:
    path = checkpoint(Path(folder)) / "model.safetensors"
    whole, config = path.read_bytes(), json.loads((path.parent / "config.json").read_text())
    untied = {**config, "provenance": {}}  # without the digest the damage itself must be found, or do no harm

    def read(thing: tuple[bytes, bool]) -> bool:
        data, tied = thing
        path.write_bytes(data)
        (path.parent / "config.json").write_text(json.dumps(config if tied else untied))
        load(path.parent)
        assert not tied or data == whole, "damage that the digest did not show"
        return True

    attempts(count, st.tuples(broken_tensors(whole), st.sampled_from([False, False, True])), read)


def fuzz_states(folder: str, count: int) -> None:
    from fastgen.architectures import builders
    from fastgen.cli import main
    from fastgen.engines.diffusion import DiffusionEngine
    from fastgen.training.run import STATE_FILE, saved_run
    from fastgen.training.state import RunState, check_state

    run_folder = Path(folder) / "run"
    assert main(runs.train_arguments(run_folder, runs.images(Path(folder)))) == 0
    path = run_folder / STATE_FILE
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    run = json.loads(header["__metadata__"]["run"])

    def with_run(raw: Any) -> bytes:
        text = as_json({**header, "__metadata__": {"run": as_json(raw).decode()}})
        return len(text).to_bytes(8, "little") + text + whole[8 + length :]

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        with guard(len(data)):  # it holds the network, its average and what the optimiser remembers
            found = saved_run(run_folder)
            assert found is not None
            DiffusionEngine.settings_of(found.spec)
            build = builders(found.trained())
            with torch.device("meta"):
                check_state(run_folder, torch.nn.ModuleDict({n: b() for n, b in build.items()}), found)
            networks, averages = (torch.nn.ModuleDict({n: b() for n, b in build.items()}) for _ in range(2))
            optimizer = torch.optim.AdamW(networks.parameters())
            RunState(found, networks, averages, {"loss": optimizer}, []).restore(run_folder)
        return True

    attempts(count, st.one_of(broken_tensors(whole), mutated(run).map(with_run)), read)


def fuzz_images(folder: str, count: int) -> None:
    from fastgen.cli import main, parser
    from fastgen.images import read_metadata, save_image

    root = Path(folder)
    model, path, out = checkpoint(root / "model"), root / "a.png", root / "b.png"
    words = ["--seeds", "1,2", "--solver", "ddim", "--steps", "2", "--device", "cpu", "-o", str(path)]
    assert main(["sample", str(model), *words]) == 0
    whole, kept = path.read_bytes(), read_metadata(path)

    def image(raw: Any) -> bytes:
        save_image(torch.zeros(1, 8, 8), out, metadata=raw)
        return out.read_bytes()

    again = ["sample", "--like", str(path), "--device", "cpu", "-o", str(out), "--overwrite"]

    def read(data: bytes) -> bool:
        path.write_bytes(data)
        with guard(8 << 20):  # what drawing takes
            args = parser().parse_args(again)
            return args.run(args) == 0  # not `main`, which makes one exit code of all errors

    attempts(count, st.one_of(broken(whole), mutated(kept).map(image)), read)


@PLAIN
def test_configs(tmp_path: Path, share: float) -> None:
    count, loaded = passed(tmp_path, fuzz_configs, str(tmp_path / "m"), int(share * CONFIGS))
    assert count >= share * CONFIGS
    assert loaded < count / 2
    assert loaded or share < 1  # values that make no difference, some two in a hundred


@PLAIN
def test_weights(tmp_path: Path, share: float) -> None:
    count, loaded = passed(tmp_path, fuzz_weights, str(tmp_path / "m"), int(share * WEIGHTS))
    assert count >= share * WEIGHTS
    assert loaded < count / 2
    assert loaded or share < 1  # a flipped bit of a weight is another weight, where there is no digest


@PLAIN
def test_training_states(tmp_path: Path, share: float) -> None:
    count, loaded = passed(tmp_path, fuzz_states, str(tmp_path), int(share * STATES))
    assert count >= share * STATES
    assert loaded < count
    assert loaded or share < 1


@PLAIN
def test_images(tmp_path: Path, share: float) -> None:
    count, loaded = passed(tmp_path, fuzz_images, str(tmp_path), int(share * IMAGES))
    assert count >= share * IMAGES
    assert loaded < count


def test_a_plain_model_is_within_its_claim(tmp_path: Path) -> None:
    code, said = children.run(tmp_path / "output", load, checkpoint(tmp_path / "m"))
    assert code == 0, said
