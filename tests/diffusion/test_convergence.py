"""Every solver converges at its order: see `convergence`."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen.diffusion import SOLVERS

from .convergence import EXPECTED, MEANS, SPREADS, WEIGHTS, WITHOUT_ORDER, alpha_sigma, measure, mixture_x0

# Of n steps the error is c n^-p (1 + d / n + ...): between the last three, 80 and more, d / n moves the slope by
# d / 160 or so, and d is a few; a solver that misses its order misses it by 1.
MARGIN = 0.25


def test_every_solver_is_here() -> None:
    assert {
        expected.solver or name for name, expected in EXPECTED.items()
    } | WITHOUT_ORDER.keys() == SOLVERS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_order(name: str) -> None:
    found = measure(name)
    assert found.order >= EXPECTED[name].order - MARGIN, found
    assert found.order <= EXPECTED[name].order + 1 - MARGIN, f"of higher order than expected: {found}"
    assert np.all(np.diff(found.errors) < 0), found


def test_the_mixture_is_right() -> None:
    """E[x_0 | x] against an integral over a grid of x_0."""
    axis = np.linspace(-4.0, 4.0, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    squares = ((grid[:, None] - MEANS) ** 2).sum(-1)
    density = (WEIGHTS / SPREADS**2 * np.exp(-squares / (2 * SPREADS**2))).sum(1)
    x = np.array([[0.3, -0.7], [-0.5, 0.6]])
    alpha, sigma = alpha_sigma(4000.0)
    for point, found in zip(x, mixture_x0(x, alpha, sigma), strict=True):
        likely = density * np.exp(-((point - alpha * grid) ** 2).sum(-1) / (2 * sigma**2))
        np.testing.assert_allclose(found, (likely[:, None] * grid).sum(0) / likely.sum(), atol=1e-8)
