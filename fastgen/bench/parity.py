"""When is a drawn picture right? Judged by what plain PyTorch loses in the same type."""

from __future__ import annotations

import torch
from torch import Tensor

# Rounding in another order gives an error of the same size: engine.verify() allows twice that of the plain one; a mean
# over a few samples varies by half as much again.
TIMES = 3.0
FLOOR = 4 * 2.0**-24  # pictures are float32, and many pixels lie exactly on -1 or 1


class Precision:
    """Judges outputs [B, ...] of one piece of work.

    exact: float64 [k, ...], the results of samples `index`. plain: [B, ...], everything by plain PyTorch in the type
    that is judged.
    """

    def __init__(self, exact: Tensor, plain: Tensor, index: list[int]) -> None:
        self.exact, self.plain, self.index = exact, plain, index
        self.loses = max(rms(plain[index].double() - exact), FLOOR)

    def error(self, output: Tensor) -> float:
        """The worse of two, each as a fraction of what is allowed: samples `index` may be TIMES as far from float64 as
        plain PyTorch is; the whole batch may be as far from plain PyTorch as both errors together. Any NaN is inf.
        """
        if output.shape != self.plain.shape or not bool(torch.isfinite(output).all()):
            return float("inf")
        output = output.to(self.exact.device)
        near = rms(output[self.index].double() - self.exact) / (TIMES * self.loses)
        far = rms(output.double() - self.plain.double()) / ((TIMES + 1) * self.loses)
        return max(near, far)


def rms(value: Tensor) -> float:
    """Root mean square."""
    return value.square().mean().sqrt().item()


def spread(batch: int, most: int = 4) -> list[int]:
    """Indices of at most `most` samples, from the first to the last."""
    if batch <= most:
        return list(range(batch))
    return [round(k * (batch - 1) / (most - 1)) for k in range(most)]
