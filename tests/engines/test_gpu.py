"""The engine on a CUDA device against the engine on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastgen
from tests.refusals import refused
from tests.small import checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.usefixtures("full_precision")
def test_float32_equals_the_cpu(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    call = {"seed": 3, "labels": [0, 1, 2, None], "guidance_scale": 2.0}
    got = fastgen.load(folder, device="cuda", dtype="float32").sample(**call)
    want = fastgen.load(folder, device="cpu").sample(**call)
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-4)


def test_auto_is_cuda_and_bfloat16(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"))
    facts = engine.describe()
    assert facts["device"].startswith("cuda")
    assert facts["dtype"] == "bfloat16"
    assert facts["reverse_step"] == "triton"
    assert engine.sample(3, seed=0).isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_equals_uncaptured_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    folder = checkpoint(tmp_path / "m")
    captured, eager = (
        fastgen.load(folder, device="cuda", dtype=dtype, graph=graph) for graph in (True, False)
    )
    for guidance in (1.0, 2.0):
        for solver in ("dpm++2m", "ddim", "ddpm"):
            call = {
                "seed": 1,
                "labels": [0, 1, 2, 0],
                "guidance_scale": guidance,
                "solver": solver,
                "steps": 6,
            }
            assert torch.equal(captured.sample(4, **call), eager.sample(4, **call))
    facts = captured.describe()
    assert facts["backend"] == "cuda"
    assert [(c["batch"], c["guided"]) for c in facts["captured"]] == [(4, False), (4, True)]
    assert all(c["seconds"] > 0 for c in facts["captured"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_verify(tmp_path: Path, dtype: str) -> None:
    found = fastgen.load(checkpoint(tmp_path / "m"), device="cuda", dtype=dtype).verify()
    assert found.passed, str(found)


def test_the_zoo_is_drawn_right() -> None:
    found = fastgen.load("zoo:ddpm-mnist", device="cuda").verify()
    assert found.passed, str(found)


def test_a_step_of_a_real_network_never_waits(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cuda", graph=False)
    request = engine.request(4, seed=0, labels=0, guidance_scale=2.0, steps=6)
    for single in request.singles():
        engine.loop.add(single)
    engine.loop.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            engine.loop.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_weights_that_are_replaced_show(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cuda")
    engine.sample(2, seed=1, labels=0)
    state = {name: tensor * 0.5 for name, tensor in engine.network.state_dict().items()}
    engine.network.load_state_dict(state, assign=True)
    other = fastgen.load(tmp_path / "m", device="cuda", graph=False)
    other.network.load_state_dict(state)
    assert torch.equal(engine.sample(2, seed=1, labels=0), other.sample(2, seed=1, labels=0))


def test_a_callers_stream(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cuda")
    want = engine.sample(4, seed=1, labels=0)
    streams = [torch.cuda.Stream() for _ in range(2)]
    drawn = []
    for k in range(6):
        with torch.cuda.stream(streams[k % 2]):
            drawn.append(engine.sample(4, seed=1, labels=0))
    torch.cuda.synchronize()
    assert all(torch.equal(images, want) for images in drawn)


def test_a_network_that_draws_from_the_generator_is_refused() -> None:
    class Draws(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.randn_like(x)

    net = Draws(3, 3, 3, padding=1).cuda()
    engine = fastgen.DiffusionEngine.from_module(net, {}, "epsilon", (3, 16, 16))
    with refused(fastgen.CaptureError, None, "graph=False"):
        engine.sample(2, steps=3)


@pytest.mark.usefixtures(
    "full_precision"
)  # convolutions are chosen by the batch, and TF32 ones differ by 2^-11
def test_a_session_on_captured_graphs(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cuda", dtype="float32", max_batch=4)
    calls = [
        {"seed": k, "labels": k % 3, "solver": solver, "steps": 3 + k, "guidance_scale": 1.0 + k % 3}
        for k, solver in enumerate(["ddim", "dpm++2m", "ddpm", "euler", "heun", "unipc"])
    ]
    done = {}
    with engine.session() as session:
        tickets = []
        for call in calls:
            tickets += session.add(**call)
            session.step()
        done.update(session)
    for ticket, call in zip(tickets, calls, strict=True):
        torch.testing.assert_close(done[ticket], engine.sample(**call)[0], rtol=0, atol=1e-3)
