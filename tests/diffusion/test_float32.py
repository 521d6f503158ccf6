"""Tables lose nothing in float32: large terms cancel when a row is written, not when it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fastgen.diffusion import SOLVERS, NoiseSchedule, Table, run

SHAPE = (2, 3, 8, 8)
EPS = float(np.finfo(np.float32).eps)
S = 0.5  # of the data
STEPS = (2, 5, 10, 50)
# Cosine, where sigma / alpha falls from 20000 to 2 in the first of five steps.
COSINE = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
Network = Callable[[np.ndarray, float], np.ndarray]


def denoiser(table: Table) -> Network:
    """v of x_0 = tanh(E[x_0 | x]) for data N(0, S^2), in the dtype of x: well-conditioned at every noise level."""
    rows: Iterator[int] = iter(range(len(table)))

    def network(x: np.ndarray, t: float) -> np.ndarray:
        i = next(rows)
        alpha = 1.0 / math.hypot(1.0, table.sigma[i])
        sigma = alpha * float(table.sigma[i])
        state = x / float(table.input_scale[i])
        x0 = np.tanh(alpha * S**2 / (alpha**2 * S**2 + sigma**2) * state)
        return (alpha * state - x0) / sigma

    return network


def rounded(network: Network) -> Network:
    """`network`, which is asked and answers in float32, whatever the state's dtype."""
    return lambda x, t: network(x.astype(np.float32), t).astype(x.dtype)


def ends(name: str, steps: int) -> tuple[Table, np.ndarray, np.ndarray, np.ndarray]:
    """(table, the end in float64, the same with the network in float32, all in float32)."""
    table = SOLVERS[name](COSINE, steps)
    rng = np.random.default_rng(0)
    x = table.initial_scale * rng.normal(size=SHAPE)
    noise = rng.normal(size=(len(table), *SHAPE))
    exact = run(table, denoiser(table), x, noise)
    network = run(table, rounded(denoiser(table)), x, noise)
    everything = run(table, denoiser(table), x.astype(np.float32), noise.astype(np.float32))
    assert everything.dtype == np.float32
    return table, exact, network, everything


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if not solver.sde])
def test_float32_loses_no_more_than_the_network_does(name: str) -> None:
    """A method may amplify what its network rounds: here Heun's and RK4's first steps do so thousands of times.

    A row has at most four terms of an amplified size beside the network's, each rounded when it is made and when it is
    added, so that rows lose at most ten times as much; and one rounding each where nothing is amplified.
    """
    for steps in STEPS:
        table, exact, network, everything = ends(name, steps)
        size = np.abs(exact).max()
        inherent = np.abs(network - exact).max() / size
        lost = np.abs(everything - exact).max() / size
        assert lost <= 10 * inherent + EPS * len(table), (steps, lost, inherent)
