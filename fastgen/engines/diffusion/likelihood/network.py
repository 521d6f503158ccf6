"""The reference network as a differentiable function of its input, and the trace of its Jacobian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

NARROW = (torch.bfloat16, torch.float16)


class Denoiser:
    """F(x, t, label) of a reference network in float32 at least, without the variance's half of its channels.

    A network in 16 bits keeps its rounded weights, and computes in float32: traces are sums of thousands of small
    numbers. Fused twins are not used, some of which have no gradient.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, channels: int) -> None:
        self._network, self._channels = network, channels
        self.dtype = torch.float32 if dtype in NARROW else dtype
        self._wide: dict[str, Tensor] | None = None
        if self.dtype != dtype:
            tensors = [*network.named_parameters(), *network.named_buffers()]
            self._wide = {
                name: value.detach().to(self.dtype) for name, value in tensors if value.dtype in NARROW
            }

    def both(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """All the network's channels [B, C or 2C, H, W] for x [B, C, H, W], time float32 [B], label int64 [B]."""
        given = (x.to(self.dtype), time, *(() if label is None else (label,)))
        if self._wide is None:
            output: Tensor = self._network(*given)
            return output
        return functional_call(self._network, self._wide, given)

    def __call__(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """[B, C, H, W], as `both`."""
        return self.both(x, time, label)[:, : self._channels]

    def with_trace(
        self, x: Tensor, time: Tensor, label: Tensor | None, probes: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """F and the trace of dF / dx, float64 [K, B].

        probes: K tensors v shaped like x, of zero mean and unit covariance: v . dF/dx v, of which the trace is the
        expectation (Hutchinson 1990). None: the trace itself, element by element, K = 1: as many products as x has
        elements.
        """
        with _differentiating():
            x = x.detach().to(self.dtype, copy=True).requires_grad_()
            output = self(x, time, label)
            if probes is None:
                traces = [_full_trace(output, x)]
            else:
                traces = [
                    (gradient.double() * v.double()).flatten(1).sum(1)
                    for v, gradient in zip(probes, _products(output, x, probes), strict=True)
                ]
        return output.detach(), torch.stack(traces)


def _full_trace(output: Tensor, x: Tensor) -> Tensor:
    """Sum of dF_i / dx_i, float64 [B]. Samples do not depend on one another: one gradient serves all of them."""
    flat = output.flatten(1)
    trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(flat.shape[1]):
        (gradient,) = _gradient(flat[:, i].sum(), x)
        trace += gradient.flatten(1)[:, i]
    return trace


def _products(output: Tensor, x: Tensor, probes: Sequence[Tensor]) -> Iterator[Tensor]:
    """v^T dF / dx for each v."""
    for v in probes:
        yield from _gradient((output * v.to(output.dtype)).sum(), x)


def _gradient(value: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    # An output that does not depend on x at all has the gradient 0.
    if not value.requires_grad:
        return (torch.zeros_like(x),)
    return torch.autograd.grad(value, x, retain_graph=True, allow_unused=True, materialize_grads=True)


@contextmanager
def _differentiating() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield
