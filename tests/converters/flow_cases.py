"""What tests of converted flows share: random weights, and two models side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.converters import build, from_module
from fastgen.models.flow.flow import Flow

# float64: what a few layers' rounding leaves; float32: the same with its own, for values of about 10.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BATCH = 5


def moved(module: nn.Module, dtype: torch.dtype, by: float = 0.2) -> Any:
    """Every parameter moved by `by` times a normal number; in eval mode, in `dtype`."""
    generator = torch.Generator().manual_seed(1)
    module = module.to(dtype).requires_grad_(False).eval()
    for parameter in module.parameters():
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(by * step.to(dtype))
    return module


def ours(module: nn.Module, dtype: torch.dtype, **assume: Any) -> Flow:
    """The converted flow, in `dtype`."""
    (flow,) = build(from_module(module, assume), dtype).values()
    assert isinstance(flow, Flow)
    flow.check()
    return flow


def noise(flow: Flow, dtype: torch.dtype) -> list[Tensor]:
    """Standard normal numbers, one tensor per scale."""
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(BATCH, *s, generator=generator, dtype=torch.float64).to(dtype) for s in flow.latent_shapes
    ]


def agree(
    flow: Flow,
    dtype: torch.dtype,
    sample: Callable[[list[Tensor]], Tensor],
    log_prob: Callable[[Tensor], Tensor],
    condition: Tensor | None = None,
    images: bool = False,
) -> None:
    """Samples from the same noise, and log_prob of random x and of those samples. images: x in [0, 1]."""
    tolerance = TOLERANCE[dtype]
    given = noise(flow, dtype)
    drawn, want = flow.sample(given, 1.0, condition), sample(given)
    assert drawn.dtype == dtype
    torch.testing.assert_close(drawn, want, rtol=tolerance, atol=tolerance)
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(want.shape, generator=generator, dtype=torch.float64).to(dtype)
    x = x if images else 4 * x - 2
    # log_prob is a sum of many terms, each as exact as its own size.
    torch.testing.assert_close(
        flow.log_prob(x, condition), log_prob(x).to(dtype), rtol=tolerance, atol=tolerance
    )
