"""The probes of the GPU stage: the split-K convolution and the chain are right, a dry run reports, all compiles."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

import triton

from bench import compile_gate
from bench.compile_only import compiling, report
from bench.gpu_stages import probe_kernels, probes
from bench.gpu_stages.probe_kernels import Config, SplitConv, Tile
from fastgen_kernels.op import interpreted, rounding_bound
from tests.kernels import interpreter

OTHER = os.environ.get("FASTGEN_TRITON_MIN")  # a second triton, the oldest that is supported


@pytest.fixture(scope="module", autouse=True)
def _corrected_interpreter() -> None:
    if not interpreted():
        pytest.skip("TRITON_INTERPRET is not set: the kernels run on the GPU")
    interpreter.install()


class Stage:
    """What the driver gives to a stage, in a dry run; `reported` keeps what it is told."""

    device = torch.device("cpu")
    dry = True

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.reported: list[dict[str, Any]] = []
        self.errors: list[tuple[str, Exception]] = []
        self.failed: set[str] = set()

    def left(self) -> float:
        return self.seconds

    def tried(self, name: str) -> bool:
        return False

    def add(self, kind: str, name: str, **facts: Any) -> None:
        self.reported.append({"kind": kind, "name": name, **facts})

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.errors.append((name, error))


def arguments(
    cin: int, cout: int, height: int, width: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    last = torch.channels_last
    x = torch.randn(1, cin, height, width, generator=generator).to(dtype).contiguous(memory_format=last)
    weight = torch.randn(cout, cin, 3, 3, generator=generator).to(dtype).contiguous(memory_format=last)
    return x, weight, torch.randn(cout, generator=generator).to(dtype)


def bound_of(exact: torch.Tensor, values: tuple[torch.Tensor, ...], accumulated: float = 8.0) -> torch.Tensor:
    """One rounding of `exact`, and `accumulated` float32 roundings of the sum of absolute values.

    Sums of terms of random signs, in any order, and the bias: 8 roundings are six standard deviations.
    """
    x, weight, bias = (tensor.double().abs() for tensor in values)
    magnitude = F.conv2d(x, weight, bias, padding=1)
    return rounding_bound(exact, magnitude, values[0].dtype, accumulated)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("splits", [1, 3, 4])
@pytest.mark.parametrize(("cin", "cout", "terms"), [(16, 16, 16), (24, 17, 32), (40, 16, 32)])
def test_convolution_is_conv2d(cin: int, cout: int, terms: int, splits: int, dtype: torch.dtype) -> None:
    """9, 7 and 12 steps: some splits have fewer than others, or none; 21 pixels are no multiple of 16."""
    values = arguments(cin, cout, 3, 7, dtype)
    x, weight, bias = (tensor.double() for tensor in values)
    exact = F.conv2d(x, weight, bias, padding=1)
    ours = SplitConv(*values, Config(Tile(16, 16, terms, num_warps=1, num_stages=1), splits))
    ours.partial.fill_(math.nan)
    ours.y.fill_(math.nan)
    got = ours()
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert probes.worst(got, exact, bound_of(exact, values)) <= 1.0


def test_more_splits_than_steps_and_silu() -> None:
    """9 of 11 splits take a step each, two nothing; SiLU comes before the only rounding."""
    values = arguments(16, 17, 3, 4, torch.float16)
    ours = SplitConv(*values, Config(Tile(16, 32, 16, num_warps=1, num_stages=1), 11), silu=True)
    ours.partial.fill_(math.nan)
    x, weight, bias = (tensor.double() for tensor in values)
    exact = F.silu(F.conv2d(x, weight, bias, padding=1))
    # SiLU's slope is at most 1.1; exp and division add a few roundings of its value, which the magnitude exceeds.
    assert probes.worst(ours(), exact, bound_of(exact, values, 1.1 * 8.0 + 4.0)) <= 1.0


def test_a_dropped_split_is_seen_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SplitConv.__call__

    def without_the_last(self: SplitConv) -> torch.Tensor:
        self.partial.zero_()
        kernel, (pixels, channels, _), values, options = self.launches[0]
        self.launches[0] = (kernel, (pixels, channels, 3), values, options)
        return whole(self)

    monkeypatch.setattr(SplitConv, "__call__", without_the_last)
    tile = Tile(16, 16, 16, num_warps=1, num_stages=1)
    monkeypatch.setattr(probes, "DRY_CONFIGS", (Config(tile, 5),))
    stage = Stage()
    probes.run(stage)
    ((name, error),) = stage.errors
    assert "5 splits" in name
    assert "times its bound" in str(error)
    (found,) = [item for item in stage.reported if item["name"].startswith("convolution")]
    assert found["best_split_k"] is None
    assert not any(label.startswith("split-K") for label in found["us_per_call"])


def test_inputs_must_be_channels_last() -> None:
    x, weight, bias = arguments(16, 16, 5, 6, torch.float16)
    with pytest.raises(ValueError, match="channels-last"):
        SplitConv(x.contiguous(), weight, bias, probes.DRY_CONFIGS[0])


@pytest.mark.parametrize("programs", [1, 3])
def test_the_chain_counts_its_nodes(programs: int) -> None:
    values = torch.zeros(programs * 4)
    probes.chain_step(values, 7, programs, 4, "")()
    assert values.eq(7.0).all()


@pytest.mark.parametrize("shape", probes.SHAPES, ids=str)
def test_candidates_fill_the_device_once_or_twice(shape: tuple[int, int, int, int]) -> None:
    cin, cout, height, width = shape
    found = probe_kernels.candidates(height * width, cin, cout)
    assert len(found) >= 2
    for config in found:
        tiles = triton.cdiv(height * width, config.tile.pixels) * triton.cdiv(cout, config.tile.channels)
        assert 132 <= tiles * config.splits <= 264
        assert cin % config.tile.terms == 0


def test_dry_run_reports_every_probe() -> None:
    stage, before = Stage(), torch.backends.cudnn.benchmark
    probes.run(stage)
    assert stage.errors == []
    assert torch.backends.cudnn.benchmark is before
    assert json.loads(json.dumps(stage.reported)) == stage.reported
    assert {item["kind"] for item in stage.reported} == {"probe"}
    empty, convolution, pointwise = stage.reported
    for item, programs in ((empty, 1), (pointwise, 2)):
        assert (item["nodes"], item["programs"], list(item["us_per_node"])) == (5, programs, ["plain"])
        assert item["us_per_node"]["plain"]["us"] > 0
    assert convolution["name"] == "convolution 16->16 at 5x6"
    assert len(convolution["us_per_call"]) == 4  # two configurations, PyTorch twice
    assert all(0 <= taken["error_over_bound"] <= 1.0 for taken in convolution["us_per_call"].values())
    assert convolution["best_split_k"] in convolution["us_per_call"]
    assert convolution["best_pytorch"] in convolution["us_per_call"]


def test_without_time_only_the_first_chain_is_timed() -> None:
    stage = Stage(seconds=-1.0)
    probes.run(stage)
    assert [item.get("skipped") for item in stage.reported] == [None, "no time left"]


def test_dry_run_without_the_interpreter_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    stage = Stage()
    probes.run(stage)
    (item,) = stage.reported
    assert "TRITON_INTERPRET=1" in item["skipped"]


def probe_reports(architecture: int) -> list[dict[str, Any]]:
    """What the compiler makes of every kernel that the probes launch on a GPU, and where the PTX has its PDL."""
    with compiling(architecture) as compiled:
        for programs, block in ((1, 1), (132, 1024)):
            for pdl in ("", "late", "early"):
                probes.chain_step(torch.zeros(programs * block), 1, programs, block, pdl)()
        for cin, cout, height, width in probes.SHAPES:
            values = arguments(cin, cout, height, width, torch.bfloat16)
            for config in probe_kernels.candidates(height * width, cin, cout):
                SplitConv(*values, config)()
                SplitConv(*values, config, pdl=True)()
    found: dict[str, dict[str, Any]] = {}
    for kernel, programs in compiled:
        if kernel.hash not in found:
            ptx = kernel.asm["ptx"]
            waits = {name: ptx.find(f"griddepcontrol.{name}") for name in ("wait", "launch_dependents")}
            where = {"pdl": bool(kernel.metadata.launch_pdl), "first_load": ptx.find("ld.global"), **waits}
            found[kernel.hash] = {"programs": programs, **where, **report(kernel)}
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("which", ["installed", "oldest"])
def test_all_kernels_compile_for_sm_90(which: str) -> None:
    if which == "oldest" and not OTHER:
        pytest.skip("FASTGEN_TRITON_MIN does not name the folder of a second triton")
    folder = Path(OTHER) if OTHER and which == "oldest" else None
    found = compile_gate.compiled(["90"], folder, module="tests.bench.test_gpu_probes")
    assert {item["kernel"] for item in found} == {"increment_kernel", "conv_kernel", "finish_kernel"}
    for item in found:
        assert item["local_bytes"] == 0, item
        assert (item["wait"] >= 0) == (item["launch_dependents"] >= 0) == item["pdl"], item
        if item["kernel"] == "increment_kernel" and item["pdl"]:
            assert item["wait"] < item["first_load"], item
        if item["kernel"] == "conv_kernel":
            assert item["dots"] == 1, item
            assert item["tensor_core"] > 0, item
            assert item["plain_dots"] == 0, item
            assert set(item["loads"]) == {"16"}, item


if __name__ == "__main__":
    print(json.dumps(probe_reports(int(sys.argv[1]))))
