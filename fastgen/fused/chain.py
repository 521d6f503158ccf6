"""A run of flow layers, compiled into steps that change a state where it lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from fastgen_kernels import affine_coupling_out, use

from ..errors import CheckpointError
from ..models.flow.coupling import Coupling
from ..models.flow.layers import Layer, Shape
from .channel_map import ChannelMap, fold, folds
from .exactly import hooked
from .networks import twin


class Step(Protocol):
    """One or several layers as one.

    layers: those it stands for, first to last. log_det: the part of `forward`'s log-determinant that is the same for
    every sample. The methods may change x, and add the rest of theirs to log_det [B] if it is given.
    """

    @property
    def layers(self) -> Sequence[Layer]: ...

    @property
    def log_det(self) -> float: ...

    def forward(self, x: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor: ...

    def inverse(self, y: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor: ...


class Chain:
    """Steps for `layers`, which take samples of `shape`. device, dtype: of the state, float32 or float64.

    out_shape: of a sample after `forward`. Raises CheckpointError, naming the layer, where one cannot be inverted.
    """

    def __init__(
        self, layers: Iterable[Layer], shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.steps: list[Step] = []
        for folded, run in groupby(layers, key=folds):
            group = list(run)
            if folded:
                self.steps.append(FoldedStep(group, shape, device, dtype))
                continue  # none of them changes the shape
            for layer in group:
                layer.check()
                if type(layer) is Coupling and not hooked(layer):  # a subclass may do something else
                    self.steps.append(CouplingStep(layer, torch.empty(1, *shape, device=device, dtype=dtype)))
                else:
                    self.steps.append(LayerStep(layer))
                shape = layer.out_shape(shape)
        self.out_shape = shape
        self.log_det = math.fsum(step.log_det for step in self.steps)

    def forward(self, x: Tensor, condition: Tensor | None, log_det: Tensor) -> Tensor:
        """Towards the latents. x may be changed; log_det [B] is, but for `self.log_det`."""
        for step in self.steps:
            x = step.forward(x, condition, log_det)
        return x

    def inverse(self, y: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        """Towards the data. y may be changed; log_det [B], if given, is, but for `-self.log_det`."""
        for step in reversed(self.steps):
            y = step.inverse(y, condition, log_det)
        return y


class FoldedStep:
    """A run of layers that are one affine map of the channels: a product, or a permutation with factors."""

    def __init__(
        self, layers: Sequence[Layer], shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.layers = layers
        folded = fold(layers, shape[0])
        inverse = folded.inverted()
        if not (folded.finite(dtype) and inverse.finite(dtype)):
            raise _overflowing(layers, shape[0], dtype)
        self.log_det = folded.log_det * math.prod(shape[1:])
        self._map = _OnDevice.of(folded, device, dtype)
        self._inverse_map = _OnDevice.of(inverse, device, dtype)

    def forward(self, x: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        return self._map.apply(x)

    def inverse(self, y: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        return self._inverse_map.apply(y)


def _overflowing(layers: Sequence[Layer], channels: int, dtype: torch.dtype) -> CheckpointError:
    """The error for layers whose map or inverse is not finite in `dtype`: of the first such one, or of all together."""
    singles = [(layer, fold([layer], channels)) for layer in layers]
    alone = [la.name for la, one in singles if not (one.finite(dtype) and one.inverted().finite(dtype))]
    where = alone[0] if alone else f"{layers[0].name} to {layers[-1].name}, folded into one"
    wider = "" if dtype == torch.float64 else ', or take dtype="float64"'
    kind = str(dtype).removeprefix("torch.")
    return CheckpointError(
        f"its map or the inverse of it overflows in {kind}; was its training stable? Train it anew{wider}",
        argument=where,
    )


@dataclass(frozen=True)
class _OnDevice:
    """A `ChannelMap` where and as the state is. matrix: the transpose of W, [C, C]."""

    shift: Tensor
    scale: Tensor | None
    index: Tensor | None
    matrix: Tensor | None

    @classmethod
    def of(cls, given: ChannelMap, device: torch.device, dtype: torch.dtype) -> _OnDevice:
        index, scale = given.index, given.scale
        if index is not None and torch.equal(index, torch.arange(len(index), device=index.device)):
            index = None
        return cls(
            given.shift.to(device, dtype),
            None if scale is None else scale.to(device, dtype),
            None if index is None else index.to(device),
            None if given.matrix is None else given.matrix.t().contiguous().to(device, dtype),
        )

    def apply(self, x: Tensor) -> Tensor:
        """x [B, C, ...] may be changed; the result is channels-last."""
        if self.index is None and self.scale is not None:
            size = (-1, *[1] * (x.dim() - 2))
            return torch.addcmul(self.shift.view(size), x, self.scale.view(size), out=x)
        pixels = x if x.dim() == 2 else x.permute(0, 2, 3, 1)
        rows = pixels.reshape(-1, x.shape[1])
        if self.matrix is not None:
            rows = torch.addmm(self.shift, rows, self.matrix)
        else:
            assert self.index is not None
            assert self.scale is not None
            rows = rows.index_select(1, self.index)
            torch.addcmul(self.shift, rows, self.scale, out=rows)
        return rows if x.dim() == 2 else rows.view(pixels.shape).permute(0, 3, 1, 2)


class CouplingStep:
    """A coupling that changes its part of the state in place."""

    log_det = 0.0

    def __init__(self, layer: Coupling, state: Tensor) -> None:
        """state: like those to come."""
        self.layers, self.layer = (layer,), layer
        self.network = twin(layer.network)
        parameter = next(layer.network.parameters(), None)
        self.dtype = None if parameter is None else parameter.dtype
        # Where x changes, if the network sees all of it.
        whole = layer.split not in ("half", "alternate")
        self.changing = layer.changing(state) if whole else None
        self.options = layer.options(state)

    def forward(self, x: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        return self._run(x, condition, log_det, self.layer.reverse)

    def inverse(self, y: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        return self._run(y, condition, log_det, not self.layer.reverse)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees, and a view of what changes."""
        return self.layer.parts(x) if self.changing is None else (x.masked_fill(self.changing, 0.0), x)

    def raw(self, kept: Tensor, condition: Tensor | None) -> Tensor:
        """What the network says."""
        return self.network(kept.to(self.dtype or kept.dtype), condition)

    def _run(self, x: Tensor, condition: Tensor | None, log_det: Tensor | None, inverse: bool) -> Tensor:
        kept, changed = self.parts(x)
        raw = self.raw(kept, condition)
        self.couple(changed, raw, log_det, inverse)
        return x

    def couple(self, changed: Tensor, raw: Tensor, log_det: Tensor | None, inverse: bool) -> None:
        """The operation itself, which has a float64 form in PyTorch only."""
        with use("reference") if changed.dtype == torch.float64 else nullcontext():
            affine_coupling_out(changed, raw, log_det, **self.options, inverse=inverse)


class LayerStep:
    """A layer as it is."""

    log_det = 0.0

    def __init__(self, layer: Layer) -> None:
        self.layers, self.layer = (layer,), layer

    def forward(self, x: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        y, change = self.layer(x, condition)
        if log_det is not None:
            log_det += change
        return y

    def inverse(self, y: Tensor, condition: Tensor | None, log_det: Tensor | None) -> Tensor:
        x, change = self.layer.inverse(y, condition)
        if log_det is not None:
            log_det += change
        return x
