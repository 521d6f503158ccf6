"""Two distributions of vectors whose densities are known, so that a fit can be judged: samples and log-densities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]  # [N, D]

MOON_NOISE = 0.1  # standard deviation across the arcs
ARC_POINTS = 128  # of the integral along an arc, half a circle: 0.025 apart, a quarter of the noise

MIXTURE_SEED = 6
MIXTURE_COMPONENTS = 6
MIXTURE_DIMENSIONS = 6


def two_moons(count: int, seed: int) -> Rows:
    """[count, 2]: scikit-learn's two interleaving half circles, uniform along the arcs, with normal noise."""
    generator = np.random.default_rng(seed)
    upper = generator.random(count) < 0.5
    points = _arcs(np.pi * generator.random(count), upper)
    return points + MOON_NOISE * generator.standard_normal((count, 2))


def _arcs(angle: NDArray[np.float64], upper: NDArray[np.bool_]) -> Rows:
    x, y = np.cos(angle), np.sin(angle)
    return np.stack([np.where(upper, x, 1 - x), np.where(upper, y, 0.5 - y)], axis=-1)


def two_moons_log_density(x: Rows) -> NDArray[np.float64]:
    """log p of x [N, 2], [N]: the noise's density, averaged along both arcs by the midpoint rule."""
    angles = np.pi * (np.arange(ARC_POINTS) + 0.5) / ARC_POINTS
    centres = np.concatenate([_arcs(angles, np.full(ARC_POINTS, upper)) for upper in (True, False)])
    squared = ((x[:, None] - centres) ** 2).sum(-1) / MOON_NOISE**2
    return _log_mean_exp(-squared / 2) - np.log(2 * np.pi * MOON_NOISE**2)


def mixture6(count: int, seed: int) -> Rows:
    """[count, 6]: six correlated normal distributions of equal weight, far enough apart to be seen."""
    generator = np.random.default_rng(seed)
    means, factors = _mixture()
    which = generator.integers(MIXTURE_COMPONENTS, size=count)
    noise = generator.standard_normal((count, MIXTURE_DIMENSIONS))
    return means[which] + np.einsum("nij,nj->ni", factors[which], noise)


def mixture6_log_density(x: Rows) -> NDArray[np.float64]:
    """log p of x [N, 6], [N]."""
    means, factors = _mixture()
    terms = []
    for mean, factor in zip(means, factors, strict=True):
        white = np.linalg.solve(factor, (x - mean).T)
        log_det = np.log(np.diagonal(factor)).sum()
        terms.append(-(white**2).sum(0) / 2 - log_det - MIXTURE_DIMENSIONS / 2 * np.log(2 * np.pi))
    return _log_mean_exp(np.stack(terms, axis=-1))


def _mixture() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means [K, D] and lower triangular factors [K, D, D] of the covariances."""
    generator = np.random.default_rng(MIXTURE_SEED)
    size = (MIXTURE_COMPONENTS, MIXTURE_DIMENSIONS)
    means = 2.5 * generator.standard_normal(size)
    factors = np.tril(0.3 * generator.standard_normal((*size, MIXTURE_DIMENSIONS)), -1)
    diagonal = generator.uniform(0.25, 0.7, size)
    return means, factors + diagonal[..., None] * np.eye(MIXTURE_DIMENSIONS)


def _log_mean_exp(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of the mean of exp over the last axis."""
    highest = terms.max(axis=-1)
    return highest + np.log(np.exp(terms - highest[..., None]).mean(axis=-1))
