"""Unlike samples in one call and in a session: each equals its own call; results, cancelling, threads, closing."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.diffusion import NoiseSchedule, solver_table
from fastgen.diffusion.table_json import table_from_dict, table_to_dict
from fastgen.engines.diffusion.engine import DiffusionEngine
from fastgen.engines.diffusion.previews import steps_of
from fastgen.engines.diffusion.session import Session
from fastgen.errors import ArgumentError
from tests.refusals import refused
from tests.small import SCHEDULE, TinyNet, checkpoint

SHAPE = (1, 6, 6)
SOLVERS = ["ddim", "ddpm", "euler", "heun", "dpm++2m", "euler_a", "unipc", "lms"]
STEPS = [4, 9, 5, 3, 6, 7, 5, 8]
UNLIKE = {
    "seeds": [11, 12, 13, 14, 15, 16, 17, 18],
    "labels": [0, 1, 2, None, 4, 5, 6, 7],
    "solver": SOLVERS,
    "steps": STEPS,
    "eta": [0.5, None, None, None, None, None, None, None],
    "guidance_scale": [1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 7.5, 1.5],
    "guidance_rescale": [0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.7],
}


def make(**options: object) -> DiffusionEngine:
    """TinyNet's arithmetic does not depend on the batch, so that equal means equal bits."""
    values = {"num_classes": 10, "null_class": 10, "solver": "ddim", "steps": 5, "max_batch": 4, **options}
    return DiffusionEngine.from_module(TinyNet(), SCHEDULE, "v_prediction", SHAPE, **values)


def alone(engine: DiffusionEngine, k: int) -> Tensor:
    call = {name: values[k] for name, values in UNLIKE.items() if values[k] is not None}
    return engine.sample(seed=call.pop("seeds"), **call)[0]


# -- lists in one call -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [False, "recorded"])
def test_each_of_an_unlike_call_equals_its_own(graph: bool | str) -> None:
    engine = make(graph=graph)
    together = engine.sample(**UNLIKE)
    for k in range(len(SOLVERS)):
        assert torch.equal(together[k], alone(make(), k))


def test_lists_say_how_many() -> None:
    engine = make()
    assert len(engine.sample(solver=["ddim", "euler", "ddpm"])) == 3
    assert len(engine.sample(steps=np.array([2, 3]))) == 2
    assert len(engine.sample(eta=(0.0, 0.5), labels=1)) == 2
    with refused(fastgen.ConfigError, "steps", 3, 2):
        engine.sample(3, steps=[2, 3])
    with refused(fastgen.ConfigError, "steps", 2, 3):
        engine.sample(solver=["ddim", "euler"], steps=[2, 3, 4])
    with refused(ArgumentError, "eta", "euler"):
        engine.sample(solver=["ddim", "euler"], eta=0.5)


def test_a_request_is_json_and_exact() -> None:
    engine = make()
    request = engine.request(**UNLIKE)
    kept = json.loads(json.dumps(request.to_dict()))
    assert kept["solver"] == SOLVERS
    assert kept["eta"] == UNLIKE["eta"]
    assert torch.equal(engine.sample(**kept), engine.sample(**UNLIKE))
    assert engine.request(**kept).to_dict() == kept
    third = request.only(2).to_dict()
    assert third["solver"] == "euler"
    assert torch.equal(engine.sample(**third)[0], alone(engine, 2))
    assert str(request).startswith("ddim x 4, ddpm x 9, euler x 5")


def test_alike_samples_share_a_table_and_a_plan() -> None:
    engine = make()
    request = engine.request(4, solver=["ddim", "euler", "ddim", "euler"], steps=[3, 3, 3, 4])
    tables = [single.table for single in request.singles()]
    assert tables[0] is tables[2]
    assert len(request.kinds) == 3
    assert len(engine.request(1000).kinds) == 1


def test_true_and_one_stay_different() -> None:
    with refused(fastgen.ConfigError, "solver ddim: clip_sample"):
        make().sample(2, clip_sample=[True, 1])


def test_a_table_is_a_solver() -> None:
    engine = make()
    table = solver_table("dpm++2m", NoiseSchedule.from_config(SCHEDULE), 6)
    assert torch.equal(
        engine.sample(seed=3, labels=1, solver=table),
        engine.sample(seed=3, labels=1, solver="dpm++2m", steps=6),
    )
    both = engine.request(seeds=[3, 4], labels=1, solver=[table, "ddim"], guidance_scale=2.0)
    kept = json.loads(json.dumps(both.to_dict()))
    assert torch.equal(engine.sample(**kept), engine.sample(**both.to_dict()))
    assert torch.equal(
        engine.sample(**kept)[0], engine.sample(seed=3, labels=1, solver=table, guidance_scale=2.0)[0]
    )
    with refused(fastgen.ConfigError, "steps", "dpm++2m", 6, 5):
        engine.sample(solver=table, steps=5)
    with refused(ArgumentError, "eta"):
        engine.sample(solver=table, eta=1.0)


def test_a_table_survives_json_to_the_bit() -> None:
    for solver in ("ddpm", "heun", "unipc"):
        table = solver_table(solver, NoiseSchedule(), 7)
        back = table_from_dict(json.loads(json.dumps(table_to_dict(table))), "here")
        for name in ("time", "a", "b", "clip", "slot", "sigma", "threshold"):
            np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
        assert (back.name, back.initial_scale) == (table.name, table.initial_scale)


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"name": 3}, ("solver", 3)),
        ({"time": []}, ("solver: time", 100000, "[]")),
        ({"time": "x"}, ("solver: time", "x")),
        ({"a": [[1.0] * 9] * 2}, ("solver: a", 8)),
        ({"a": [[1.0] * 8]}, ("solver", "a: ", "(2, 8)", "(1, 8)")),
        ({"p": [1.0, None]}, ("solver: p",)),
        ({"p": [1.0, "inf"]}, ("solver", " p ", " row 1 ")),
        ({"slot": [7, 0]}, ("solver", "slot: ", 3, 7)),
        ({"slot": [2**60, 0]}, ("solver: slot", "2^53")),
        ({"initial_scale": -1.0}, ("solver", "initial_scale: ", -1.0)),
        ({"learned": True}, ("solver", "learned")),
        ({"other": 1}, ("solver", "initial_scale")),
    ],
)
def test_a_damaged_table_is_refused(change: dict, about: tuple) -> None:
    good = table_to_dict(solver_table("ddim", NoiseSchedule(), 2))
    with refused(fastgen.ConfigError, *about):
        make().sample(solver={**good, **change})


def test_progress_counts_the_steps_of_unlike_samples() -> None:
    engine = make(max_batch=2)
    seen: list[tuple[int, int]] = []
    engine.sample(
        solver="ddim", steps=[3, 9, 4, 5], callback=lambda step, total, _: seen.append((step, total))
    )
    assert seen == [(k, 12) for k in range(1, 13)]  # 3 + 4 + 5 beside 9
    assert steps_of([5] * 7, 4) == 10
    assert steps_of([1, 2, 3], 8) == 3


def test_the_bar_says_images_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    make().sample(2, seed=1, progress=True)
    assert "images/s" in capsys.readouterr().err


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_results_come_as_they_finish() -> None:
    engine = make()
    with engine.session() as session:
        slow, quick = session.add(seed=1, labels=3, steps=9), session.add(2, seed=5, labels=4, steps=2)
        order = []
        for ticket, image in session:
            order.append(ticket)
            want = {slow[0]: (1, 3, 9), quick[0]: (5, 4, 2), quick[1]: (6, 4, 2)}[ticket]
            other = make().sample(seed=want[0], labels=want[1], steps=want[2])[0]
            assert torch.equal(image, other)
        assert order == [*quick, *slow]
        assert session.stats() == {"waiting": 0, "running": 0, "finished": 3, "cancelled": 0, "steps": 9}


@pytest.mark.parametrize("graph", [False, "recorded"])
def test_unlike_requests_that_join_later_equal_their_own_calls(graph: bool | str) -> None:
    engine = make(graph=graph, max_batch=8)
    tickets: dict[int, int] = {}
    done: dict[int, Tensor] = {}
    with engine.session() as session:
        for k in range(len(SOLVERS)):
            call = {name: values[k] for name, values in UNLIKE.items()}
            (ticket,) = session.add(seed=call.pop("seeds"), **call)
            tickets[k] = ticket
            session.step()
            done.update(session.finished())
        done.update(session)
    for k, ticket in tickets.items():
        assert torch.equal(done[ticket], alone(make(), k))


def test_cancelling_and_priorities() -> None:
    engine = make(max_batch=1)
    with engine.session() as session:
        (first,) = session.add(seed=1)
        session.step()
        (low,), (high,) = session.add(seed=2), session.add(seed=3, priority=1)
        (early,) = session.add(seed=4)
        assert session.stats() == {"waiting": 3, "running": 1, "finished": 0, "cancelled": 0, "steps": 1}
        assert session.cancel(first)
        assert session.cancel(early)  # not even in the loop yet
        assert not session.cancel(first)
        assert not session.cancel(77)
        finished = list(session)
        assert [ticket for ticket, _ in finished] == [high, low]
        assert torch.equal(finished[0].image, make().sample(seed=3)[0])
        assert not session.cancel(high)
        assert session.stats()["cancelled"] == 2
        with refused(fastgen.ConfigError, "priority"):
            session.add(seed=1, priority=0.5)


def test_another_thread_adds_and_cancels_while_one_iterates() -> None:
    engine = make(max_batch=3)
    want = {k: make().sample(seed=k, labels=k % 10, steps=3 + k % 4)[0] for k in range(24)}
    asked: dict[int, int] = {}
    got: dict[int, Tensor] = {}

    def customer(session: Session, start: int) -> None:
        for k in range(start, 24, 3):
            (ticket,) = session.add(seed=k, labels=k % 10, steps=3 + k % 4)
            asked[ticket] = k
            (unwanted,) = session.add(seed=1000 + k, steps=50)
            assert session.cancel(unwanted)

    with engine.session() as session:

        def collect() -> None:
            got.update(session.results(wait=True))

        collector = threading.Thread(target=collect)
        collector.start()
        customers = [threading.Thread(target=customer, args=(session, start)) for start in range(3)]
        for thread in customers:
            thread.start()
        for thread in customers:
            thread.join(60)
        while session.stats()["finished"] < 24:
            threading.Event().wait(0.01)
        session.close()
        collector.join(60)
        assert not collector.is_alive()
    assert len(asked) == 24
    for ticket, k in asked.items():
        assert torch.equal(got[ticket], want[k])


def test_a_session_closes_cleanly() -> None:
    engine = make()
    want = engine.sample(2, seed=5, labels=1)
    with engine.session() as session:
        session.add(3, seed=1)
        session.step()
        with refused(fastgen.FastgenError):
            engine.sample()
    for use in (lambda: session.add(seed=1), session.step):
        with refused(fastgen.FastgenError, None, "engine.session()"):
            use()
    assert list(session) == []
    assert torch.equal(engine.sample(2, seed=5, labels=1), want)

    def fails() -> None:
        with engine.session() as session:
            session.add(3, seed=1)
            session.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.equal(engine.sample(2, seed=5, labels=1), want)


def test_closing_while_another_thread_iterates_ends_its_iteration() -> None:
    engine = make()
    ended: list[object] = []
    for _ in range(5):
        with engine.session() as session:
            session.add(4, seed=1, steps=200)

            def collect(session: Session = session) -> None:
                ended.append(list(session))

            collector = threading.Thread(target=collect)
            collector.start()
            while session.stats()["steps"] < 3:
                threading.Event().wait(0.001)
        collector.join(60)
        assert not collector.is_alive()
    assert ended == [[]] * 5
    assert engine.sample(seed=1).isfinite().all()


def test_a_request_that_is_wrong_changes_nothing() -> None:
    with make().session() as session:
        (ticket,) = session.add(seed=1)
        with refused(fastgen.ConfigError, "steps", 0):
            session.add(seed=2, steps=0)
        assert [t for t, _ in session] == [ticket]


def test_nan_keeps_to_itself() -> None:
    class Breaks(TinyNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            assert label is not None
            return super().forward(x, t, label) + torch.where(label == 7, torch.nan, 0.0)[:, None, None, None]

    engine = DiffusionEngine.from_module(
        Breaks(), SCHEDULE, "v_prediction", SHAPE, num_classes=10, null_class=10, solver="ddpm", steps=4
    )
    images = engine.sample(labels=[1, 7, 2], seed=0)
    assert images[1].isnan().any()
    assert torch.equal(images[[0, 2]], make(solver="ddpm", steps=4).sample(labels=[1, 7, 2], seed=0)[[0, 2]])


def test_unlike_samples_of_a_real_network(tmp_path: Path) -> None:
    """Float error of a few evaluations at another batch size: libraries choose their algorithms by it."""
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cpu")
    call = {
        "seeds": [1, 2, 3],
        "labels": [0, 1, 2],
        "solver": ["ddim", "dpm++2m", "ddpm"],
        "steps": [4, 5, 6],
    }
    together = engine.sample(**call, guidance_scale=[1.0, 2.0, 1.5])
    for k in range(3):
        single = engine.sample(
            seed=1 + k, labels=k, solver=call["solver"][k], steps=4 + k, guidance_scale=[1.0, 2.0, 1.5][k]
        )
        torch.testing.assert_close(single[0], together[k], rtol=0, atol=2e-5)
