"""Row adjustments: the quantile; loops with thresholds, rescale and Langevin steps against the plain interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, TableBuilder, run, solver_table
from fastgen.diffusion.table import LANGEVIN_BATCH, LANGEVIN_SAMPLE, X0, Table, X, Z
from fastgen.engines.diffusion.adjust import upper_quantile
from fastgen.engines.diffusion.queue import SampleRequest as Request
from fastgen_kernels import normals
from tests.engines.test_loop import NULL, SCHEDULE, draw, loop
from tests.small import TinyNet

SHAPE = (3, 6, 6)


# -- the quantile --------------------------------------------------------------------------------------------------


def quantile_error(values: np.ndarray, ratio: float) -> float:
    """Greatest relative difference from NumPy's linear quantile in float64, of rows [B, N]."""
    got = upper_quantile(torch.from_numpy(values), torch.full((len(values),), 1.0 - ratio)).double().numpy()
    want = np.quantile(values.astype(np.float64), ratio, axis=1)
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 200, 784, 3072])
def test_quantile_equals_the_definition(size: int, ratio: float) -> None:
    """The share above is kept in float32: it moves the rank by up to 2^-25 N of the N values, whose gaps near the rank
    are up to some 50 / N here (the normal's thin tail beyond ratio .995); plus the result's own rounding."""
    values = np.abs(np.random.default_rng(size).standard_normal((5, size))).astype(np.float32)
    assert quantile_error(values, ratio) <= 2**-24 + (50 + size) * 2**-25


def test_quantile_of_equal_and_of_extreme_values() -> None:
    values = torch.tensor([[0.0, 0.0, 1e-45, 1e-45, 1e-38, 1.0, 1.0, 1.0, 3e38]])
    for share, index in ((1.0, 0), (0.75, 2), (0.5, 4), (0.25, 6), (0.0, 8)):  # exact in float32
        assert torch.equal(upper_quantile(values, torch.tensor([share])), values[:, index])
    same = torch.full((2, 33), 0.7)
    assert torch.equal(upper_quantile(same, torch.tensor([0.5, 0.005])), same[:, 0])


def test_quantile_at_an_order_statistic_does_not_see_the_next() -> None:
    """It is infinite here, and 0 times it would be nan."""
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, float("inf")]])
    assert upper_quantile(values, torch.tensor([0.25])).item() == 4.0


def test_quantile_of_each_row_has_its_own_share() -> None:
    values = torch.rand(4, 101, generator=torch.Generator().manual_seed(0))
    tails = torch.tensor([0.0, 0.1, 0.5, 1.0])
    want = torch.stack(
        [torch.quantile(v, 1 - t) for v, t in zip(values, tails.double().float(), strict=True)]
    )
    torch.testing.assert_close(upper_quantile(values, tails), want, rtol=0, atol=2**-20)


@pytest.mark.slow
def test_quantile_of_more_than_torch_takes() -> None:
    """2^25 elements: torch.quantile refuses more than 2^24. Oracle: order statistics by np.partition, float64 lerp."""
    size, ratio = 1 << 25, 0.995
    values = np.abs(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    rank = ratio * (size - 1)
    below = int(rank)
    low, high = np.partition(values, (below, below + 1))[below : below + 2].astype(np.float64)
    want = low + (rank - below) * (high - low)
    got = upper_quantile(torch.from_numpy(values)[None], torch.tensor([1 - ratio])).item()
    assert abs(got - want) <= 2**-24 * want + (high - low) * size * 2**-32  # rounding, and that of the share
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(torch.from_numpy(values), ratio)


# -- the loop ------------------------------------------------------------------------------------------------------


def corrected(mode: int) -> Table:
    """DDIM's steps (eta = 0) down the tests' schedule, with a Langevin step before each."""
    rows = TableBuilder("corrected")
    times = [999, 700, 400, 100]
    levels = [SCHEDULE.alpha_sigma(t) for t in times] + [(1.0, 0.0)]
    for t, (alpha, sigma), (alpha_next, sigma_next) in zip(times, levels, levels[1:], strict=False):
        point = SCHEDULE.point_at(t, alpha, sigma)
        rows.evaluate(point, X - 2 * 0.1**2 * sigma * X0 + 2 * 0.1 * sigma * Z, langevin=mode)
        rows.evaluate(point, alpha_next * X0 + sigma_next / sigma * (X - alpha * X0))
    return rows.table()


def thresholded(solver: str = "dpm++2m", steps: int = 6, **options: float) -> Table:
    values = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5, **options}
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="epsilon")
    return solver_table(solver, schedule, steps, **values)


def plain(request: Request, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """The request in float64 by two calls of the network and the plain interpreter."""
    net, table = TinyNet(shape[0]).double(), request.table
    weights = request.guidance_scale
    asked = iter(range(len(table)))

    def guided(x: Tensor, t: float) -> Tensor:
        i = next(asked)
        w = weights[i] if isinstance(weights, tuple) else weights
        time = torch.tensor([t], dtype=torch.float64)
        with_label = net(x, time, torch.tensor([NULL if request.label is None else request.label]))
        without = net(x, time, torch.tensor([NULL]))
        together = without + w * (with_label - without)
        if w == 1 or not request.guidance_rescale:
            return together
        rescaled = together * (with_label.std() / together.std())
        return request.guidance_rescale * rescaled + (1 - request.guidance_rescale) * together

    seeds = torch.tensor([request.seed])
    x = normals(seeds, 0, "initial", shape, dtype=torch.float64) * table.initial_scale
    noise = [normals(seeds, int(s), "step", shape, dtype=torch.float64) for s in table.noise_step]
    return run(table, guided, x, noise)[0]


def assert_close(got: Tensor, want: Tensor, table: Table) -> None:
    """As in test_loop; a threshold or norm adds a few roundings a row."""
    growth = sum(float(abs(table.a[i]).sum()) for i in range(len(table)))
    torch.testing.assert_close(got.double(), want, rtol=0, atol=128 * 2**-24 * (growth + 1))


REQUESTS = {
    "threshold": Request(thresholded(), seed=1, label=2),
    "threshold, guided": Request(thresholded("ddim"), seed=2, label=3, guidance_scale=7.0),
    "threshold, noise": Request(thresholded("ddpm", 9), seed=2, label=3, guidance_scale=3.0),
    "rescale": Request(solver_table("dpm++2m", SCHEDULE, 6), 3, 4, guidance_scale=7.5, guidance_rescale=0.7),
    "rescale, threshold": Request(thresholded("euler"), 4, 4, guidance_scale=5.0, guidance_rescale=0.3),
    "weights": Request(
        solver_table("ddpm", SCHEDULE, 5),
        5,
        6,
        guidance_scale=(1.0, 4.0, 1.0, 0.0, 2.0),
        guidance_rescale=0.5,
    ),
    "langevin": Request(corrected(LANGEVIN_SAMPLE), seed=6, label=1),
    "langevin, guided": Request(corrected(LANGEVIN_SAMPLE), seed=7, label=1, guidance_scale=2.0),
}


@pytest.mark.parametrize("backend", ["eager", "recorded"])
@pytest.mark.parametrize("name", REQUESTS)
def test_equals_the_plain_interpreter(name: str, backend: str) -> None:
    request = REQUESTS[name]
    (got,) = draw(loop(SHAPE, backend=backend), [request])
    assert_close(got, plain(request), request.table)
    bare = replace(
        request,
        guidance_rescale=0.0,
        table=replace(request.table, threshold=np.zeros(2), langevin=np.zeros(())),
    )
    (without,) = draw(loop(SHAPE), [bare])
    assert not torch.allclose(without, got, atol=1e-3)  # it is the adjustment that makes the image


def test_all_kinds_share_a_batch() -> None:
    requests = list(REQUESTS.values())
    together = draw(loop(SHAPE, backend="recorded"), requests)
    for got, request in zip(together, requests, strict=True):
        assert torch.equal(got, draw(loop(SHAPE), [request])[0])


def test_without_adjustments_nothing_is_added() -> None:
    session = loop(SHAPE, backend="recorded")
    draw(session, [Request(solver_table("ddim", SCHEDULE, 3), seed=1, label=1, guidance_rescale=0.7)])
    assert [key for *_, key in session.graphs] == [()]  # rescale has no effect without guidance


def test_a_batch_mean_is_over_those_that_ask_for_it() -> None:
    """Song's code takes norms' means over the batch; others in it, also with NaN, do not count."""
    table = corrected(LANGEVIN_BATCH)
    bad = torch.full(SHAPE, float("nan"))
    requests = [Request(table, seed=k, label=k) for k in range(3)]
    others = [Request(solver_table("ddim", SCHEDULE, 9), seed=9, initial=bad)]
    got = draw(loop(SHAPE), requests + others)
    net = TinyNet(SHAPE[0]).double()
    seeds = torch.arange(3)
    x = normals(seeds, 0, "initial", SHAPE, dtype=torch.float64)
    noise = [normals(seeds, int(s), "step", SHAPE, dtype=torch.float64) for s in table.noise_step]
    want = run(table, lambda x, t: net(x, torch.full((3,), t, dtype=torch.float64), seeds), x, noise)
    for a, b in zip(got, want, strict=False):
        assert_close(a, b, table)


def test_what_does_not_fit_a_row_is_refused() -> None:
    rows = TableBuilder("clipped", clip=1.0, threshold=(0.9, 2.0))
    rows.add(0, (1.0, 0.0), X)
    with pytest.raises(ValueError, match=r"^threshold: "):
        rows.table()
    rows = TableBuilder("ratio", threshold=(1.5, 2.0))
    rows.add(0, (1.0, 0.0), X)
    with pytest.raises(ValueError, match="threshold: "):
        rows.table()
    rows = TableBuilder("mode")
    rows.add(0, (1.0, 0.0), X, langevin=3)
    with pytest.raises(ValueError, match=r"^langevin: .*3"):
        rows.table()
    rows = TableBuilder("score")
    rows.add(0, (1.0, 0.0), X, langevin=1)
    with pytest.raises(ValueError, match=r"^langevin: "):
        rows.table(learned=1)
