"""Where a flow has no density, log_prob is -inf and encode says which value is to blame."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.engines.flow import FlowEngine
from fastgen.errors import ConfigError
from fastgen.models.flow.dequantise import Dequantiser
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import Logit
from fastgen.models.flow.priors import StandardNormal
from tests.engines.flows import make
from tests.refusals import refused

ALPHA = 0.05
SHAPE = (1, 2, 3)
EDGE = (1 - ALPHA) / (1 - 2 * ALPHA)  # the highest value of x that has a density
INF, NAN = math.inf, math.nan


def flow(levels: int | None = None) -> Flow:
    dequantiser = None if levels is None else Dequantiser(levels)
    prior = lambda i, latent, kept: StandardNormal(latent)  # noqa: E731
    return Flow(SHAPE, [Logit(ALPHA)], [[]], prior, levels=levels, dequantiser=dequantiser)


def density(x: Tensor) -> Tensor:
    """log p(x) in closed form: y = logit(u) normal, u = alpha + (1 - 2 alpha) x."""
    u = ALPHA + (1 - 2 * ALPHA) * x
    y = torch.log(u / (1 - u))
    return (
        (-(y**2) / 2 - math.log(2 * math.pi) / 2 + math.log(1 - 2 * ALPHA) - (u * (1 - u)).log())
        .flatten(1)
        .sum(1)
    )


def samples(*values: float) -> Tensor:
    """float64 [n, *SHAPE], 0.3 everywhere but for one value of each sample."""
    x = torch.full((len(values), *SHAPE), 0.3, dtype=torch.float64)
    x[:, 0, 1, 2] = torch.tensor(values, dtype=torch.float64)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["engine", "flow"])
def test_log_prob_is_minus_infinity_outside(kind: str, dtype: torch.dtype) -> None:
    values = [0.0, 0.5, 1.0, EDGE - 1e-3, 1.0 - EDGE + 1e-3, EDGE + 1e-3, -0.2, 7.0, INF, -INF, NAN]
    x = samples(*values).to(dtype)
    own = flow().to(dtype)
    name = str(dtype).removeprefix("torch.")
    got = (
        own.log_prob(x)
        if kind == "flow"
        else FlowEngine.from_module(own, device="cpu", dtype=name).log_prob(x)
    )
    # relative to the largest of six terms of about 5: a few roundings each, of a slope up to 1e3 at the edge
    tolerance = 1e3 * 10 * torch.finfo(dtype).eps
    assert torch.allclose(got[:5].double(), density(x[:5].double()), atol=tolerance)
    assert (got[5:10] == -INF).all()
    assert got[10].isnan()  # no number is not a number outside


def test_what_bicubic_resizing_overshoots() -> None:
    own = FlowEngine.from_module(flow(levels=256), device="cpu")
    x = samples(2 * EDGE - 1 + 1e-4, 1.0001, 1.0).float()  # in an image's units
    got = own.log_prob(x)
    assert got[0] == -INF
    inside = density((x[1:].double() + 1) / 2) - math.prod(SHAPE) * math.log(2)
    assert torch.allclose(got[1:].double(), inside, atol=1e-4)


@pytest.mark.parametrize("name", ["realnvp", "realnvp, gated, masks"])
def test_whole_flows_that_begin_with_a_logit(name: str) -> None:
    case = make(name)
    own = FlowEngine.from_module(case.flow, device="cpu")
    x = (2 * case.x - 1).clamp(-1, 1)
    whole = own.log_prob(x, **case.given)
    assert whole.isfinite().all()
    x[2, 0, 3, 4] = 1.25
    got = own.log_prob(x, **case.given)
    assert got[2] == -INF
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(
        got[others], whole[others], rtol=1e-5
    )  # one call, whose convolutions may differ in order
    with refused(ConfigError, "x", "1.25", [2, 0, 3, 4]):
        own.encode(x, **case.given)
    with refused(ConfigError, "x", "1.25"):
        own.interpolate(x[:1], x[2:3], 3)


@pytest.mark.parametrize("name", ["glow", "vector_flow", "nice"])
def test_flows_of_all_real_numbers_have_a_density_everywhere(name: str) -> None:
    case = make(name)
    assert case.flow.outside(case.x) is None
    own = FlowEngine.from_module(case.flow, device="cpu")
    given: dict[str, Any] = case.given
    assert own.log_prob(case.x * 3, **given).isfinite().all()
    own.encode(case.x * 3, **given)


def test_gradients_are_those_of_the_samples_that_have_a_density() -> None:
    x = samples(0.6, 7.0).requires_grad_()
    flow().double().log_prob(x)[0].backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad[0].abs().min() > 0
