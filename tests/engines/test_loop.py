"""The loop: noise and images by seed alone, unlike requests in one batch, no second capture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, pack, run, solver_table
from fastgen.diffusion.table import Table
from fastgen.engines.diffusion.loop import Loop
from fastgen.engines.diffusion.queue import SampleRequest as Request
from fastgen.errors import ConfigError
from fastgen_kernels import normals
from tests.refusals import refused
from tests.small import TinyNet

SCHEDULE = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
NULL = 10
TABLES = {
    "dpm++2m": solver_table("dpm++2m", SCHEDULE, 6),
    "ddim": solver_table("ddim", SCHEDULE, 4, eta=0.7),
    "ddpm": solver_table("ddpm", SCHEDULE, 9),
}


def loop(shape: tuple[int, int, int] = (1, 6, 6), **changes) -> Loop:  # type: ignore[no-untyped-def]
    values = {"device": torch.device("cpu"), "labelled": True, "null_label": NULL, "max_batch": 8, **changes}
    return Loop(TinyNet(shape[0]), shape, **values)


def draw(session: Loop, requests: list[Request]) -> list[Tensor]:
    tickets = [session.add(r) for r in requests]
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    return [done[t] for t in tickets]


def oracle(request: Request, shape: tuple[int, int, int]) -> Tensor:
    """The same request in float64, one sample at a time, by the plain interpreter of a table."""
    net, table = TinyNet(shape[0]).double(), request.table

    def guided(x: Tensor, t: float) -> Tensor:
        time = torch.tensor([t], dtype=torch.float64)
        label = torch.tensor([NULL if request.label is None else request.label])
        output = net(x, time, label)
        if request.guidance_scale == 1:
            return output
        free = net(x, time, torch.tensor([NULL]))
        return free + request.guidance_scale * (output - free)

    seeds = torch.tensor([request.seed])
    x = normals(seeds, 0, "initial", shape, dtype=torch.float64) * table.initial_scale
    noise = [normals(seeds, int(step), "step", shape, dtype=torch.float64) for step in table.noise_step]
    return run(table, guided, x, noise)[0]


def assert_close(got: Tensor, want: Tensor, table: Table) -> None:
    """Float error of a trajectory: each row rounds its terms, and later rows may enlarge what is there."""
    growth = sum(float(abs(table.a[i]).sum()) for i in range(len(table)))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=64 * 2**-24 * (growth + 1))


@pytest.mark.parametrize("solver", TABLES)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7), (1, 1, 1)])
def test_equals_the_plain_interpreter(solver: str, guidance: float, shape: tuple[int, int, int]) -> None:
    request = Request(TABLES[solver], seed=5, label=3, guidance_scale=guidance)
    (got,) = draw(loop(shape), [request])
    assert_close(got, oracle(request, shape), request.table)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    requests = [Request(TABLES["ddpm"], seed=100 + k, label=k % 10) for k in range(64)]
    alone = [draw(loop(max_batch=1), [r])[0] for r in requests[:5]]
    for batch in (3, 64):
        together = draw(loop(max_batch=batch), requests[:batch])
        for a, b in zip(alone, together, strict=False):
            assert torch.equal(a, b)


@pytest.mark.parametrize("solver", TABLES)
def test_recorded_equals_eager_bit_for_bit(solver: str) -> None:
    requests = [Request(TABLES[solver], seed=k, label=k, guidance_scale=1 + k) for k in range(5)]
    eager = draw(loop(backend="eager"), requests)
    recorded = draw(loop(backend="recorded"), requests)
    assert all(torch.equal(a, b) for a, b in zip(eager, recorded, strict=True))


def test_other_solver_steps_and_guidance_do_not_capture_again() -> None:
    session = loop(backend="recorded")
    draw(session, [Request(TABLES["dpm++2m"], seed=k, label=1, guidance_scale=2.0) for k in range(4)])
    captured = session.graphs.describe()
    table = solver_table("ddim", SCHEDULE, 17, eta=1.0)
    requests = [Request(table, seed=9 + k, label=2, guidance_scale=7.0) for k in range(4)]
    drawn = draw(session, requests)
    assert session.graphs.describe() == captured
    assert len(captured) == 1
    assert all(torch.equal(a, b) for a, b in zip(drawn, draw(loop(), requests), strict=True))


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_unlike_requests_join_and_leave_a_running_batch(backend: str) -> None:
    requests = [
        Request(TABLES["ddpm"], seed=1, label=4),
        Request(TABLES["dpm++2m"], seed=2, label=None),
        Request(TABLES["ddim"], seed=3, label=0, guidance_scale=3.0),
        Request(TABLES["dpm++2m"], seed=2**64 - 1, label=9, guidance_scale=0.0),
    ]
    session = loop(backend=backend)
    done: dict[int, Tensor] = {}
    tickets = [session.add(requests[0])]
    shared = 0
    for later in (requests[1], requests[2], requests[3], None, None):
        session.step()
        done.update(session.finished())
        shared = max(shared, len(session.current()))
        if later is not None:
            tickets.append(session.add(later))
    while session.step():
        done.update(session.finished())
    assert shared >= 3
    for ticket, request in zip(tickets, requests, strict=True):
        signed = Request(request.table, _signed(request.seed), request.label, request.guidance_scale)
        assert_close(done[ticket], oracle(signed, session.shape), request.table)


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def test_a_batch_that_empties_moves_to_smaller_buckets() -> None:
    session = loop(backend="recorded", max_batch=8)
    long = [Request(TABLES["ddpm"], seed=k, label=k) for k in (6, 7)]
    requests = [Request(TABLES["ddim"], seed=k, label=k) for k in range(6)] + long
    drawn = draw(session, requests)
    assert sorted(batch for batch, *_ in session.graphs) == [2, 8]
    for got, request in zip(drawn, requests, strict=True):
        assert torch.equal(got, draw(loop(), [request])[0])


def test_more_than_fit_wait_their_turn() -> None:
    requests = [Request(TABLES["dpm++2m"], seed=k, label=k % 10) for k in range(11)]
    drawn = draw(loop(max_batch=3), requests)
    assert all(torch.equal(a, b) for a, b in zip(drawn, draw(loop(max_batch=8), requests), strict=True))


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_tables_share_the_pool_and_it_grows_under_those_that_run(backend: str) -> None:
    session = loop(pool_rows=12, max_batch=4, backend=backend)
    requests = [
        Request(TABLES[s], seed=k, label=1) for k, s in enumerate(["ddpm", "dpm++2m", "ddim", "ddpm"])
    ]
    got = draw(session, requests)
    want = draw(loop(), requests)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    grown = session.pool.capacity
    assert grown > 12
    assert all(torch.equal(a, b) for a, b in zip(draw(session, requests), want, strict=True))
    assert session.pool.capacity == grown  # what nobody uses makes room
    # One that runs, in a batch whose rows then move to a larger pool.
    ticket = session.add(requests[0])
    session.step()
    long = Request(solver_table("ddim", SCHEDULE, grown), seed=0)
    later = session.add(long)
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert session.pool.capacity > grown
    assert torch.equal(done[ticket], want[0])
    assert torch.equal(done[later], draw(loop(), [long])[0])


def test_unlike_weights_step_together() -> None:
    """Each packs rows of its own, and none waits for room."""
    table = solver_table("ddim", SCHEDULE, 20)
    session = loop(pool_rows=32, max_batch=8)
    for k in range(8):
        session.add(Request(table, seed=k, label=1, guidance_scale=1.5 + k))
    steps = 0
    while session.step():
        steps += 1
    assert steps == 20
    assert len(session.finished()) == 8


def test_a_request_that_cannot_be_packed_is_refused_and_blocks_nobody() -> None:
    table = TABLES["ddim"]
    huge = dataclasses.replace(table, p=table.p * 1e300)
    with refused(ConfigError, "ddim", "3.4e+38"):
        Request(huge, seed=0)
    with refused(ConfigError, "guidance_scale", 4, 2):
        Request(table, seed=0, guidance_scale=(1.0, 2.0))
    session = loop(max_batch=2)
    with refused(ConfigError, "initial", "[1, 6, 6]", "[1, 2, 3]"):
        session.add(Request(table, seed=0, initial=torch.zeros(1, 2, 3)))
    # One that was not seen before: it is dropped, alone.
    bad = Request(TABLES["ddpm"], seed=1)
    good = Request(table, seed=2)
    lost, kept = session.add(bad), session.add(good)
    object.__setattr__(bad, "guidance_scale", (1.0, 2.0))
    with pytest.raises(ValueError, match="guidance_scale"):
        session.step()
    assert lost not in session
    assert kept in session
    while session.step():
        pass
    assert [ticket for ticket, _ in session.finished()] == [kept]


def test_a_sample_that_is_not_finite_keeps_to_itself() -> None:
    bad = torch.full((1, 6, 6), float("nan"))
    good = Request(TABLES["dpm++2m"], seed=3, label=3)
    got = draw(loop(), [Request(TABLES["dpm++2m"], seed=1, initial=bad), good])
    assert torch.isnan(got[0]).all()
    assert torch.equal(got[1], draw(loop(), [good])[0])
    session = loop()  # and its place serves the next one well
    draw(session, [Request(TABLES["dpm++2m"], seed=1, initial=bad)])
    assert torch.equal(draw(session, [good])[0], got[1])


def test_capture_in_a_running_batch_changes_nothing() -> None:
    session = loop(backend="recorded")
    first = Request(TABLES["ddpm"], seed=4, label=4)
    ticket = session.add(first)
    session.step()
    session.add(Request(TABLES["ddim"], seed=5, label=5, guidance_scale=2.0))  # needs the guided graph
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert {guided for _, guided, _ in session.graphs} == {False, True}
    assert_close(done[ticket], oracle(first, session.shape), first.table)


def test_clear_forgets_what_runs_and_what_waits() -> None:
    session = loop(max_batch=2)
    for k in range(5):
        session.add(Request(TABLES["ddpm"], seed=k))
    session.step()
    session.clear()
    assert not session.step()
    request = Request(TABLES["ddpm"], seed=8, label=8)
    assert torch.equal(draw(session, [request])[0], draw(loop(), [request])[0])


def test_results_are_the_callers_own() -> None:
    session = loop()
    (first,) = draw(session, [Request(TABLES["ddim"], seed=1)])
    kept = first.clone()
    draw(session, [Request(TABLES["ddim"], seed=2)])
    assert torch.equal(first, kept)


def test_learned_variance_reaches_the_step() -> None:
    shape = (1, 4, 4)
    net = TinyNet(1, out_channels=2)
    table = solver_table("ddpm", SCHEDULE, 5, variance_type="learned_range")
    session = Loop(net, shape, device=torch.device("cpu"), learned=1, max_batch=2)
    (got,) = draw(session, [Request(table, seed=6)])
    seeds, exact = torch.tensor([6]), TinyNet(1, out_channels=2).double()
    x = normals(seeds, 0, "initial", shape, dtype=torch.float64)
    noise = [normals(seeds, int(s), "step", shape, dtype=torch.float64) for s in table.noise_step]
    want = run(table, lambda x, t: exact(x, torch.tensor([t])), x, noise)[0]
    assert_close(got, want, table)


def test_packed_rows_fit_the_pool() -> None:
    rows, times = pack(TABLES["ddpm"], 1)
    assert rows.shape == (9, 32)
    assert times.shape == (9,)
