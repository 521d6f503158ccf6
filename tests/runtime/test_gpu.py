"""The loop on a CUDA device: the same pictures, and no step in which the host waits."""

from __future__ import annotations

import pytest
import torch

from fastgen.runtime.loop import Request
from tests.runtime.test_loop import TABLES, assert_close, draw, loop, oracle

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("solver", TABLES)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7), (3, 32, 32)])
def test_equals_the_plain_interpreter(solver: str, guidance: float, shape: tuple[int, int, int]) -> None:
    session = loop(shape, device=torch.device("cuda"))
    session.network.cuda()  # type: ignore[attr-defined]
    request = Request(TABLES[solver], seed=5, label=3, guidance_scale=guidance)
    (got,) = draw(session, [request])
    assert_close(got.cpu(), oracle(request, shape), request.table)


def test_a_step_never_waits_for_the_device() -> None:
    session = loop((3, 32, 32), device=torch.device("cuda"))
    session.network.cuda()  # type: ignore[attr-defined]
    for k in range(4):
        session.add(Request(TABLES["ddpm"], seed=k, label=k, guidance_scale=2.0))
    session.step()
    session.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            session.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
