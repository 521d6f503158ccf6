"""Convolutions with their activation and a sum in the same pass; of few output channels, several pixels at a time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.resample import Upsample
from . import winograd
from .folding import folded
from .onednn import Convolution, OneDNNConv, OneDNNUp, takes, takes_up
from .twin import Twin

PIXELS = 4  # of a row that few output channels are computed for at a time
LANES = 16  # output channels that oneDNN computes at least, whatever is asked for


class ActConvolution(Convolution):
    """A convolution, then y where y > 0 and slope y elsewhere, plus `residual` if it is given.

    slope: [1] or [out channels], of ReLU 0; None: no activation.
    """

    slope: nn.Parameter | None
    joined = True

    @classmethod
    def made(cls, conv: nn.Conv2d, slope: Tensor | None) -> ActConvolution:
        """`conv`, whose weights it shares, and the activation."""
        made = cls.of(conv)
        made.slope = None if slope is None else nn.Parameter(slope.detach(), requires_grad=False)
        made._value = float(slope) if slope is not None and slope.numel() == 1 else None
        return made

    _value: float | None  # of one slope for all, at hand

    def forward(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        y = activated(nn.Conv2d.forward(self, x), self._value, self.slope)
        y = y if residual is None else y.add_(residual)
        return y if out is None else out.copy_(y)


def activated(y: Tensor, value: float | None, slope: Tensor | None) -> Tensor:
    """The activation; in place where there is one slope for all."""
    if slope is None:
        return y
    return F.prelu(y, slope) if value is None else F.leaky_relu_(y, value)


class OneDNNActConv(OneDNNConv):
    """What `ActConvolution` computes, by oneDNN's own calls, filters laid out beforehand."""

    joined = True

    def __init__(self, conv: ActConvolution) -> None:
        super().__init__(conv, prepacked=True)
        self._plain = (conv,)
        self._minimal = winograd.fits(conv)
        self._slope, self._value = conv.slope, conv._value
        self._inside: tuple[str, list[float]] = ("none", [])
        if self._value is not None:
            self._inside = ("relu", []) if self._value == 0 else ("leaky_relu", [self._value])

    def forward(self, x: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """x may be some of the channels of a tensor that is channels-last; out: where the result goes, likewise."""
        filtered = self.winograd_of(x)
        if filtered is not None:
            y = filtered(x, None if self._slope is None else self._activated)
            y = y if residual is None else y.add_(residual)
            return y if out is None else out.copy_(y)
        if self._packed is None:  # in the first call: the layout goes by the image's size, not by the batch's
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.plain.weight.detach(), *self._how, list(x.shape)
            )
        if residual is not None and self._slope is None:
            y = torch.ops.mkldnn._convolution_pointwise.binary(
                x, residual, self._packed, self._bias, *self._how, "add", 1.0, None, [], None
            )
        else:
            name, scalars = self._inside
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self._packed, self._bias, *self._how, name, scalars, ""
            )
            if self._slope is not None and self._value is None:
                y = F.prelu(y, self._slope)
            y = y if residual is None else y.add_(residual)
        return y if out is None else out.copy_(y)

    def _activated(self, y: Tensor) -> Tensor:
        """The activation of [..., channels], within `Winograd`."""
        assert self._slope is not None
        if self._value is not None:
            return F.leaky_relu_(y, self._value)
        return F.prelu(y.reshape(-1, y.shape[-1]), self._slope).view_as(y)


class OneDNNFew(Twin[Convolution]):
    """A wide convolution to few channels, of `PIXELS` pixels of a row at a time.

    oneDNN computes 16 output channels at least: for the 9x9 convolution to three colours at SRResNet's end, a third of
    its time, thirteen of them are for nothing. A channels-last row of [W, C] is one of [W / 4, 4 C] without a copy; the
    filters for four pixels lie in three such columns. The products are the same, the rest are zeros.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(Convolution.of(conv))
        outputs, inputs, height, width = conv.weight.shape
        r, given = width // 2, conv.weight.detach()
        weight = given.new_zeros(PIXELS, outputs, PIXELS, inputs, height, 3)
        for j in range(PIXELS):
            for column in range(3 * PIXELS):
                dx = column - PIXELS - j + r
                if 0 <= dx < width:
                    weight[j, :, column % PIXELS, :, :, column // PIXELS] = given[..., dx]
        self._weight = weight.reshape(PIXELS * outputs, PIXELS * inputs, height, 3)
        self._bias = None if conv.bias is None else conv.bias.detach().repeat(PIXELS)
        self._how = [height // 2, 1], [1, 1], [1, 1], 1
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        more = -width % PIXELS
        if more:
            x = F.pad(x, (0, more))  # zeros, which lie there anyway
        rows = x.permute(0, 2, 3, 1).contiguous()
        wide = rows.view(batch, height, -1, PIXELS * channels).permute(0, 3, 1, 2)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, *self._how, list(wide.shape)
            )
        y = torch.ops.mkldnn._convolution_pointwise(
            wide, self._packed, self._bias, *self._how, "none", [], ""
        )
        y = y.permute(0, 2, 3, 1).reshape(batch, height, width + more, -1)
        return y[:, :, :width].permute(0, 3, 1, 2)


class ActUpsample(Upsample):
    """`Upsample`, then LeakyReLU of one slope: [B, C, H, W] -> [B, C, 2H, 2W]."""

    slope: float
    joined = True

    @classmethod
    def made(cls, block: Upsample, slope: float) -> ActUpsample:
        """`block`, whose convolution it shares, and the activation."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.conv, made.slope = block.conv, slope
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(super().forward(x), self.slope)


def act_conv(
    conv: nn.Conv2d, act: nn.Module | float | None = None, norm: nn.Module | None = None
) -> nn.Module:
    """`conv`, its batch norm folded, then `act` (ReLU, LeakyReLU, PReLU, a slope, or nothing), as it runs fastest."""
    layers = [conv] if norm is None or type(norm) is nn.Identity else folded([conv, norm])
    if len(layers) > 1:  # a batch norm without statistics of its own
        return nn.Sequential(*layers, *([act] if isinstance(act, nn.Module) else []))
    (layer,) = layers
    assert isinstance(layer, nn.Conv2d)
    plain = ActConvolution.made(layer, slope_of(act, layer.weight))
    return OneDNNActConv(plain) if takes(layer) else plain


def up_conv(block: Upsample, slope: float) -> nn.Module:
    """`Upsample` and a LeakyReLU, as they run fastest."""
    made = ActUpsample.made(block, slope)
    return OneDNNUp(made, slope) if takes_up(block) else made


def last_conv(conv: nn.Conv2d) -> nn.Module:
    """A convolution without an activation, as it runs fastest; mostly to few channels."""
    wide = (
        conv.out_channels * PIXELS <= LANES
        and conv.kernel_size[1] > PIXELS
        and conv.kernel_size[1] // 2 <= PIXELS
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2)
        and conv.groups == 1
    )
    return OneDNNFew(conv) if wide and takes(conv) else act_conv(conv)


def scaled(conv: nn.Conv2d, factor: float) -> nn.Conv2d:
    """`conv` with weights and bias times `factor`, of its own."""
    made = copy.copy(conv)
    made._parameters = {
        name: None
        if value is None
        else nn.Parameter(value.detach().double().mul(factor).to(value.dtype), False)
        for name, value in conv._parameters.items()
    }
    return made


def slope_of(act: nn.Module | float | None, like: Tensor) -> Tensor | None:
    """Where y < 0, what it is multiplied by: [1] or [channels], in the type of `like`."""
    if act is None:
        return None
    if isinstance(act, nn.PReLU):
        return act.weight.detach()
    if isinstance(act, nn.LeakyReLU):
        act = act.negative_slope
    elif isinstance(act, nn.ReLU):
        act = 0.0
    assert isinstance(act, float)
    return like.new_full((1,), act)
