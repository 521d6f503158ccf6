"""When is a drawn picture right? Judged by what plain PyTorch loses in the same type."""

from __future__ import annotations

import torch
from torch import Tensor

# How many times what plain PyTorch loses a result may be off. The same roundings in another order lose as much again;
# measured on a few samples whose pixels err together, two such root mean squares differ by up to 3 (the ratio of two
# mean squares of 8 independent errors is above 9 once in some 400 times). It must stay below 8: so much coarser is the
# next type (bfloat16 after float16; after float32 it is thousands), and work that runs in another type than it says
# must be seen. A wrong formula is off by 1e-3 and more, where float32 allows some 1e-6; in bfloat16 only gross ones
# show.
TIMES = 3.0
# Pictures are float32, and many pixels lie exactly on -1 or 1: where plain PyTorch happens to lose nothing, a result
# may still have the four roundings of a step's last sum (x, x0, z and a slot).
FLOOR = 4 * 2.0**-24


class Precision:
    """Judges outputs [B, ...] of one piece of work.

    exact: float64 [k, ...], the results of samples `index`. plain: [B, ...], everything by plain PyTorch in the type
    that is judged.
    """

    def __init__(self, exact: Tensor, plain: Tensor, index: list[int]) -> None:
        self.exact, self.plain, self.index = exact, plain, index
        self.loses = max(rms(plain[index].double() - exact), FLOOR)

    def error(self, output: Tensor, slack: float = 0.0) -> float:
        """The worse of two, each as a fraction of what is allowed: samples `index` may be TIMES as far from float64 as
        plain PyTorch is; the whole batch may be as far from plain PyTorch as both errors together. Any NaN is inf.

        slack: root mean square that is allowed besides.
        """
        if output.shape != self.plain.shape or not bool(torch.isfinite(output).all()):
            return float("inf")
        output = output.to(self.exact.device)
        near = rms(output[self.index].double() - self.exact) / (TIMES * self.loses + slack)
        far = rms(output.double() - self.plain.double()) / ((TIMES + 1) * self.loses + slack)
        return max(near, far)


def rms(value: Tensor) -> float:
    """Root mean square."""
    return value.square().mean().sqrt().item()


def spread(batch: int, most: int = 4) -> list[int]:
    """Indices of at most `most` samples, from the first to the last."""
    if batch <= most:
        return list(range(batch))
    return [round(k * (batch - 1) / (most - 1)) for k in range(most)]
