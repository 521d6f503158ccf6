"""Fast twins of super-resolution networks: norms folded, activations and sums within the convolutions before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.upscale import msrresnet, rrdbnet
from ..models.upscale.msrresnet import MSRResNet
from ..models.upscale.rrdbnet import DENSE, RESIDUAL, DenseBlock, RRDBNet
from ..models.upscale.srresnet import SRResNet
from ..models.upscale.srvgg import SRVGG
from ..models.upscale.upscaler import UpBlock, Upscaler
from .activated import act_conv, last_conv, scaled, slope_of, up_conv
from .exactly import hooked


@torch.no_grad()
def fused_upscaler(network: nn.Module) -> nn.Module:
    """A module that computes what `network` computes at inference; the network itself where it has hooks or no twin.

    It takes float32 whatever its weights' type is, and an enlarged input that the network adds is not rounded to that.
    Batch norms are folded into the filters of now, and so are the factors 0.2 of RRDBNet; other parameters are shared.
    """
    make = TWINS.get(type(network))
    if make is None or any(map(hooked, network.modules())):
        return network
    return make(network)


class FusedUp(nn.Module):
    """`UpBlock` with its activation before the shuffle, in the convolution."""

    def __init__(self, block: UpBlock) -> None:
        super().__init__()
        factor = block.shuffle.upscale_factor
        slope = slope_of(block.act, block.conv.weight)
        assert slope is not None
        act = nn.PReLU(1)
        if (
            slope.numel() > 1
        ):  # channel c of the result is made of the channels c factor^2, ... of the convolution
            slope = slope.repeat_interleave(factor**2)
        act.weight = nn.Parameter(slope, requires_grad=False)
        self.conv, self.factor = act_conv(block.conv, act), factor

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), self.factor)


class FusedResidual(nn.Module):
    """x + conv2(act(conv1(x))), the sum in the second convolution."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv1, conv2

    def forward(self, x: Tensor) -> Tensor:
        return added(self.conv2, self.conv1(x), x)


class Fused(nn.Module):
    """A network whose convolutions are of `dtype`."""

    def __init__(self, network: Upscaler) -> None:
        super().__init__()
        self.dtype = next(network.parameters()).dtype

    def inside(self, x: Tensor) -> Tensor:
        """x as the convolutions take it."""
        return x.to(self.dtype, memory_format=torch.channels_last)


class FusedSRResNet(Fused):
    """`SRResNet`."""

    def __init__(self, network: SRResNet) -> None:
        super().__init__(network)
        self.tanh = network.config.output == "tanh"
        self.conv_in = act_conv(network.conv_in, network.act_in)
        self.blocks = nn.ModuleList()
        for block in network.blocks:
            b: Any = block
            first, second = act_conv(b.conv1, b.act, b.norm1), act_conv(b.conv2, None, b.norm2)
            self.blocks.append(FusedResidual(first, second))
        act = isinstance(network.end_body, nn.PReLU)
        end = (network.end_body, None) if act else (None, network.end_body)
        self.conv_body = act_conv(network.conv_body, *end)
        self.ups = nn.ModuleList(FusedUp(up) for up in network.ups)  # type: ignore[arg-type]
        self.conv_out = last_conv(network.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_in(self.inside(x))
        x = first
        for block in self.blocks:
            x = block(x)
        x = added(self.conv_body, x, first)
        for up in self.ups:
            x = up(x)
        x = self.conv_out(x)
        return (torch.tanh(x) + 1) / 2 if self.tanh else x


class FusedMSRResNet(Fused):
    """`MSRResNet`."""

    def __init__(self, network: MSRResNet) -> None:
        super().__init__(network)
        self.scale = network.scale
        self.conv_in = act_conv(network.conv_in, msrresnet.SLOPE)
        self.blocks = nn.ModuleList()
        for block in network.blocks:
            b: Any = block
            self.blocks.append(FusedResidual(act_conv(b.conv1, 0.0), act_conv(b.conv2)))
        self.ups = nn.ModuleList(FusedUp(up) for up in network.ups)  # type: ignore[arg-type]
        self.conv_hr = act_conv(network.conv_hr, msrresnet.SLOPE)
        self.conv_out = last_conv(network.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_in(self.inside(x))
        for block in self.blocks:
            y = block(y)
        for up in self.ups:
            y = up(y)
        base = F.interpolate(x, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return self.conv_out(self.conv_hr(y)) + base


class FusedDense(nn.Module):
    """`DenseBlock` in a buffer [B, C + 4 growth, H, W] that holds x and, behind it, each result: nothing is joined.

    The last convolution's filters hold `factor`; it adds x, or what is given as `residual`.
    """

    def __init__(self, block: DenseBlock, factor: float) -> None:
        super().__init__()
        first: Any = block.convs[0]
        self.channels: int = first.in_channels
        self.growth: int = first.out_channels
        self.convs = nn.ModuleList(act_conv(conv, rrdbnet.SLOPE) for conv in block.convs[:-1])  # type: ignore[arg-type]
        self.convs.append(act_conv(scaled(block.convs[-1], factor)))  # type: ignore[arg-type]

    def forward(self, held: Tensor, residual: Tensor, out: Tensor | None = None) -> Tensor:
        """held: the buffer, whose first channels are x. out: where the result goes."""
        for k, conv in enumerate(self.convs[:-1]):
            seen = self.channels + k * self.growth
            conv(held[:, :seen], out=held[:, seen : seen + self.growth])
        return self.convs[-1](held, residual, out)


class FusedRRDB(nn.Module):
    """Three dense blocks, x + 0.2 of them: the factors lie in filters.

    The three results are x1 = x + 0.2 d(x), x2 = x1 + 0.2 d(x1) and x + 0.2 (x2 + 0.2 d(x2)), so that the third block's
    last convolution, times 0.04, adds x + 0.2 x2.
    """

    def __init__(self, block: rrdbnet.RRDB) -> None:
        super().__init__()
        factors = (RESIDUAL, RESIDUAL, RESIDUAL**2)
        self.dense = nn.ModuleList(
            FusedDense(dense, factor)  # type: ignore[arg-type]
            for dense, factor in zip(block.dense, factors, strict=True)
        )

    def forward(self, held: Tensor, x: Tensor) -> Tensor:
        """held: a buffer for the blocks; x is changed to the result."""
        inside = held[:, : x.shape[1]]
        inside.copy_(x)
        self.dense[0](held, inside, out=inside)
        self.dense[1](held, inside, out=inside)
        x.add_(inside, alpha=RESIDUAL)
        return self.dense[2](held, x, out=x)


class FusedRRDBNet(Fused):
    """`RRDBNet`."""

    def __init__(self, network: RRDBNet) -> None:
        super().__init__(network)
        self.multiple, self.growth = network.multiple, network.config.growth
        self.conv_in = act_conv(network.conv_in)
        self.blocks = nn.ModuleList(FusedRRDB(block) for block in network.blocks)  # type: ignore[arg-type]
        self.conv_body = act_conv(network.conv_body)
        self.up1, self.up2 = up_conv(network.up1, rrdbnet.SLOPE), up_conv(network.up2, rrdbnet.SLOPE)
        self.conv_hr = act_conv(network.conv_hr, rrdbnet.SLOPE)
        self.conv_out = last_conv(network.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(F.pixel_unshuffle(x, self.multiple) if self.multiple > 1 else x)
        x = self.conv_in(x)
        batch, channels, height, width = x.shape
        held = torch.empty(
            (batch, channels + (DENSE - 1) * self.growth, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        y = x.clone(memory_format=torch.channels_last)
        for block in self.blocks:
            y = block(held, y)
        x = added(self.conv_body, y, x)
        return self.conv_out(self.conv_hr(self.up2(self.up1(x))))


class FusedSRVGG(Fused):
    """`SRVGG`."""

    def __init__(self, network: SRVGG) -> None:
        super().__init__(network)
        self.scale = network.scale
        layers = list(network.body)
        pairs = zip(layers[::2], layers[1::2], strict=True)
        self.body = nn.Sequential(*(act_conv(conv, act) for conv, act in pairs))  # type: ignore[arg-type]
        self.conv_out = act_conv(network.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.conv_out(self.body(self.inside(x))), self.scale)
        return y + F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


def added(conv: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """conv(x) + residual, in one pass where `conv` can."""
    return conv(x) + residual if isinstance(conv, nn.Sequential) else conv(x, residual)


TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    SRResNet: FusedSRResNet,
    MSRResNet: FusedMSRResNet,
    RRDBNet: FusedRRDBNet,
    SRVGG: FusedSRVGG,
}
