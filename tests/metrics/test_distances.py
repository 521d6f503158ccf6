"""Distances between sets of features: torch-fidelity's and prdc's numbers, closed forms, parts, and what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.errors import ConfigError
from fastgen.metrics.distances import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold,
    squared_mmd,
)
from tests.refusals import refused

# What torch-fidelity 0.4.0 and prdc 0.2 make of `features`: its defaults, but 20 subsets of 500.
FIDELITY = {
    "fid": 77.9997742133512,
    "kid": (1094.4879215955361, 190.4725687073985),
    "score": (2.61575800292812, 0.07882271208615643),
    "precision_3": 0.6105,
    "recall_3": 0.8835,
    "manifold": {"precision": 0.731, "recall": 0.9385, "density": 0.5204, "coverage": 0.757},
}
RELATIVE = 1e-6


def features() -> tuple[Tensor, Tensor, Tensor]:
    """Of 2,000 real and fake samples, and logits."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((24, 24))
    real = random.standard_normal((2000, 24)) @ mix
    fake = (random.standard_normal((2000, 24)) * 1.1 + 0.3) @ mix
    logits = random.standard_normal((2000, 10)) * 2
    return torch.from_numpy(real), torch.from_numpy(fake), torch.from_numpy(logits)


def test_the_numbers_of_torch_fidelity_and_prdc() -> None:
    real, fake, logits = features()
    distance = frechet_distance(Moments().add(real), Moments().add(fake))
    assert distance == pytest.approx(FIDELITY["fid"], rel=RELATIVE)
    kernel = kernel_distance(real, fake, subsets=20, subset_size=500)
    assert (kernel.mean, kernel.std) == pytest.approx(FIDELITY["kid"], rel=RELATIVE)
    score = inception_score(logits)
    assert (score.mean, score.std) == pytest.approx(FIDELITY["score"], rel=RELATIVE)
    assert manifold(real, fake) == pytest.approx(FIDELITY["manifold"], rel=RELATIVE)
    found = manifold(real, fake, neighbours=3)
    expected = FIDELITY["precision_3"], FIDELITY["recall_3"]
    assert (found["precision"], found["recall"]) == pytest.approx(expected, rel=RELATIVE)


def test_the_distance_of_gaussians() -> None:
    """Of diagonal covariances the closed form is |m|^2 + sum (s_1 - s_2)^2, of equal ones |m|^2."""

    def moments(mean: Tensor, deviation: Tensor) -> Moments:
        found = Moments()
        found.count, found.mean, found._squares = 1001, mean, torch.diag(deviation.square()) * 1000
        return found

    generator = torch.Generator().manual_seed(0)
    m1, m2 = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    s1, s2 = torch.rand(2, 7, generator=generator, dtype=torch.float64)
    expected = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(moments(m1, s1), moments(m2, s2)) == pytest.approx(expected, rel=1e-12)
    # Roots of eigenvalues that are zero are off by the root of rounding.
    flat = torch.zeros_like(s1)
    equal = frechet_distance(moments(m1, flat), moments(m2, flat))
    assert equal == pytest.approx(float((m1 - m2).square().sum()), rel=1e-12)
    assert frechet_distance(moments(m1, s1), moments(m1, s1)) < 1e-12


@pytest.mark.parametrize("parts", [[2000], [1, 1999], [700, 700, 600], [1] * 50 + [1950]])
def test_parts_make_no_difference(parts: list[int]) -> None:
    real = features()[0] + 1000  # a mean far beyond the deviation, which sums of squares would not survive
    moments = Moments()
    for part in real.split(parts):
        moments.add(part)
    rows = real.numpy()
    assert moments.mean is not None
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-12)
    expected = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, atol=1e-10 * np.abs(expected).max())


def test_too_few_samples_for_a_covariance() -> None:
    real, fake, _ = features()
    with pytest.warns(UserWarning, match="24"):
        found = frechet_distance(Moments().add(real[:10]), Moments().add(fake))
    assert math.isfinite(found)
    assert found > FIDELITY["fid"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(Moments().add(real[:25]), Moments().add(fake))


def test_the_kernel_distance_has_no_bias() -> None:
    """By all pairs in a loop; and of samples of one distribution its mean is zero within three standard errors."""
    random = np.random.default_rng(1)
    x, y = (torch.from_numpy(random.standard_normal((6, 3))) for _ in range(2))

    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 30
    between = sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    assert squared_mmd(x, y) == pytest.approx(within - 2 * between, rel=1e-12)
    # Of unequal numbers of samples each sum is over pairs of its own.
    few, within_few = y[:4], [(i, j) for i, j in pairs if i != j and max(i, j) < 4]
    wanted = sum(kernel(x[i], x[j]) for i, j in pairs if i != j) / 30
    wanted += sum(kernel(few[i], few[j]) for i, j in within_few) / 12
    wanted -= 2 * sum(kernel(x[i], few[j]) for i, j in pairs if j < 4) / 24
    assert squared_mmd(x, few) == pytest.approx(wanted, rel=1e-12)
    values = [
        squared_mmd(*(torch.from_numpy(random.standard_normal((50, 3))) for _ in range(2)))
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))


def test_scores_at_their_bounds() -> None:
    """1 where all answers are alike, the number of classes where they are certain and even."""
    even = 1000 * torch.eye(8).repeat(16, 1)
    assert inception_score(even, splits=2, seed=None).mean == pytest.approx(8, rel=1e-9)
    assert inception_score(torch.zeros(40, 8)).mean == pytest.approx(1, rel=1e-12)


def test_the_manifold_of_points_on_a_line() -> None:
    """Balls of one neighbour around 0, 1, 2, 10 reach 1, 1, 1, 8: by hand."""
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    fake = torch.tensor([[0.5], [2.5], [30.0], [31.0]])
    found = manifold(real, fake, neighbours=1)
    # 0.5 lies in the balls of 0 and 1, 2.5 in those of 2 and 10; balls of fake points reach 2, 2, 1, 1.
    assert found == {"precision": 0.5, "recall": 0.75, "density": 1.0, "coverage": 1.0}


def test_what_is_refused() -> None:
    real, fake, _ = features()
    with refused(ConfigError, "real", 500, 1000):
        kernel_distance(real[:500], fake)
    with refused(ConfigError, "fake", 24, 23):
        kernel_distance(real, fake[:, :23])
    with refused(ConfigError, "subsets"):
        kernel_distance(real, fake, subsets=0)
    with refused(ConfigError, "logits", 10, 3):
        inception_score(real[:3])
    with refused(ConfigError, "fake", 5):
        manifold(real, fake[:5])
    with refused(ConfigError, "features", 24, 3):
        Moments().add(real).add(real[:, :3])
    with refused(ConfigError, "features", 1):
        _ = Moments().add(real[:1]).covariance
    with refused(ConfigError, "features"):
        Moments().add(real * math.nan)
    with refused(ConfigError, "real"):
        manifold(real[0], fake)
    with refused(ConfigError, "features", "complex128"):
        Moments().add(real.to(torch.complex128))
    for which, sets in (("real", (real[:1], fake)), ("fake", (real, fake[:1]))):
        with refused(ConfigError, which, 2, 1):
            frechet_distance(*(Moments().add(rows) for rows in sets))
    for which, rows in (("x", (real[:1], fake)), ("y", (real, fake[:1]))):
        with refused(ConfigError, which, 2, 1):
            squared_mmd(*rows)


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.5, True])
def test_what_is_no_seed(seed: int) -> None:
    real, fake, logits = features()
    with refused(ConfigError, "seed", seed):
        kernel_distance(real, fake, seed=seed)
    with refused(ConfigError, "seed", seed):
        inception_score(logits, seed=seed)
