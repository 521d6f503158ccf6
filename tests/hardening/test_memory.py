"""What reading costs: at most twice a file's bytes, also where one tensor is nearly all of it, or the header lies."""

from __future__ import annotations

import signal
import struct
import time
from pathlib import Path

import pytest
import torch

from fastgen.architectures import builders
from fastgen.checkpoint import load, save
from fastgen.config import to_dict
from fastgen.errors import CheckpointError
from fastgen.tensor_file import MAX_HEADER_BYTES, TensorFile
from fastgen.training.run import Run, saved_run
from fastgen.training.settings import RunConfig
from fastgen.training.state import RunState
from tests.small import network, spec, unet_config

from . import children
from .guard import guard
from .test_fuzz import starved

LARGE = 64 << 20  # bytes of the one large tensor


def allocate(times: float) -> None:
    claimed = 64 << 20
    with guard(claimed):
        torch.empty(int(times * claimed), dtype=torch.uint8)


def test_the_guard_sees_what_is_too_much(tmp_path: Path) -> None:
    assert children.run(tmp_path / "output", allocate, 1.9)[0] == 0
    code, said = children.run(tmp_path / "output", allocate, 3.0)
    assert code != 0
    assert "can't allocate memory" in said


def sleep() -> None:
    with guard(0):
        signal.alarm(1)
        time.sleep(children.PATIENCE)


def test_the_guard_ends_what_hangs(tmp_path: Path) -> None:
    code, said = children.run(tmp_path / "output", sleep)
    assert code == -signal.SIGALRM
    assert "in sleep" in said


def load_guarded(folder: Path) -> None:
    with guard((folder / "model.safetensors").stat().st_size):
        load(folder, builders)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_of_one_large_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    config = unet_config(num_class_embeds=LARGE // dtype.itemsize // 64)  # rows of 64 numbers
    tensors = {f"unet.{n}": t.to(dtype) for n, t in network(config).state_dict().items()}
    assert max(t.nbytes for t in tensors.values()) == LARGE
    save(tmp_path / "m", spec(config), tensors)
    code, said = children.run(tmp_path / "output", load_guarded, tmp_path / "m")
    assert code == 0, said


def restore_guarded(folder: Path) -> None:
    run = saved_run(folder)
    assert run is not None
    state = small_state(run)
    # Of four large tensors two get room here, and one at a time is read; the guard allows twice what it is told.
    with guard((folder / "training.safetensors").stat().st_size * 3 // 8):
        state.restore(folder)


def small_state(run: Run) -> RunState:
    networks, averages = (
        torch.nn.ModuleDict({name: build() for name, build in builders(run.spec).items()}) for _ in range(2)
    )
    optimizer = torch.optim.AdamW(networks.parameters(), foreach=False)
    return RunState(run, networks, averages.requires_grad_(False), {"loss": optimizer}, [(0.5,)])


@pytest.mark.slow
def test_a_training_state_of_one_large_tensor(tmp_path: Path) -> None:
    config = unet_config(num_class_embeds=LARGE // 4 // 64)
    data = {"pictures": 1, "shape": [1, 8, 8], "num_classes": None, "class_names": None}
    state = small_state(Run(RunConfig(), spec(config), data))
    for parameter in state.networks.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizers["loss"].step()
    state.save(tmp_path)
    assert to_dict(state.run.config) == to_dict(saved_run(tmp_path).config)  # type: ignore[union-attr]
    code, said = children.run(tmp_path / "output", restore_guarded, tmp_path)
    assert code == 0, said


def filled(piece: str, last: str, begin: str = '{"a":[', end: str = "]}") -> bytes:
    """As many `piece` as a header may hold, then `last`."""
    room = MAX_HEADER_BYTES - len(begin) - len(last) - len(end)
    return (begin + piece * (room // len(piece)) + last + end).encode()


def many_tensors() -> bytes:
    """As many tensors as a header may hold, each of them empty."""
    pieces, room, count = [], MAX_HEADER_BYTES - 2, 0
    while room > 80:
        pieces.append(f'"{count:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}')
        room, count = room - len(pieces[-1]) - 1, count + 1
    return ("{" + ",".join(pieces) + "}").encode()


HEADERS = {
    "lists": filled("[],", "[]"),
    "objects": filled("{},", "{}"),
    "floats": filled("1e5,", "1"),
    "integers": filled("300,", "1"),
    "strings": filled('"aa",', '"aa"'),
    "escapes": filled("\\u0041", "", '{"a":"', '"}'),
    "quotes": filled('\\"', "", '{"a":"', ""),
    "brackets in a name": filled("[", "", '{"', '":1}'),
    "tensors": many_tensors(),
}


def open_guarded(path: Path) -> None:
    refusal = None
    with guard(path.stat().st_size):
        try:
            TensorFile(path)
        except CheckpointError as error:
            refusal = error
    assert not starved(refusal), refusal
    print(refusal)


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_grow(tmp_path: Path, kind: str) -> None:
    path, text = tmp_path / "a", HEADERS[kind]
    assert MAX_HEADER_BYTES - 100 < len(text) <= MAX_HEADER_BYTES
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    code, said = children.run(tmp_path / "output", open_guarded, path)
    assert code == 0, said
    assert said == "None\n" if kind == "tensors" else str(path) in said
    if kind in ("lists", "objects"):  # which are counted, and not read
        assert str(text.count(b"[") + text.count(b"{")) in said


def test_a_file_of_ten_thousand_tensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "unet.down_blocks.{}.attentions.1.transformer_blocks.10.attn1.to_out.0.weight"
    tensors = {name.format(i): torch.zeros(1, 1, 1, 1) for i in range(10_000)}
    save_file(tensors, tmp_path / "a", metadata={"a [b] {c}": '\\"[{'})
    with TensorFile(tmp_path / "a") as file:
        assert file.entries.keys() == tensors.keys()
        assert file.metadata == {"a [b] {c}": '\\"[{'}
