"""Time and label from a table: equal to the network asked in each step, whatever joins, leaves or does not fit."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.engines.diffusion import conditions
from fastgen.engines.diffusion.conditions import Conditioned, Conditions
from fastgen.engines.diffusion.loop import Loop
from fastgen.engines.diffusion.queue import SampleRequest as Request
from fastgen.engines.diffusion.stretches import Stretches
from tests.engines.test_loop import NULL, TABLES, draw
from tests.small import TinyNet

SHAPE = (1, 6, 6)


class InTwo(TinyNet):
    """`TinyNet`, whose shift is its condition. asked: how often it computed one, by batch."""

    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[int] = Counter()

    def condition(self, t: Tensor, label: Tensor | None, dtype: torch.dtype) -> Tensor:
        self.asked[len(t)] += 1
        shift = (t / 1000).to(dtype)
        return (shift if label is None else shift + self.tags[label])[:, None]

    def denoise(self, x: Tensor, emb: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * (self.mix[0, 0] * x) + emb[:, :, None, None]) * 0.9


def loop(network: TinyNet, **changes: object) -> Loop:
    values: dict = {"device": torch.device("cpu"), "labelled": True, "null_label": NULL, "max_batch": 8}
    return Loop(network, SHAPE, **{**values, **changes})


def unlike() -> list[Request]:
    """Requests of several solvers, labels and weights, one of them with a weight for each row."""
    weights = tuple(1.0 + k % 3 for k in range(len(TABLES["ddpm"])))
    return [
        Request(TABLES["ddim"], seed=0, label=3),
        Request(TABLES["ddpm"], seed=1, label=3, guidance_scale=2.0),
        Request(TABLES["dpm++2m"], seed=2, label=None, guidance_scale=3.0),
        Request(TABLES["ddpm"], seed=3, label=7, guidance_scale=weights),
        Request(TABLES["ddim"], seed=4, label=3, guidance_scale=1.5),
    ]


@pytest.mark.parametrize("backend", ["eager", "recorded"])
@pytest.mark.parametrize("entries", [None, 30, 6])
def test_samples_are_those_of_the_network_in_one(
    backend: str, entries: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for all, for some of them at a time, and for hardly any."""
    if entries is not None:
        monkeypatch.setattr(conditions, "LIMIT", entries * 4)
    requests = unlike()
    want = draw(loop(TinyNet()), requests)
    network = InTwo()
    session = loop(network, backend=backend)
    assert isinstance(network, Conditioned)
    got = draw(session, requests)
    # One at a time and all at once, and once more from what is kept.
    single = [draw(session, [request])[0] for request in requests]
    for images in (got, single, draw(session, requests)):
        assert all(torch.equal(a, b) for a, b in zip(images, want, strict=True))
    kept = session.conditions
    assert kept is not None
    assert kept.overflowed == (entries is not None)
    assert kept.describe()["bytes"] <= (conditions.LIMIT if entries is None else entries * 4)
    steps = sum(len(request.table) for request in requests)
    if entries is None:  # each pair of a table and a label once, never within a step
        pairs = {(id(r.table), label) for r in requests for label in session._labels(r)}
        assert sum(network.asked.values()) == len(pairs) < steps


def test_a_table_that_joins_makes_it_grow_under_those_that_run() -> None:
    requests = unlike()
    want = draw(loop(TinyNet()), requests)
    session = loop(InTwo(), backend="recorded")
    assert session.conditions is not None
    session.conditions.values = session.conditions.values[:4]  # less than one table
    tickets, done = [], {}
    for request in requests:
        tickets.append(session.add(request))
        session.step()
        done.update(session.finished())
    while session.step():
        done.update(session.finished())
    assert all(torch.equal(done[ticket], image) for ticket, image in zip(tickets, want, strict=True))


def test_cancelled_samples_give_their_entries_back() -> None:
    session = loop(InTwo(), max_batch=2)
    assert session.conditions is not None
    for k in range(40):
        ticket = session.add(Request(TABLES["ddpm"], seed=k, label=k % 10, guidance_scale=2.0))
        session.step()
        assert session.cancel(ticket)
    assert not any(placed.users for placed in session.conditions._stretches._placed.values())
    assert not session.conditions.overflowed


def test_another_network_is_asked_anew() -> None:
    session, network = loop(InTwo()), InTwo()
    first = draw(session, unlike())
    with torch.no_grad():
        network.tags += 0.3
    session.use(network)
    second = draw(session, unlike())
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_engine_says_what_it_keeps() -> None:
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu")
    engine.sample(2, seed=0, labels=[1, 2], steps=2)
    said = engine.describe()
    assert said["conditions"]["from"] == "table"
    assert 0 < said["conditions"]["bytes"] <= said["conditions"]["limit"] == 256 << 20
    assert not said["conditions"]["overflowed"]
    assert said["blocks"]["fused"]["FusedResidual"] > 0


def test_no_room_at_all() -> None:
    table = Conditions(InTwo(), torch.device("cpu"), torch.float32, limit=3)
    assert table.acquire(TABLES["ddim"], [1]) is None
    assert table.overflowed


def test_stretches_are_reused_when_nobody_holds_them() -> None:
    places = Stretches(1)
    assert places.hold("a") is None
    places.place("a", places.room(4, 10), 4, None)
    places.place("b", places.room(4, 10), 4, None)
    assert (places.hold("a"), places.hold("b")) == (1, 5)
    places.release("a")
    assert places.room(4, 10) == 9  # beyond the capacity: both are held
    places.release("a")
    assert places.room(4, 10) == 1
    assert places.hold("a") is None
