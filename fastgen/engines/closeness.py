"""When is a result right? Judged by what rounding in its type costs: one rule for `verify` and the benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# How many times what rounding costs a result may be off. The same roundings in another order cost as much again;
# measured on a few samples whose elements err together, two such root mean squares differ by up to 3 (the ratio of two
# mean squares of 8 independent errors is above 9 once in some 400 times). It must stay below 8: so much coarser is the
# next type (bfloat16 after float16; after float32 it is thousands), and work that runs in another type than it says
# must be seen. A wrong formula is off by 1e-3 and more, where float32 allows some 1e-6; in bfloat16 only gross ones
# show.
TIMES = 3.0
# Where rounding happens to cost nothing, as where many pixels are exactly -1 or 1, a result may still have four
# roundings of its greatest value.
ROUNDINGS = 4.0
SINGLE = 2.0**-24  # unit roundoff of float32


class Closeness:
    """Judges results [B, ...] of one piece of work.

    exact: float64 [k, ...], the results of samples `index` (by default all). rounded: one or several results of the
    same work as rounding may leave them, [B, ...]: by plain PyTorch in the type that is judged, or with random
    roundings. unit: roundoff of the type that results are in.
    """

    def __init__(
        self,
        exact: Tensor,
        rounded: Sequence[Tensor],
        index: Sequence[int] | None = None,
        unit: float = SINGLE,
    ) -> None:
        self.exact, self.rounded = exact, rounded
        self.index = list(range(len(rounded[0]))) if index is None else list(index)
        floor = ROUNDINGS * unit * exact.abs().nan_to_num(posinf=0.0).max().item() if exact.numel() else 0.0
        off = [r[self.index].to(exact.device).double() - exact for r in rounded]
        self.costs = max(floor, *map(rms, off))
        self.peak = max(floor, *(float(one.abs().max()) if one.numel() else 0.0 for one in off))

    def error(self, output: Tensor, slack: float = 0.0, *, peak: bool = False) -> float:
        """The worse of two, each as a fraction of what is allowed, at most 1 when right: samples `index` may be TIMES
        as far from float64 as `rounded` is; the whole batch may be as far from the first of `rounded` as both errors
        together. inf where `output` is not finite.

        slack: root mean square that is allowed besides. peak: whether the greatest deviation of an element counts, too:
        it may be TIMES the greatest one of `rounded`, which takes several of them to be known.
        """
        plain = self.rounded[0].to(self.exact.device)
        if output.shape != plain.shape:
            return float("inf")
        output = output.to(self.exact.device)
        if not bool(torch.isfinite(output).all()):
            return float("inf")
        near = _fraction(rms(output[self.index].double() - self.exact), TIMES * self.costs + slack)
        far = _fraction(rms(output.double() - plain.double()), (TIMES + 1) * self.costs + slack)
        if not peak:
            return max(near, far)
        most = float((output[self.index].double() - self.exact).abs().max()) if output.numel() else 0.0
        return max(near, far, _fraction(most, TIMES * self.peak))


def rms(value: Tensor) -> float:
    """Root mean square."""
    return value.square().mean().sqrt().item() if value.numel() else 0.0


def spread(batch: int, most: int = 4) -> list[int]:
    """Indices of at most `most` samples, from the first to the last."""
    if batch <= most:
        return list(range(batch))
    return [round(k * (batch - 1) / (most - 1)) for k in range(most)]


def deviation(got: Tensor, want: Tensor) -> float:
    """Greatest |got - want|, divided by the greatest |want|; inf where only one is finite."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if got.shape != want.shape:
        return float("inf")
    scale = float(want.abs().max()) if want.numel() else 0.0
    worst = float((got - want).abs().nan_to_num(nan=float("inf")).max()) if want.numel() else 0.0
    return worst / scale if scale > 0 else worst


def _fraction(value: float, allowed: float) -> float:
    return 0.0 if value == 0 else value / allowed if allowed > 0 else float("inf")
