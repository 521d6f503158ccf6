"""A flow's layers in one direction, as modules of standard operations.

Runs of layers that map the channels affinely are one map, composed and inverted in float64 beforehand; the filters of
couplings' networks are computed beforehand too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgen_kernels.affine_coupling.reference import argument, split

from ..fused.chain import Chain, CouplingStep, FoldedStep
from ..fused.channel_map import ChannelMap, fold
from ..models.flow.coupling import Coupling
from ..models.flow.layers import Flatten, Layer, Logit, Shape, Squeeze
from ..models.flow.networks import ChannelAffine, WeightNormConv, ZeroConv
from .accurate import log_sigmoid

CPU = torch.device("cpu")


class Piece(nn.Module):
    """One or several layers in one direction.

    volume: the part of the direction's log-determinant that is the same for every sample. `forward` returns what comes
    out and the rest of the log-determinant, [B], or None where there is none.
    """

    volume = 0.0

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


def pieces(layers: Iterable[Layer], shape: Shape, inverse: bool) -> tuple[list[Piece], Shape]:
    """`layers`, which take samples of `shape`, in the order of work; and the shape of what leaves the last layer.

    inverse: towards the data. Raises CheckpointError, naming the layer, where one cannot be inverted.
    """
    made: list[Piece] = []
    for step in Chain(layers, shape, CPU, torch.float32).steps:
        if isinstance(step, FoldedStep):
            folded = fold(step.layers, shape[0])
            made.append(Mixing(folded.inverted() if inverse else folded, shape))
            continue
        (layer,) = step.layers
        if isinstance(step, CouplingStep):
            made.append(Coupled(step.layer, shape, inverse))
        else:
            made.append(AsItIs(layer, inverse))
        shape = layer.out_shape(shape)
    return made[::-1] if inverse else made, shape


class Mixing(Piece):
    """An affine map of the channels of each pixel, or of a vector: one product, or an order and factors."""

    matrix: Tensor | None
    index: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, given: ChannelMap, shape: Shape) -> None:
        super().__init__()
        self.volume = given.log_det * math.prod(shape[1:])
        self.images = len(shape) == 3
        size = (-1, *[1] * (len(shape) - 1))
        matrix, index, scale, shift = given.matrix, given.index, given.scale, given.shift
        if matrix is not None:
            filters = matrix[:, :, None, None] if self.images else matrix
            self.register_buffer("matrix", filters.float().contiguous())
            self.register_buffer("shift", shift.float())
            return
        assert index is not None
        assert scale is not None
        in_order = torch.equal(index, torch.arange(len(index), device="cpu"))
        self.matrix = None
        self.register_buffer("index", None if in_order else index.clone())
        self.register_buffer("scale", None if bool((scale == 1).all()) else scale.float().view(size))
        self.register_buffer("shift", None if bool((shift == 0).all()) else shift.float().view(size))

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.matrix is not None:
            product = nn.functional.conv2d if self.images else nn.functional.linear
            return product(x, self.matrix, self.shift), None
        x = x if self.index is None else x.index_select(1, self.index)
        x = x if self.scale is None else x * self.scale
        return (x if self.shift is None else x + self.shift), None


class Coupled(Piece):
    """A coupling: its network sees one part of x, the other is scaled and shifted."""

    active: Tensor | None
    order: Tensor | None
    rescale: Tensor | None

    def __init__(self, layer: Coupling, shape: Shape, inverse: bool) -> None:
        super().__init__()
        self.network = simplified(layer.network)
        self.undo = inverse != layer.reverse
        self.split, self.changes, self.maps = layer.split, layer.changes, layer.maps
        self.border = (layer.channels + 1) // 2
        self.register_buffer("rescale", None if layer.rescale is None else layer.rescale.detach().float())
        state = torch.zeros(1, *shape, dtype=torch.float32, device="cpu")
        active = None if self.split in ("half", "alternate") else layer.changing(state).expand(shape)
        self.register_buffer("active", active if active is None else active.clone())
        order = None
        if self.split == "alternate":  # what stays, then what changes -> in their places
            index = torch.arange(layer.channels, device="cpu")
            order = torch.argsort(torch.cat([index[1 - self.changes :: 2], index[self.changes :: 2]]))
        self.register_buffer("order", order)

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.active is not None:
            raw = self.raw(torch.where(self.active, 0.0, x), condition)
            return self._couple(x, raw)
        if self.split == "half":
            first, second = x[:, : self.border], x[:, self.border :]
            kept, changed = (first, second) if self.changes else (second, first)
        else:
            kept, changed = x[:, 1 - self.changes :: 2], x[:, self.changes :: 2]
        changed, log_det = self._couple(changed, self.raw(kept, condition))
        if self.order is not None:
            return torch.cat([kept, changed], dim=1).index_select(1, self.order), log_det
        return torch.cat([kept, changed] if self.changes else [changed, kept], dim=1), log_det

    def raw(self, kept: Tensor, condition: Tensor | None) -> Tensor:
        """What the network says, which may work in half precision."""
        dtype = next(self.network.parameters(), kept).dtype
        return self.network(kept.to(dtype), condition).to(kept.dtype)

    def _couple(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """`fastgen_kernels.affine_coupling.reference.affine_coupling` with a sigmoid that keeps its digits."""
        scale, eps = self.maps["scale"], self.maps["eps"]
        if scale == "additive":
            y = x - raw if self.undo else x + raw
            return (y if self.active is None else torch.where(self.active, y, x)), None
        s, t = split(raw, self.maps["parameters"])
        if self.active is not None:
            s = torch.where(self.active, s, 0.0)
        log_a = argument(s, scale, self.maps["bound"], self.maps["slope"], self.rescale)
        if scale == "sigmoid":
            log_a = log_sigmoid(log_a)
        a = torch.exp(log_a)
        if scale == "sigmoid" and eps:
            a = a + eps
            log_a = torch.log(a)
        if self.maps["shift_first"]:
            y = x / a - t if self.undo else (x + t) * a
        else:
            y = (x - t) / a if self.undo else x * a + t
        if self.active is not None:
            y = torch.where(self.active, y, x)
            if scale == "sigmoid":  # of the other maps log a is 0 where s is
                log_a = torch.where(self.active, log_a, 0.0)
        log_det = log_a.flatten(1).sum(1)
        return y, -log_det if self.undo else log_det


class AsItIs(Piece):
    """A layer that is neither folded nor a coupling."""

    def __init__(self, layer: Layer, inverse: bool) -> None:
        super().__init__()
        self.layer, self.backwards = layer, inverse

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        layer = self.layer
        if isinstance(layer, Logit) and self.backwards:
            span = 1 - 2 * layer.alpha
            slopes = log_sigmoid(x) + log_sigmoid(-x) - math.log(span)
            return (torch.sigmoid(x) - layer.alpha) / span, slopes.flatten(1).sum(1)
        y, log_det = layer.inverse(x, condition) if self.backwards else layer(x, condition)
        return y, None if isinstance(layer, (Squeeze, Flatten)) else log_det


class Scaled(nn.Module):
    """`ChannelAffine` as x * scale + shift."""

    def __init__(self, block: ChannelAffine) -> None:
        super().__init__()
        scale, loc = block.scale.detach()[:, None, None], block.loc.detach()[:, None, None]
        self.scale, self.shift = nn.Parameter(scale, False), nn.Parameter(scale * loc, False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Bordered(nn.Module):
    """A convolution of an image with a border of one number."""

    def __init__(self, conv: nn.Conv2d, border: float) -> None:
        super().__init__()
        self.conv, self.border = conv, border

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (1, 1, 1, 1), value=self.border))


@torch.no_grad()
def simplified(network: nn.Module) -> nn.Module:
    """A copy of a network whose filters are numbers: weight norm and `ZeroConv`'s factor are computed here."""
    network = copy.deepcopy(network)
    blocks = {name: _simplified(block) for name, block in network.named_modules()}
    for name, block in blocks.items():
        if block is not None and name:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, block)
    return blocks[""] or network


def _simplified(block: nn.Module) -> nn.Module | None:
    """In place of `block`, or None: it stays."""
    if type(block) is WeightNormConv:
        return _conv(block.weight(), block.bias, block.padding)
    if type(block) is ZeroConv:
        weight, bias = block.conv.weight, block.conv.bias
        assert bias is not None
        if block.log_scale is not None:
            factor = torch.exp(3 * block.log_scale)
            weight, bias = weight * factor[:, None, None, None], bias * factor
        return Bordered(_conv(weight, bias, 0), block.border) if block.border else _conv(weight, bias, 1)
    return Scaled(block) if type(block) is ChannelAffine else None


def _conv(weight: Tensor, bias: Tensor, padding: int) -> nn.Conv2d:
    outputs, inputs, size, _ = weight.shape
    with torch.device("meta"):
        conv = nn.Conv2d(inputs, outputs, size, padding=padding)
    conv.weight, conv.bias = nn.Parameter(weight.detach(), False), nn.Parameter(bias.detach(), False)
    return conv
