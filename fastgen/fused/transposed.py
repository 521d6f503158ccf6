"""Transposed convolutions on the CPU by oneDNN's own call, with filters laid out beforehand, and as convolutions.

PyTorch rearranges the filters in every call: for the inner layers of a U-Net of pix2pix, of 33 MB each, that takes
several times as long as the arithmetic. oneDNN's own code computes a few output channels one by one: for an image of
three channels four small convolutions at once are three times as fast.
"""

from __future__ import annotations

import functools
import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .exactly import hooked
from .onednn import OneDNNConv, why_not
from .twin import Twin

FEW = 16  # channels out up to which a transposed convolution is done as a convolution
# Elements of a matrix product whose sums are the result, up to which that is faster (1.1 to 5 times) than the two forms
# here.
COLUMNS = 1 << 16


class Transposed(nn.ConvTranspose2d):
    """A transposed convolution, then a ReLU if `rectified`."""

    rectified = False

    @classmethod
    def of(cls, conv: nn.ConvTranspose2d, rectified: bool = False) -> Self:
        """`conv`, whose weights it shares."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        vars(made).update({name: value for name, value in vars(conv).items() if name not in vars(made)})
        made.weight, made.bias, made.rectified = conv.weight, conv.bias, rectified
        return made

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = super().forward(x)
        return y.relu_() if self.rectified else y


class Product:
    """A transposed convolution, and a ReLU if `rectified`, of a few pixels: PyTorch's own matrix product and sums."""

    def __init__(self, conv: nn.ConvTranspose2d, rectified: bool) -> None:
        self._weight, self._rectified = conv.weight.detach(), rectified
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._size = conv.kernel_size
        self._how = conv.stride, conv.padding, conv.output_padding, conv.dilation
        takes = conv.groups == 1 and conv.weight.dtype == torch.float32
        self._columns = math.prod(conv.kernel_size) * conv.out_channels if takes else 0  # for each pixel
        self._rows: Tensor | None = None  # filters, channels last

    def __call__(self, x: Tensor) -> Tensor | None:
        """None where oneDNN is faster."""
        batch, _, height, width = x.shape
        columns = batch * height * width * self._columns
        if not columns or columns > COLUMNS:
            return None
        if self._rows is None:
            self._rows = self._weight.contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.ops.aten.slow_conv_transpose2d(x, self._rows, self._size, self._bias, *self._how)
        return y.relu_() if self._rectified else y


class OneDNNTransposed(Twin[nn.ConvTranspose2d]):
    """`nn.ConvTranspose2d` with a copy of its filters that is laid out for oneDNN in the first call.

    rectified: a ReLU follows in the same pass.
    """

    def __init__(self, conv: nn.ConvTranspose2d, rectified: bool = False) -> None:
        super().__init__(Transposed.of(conv, rectified) if rectified else conv)
        self._act = "relu" if rectified else "none"
        self._how = (
            list(conv.padding),
            list(conv.output_padding),
            list(conv.stride),
            list(conv.dilation),
            conv.groups,
        )
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._packed: Tensor | None = None
        self._product = Product(conv, rectified)

    def forward(self, x: Tensor) -> Tensor:
        y = self._product(x)
        return self.by_onednn(x) if y is None else y

    def by_onednn(self, x: Tensor) -> Tensor:
        """The same, of any size."""
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self.plain.weight.detach().contiguous(), *self._how, list(x.shape)
            )
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self._packed, self._bias, *self._how, self._act, [], ""
        )


class PhasedTransposed(Twin[nn.ConvTranspose2d]):
    """A 4x4 transposed convolution of stride 2 and padding 1, as one 2x2 convolution whose pixels are then spread.

    Along one axis out[2i] = w3 in[i-1] + w1 in[i] and out[2i+1] = w2 in[i] + w0 in[i+1]: two filters of the same
    windows in[j-1], in[j], at j = i and j = i + 1; in two dimensions four.
    """

    def __init__(self, conv: nn.ConvTranspose2d, rectified: bool = False) -> None:
        super().__init__(Transposed.of(conv, rectified) if rectified else conv)
        weight = conv.weight.detach()  # [in, out, 4, 4]
        taps = ((3, 1), (2, 0))
        phases = [weight[:, :, rows][:, :, :, columns] for rows in taps for columns in taps]
        filters = torch.stack(phases).transpose(1, 2).flatten(0, 1).contiguous()  # [4 out, in, 2, 2]
        inner = nn.Conv2d(conv.in_channels, len(filters), 2, padding=1, bias=False, device="meta")
        inner.weight = nn.Parameter(filters, requires_grad=False)
        if conv.bias is not None:
            inner.bias = nn.Parameter(conv.bias.detach().repeat(4), requires_grad=False)
        self._conv = (OneDNNConv(inner, rectified, prepacked=True),)  # not a module within this one
        self._product = Product(conv, rectified)

    def forward(self, x: Tensor) -> Tensor:
        if (y := self._product(x)) is not None:
            return y
        batch, _, height, width = x.shape
        phases = self._conv[0](x).unflatten(1, (2, 2, -1))
        y = x.new_empty(batch, self.plain.out_channels, 2 * height, 2 * width)
        for row in range(2):
            for column in range(2):
                part = phases[:, row, column, :, row : row + height, column : column + width]
                y[:, :, row::2, column::2] = part
        return y


class WideTransposed(Twin[nn.ConvTranspose2d]):
    """A transposed convolution of float16 in float32, for a CPU without instructions for float16.

    PyTorch adds its products in float16 there, and is off by tens of roundings.
    """

    def __init__(self, conv: nn.ConvTranspose2d, rectified: bool = False) -> None:
        super().__init__(Transposed.of(conv, rectified) if rectified else conv)
        self._rectified = rectified
        self._weight = conv.weight.detach().float()
        self._bias = None if conv.bias is None else conv.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        conv = self.plain
        y = F.conv_transpose2d(
            x.float(),
            self._weight,
            self._bias,
            conv.stride,
            conv.padding,  # type: ignore[arg-type]
            conv.output_padding,
            conv.groups,
            conv.dilation,
        )
        return (y.relu_() if self._rectified else y).to(x.dtype)


def transposed(conv: nn.ConvTranspose2d, rectified: bool = False) -> nn.Module:
    """The fast form of `conv` here, and of a ReLU behind it, or `conv` itself."""
    if type(conv) is not nn.ConvTranspose2d or hooked(conv) or conv.weight.device.type != "cpu":
        return conv
    if (
        conv.weight.dtype == torch.float16
        and why_not(torch.float16) is not None
        and conv.padding_mode == "zeros"
    ):
        return WideTransposed(conv, rectified)
    if why_not(conv.weight.dtype) is not None or not _right(conv.weight.dtype):
        return conv
    halves = (conv.kernel_size, conv.stride, conv.padding) == ((4, 4), (2, 2), (1, 1))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.output_padding == (0, 0)
    kind = PhasedTransposed if halves and plain and conv.out_channels <= FEW else OneDNNTransposed
    return kind(conv, rectified)


def takes_transposed(block: nn.Module) -> bool:
    """Whether `transposed` has a fast form of `block`."""
    return type(block) is nn.ConvTranspose2d and transposed(block) is not block


@functools.cache
def _right(dtype: torch.dtype) -> bool:
    """Whether `OneDNNTransposed` gives the numbers of plain PyTorch, which small ones are exactly in every type."""
    generator = torch.Generator("cpu").manual_seed(0)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator, device="cpu").to(dtype)

    with torch.inference_mode(False), torch.no_grad():
        x = whole(2, 16, 6, 5).contiguous(memory_format=torch.channels_last)
        for size, more in ((4, 0), (3, 1)):
            conv = nn.ConvTranspose2d(16, 8, size, 2, 1, output_padding=more, device="meta")
            conv.weight = nn.Parameter(whole(16, 8, size, size), requires_grad=False)
            conv.bias = nn.Parameter(whole(8), requires_grad=False)
            exact = F.conv_transpose2d(
                x.float(), conv.weight.float(), conv.bias.float(), 2, 1, output_padding=more
            )
            if not torch.equal(OneDNNTransposed(conv).by_onednn(x).float(), exact):
                return False
    return True
