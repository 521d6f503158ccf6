"""Distances between two sets of images, by the features that a network gives them; all sums in float64.

A number from here is of the features that it was computed with: only those of the Inception network of Szegedy et al.
2015, as the papers have it, make a Fréchet distance the FID.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import shown
from ..errors import ConfigError

CHUNK = 2048  # rows of a matrix of distances that are held at a time
SEED = 2020  # of random subsets: that of torch-fidelity, whose numbers these are
SUBSETS, SUBSET_SIZE = 100, 1000  # Binkowski et al. 2018
SPLITS = 10  # Salimans et al. 2016
NEIGHBOURS = 5  # Naeem et al. 2020


class Moments:
    """Mean and covariance of rows that come in parts (Chan et al. 1979): the same whatever the parts."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None  # float64 [D]
        self._squares: Tensor | None = None  # sums of products of deviations, float64 [D, D]

    def add(self, features: Tensor) -> Moments:
        """Take in rows [n, D], n >= 1. Returns itself.

        Raises ConfigError for another D, complex numbers, or what is not finite.
        """
        rows = checked("features", features)
        mean = rows.mean(0)
        deviations = rows - mean
        squares = deviations.T @ deviations
        if self.mean is None or self._squares is None:
            self.count, self.mean, self._squares = len(rows), mean, squares
            return self
        if len(mean) != len(self.mean):
            raise ConfigError(f"expected rows of {len(self.mean)}, got {len(mean)}", argument="features")
        shift, total = mean - self.mean, self.count + len(rows)
        self._squares = self._squares + squares + torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """Unbiased, float64 [D, D]. Raises ConfigError for fewer than two rows."""
        if self._squares is None or self.count < 2:
            raise ConfigError(f"expected at least 2 samples, got {self.count}", argument="features")
        return self._squares / (self.count - 1)


def frechet_distance(real: Moments, fake: Moments) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)) (Heusel et al. 2017, eq. 6).

    Of Gaussians with these moments it is the squared 2-Wasserstein distance. A warning says where a covariance cannot
    have full rank for want of samples: the distance is too large then. Raises ConfigError.
    """
    for name, moments in (("real", real), ("fake", fake)):
        if moments.count < 2:
            raise ConfigError(f"expected at least 2 samples, got {moments.count}", argument=name)
    first, second = real.covariance, fake.covariance
    if first.shape != second.shape:
        raise ConfigError(f"expected rows of {len(first)}, got {len(second)}", argument="fake")
    assert real.mean is not None
    assert fake.mean is not None
    dimensions, count = len(first), min(real.count, fake.count)
    if count <= dimensions:
        warnings.warn(
            f"{count} samples of {dimensions} features leave covariances without full rank: the Fréchet distance is "
            "biased, and grows as samples get fewer; take more, or the kernel distance, which has no bias",
            stacklevel=2,
        )
    # tr (C_1 C_2)^(1/2) by the symmetric C_1^(1/2) C_2 C_1^(1/2), whose eigenvalues are those of C_1 C_2.
    values, vectors = torch.linalg.eigh(first)
    root = vectors * positive(values).sqrt() @ vectors.T
    between = positive(torch.linalg.eigvalsh(root @ second @ root)).sqrt().sum()
    difference = real.mean - fake.mean
    found = float(difference @ difference + first.trace() + second.trace() - 2 * between)
    return max(found, 0.0)


def positive(values: Tensor) -> Tensor:
    """Eigenvalues of a positive semidefinite matrix: what rounding has made of its zeros is zero again."""
    noise = float(values.abs().max()) * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > noise, values, torch.zeros_like(values))


@dataclass(frozen=True)
class Estimate:
    """A mean over random subsets or splits, and the standard deviation between them."""

    mean: float
    std: float


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> Estimate:
    """The squared maximum mean discrepancy by the kernel (x . y / D + 1)^3, unbiased, a mean over random subsets.

    Of Inception features it is the KID (Binkowski et al. 2018, section 4). real, fake: [n, D]. Raises ConfigError.
    """
    real, fake = _both(real, fake)
    count(subsets, "subsets", 1)
    count(subset_size, "subset_size", 2)
    for name, rows in (("real", real), ("fake", fake)):
        if len(rows) < subset_size:
            raise ConfigError(
                f"has {len(rows)} samples, a subset {subset_size}: take more samples, or a smaller subset_size",
                argument=name,
            )
    random = _random(seed)
    found = []
    for _ in range(subsets):
        fake_part = fake[random.choice(len(fake), subset_size, replace=False)]
        real_part = real[random.choice(len(real), subset_size, replace=False)]
        found.append(squared_mmd(fake_part, real_part))
    return Estimate(float(np.mean(found)), float(np.std(found)))


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Of all rows of x [m, D] and y [n, D], float64: unbiased. Raises ConfigError for fewer than two rows."""
    for name, rows in (("x", x), ("y", y)):
        if len(rows) < 2:
            raise ConfigError(f"expected at least 2 samples, got {len(rows)}", argument=name)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def inception_score(logits: Tensor, *, splits: int = SPLITS, seed: int | None = SEED) -> Estimate:
    """exp of the mean KL(p(y | x), p(y)) (Salimans et al. 2016, section 4), a mean over `splits` of shuffled samples.

    logits: [n, classes] of a classifier. seed: of the order; None: as they come. Raises ConfigError.
    """
    rows = checked("logits", logits)
    count(splits, "splits", 1)
    if len(rows) < splits:
        raise ConfigError(
            f"expected at least {splits} samples, one per split, got {len(rows)}", argument="logits"
        )
    if seed is not None:
        rows = rows[_random(seed).permutation(len(rows))]
    log_p = rows.log_softmax(1)
    scores = []
    for i in range(splits):
        part = log_p[i * len(rows) // splits : (i + 1) * len(rows) // splits]
        marginal = part.logsumexp(0) - math.log(len(part))
        scores.append(float((part.exp() * (part - marginal)).sum(1).mean().exp()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def manifold(real: Tensor, fake: Tensor, *, neighbours: int = NEIGHBOURS) -> Mapping[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), by balls around
    samples that reach their `neighbours`-th neighbour of the same set.

    precision: share of fake samples in a ball of a real one; recall: of real samples in a ball of a fake one; density:
    how many balls of real samples a fake one lies in, over `neighbours`; coverage: share of real samples whose ball
    holds a fake one. real, fake: [n, D], more than `neighbours` each. Raises ConfigError.
    """
    real, fake = _both(real, fake)
    count(neighbours, "neighbours", 1)
    for name, rows in (("real", real), ("fake", fake)):
        if len(rows) <= neighbours:
            raise ConfigError(f"expected more than {neighbours} samples, got {len(rows)}", argument=name)
    reach_real, reach_fake = (_reach(rows, neighbours) for rows in (real, fake))
    balls = torch.zeros(
        len(fake), dtype=torch.int64, device=real.device
    )  # of real samples around each fake one
    recalled, covered = [], []
    for at in range(0, len(real), CHUNK):
        distances = _distances(real[at : at + CHUNK], fake)
        inside = distances <= reach_real[at : at + CHUNK, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= reach_fake).any(1))
    return {
        "precision": float((balls > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(balls.double().mean() / neighbours),
        "coverage": float(torch.cat(covered).double().mean()),
    }


def _reach(rows: Tensor, neighbours: int) -> Tensor:
    """The distance of each row to its neighbour of that number, itself not counted."""
    parts = [
        _distances(rows[at : at + CHUNK], rows).kthvalue(neighbours + 1, dim=1).values
        for at in range(0, len(rows), CHUNK)
    ]
    return torch.cat(parts)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _both(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    first, second = checked("real", real), checked("fake", fake)
    if first.shape[1] != second.shape[1]:
        raise ConfigError(f"expected rows of {first.shape[1]}, got {second.shape[1]}", argument="fake")
    return first, second


def checked(name: str, rows: Tensor) -> Tensor:
    """`rows` [n, D] as float64. Raises ConfigError where they are none, complex, or not finite."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or not rows.numel():
        got = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ConfigError(f"expected a tensor [n, D], got {got}", argument=name)
    if rows.is_complex():
        raise ConfigError(f"expected real numbers, got {rows.dtype}", argument=name)
    wide = rows.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise ConfigError("holds values that are NaN or infinite", argument=name)
    return wide


def _random(seed: int) -> np.random.RandomState:
    """Raises ConfigError for what is no seed of NumPy's."""
    if type(seed) is not int or not 0 <= seed < 1 << 32:
        raise ConfigError(f"expected a whole number from 0 to 2^32 - 1, got {shown(seed)}", argument="seed")
    return np.random.RandomState(seed)


def count(value: int, name: str, least: int) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise ConfigError(f"expected a whole number from {least}, got {shown(value)}", argument=name)
