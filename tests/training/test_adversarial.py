"""Adversarial losses against their theory, on discrete distributions, where every expectation is a finite sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor

from fastgen.errors import ConfigError
from fastgen.models.translate.pool import ImagePool, ImagePoolConfig
from fastgen.training.adversarial import GAN_LOSSES, discriminator_loss, generator_loss
from tests.refusals import refused

# How often each of five values occurs among 20 samples: p of the data, q of the generator. Everything is in float64,
# and the comparisons below are of sums of a few terms of size 1.
P, Q = (8, 5, 4, 2, 1), (2, 6, 4, 3, 5)
ROUNDING = 1e-12


def drawn(logits: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The logits of samples, of which value k occurs counts[k] times."""
    return logits.repeat_interleave(torch.tensor(counts))


def densities() -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(c, dtype=torch.float64) / sum(c) for c in (P, Q))  # type: ignore[return-value]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def js(p: Tensor, q: Tensor) -> Tensor:
    m = (p + q) / 2
    return (kl(p, m) + kl(q, m)) / 2


def best(kind: str) -> Tensor:
    """The logits of the best discriminator, in closed form."""
    p, q = densities()
    if kind == "lsgan":
        return p / (p + q)
    return torch.sign(p - q) if kind == "hinge" else (p / q).log()


def test_the_divergences_of_the_example() -> None:
    """KL and JS as SciPy has them."""
    p, q = densities()
    assert float(kl(p, q)) == pytest.approx(rel_entr(p.numpy(), q.numpy()).sum(), abs=ROUNDING)
    middle = (p + q).numpy() / 2
    both = rel_entr(p.numpy(), middle).sum() + rel_entr(q.numpy(), middle).sum()
    assert float(js(p, q)) == pytest.approx(both / 2, abs=ROUNDING)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_the_best_discriminator(kind: str) -> None:
    """No other discriminator has a smaller loss, and for those with a sigmoid D* = p / (p + q)."""
    p, q = densities()
    logits = best(kind)
    if kind in ("minimax", "non-saturating"):
        assert torch.allclose(logits.sigmoid(), p / (p + q), atol=ROUNDING)
    least = discriminator_loss(kind, drawn(logits, P), drawn(logits, Q))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 3.0):
        other = logits + size * torch.randn(5, generator=generator, dtype=torch.float64)
        assert discriminator_loss(kind, drawn(other, P), drawn(other, Q)) >= least
    if kind != "hinge":  # which has a kink there
        logits = logits.clone().requires_grad_()
        discriminator_loss(kind, drawn(logits, P), drawn(logits, Q)).backward()
        assert logits.grad is not None
        assert float(logits.grad.abs().max()) < ROUNDING


def test_what_the_best_discriminator_measures() -> None:
    """The least loss is log 4 - 2 JS(p, q), of LSGAN sum p q / (p + q), of hinge 2 sum min(p, q)."""
    p, q = densities()
    expected = {
        "minimax": math.log(4) - 2 * js(p, q),
        "lsgan": (p * q / (p + q)).sum(),
        "hinge": 2 * torch.minimum(p, q).sum(),
    }
    for kind, value in expected.items():
        logits = best(kind)
        found = discriminator_loss(kind, drawn(logits, P), drawn(logits, Q))
        assert float(found) == pytest.approx(float(value), abs=ROUNDING), kind


def test_at_equal_densities_the_value_is_minus_log_4() -> None:
    logits = torch.zeros(5, dtype=torch.float64)  # D* = 1/2 everywhere
    value = -discriminator_loss("minimax", drawn(logits, P), drawn(logits, P))
    assert float(value) == pytest.approx(-math.log(4), abs=ROUNDING)


@pytest.mark.parametrize("kind", ["minimax", "non-saturating"])
def test_where_the_generator_goes(kind: str) -> None:
    """At the best discriminator the gradient is that of 2 JS for minimax, and of KL(q | p) - 2 JS for the
    non-saturating loss (Arjovsky & Bottou 2017, theorem 2.5)."""
    p, _ = densities()
    logits = best(kind)
    each = torch.stack([generator_loss(kind, value) for value in logits])
    theta = torch.tensor(Q, dtype=torch.float64).log().requires_grad_()
    q = theta.softmax(0)
    (found,) = torch.autograd.grad((q * each).sum(), theta)
    q = theta.softmax(0)
    wanted = 2 * js(p, q) if kind == "minimax" else kl(q, p) - 2 * js(p, q)
    (expected,) = torch.autograd.grad(wanted, theta)
    assert torch.allclose(found, expected, atol=ROUNDING)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_gradients(kind: str) -> None:
    """Of each loss by its logits, written out."""
    generator = torch.Generator().manual_seed(1)
    real, fake = (
        torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )
    of_real, of_fake = torch.autograd.grad(discriminator_loss(kind, real, fake), (real, fake))
    (of_generator,) = torch.autograd.grad(generator_loss(kind, fake), fake)
    d_real, d_fake = real.detach().sigmoid(), fake.detach().sigmoid()
    r, f = real.detach(), fake.detach()
    sigmoid = (d_real - 1, d_fake)
    expected = {
        "minimax": (*sigmoid, -d_fake),
        "non-saturating": (*sigmoid, d_fake - 1),
        "lsgan": (2 * (r - 1), 2 * f, 2 * (f - 1)),
        "hinge": (-(r < 1).double(), (f > -1).double(), -torch.ones_like(f)),
    }[kind]
    for found, wanted in zip((of_real, of_fake, of_generator), expected, strict=True):
        assert torch.allclose(found, wanted / r.numel(), atol=ROUNDING)


def test_large_logits_stay_finite() -> None:
    """Where sigmoid and log one after the other overflow."""
    logits = torch.tensor([-200.0, 200.0])
    for kind in GAN_LOSSES:
        assert torch.isfinite(discriminator_loss(kind, logits, logits))
        assert torch.isfinite(generator_loss(kind, logits))


def test_an_unknown_loss() -> None:
    with refused(ConfigError, "gan_loss", "absent", "hinge"):
        generator_loss("absent", torch.zeros(1))
    with refused(ConfigError, "gan_loss", "absent", "hinge"):
        discriminator_loss("absent", torch.zeros(1), torch.zeros(1))


def test_the_pool() -> None:
    """It gives back what comes until it is full; then each image is kept with probability 1/2 for one kept before."""
    pool, generator = ImagePool(ImagePoolConfig(images=4, channels=1, size=(1, 1))), torch.Generator()
    first = torch.arange(4.0).view(4, 1, 1, 1)
    assert torch.equal(pool(first, generator), first)
    count, swapped, ages = 4000, 0, []
    for i in range(4, 4 + count):
        before = pool.kept.flatten().tolist()
        (out,) = pool(torch.full((1, 1, 1, 1), float(i)), generator).flatten().tolist()
        if out != i:
            assert out in before
            assert i in pool.kept.flatten().tolist()
            swapped, ages = swapped + 1, [*ages, i - out]
    # Five standard deviations of a binomial count, and of a mean of ages, which are geometric: 4 kept, half swapped.
    assert abs(swapped - count / 2) < 5 * np.sqrt(count / 4)
    assert abs(np.mean(ages) - 8) < 5 * np.std(ages) / np.sqrt(len(ages))


@pytest.mark.parametrize("size", [(), (4,)])
def test_a_pool_keeps_images_of_two_sides(size: tuple[int, ...]) -> None:
    with refused(ConfigError, "size", 2, size):
        ImagePoolConfig(images=4, channels=1, size=size)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 1, 4, 6), (2, 1, 1, 1), (1, 4, 4)])
def test_images_that_a_pool_cannot_keep(shape: tuple[int, ...]) -> None:
    """Also those that PyTorch would spread over the pool's channels or sides."""
    pool = ImagePool(ImagePoolConfig(images=4, channels=1, size=(4, 4)))
    with refused(ConfigError, "images", [1, 4, 4], list(shape)):
        pool(torch.zeros(shape), torch.Generator())
    with refused(ConfigError, "images", [3, 4, 4]):
        ImagePool(ImagePoolConfig(images=4, channels=3, size=(4, 4)))(
            torch.zeros(2, 1, 4, 4), torch.Generator()
        )
    assert int(pool.count) == 0


def test_the_pool_leaves_what_it_is_given() -> None:
    pool = ImagePool(ImagePoolConfig(images=1, channels=2, size=(2, 3)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        images = torch.rand(3, 2, 2, 3, generator=generator)
        before = images.clone()
        pool(images, generator)
        assert torch.equal(images, before)
