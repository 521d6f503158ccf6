"""Guidance: every form equals the plain two-call form, and costs what it should."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.diffusion import TableBuilder, run, solver_table
from fastgen.diffusion.processes import process_from_config
from fastgen.diffusion.table import X0, Table, X
from fastgen.engines.diffusion.engine import DiffusionEngine
from fastgen_kernels import normals
from tests.refusals import refused
from tests.small import SCHEDULE, TinyNet

SHAPE = (2, 4, 4)
NULL = 10
STEPS = 5


class Counting(TinyNet):
    """Notes how many samples it was asked for at a time."""

    def __init__(self) -> None:
        super().__init__(2)
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        return super().forward(x, t, label)


def make(
    schedule: dict | None = None, prediction: str = "v_prediction", **options: object
) -> DiffusionEngine:
    values = {"num_classes": 10, "null_class": NULL, "solver": "ddim", "steps": STEPS, **options}
    schedule = dict(schedule or SCHEDULE)
    if "prediction_type" in schedule:
        schedule["prediction_type"] = prediction
    engine = DiffusionEngine.from_module(Counting(), schedule, prediction, SHAPE, **values)
    counting(engine).batches.clear()
    return engine


def counting(engine: DiffusionEngine) -> Counting:
    return engine.network.net  # type: ignore[attr-defined, return-value]


def two_calls(
    table: Table,
    seed: int,
    label: int,
    weight: Callable[[int], float],
    change: Callable[..., Tensor] | None = None,
) -> Tensor:
    """One sample in float64: the network once with the label and once without, evaluation by evaluation."""
    net = TinyNet(2).double()
    asked = iter(range(len(table)))

    def guided(x: Tensor, t: float) -> Tensor:
        i, time = next(asked), torch.tensor([t], dtype=torch.float64)
        w, with_label = weight(i), net(x, time, torch.tensor([label]))
        F = with_label if w == 1 else net(x, time, torch.tensor([NULL]))
        F = F + w * (with_label - F)
        return F if change is None else change(i, x, time, F)

    seeds = torch.tensor([seed])
    x = normals(seeds, 0, "initial", SHAPE, dtype=torch.float64) * table.initial_scale
    noise = [normals(seeds, int(s), "step", SHAPE, dtype=torch.float64) for s in table.noise_step]
    return run(table, guided, x, noise)[0].clamp(-1, 1)


def assert_close(got: Tensor, want: Tensor, table: Table, weight: float = 8.0) -> None:
    """Float error: a row rounds its terms, guidance multiplies that of a difference; later rows may enlarge it."""
    growth = sum(float(abs(table.a[i]).sum()) for i in range(len(table)))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=16 * weight * 2**-24 * (growth + 1))


def table_of(engine: DiffusionEngine, **call: object) -> Table:
    return engine.request(labels=0, **call).plans[0].table


@pytest.mark.parametrize("graph", [False, "recorded"])
@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "ddpm", "heun"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_batched_equals_two_calls(scale: float, solver: str, graph: bool | str) -> None:
    engine = make(graph=graph)
    call = {"solver": solver, "guidance_scale": scale}
    got = engine.sample(3, seed=4, labels=[1, 2, 3], **call)
    table = table_of(engine, **call)
    for k in range(3):
        assert_close(got[k], two_calls(table, 4 + k, 1 + k, lambda i: scale), table)


def test_one_is_no_guidance_to_the_bit() -> None:
    """Also beside a guided sample, whose batch asks the network twice."""
    engine = make()
    alone = engine.sample(seed=1, labels=2, guidance_scale=1.0)
    assert set(counting(engine).batches) == {1}
    beside = engine.sample(seeds=[1, 2], labels=[2, 3], guidance_scale=[1.0, 4.0])
    assert torch.equal(alone[0], beside[0])
    assert set(counting(engine).batches) == {1, 4}


def test_weight_by_step() -> None:
    engine = make()
    weights = [1.0, 3.0, 5.0, 0.0, 2.0]
    table = table_of(engine)
    want = two_calls(table, 3, 4, lambda i: weights[i])
    listed = engine.sample(seed=3, labels=4, guidance_scale=[weights])
    called = engine.sample(seed=3, labels=4, guidance_scale=lambda progress: weights[round(progress * STEPS)])
    assert_close(listed[0], want, table)
    assert torch.equal(listed, called)
    assert engine.request(labels=4, guidance_scale=lambda p: 3.0).to_dict()["guidance_scale"] == [
        [3.0] * STEPS
    ]


@pytest.mark.parametrize("graph", [False, "recorded"])
@pytest.mark.parametrize(
    ("interval", "guided"), [((0.0, 1.0), 5), ((0.2, 0.8), 3), ((0.5, 1.0), 2), ((0.0, 0.1), 1)]
)
def test_interval_equals_two_calls_and_costs_half_outside(
    interval: tuple[float, float], guided: int, graph: bool | str
) -> None:
    engine = make(graph=graph)
    call = {"guidance_scale": 4.0, "guidance_interval": interval}
    got = engine.sample(2, seed=8, labels=[1, 5], **call)
    if not graph:
        counted = counting(engine).batches
        assert (counted.count(4), counted.count(2)) == (guided, STEPS - guided)
    table = table_of(engine)
    for k, label in ((0, 1), (1, 5)):
        want = two_calls(
            table, 8 + k, label, lambda i: 4.0 if interval[0] <= i / STEPS < interval[1] else 1.0
        )
        assert_close(got[k], want, table)


def test_interval_of_noise_levels() -> None:
    engine = make()
    table = table_of(engine)
    low, high = 0.3, 3.0
    inside = [low < sigma <= high for sigma in table.sigma]
    assert 0 < sum(inside) < STEPS
    bar = process_from_config(SCHEDULE).alphas_cumprod[table.time.astype(int)]
    np.testing.assert_allclose(table.sigma, np.sqrt((1 - bar) / bar), rtol=1e-12)
    got = engine.sample(seed=2, labels=6, guidance_scale=3.0, guidance_sigmas=(low, high))
    assert_close(got[0], two_calls(table, 2, 6, lambda i: 3.0 if inside[i] else 1.0), table)


# (process, interval of t, guided at 5 evaluations); its ends belong to it. Flow matching's levels are 1, 0.8, ... 0.2.
TIMES = [
    (SCHEDULE, (399, 799), [0, 1, 1, 1, 0]),
    (SCHEDULE, ("-inf", 599), [0, 0, 1, 1, 1]),
    ({"process": "flow"}, (200, 800), [0, 1, 1, 1, 1]),
    ({"process": "flow"}, (0.2, 0.8), [0, 0, 0, 0, 0]),
    ({"process": "flow", "time": "unit"}, (0.2, 0.8), [0, 1, 1, 1, 1]),
    # 1 - 0.8 is less than 0.2 in float64, and the network is told float32.
    ({"process": "flow", "time": "unit", "invert_sigmas": True}, (0.2, 0.8), [0, 1, 1, 1, 1]),
    ({"process": "flow", "invert_sigmas": True}, (0, 400), [1, 1, 1, 0, 0]),
]


@pytest.mark.parametrize(("process", "times", "guided"), TIMES)
@pytest.mark.filterwarnings("ignore:guidance_interval, guidance_sigmas, guidance_times")
def test_interval_of_times(process: dict, times: tuple, guided: list[int]) -> None:
    flow = process.get("process") == "flow"
    more = {"solver": "euler", "timestep_spacing": "trailing"} if flow else {}
    engine = make(process, "velocity" if flow else "v_prediction", value_range=(-1.0, 1.0))
    table = table_of(engine, **more)
    got = engine.sample(seed=2, labels=6, guidance_scale=3.0, guidance_times=times, **more)
    assert [counting(engine).batches.count(n) for n in (2, 1)] == [sum(guided), STEPS - sum(guided)]
    assert_close(got[0], two_calls(table, 2, 6, lambda i: 3.0 if guided[i] else 1.0), table)
    *_, last = engine.stream(seed=2, labels=6, guidance_scale=3.0, guidance_times=times, **more)
    assert torch.equal(last.images, got)


def test_the_three_names_of_an_interval_agree() -> None:
    """Flow matching: t = sigma, sigma / alpha = sigma / (1 - sigma), and 5 even steps from 1."""
    engine = make({"process": "flow", "time": "unit"}, "velocity", solver="euler", value_range=(-1.0, 1.0))
    call = {"seed": 1, "labels": 2, "guidance_scale": 3.0, "timestep_spacing": "trailing"}
    times = engine.sample(**call, guidance_times=(0.4, 0.8))
    assert torch.equal(times, engine.sample(**call, guidance_sigmas=(0.25, 4.1)))
    assert torch.equal(times, engine.sample(**call, guidance_interval=(0.2, 0.8)))
    both = engine.sample(**call, guidance_times=(0.4, 0.8), guidance_interval=(0.4, 1.0))
    assert torch.equal(both, engine.sample(**call, guidance_times=(0.4, 0.6)))


def test_rescale_equals_its_formula() -> None:
    engine = make()
    phi, w = 0.7, 6.0
    net = TinyNet(2).double()

    def rescaled(i: int, x: Tensor, time: Tensor, F: Tensor) -> Tensor:
        conditional = net(x, time, torch.tensor([3]))
        return phi * F * (conditional.std() / F.std()) + (1 - phi) * F

    table = table_of(engine)
    got = engine.sample(seed=2, labels=3, guidance_scale=w, guidance_rescale=phi)
    assert_close(got[0], two_calls(table, 2, 3, lambda i: w, rescaled), table)
    assert not torch.allclose(got, engine.sample(seed=2, labels=3, guidance_scale=w), atol=1e-3)


def test_dynamic_threshold_is_an_option_of_every_solver_that_clips() -> None:
    engine = make(prediction="epsilon")
    call = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 2.0}
    for solver in ("ddim", "dpm++2m", "euler_a", "unipc"):
        table = table_of(engine, solver=solver, **call)
        assert table.adjusted == ("threshold",)
        got = engine.sample(seed=2, labels=3, guidance_scale=5.0, solver=solver, **call)
        assert_close(got[0], two_calls(table, 2, 3, lambda i: 5.0), table)


# -- a classifier's gradient -----------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """A smooth classifier of noisy images whose gradient is worth having."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(classes, math.prod(SHAPE), generator=generator))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) + t[:, None].to(x.dtype) / 2000) @ self.weight.t()


PROCESSES = [
    (SCHEDULE, "epsilon"),
    (SCHEDULE, "sample"),
    (SCHEDULE, "v_prediction"),
    ({"process": "flow"}, "velocity"),
    ({"process": "edm"}, "edm"),
    ({"process": "vp_sde"}, "epsilon"),
]


@pytest.mark.parametrize(("schedule", "prediction"), PROCESSES)
@pytest.mark.parametrize("guided", [False, True])
def test_classifier_guidance_moves_the_noise_estimate(schedule: dict, prediction: str, guided: bool) -> None:
    """Dhariwal & Nichol 2021, algorithm 2: epsilon - sigma scale d log p / dx, worked out here from x_0 alone."""
    engine = make(schedule, prediction, solver="euler")
    engine.guide(Noisy())
    classifier, scale, label, w = Noisy().double(), 0.5, 7, 2.0 if guided else 1.0
    table = table_of(engine)

    def moved(i: int, asked: Tensor, time: Tensor, F: Tensor) -> Tensor:
        x = (asked / table.input_scale[i]).requires_grad_()
        log_p = torch.log_softmax(classifier(x * table.input_scale[i], time), 1)[0, label]
        (gradient,) = torch.autograd.grad(log_p, x)
        # x = alpha x_0 + sigma epsilon: x_0 grows by sigma^2 / alpha times the gradient, and x_0 = p x + q F.
        alpha, sigma = levels(schedule, table, i)
        if alpha == 0.0:  # pure noise: a classifier knows nothing of it
            return F
        return F + scale * sigma**2 / alpha / float(table.q[i]) * gradient

    with torch.enable_grad():
        want = two_calls(table, 5, label, lambda i: w, lambda *a: moved(*a).detach())
    got = engine.sample(seed=5, labels=label, guidance_scale=w, classifier_scale=scale)
    assert_close(got[0], want, table, weight=64)
    assert not torch.allclose(got, engine.sample(seed=5, labels=label, guidance_scale=w), atol=1e-3)


def levels(schedule: dict, table: Table, i: int) -> tuple[float, float]:
    """(alpha, sigma) of row i from the process's definition: alpha^2 + sigma^2 = 1, alpha + sigma = 1, or alpha = 1."""
    sigma = float(table.sigma[i])  # sigma / alpha
    kind = schedule.get("process")
    alpha = 1.0 if kind == "edm" else 1.0 / (1.0 + sigma) if kind == "flow" else 1.0 / math.hypot(1.0, sigma)
    return alpha, alpha * sigma


def test_classifier_guidance_in_a_mixed_batch_and_on_unlabelled_networks() -> None:
    engine = make(graph="recorded")
    engine.guide(Noisy())
    call = {"seeds": [1, 2, 3], "labels": [1, 2, None], "guidance_scale": [1.0, 3.0, 2.0]}
    mixed = engine.sample(**call, classifier_scale=[2.0, 0.0, 1.0])
    assert torch.equal(mixed[1:], engine.sample(**call)[1:])  # None has no class to go to
    assert not torch.equal(mixed[0], engine.sample(**call)[0])

    plain = make(num_classes=None, null_class=None)
    plain.guide(Noisy(4))
    a, b = plain.sample(2, seeds=[1, 1], labels=[0, 3], classifier_scale=2.0)
    assert not torch.allclose(a, b, atol=1e-3)
    with refused(fastgen.ConfigError, "labels", 3, 4):
        plain.sample(labels=4, classifier_scale=1.0)
    plain.guide(None)
    with refused(fastgen.ConfigError, "labels"):
        plain.sample(labels=1)


@pytest.mark.parametrize(
    ("classifier", "about"),
    [
        ("net", ("classifier", "str")),
        (Noisy(9), ("classifier", 9, 10)),
        (nn.Flatten(), ("classifier", "TypeError")),
        (TinyNet(2), ("classifier", "[2, 2, 4, 4]")),
    ],
)
def test_classifiers_that_do_not_fit(classifier: object, about: tuple) -> None:
    with refused(fastgen.ConfigError, *about):
        make().guide(classifier)


# -- arguments -------------------------------------------------------------------------------------------------------


def mystery() -> Table:
    rows = TableBuilder("mystery")
    rows.add(10, (0.0, 1.0), X0 + 0 * X)
    return rows.table()


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        ({"guidance_scale": 101}, ("guidance_scale", 100, 101)),
        ({"guidance_scale": "strong"}, ("guidance_scale", "strong")),
        ({"guidance_scale": [[1.0, 2.0]]}, ("guidance_scale", 5, "ddim", 2)),
        ({"guidance_scale": lambda p: math.nan}, ("guidance_scale: its value at progress 0", "nan")),
        ({"guidance_interval": 0.5}, ("guidance_interval", 0.5)),
        ({"guidance_interval": (0.8, 0.2)}, ("guidance_interval", "(0.8, 0.2)")),
        ({"guidance_interval": (0.0, 1.5)}, ("guidance_interval", 1.5)),
        (
            {"guidance_interval": [(0.0, 0.5)], "n": 2},
            ("guidance_interval", 2, 1),
        ),
        ({"guidance_sigmas": (0.5, 0.2)}, ("guidance_sigmas", "(0.5, 0.2)")),
        (
            {"guidance_sigmas": (0.1, 1.0), "solver": mystery()},
            ("guidance_sigmas", "mystery", "guidance_interval="),
        ),
        ({"guidance_times": (800, 200)}, ("guidance_times", "(800, 200)")),
        ({"guidance_times": (0.2, math.nan)}, ("guidance_times", "nan")),
        ({"guidance_times": 500}, ("guidance_times", 500)),
        ({"guidance_times": [(200, 800)], "n": 2}, ("guidance_times", 2, 1)),
        ({"guidance_rescale": 1.5}, ("guidance_rescale", 1.5)),
        ({"classifier_scale": 1.0}, ("classifier_scale", "engine.guide(")),
        ({"classifier_scale": -1.0}, ("classifier_scale", 1000, -1.0)),
        ({"classifier_scale": 1.0, "solver": mystery()}, ("classifier_scale", "mystery")),
    ],
)
def test_wrong_guidance_is_named(arguments: dict, about: tuple) -> None:
    with refused(fastgen.ConfigError, *about):
        make().sample(**{"labels": 1, **arguments})


def test_a_request_keeps_its_guidance_as_json() -> None:
    engine = make()
    engine.guide(Noisy())
    call = {
        "labels": [1, None, 3],
        "seed": 4,
        "guidance_scale": [lambda p: 1 + 3 * p, 2.0, [1.0, 2.0, 3.0, 2.0, 1.0]],
        "guidance_interval": [(0.2, 0.8), None, None],
        "guidance_sigmas": (0.01, 30.0),
        "guidance_times": [None, (100, 900), ("-inf", 900)],
        "guidance_rescale": 0.3,
        "classifier_scale": [0.0, 0.0, 1.0],
    }
    kept = json.loads(json.dumps(engine.request(**call).to_dict()))
    assert kept["guidance_interval"] == [[0.2, 0.8], None, None]
    assert torch.equal(engine.sample(**kept), engine.sample(**call))
    assert engine.request(**kept).to_dict() == kept


def test_tables_that_were_not_written_by_a_solver_have_no_level() -> None:
    assert np.isnan(mystery().sigma).all()
    assert not np.isnan(solver_table("heun", process_from_config(SCHEDULE), 4).sigma).any()
