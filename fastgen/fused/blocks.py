"""Twins of the blocks that U-Nets are made of: a norm and what surrounds it as one operation, sums within convolutions.

Maps keep the layout that they come in, channels-last where the engine says so.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen_kernels.group_norm import group_norm_unchecked

from ..models.blocks import ACTIVATIONS, AdaNormAct, AdaResidualBlock, Attention, NormAct, ResidualBlock
from .exactly import hooked
from .onednn import Convolution, JoinedConvolution, OneDNNConv, OneDNNJoined, takes
from .small import DEVICES, SmallHalf, is_small
from .twin import Twin

SILU = ("silu", "swish")


class PlainNorm(nn.GroupNorm):
    """act(norm([x, skip] + add) (1 + scale) + shift), each of them where it is given. scale, shift, add: [B, C]."""

    act: str | None

    @classmethod
    def of(cls, norm: NormAct) -> PlainNorm:
        """With the parameters of `norm`."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        vars(made).update({name: value for name, value in vars(norm).items() if name not in vars(made)})
        made.weight, made.bias = norm.weight, norm.bias
        return made

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        skip: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        x = x if skip is None else torch.cat([x, skip], dim=1)
        x = x if add is None else x + add[:, :, None, None]
        x = super().forward(x)
        if scale is not None and shift is not None:
            x = x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return x if self.act is None else ACTIVATIONS[self.act](x)


class FusedNorm(Twin[PlainNorm]):
    """`PlainNorm` by the fused operation."""

    def __init__(self, norm: NormAct) -> None:
        super().__init__(PlainNorm.of(norm))
        weight, bias = (None if p is None else p.detach() for p in (norm.weight, norm.bias))
        self._given = norm.num_groups, weight, bias, norm.eps
        self._silu = norm.act in SILU

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        skip: Tensor | None = None,
        add: Tensor | None = None,
    ) -> Tensor:
        y = group_norm_unchecked(x, *self._given, skip, add, scale, shift, self._silu)
        act = self.plain.act
        return y if self._silu or act is None else ACTIVATIONS[act](y)


class FusedResidual(nn.Module):
    """`ResidualBlock` with the embedding inside the second norm and the shortcut inside the second convolution.

    It takes the embedding, or where `places` is set (one slice) all projections that a network makes of it, among which
    its own lies there.
    """

    time_emb_proj: nn.Linear | None

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.scale_shift, self.output_scale, self.act = block.scale_shift, block.output_scale, block.act
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.conv1, self.conv2 = convolution(block.conv1), convolution(block.conv2)
        self.conv_shortcut = joined(block.conv_shortcut)
        self.resample = block.resample
        # The halves of the block where few pixels leave a GPU idle.
        self.first: SmallHalf | None = None
        self.second: SmallHalf | None = None
        if block.act in SILU and block.conv1.weight.device.type in DEVICES:
            short = block.conv_shortcut if isinstance(block.conv_shortcut, nn.Conv2d) else None
            self.first = SmallHalf(block.conv1, PlainNorm.of(block.norm2))
            self.second = SmallHalf(block.conv2, None, short, block.output_scale)
        self.time_emb_proj = block.time_emb_proj
        self.places: tuple[slice, ...] = ()

    def forward(self, x: Tensor, emb: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if emb is None:
            pass
        elif self.time_emb_proj is not None:
            emb = self.time_emb_proj(ACTIVATIONS[self.act](emb))
        else:
            emb = emb[:, self.places[0]]
        hidden = self.norm1(x, skip=skip)
        if self.resample is not None:
            if skip is not None:
                x, skip = torch.cat([x, skip], dim=1), None
            x, hidden = self.resample(x), self.resample(hidden)
        if self.first is not None and self.second is not None and is_small(x):
            told: dict[str, Tensor] = {}
            if emb is not None:
                names = ("scale", "shift") if self.scale_shift else ("add",)
                told = dict(zip(names, emb.chunk(len(names), dim=1), strict=True))
            return self.second(self.first(hidden, **told), short=x, skip=skip)
        hidden = self.conv1(hidden)
        if self.scale_shift and emb is not None:
            scale, shift = emb.chunk(2, dim=1)
            hidden = self.norm2(hidden, scale, shift)
        else:
            hidden = self.norm2(hidden, add=emb)
        if self.conv_shortcut is None:
            short = x if skip is None else torch.cat([x, skip], dim=1)
        else:
            short = self.conv_shortcut(x, skip)
        return _divided(self.conv2(hidden, short), self.output_scale)


class FusedAdaResidual(nn.Module):
    """`AdaResidualBlock`, likewise; it has two places, for both norms."""

    linears: nn.ModuleList | None

    def __init__(self, block: AdaResidualBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(block.norm2)
        self.linears = nn.ModuleList([block.norm1.linear, block.norm2.linear])
        self.conv1, self.conv2 = convolution(block.conv1), convolution(block.conv2)
        self.conv_shortcut = joined(block.conv_shortcut)
        self.places: tuple[slice, ...] = ()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.linears is not None:
            first, second = (linear(emb) for linear in self.linears)
        else:
            first, second = (emb[:, place] for place in self.places)
        hidden = self.conv1(self.norm1(x, *first.chunk(2, dim=1)))
        hidden = self.norm2(hidden, *second.chunk(2, dim=1))
        return self.conv2(hidden, x if self.conv_shortcut is None else self.conv_shortcut(x))


class SummedLinear(nn.Linear):
    """A linear layer, plus `residual`, added in place to its own result."""

    @classmethod
    def of(cls, linear: nn.Linear) -> SummedLinear:
        """`linear`, whose weights it shares."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        vars(made).update({name: value for name, value in vars(linear).items() if name not in vars(made)})
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).add_(residual)


class FusedAttention(nn.Module):
    """`Attention` with one product for queries, keys and values, on maps that lie as tokens already."""

    def __init__(self, block: Attention) -> None:
        super().__init__()
        self.head_dim, self.output_scale = block.head_dim, block.output_scale
        self.group_norm = None if block.group_norm is None else FusedNorm(block.group_norm)
        self.to_qkv = stacked([block.to_q, block.to_k, block.to_v])
        self.to_out = SummedLinear.of(block.to_out)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        normed = x if self.group_norm is None else self.group_norm(x)
        tokens = normed.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = self.to_qkv(tokens).view(batch, height * width, 3, -1, self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, -1)
        residual = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        y = _divided(self.to_out(attended, residual), self.output_scale)
        y = y.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


def convolution(conv: nn.Conv2d) -> OneDNNConv | Convolution:
    """A convolution that adds `residual` in the same pass where the device can."""
    return OneDNNConv(conv, prepacked=True) if takes(conv) else Convolution.of(conv)


def joined(shortcut: nn.Module) -> OneDNNJoined | JoinedConvolution | None:
    """A shortcut's convolution, of an image in two parts; None for none."""
    if isinstance(shortcut, nn.Identity):
        return None
    assert isinstance(shortcut, nn.Conv2d)
    return OneDNNJoined(shortcut) if takes(shortcut) else JoinedConvolution.of(shortcut)


@torch.no_grad()
def stacked(linears: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer whose result is theirs, one behind the other; a copy of their weights."""
    made: nn.Linear = copy.copy(linears[0])
    weights = [linear.weight.detach() for linear in linears]
    biases = [
        linear.weight.detach().new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        for linear in linears
    ]
    made._parameters = {
        "weight": nn.Parameter(torch.cat(weights), requires_grad=False),
        "bias": nn.Parameter(torch.cat(biases), requires_grad=False),
    }
    made.out_features = len(made.weight)
    return made


# What stands in a block whose twin is made, to the class: with another module in its place the block stays as it is.
PARTS: dict[type[nn.Module], dict[str, tuple[type | None, ...]]] = {
    ResidualBlock: {
        "norm1": (NormAct,), "conv1": (nn.Conv2d,), "time_emb_proj": (nn.Linear, type(None)), "norm2": (NormAct,),
        "dropout": (nn.Dropout,), "conv2": (nn.Conv2d,), "conv_shortcut": (nn.Conv2d, nn.Identity),
    },
    AdaResidualBlock: {
        "norm1": (AdaNormAct,), "conv1": (nn.Conv2d,), "norm2": (AdaNormAct,), "dropout": (nn.Dropout,),
        "conv2": (nn.Conv2d,), "conv_shortcut": (nn.Conv2d, nn.Identity),
    },
    Attention: {
        "group_norm": (NormAct, type(None)), "to_q": (nn.Linear,), "to_k": (nn.Linear,), "to_v": (nn.Linear,),
        "to_out": (nn.Linear,),
    },
    AdaNormAct: {"linear": (nn.Linear,)},
}  # fmt: skip


def whole(block: nn.Module) -> bool:
    """Whether `block` is made of what its twin knows: no hooks on it or within it, and no modules of other kinds."""
    for module in block.modules():
        known = PARTS.get(type(module), {})
        if hooked(module) or any(
            type(part) not in known[name] for name, part in module._modules.items() if name in known
        ):
            return False
    return True


def _divided(y: Tensor, scale: float) -> Tensor:
    """y / scale, in place; nothing is computed for the usual scale of 1."""
    return y if scale == 1 else y.div_(scale)
