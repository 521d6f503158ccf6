"""Dequantisation: the bound's terms against probabilities known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.models.flow.dequantise import Dequantiser, VariationalDequantiser
from fastgen.models.flow.priors import StandardLogistic, logistic
from fastgen.models.flow.realnvp import RealNVP, RealNVPConfig
from tests.models.flow_models import moved

LEVELS = 4


def pixel(dequantisation: str, base: str = "logistic") -> RealNVP:
    """One pixel of four levels whose density is N(1/2, 1): couplings that see nothing but zero change nothing."""
    variational: dict[str, Any] = {
        "dequantisation_base": base,
        "dequantisation_layers": 3,
        "dequantisation_channels": 4,
    }
    config = RealNVPConfig(
        sample_size=(1, 1),
        in_channels=1,
        levels=LEVELS,
        checkerboard=(1,),
        channelwise=(0,),
        actnorm=False,
        preprocessing="centre",
        hidden_channels=(2,),
        blocks=1,
        dequantisation=dequantisation,
        **variational if dequantisation == "variational" else {},
    )
    torch.manual_seed(0)
    return RealNVP(config).double().requires_grad_(False)


def quantiles(count: int) -> Tensor:
    """Standard normal numbers at the middles of `count` parts of equal probability: [count, 1, 1, 1]."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("dequantisation", "base"),
    [("uniform", "logistic"), ("variational", "logistic"), ("variational", "normal")],
)
def test_the_importance_weighted_mean_is_the_probability(dequantisation: str, base: str) -> None:
    net = pixel(dequantisation, base)
    if isinstance(net.dequantiser, VariationalDequantiser):
        moved(net.dequantiser, 0.4)
    # The mean over noise as an integral, wide enough for couplings that shrink it
    noise = torch.linspace(-200.0, 200.0, 8001, dtype=torch.float64).view(-1, 1, 1, 1)
    weight = torch.distributions.Normal(0.0, 1.0).log_prob(noise).flatten() + math.log(400 / 8000)
    for level in range(LEVELS):
        k = torch.full((len(noise), 1, 1, 1), level)
        x, log_q = net.dequantiser(k, noise)
        assert ((x * LEVELS - level >= 0) & (x * LEVELS - level <= 1)).all()
        got = (net.log_prob(x) - log_q + weight).exp().sum() / LEVELS
        ends = torch.tensor([level, level + 1], dtype=torch.float64) / LEVELS - 0.5
        low, high = torch.special.ndtr(ends)
        assert got.item() == pytest.approx((high - low).item(), rel=1e-6)


def test_a_new_variational_dequantiser_is_the_uniform_one() -> None:
    """Its couplings change nothing to begin with: u = Phi(noise), and its density is 1."""
    net, plain = pixel("variational"), Dequantiser(LEVELS)
    noise, k = quantiles(7), torch.full((7, 1, 1, 1), 2)
    x, log_q = net.dequantiser(k, noise)
    want, zero = plain(k, noise)
    torch.testing.assert_close(x, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_q, zero, rtol=0, atol=1e-12)


def test_log_q_is_the_density_of_u() -> None:
    config = RealNVPConfig(
        sample_size=(2, 2),
        in_channels=1,
        dequantisation="variational",
        dequantisation_channels=4,
        hidden_channels=(4,),
    )
    torch.manual_seed(0)
    net = moved(RealNVP(config).double().requires_grad_(False), 0.3)
    k = torch.tensor([[[[0, 17], [128, 255]]]])
    noise = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda n: net.dequantiser.offsets(k, n.view(1, 1, 2, 2))[0].flatten(), noise.flatten()
    )
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum()
    _, log_q = net.dequantiser.offsets(k, noise)
    assert log_q.item() == pytest.approx(
        (normal - torch.linalg.slogdet(jacobian).logabsdet).item(), abs=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_come_back(dtype: torch.dtype) -> None:
    plain = Dequantiser(256)
    k = torch.arange(256).view(1, 1, 16, 16)
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x, log_q = plain(k, noise)
    assert x.dtype == log_q.dtype == dtype
    assert torch.equal(plain.quantise(x), k)
    ends = plain.quantise(torch.tensor([-0.01, 0.0, 0.999, 1.0, 1.01], dtype=dtype))
    assert ends.tolist() == [0, 0, 255, 255, 255]


def test_extreme_noise_stays_within_the_ends() -> None:
    x, log_q = (
        pixel("variational")
        .float()
        .dequantiser(torch.full((2, 1, 1, 1), 3), torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1))
    )
    assert ((x >= 0.75) & (x <= 1.0)).all()
    assert log_q.isfinite().all()


def test_logistic_noise() -> None:
    """Against SciPy, whose tails keep their digits too."""
    from scipy import stats

    noise = torch.tensor([-8.0, -3.0, -0.1, 0.0, 2.5, 8.0], dtype=torch.float64)
    want = torch.from_numpy(stats.norm.logcdf(noise.numpy()) - stats.norm.logsf(noise.numpy()))
    torch.testing.assert_close(logistic(noise), want, rtol=1e-12, atol=1e-15)
    z = noise.view(1, -1)
    got = StandardLogistic((6,)).log_prob(z)
    assert got.item() == pytest.approx(stats.logistic.logpdf(z.numpy()).sum(), rel=1e-12)
