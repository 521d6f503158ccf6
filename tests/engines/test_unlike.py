"""Unlike requests in one batch: they join at different steps, are cancelled, have priorities, keep to themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, solver_table
from fastgen.diffusion.table import LANGEVIN_SAMPLE
from fastgen.engines.diffusion.loop import Loop
from fastgen.engines.diffusion.noise_ahead import NoiseAhead
from fastgen.engines.diffusion.queue import SampleRequest as Request
from fastgen_kernels import normals
from tests.engines.test_adjust import assert_close as close
from tests.engines.test_adjust import corrected, plain, thresholded
from tests.engines.test_loop import SCHEDULE, TABLES, draw, loop
from tests.engines.test_loop_memory import hungry

SHAPE = (3, 6, 6)
# Not the cosine schedule: its first level is some 20,000, and solvers that look ahead from there lose digits.
LINEAR = NoiseSchedule(prediction_type="v_prediction")
SOLVERS = [
    *(("ddim", 4, {}), ("ddim", 7, {"eta": 1.0}), ("ddpm", 9, {}), ("euler", 5, {}), ("heun", 3, {})),
    *(("dpm++2m", 6, {}), ("dpm++3m", 8, {}), ("dpm++2m_sde", 5, {}), ("euler_a", 6, {}), ("unipc", 5, {})),
    *(("deis", 4, {}), ("lms", 6, {}), ("rk4", 2, {}), ("plms", 6, {}), ("dpm2", 3, {}), ("lcm", 4, {})),
]


def sixteen() -> list[Request]:
    """As many solvers, steps, seeds, labels and weights; some guided for a part of their run, some rescaled."""
    requests = []
    for k, (solver, steps, options) in enumerate(SOLVERS):
        table = solver_table(solver, LINEAR, steps, **options)
        weights: float | tuple[float, ...] = (1.0, 2.0, 0.0, 7.5)[k % 4]
        if k % 5 == 4:
            weights = tuple(3.0 if 1 <= i < 3 else 1.0 for i in range(len(table)))
        label = None if k % 7 == 6 else k % 10
        requests.append(Request(table, 1000 + k, label, weights, guidance_rescale=0.5 * (k % 3 == 1)))
    return requests


def joining(session: Loop, requests: list[Request]) -> list[Tensor]:
    """All requests, each joining one step after the one before."""
    tickets, done = [], {}
    for request in requests:
        tickets.append(session.add(request))
        session.step()
        done.update(session.finished())
    while session.step():
        done.update(session.finished())
    return [done[ticket] for ticket in tickets]


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_sixteen_that_join_one_by_one_equal_their_own_calls(backend: str) -> None:
    session = loop(SHAPE, backend=backend, max_batch=16)
    got = joining(session, sixteen())
    for image, request in zip(got, sixteen(), strict=True):
        (alone,) = draw(loop(SHAPE), [request])
        assert torch.equal(image, alone)  # this network's arithmetic does not depend on the batch
        close(image, plain(request), request.table)


def test_they_are_not_captured_again() -> None:
    """A graph for each size of batch, whatever the solvers, steps, seeds, labels and weights."""
    session = loop(SHAPE, backend="recorded", max_batch=16)
    for count in (16, 8, 4, 2, 1):
        draw(session, [Request(TABLES["ddpm"], seed=k, label=1, guidance_scale=2.0) for k in range(count)])
    captured = session.graphs.describe()
    assert [facts["batch"] for facts in captured] == [1, 2, 4, 8, 16]
    others = [
        Request(solver_table(solver, LINEAR, steps + 1, **options), 50 + k, 9 - k % 10, 0.3 + 0.5 * (k % 7))
        for k, (solver, steps, options) in enumerate(SOLVERS)
    ]
    joining(session, others[::-1])
    assert session.graphs.describe() == captured


def test_noise_bits_are_the_same_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every row reads, whoever is beside it, is normals(seed, row, "step")."""
    read: list[tuple[int, int, Tensor]] = []
    right = NoiseAhead.fill

    def fill(self: NoiseAhead, samples: list) -> None:
        right(self, samples)
        read.extend(
            (seed, row, self.buffer[slot].clone()) for slot, seed, t, row in samples if t.needs_noise[row]
        )

    monkeypatch.setattr(NoiseAhead, "fill", fill)
    joining(loop(SHAPE, max_batch=16), sixteen())
    assert len(read) >= 20
    for seed, row, noise in read:
        assert torch.equal(noise, normals([seed], [row], "step", SHAPE)[0])


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_a_cancelled_one_frees_its_place(backend: str) -> None:
    session = loop(backend=backend, max_batch=2)
    requests = [Request(TABLES["ddpm"], seed=k, label=k) for k in range(4)]
    tickets = [session.add(request) for request in requests]
    session.step()
    session.step()
    assert set(session.current()) == set(tickets[:2])
    assert session.cancel(tickets[0])
    assert session.cancel(tickets[2])  # still waiting
    session.step()
    assert set(session.current()) == {tickets[1], tickets[3]}  # at once
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert set(done) == {tickets[1], tickets[3]}
    for k in (1, 3):
        assert torch.equal(done[tickets[k]], draw(loop(), [requests[k]])[0])
    assert not session.cancel(tickets[0])
    assert not session.cancel(tickets[1])
    assert not session.cancel(999)


def test_adjustments_share_a_captured_step() -> None:
    """Whatever requests combine, there are at most four steps a size of batch, which all are kept."""
    session = loop(SHAPE, backend="recorded", max_batch=8)
    ddim = solver_table("ddim", LINEAR, 4)
    kinds = [
        Request(ddim, 1, 1, 2.0, guidance_rescale=0.5),
        Request(thresholded(), 2, 2, 2.0),
        Request(corrected(LANGEVIN_SAMPLE), 3, 3, 2.0),
        Request(ddim, 4, 4, 2.0),
    ]
    for size in (1, 2, 4):
        for k in range(4):
            got = draw(session, [*kinds[k:], *kinds[:k]][:size])
            assert torch.equal(got[0], draw(loop(SHAPE), [kinds[k]])[0])
    keys = [(batch, guided, bool(adjustments)) for batch, guided, adjustments in session.graphs]
    assert len(keys) == len(set(keys))
    assert session.graphs.limit >= 4 * 4  # batches of 1, 2, 4, 8


def test_the_last_one_can_be_cancelled() -> None:
    session = loop(backend="recorded")
    ticket = session.add(Request(TABLES["ddpm"], seed=1))
    session.step()
    assert session.cancel(ticket)
    assert not session.step()
    assert session.finished() == []
    request = Request(TABLES["dpm++2m"], seed=2, label=2)
    assert torch.equal(draw(session, [request])[0], draw(loop(), [request])[0])


def test_rows_of_cancelled_requests_are_given_back() -> None:
    session = loop(pool_rows=12, max_batch=2)
    for k in range(5):
        ticket = session.add(Request(solver_table("ddim", SCHEDULE, 10, eta=k / 10), seed=k))
        session.step()
        assert session.cancel(ticket)
    assert session.pool.capacity == 12


def test_higher_priorities_get_places_first() -> None:
    session = loop(max_batch=1)
    order = [session.add(Request(TABLES["ddim"], seed=k), priority=p) for k, p in enumerate((0, 0, 5, -1, 5))]
    finished = []
    session.step()
    late = session.add(Request(TABLES["ddim"], seed=9), priority=9)
    while session.step():
        finished += [ticket for ticket, _ in session.finished()]
    # The highest of those that wait, first come first served; who runs is not put aside.
    assert finished == [order[2], late, order[4], order[0], order[1], order[3]]


@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_nan_in_one_does_not_touch_the_others(backend: str) -> None:
    """Also where rows are adjusted by norms and quantiles."""
    bad = torch.full(SHAPE, float("nan"))
    bad[0, 0, 0] = float("inf")
    good = [*sixteen(), Request(thresholded(), 1, 2, 3.0), Request(corrected(LANGEVIN_SAMPLE), 2, 3)]
    poisoned = [
        Request(table, 5, 1, 2.0, guidance_rescale=0.5, initial=bad)
        for table in (TABLES["ddpm"], thresholded(), corrected(LANGEVIN_SAMPLE))
    ]
    mixed = [request for pair in zip(good, poisoned * 6, strict=True) for request in pair]
    session = loop(SHAPE, backend=backend, max_batch=64)
    got = draw(session, mixed)
    for k, request in enumerate(good):
        assert torch.equal(got[2 * k], draw(loop(SHAPE), [request])[0])
        assert not got[2 * k + 1].isfinite().all()


@pytest.mark.filterwarnings("ignore:cpu ran out of memory")
@pytest.mark.parametrize("backend", ["eager", "recorded"])
def test_memory_that_runs_out_while_some_are_cancelled(backend: str) -> None:
    requests = [
        Request(table, seed=50 + k, label=k % 10, guidance_scale=2.0)
        for k, table in enumerate([*TABLES.values()] * 3)
    ]
    want = [draw(loop(), [request])[0] for request in requests]
    session = hungry(99, backend=backend, max_batch=8)
    tickets = [session.add(request) for request in requests]
    session.step()
    session.network.most = 5  # type: ignore[attr-defined]
    session.graphs.clear()
    with pytest.warns(UserWarning, match=r" 8 .*max_batch=4"):
        session.step()
    paused = [ticket for ticket in tickets[:8] if ticket in session.current()][4:]
    gone = {tickets[0], paused[0], tickets[8]}  # one that runs, one that is paused, one that waits
    assert all(session.cancel(ticket) for ticket in gone)
    done: dict[int, Tensor] = {}
    while session.step():
        done.update(session.finished())
    assert set(done) == set(tickets) - gone
    for ticket, image in zip(tickets, want, strict=True):
        if ticket in done:
            assert torch.equal(done[ticket], image)
