"""Convolutions on the CPU by oneDNN's own calls: filters laid out beforehand, and what follows in the same pass.

PyTorch rearranges a convolution's filters in every call. For the CIFAR-10 U-Net (35.7 M) that is a fifth of the time of
its convolutions at batch 1 and a fourteenth at batch 8; for a bfloat16 Glow a fifth at any batch.

These operators are PyTorch's own, but private (its compiler calls them): `why_not` compares each with the plain
operation before the first use, and their twins are not made where one is missing or differs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.building import without_values
from ..models.resample import Upsample
from . import winograd
from .exactly import hooked
from .twin import Twin

HALF = (torch.bfloat16, torch.float16)
BORDERS = ("reflect", "replicate")  # that are made before oneDNN is called
# Multiplications up to which a 1x1 convolution is a matrix product: a call of oneDNN costs 25 to 40 us more.
PRODUCT = 1 << 22
# Multiplications of other convolutions, and the runs of channels that are copied beforehand, up to which they are
# faster as a matrix product: 1.1 to 2.3 times, with filters of 3x3 and 4x4, strides of 1 and 2.
SMALL, PIECES = 5 << 18, 1 << 12


class Convolution(nn.Conv2d):
    """A convolution, then a ReLU if `rectified`, plus `residual` if it is given."""

    rectified = False

    @classmethod
    def of(cls, conv: nn.Conv2d, rectified: bool = False) -> Self:
        """`conv`, whose weights it shares."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        vars(made).update({name: value for name, value in vars(conv).items() if name not in vars(made)})
        made.weight, made.bias, made.rectified = conv.weight, conv.bias, rectified
        return made

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        if self.rectified:
            y = y.relu_()
        return y if residual is None else y.add_(residual)


class OneDNNConv(Twin[Convolution]):
    """What `Convolution` computes. prepacked: with a copy of the filters that is laid out for oneDNN in the first call.

    In half precision they always are: both copies together are what float32's one was. Large images in float32 are
    filtered by `Winograd`, whose filters take four times the memory, in place of a copy for oneDNN. Borders are zeros,
    mirrored or repeated, as `conv` has them.
    """

    def __init__(self, conv: nn.Conv2d, rectified: bool = False, *, prepacked: bool = False) -> None:
        super().__init__(Convolution.of(conv, rectified))
        # Small images take microseconds: what a call needs is at hand.
        bordered = conv.padding_mode in BORDERS
        self._border = list(conv._reversed_padding_repeated_twice) if bordered else None
        padding = _sides(conv.padding) if self._border is None else [0, 0]
        self._how = padding, _sides(conv.stride), _sides(conv.dilation), conv.groups
        self._act = "relu" if rectified else "none"
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._prepacked = prepacked or conv.weight.dtype in HALF
        self._packed: Tensor | None = None
        self._minimal = prepacked and winograd.fits(conv)
        self._winograd: winograd.Winograd | None = None
        self._copies = (
            0.0  # runs of channels that are copied for each pixel, where `_by_product` may be faster
        )
        plain = bordered is False and conv.groups == 1 and set(_sides(conv.dilation)) == {1}
        if plain and self._prepacked and conv.weight.dtype == torch.float32 and conv.kernel_size != (1, 1):
            self._copies = math.prod(conv.kernel_size) / math.prod(_sides(conv.stride))
        self._rows: Tensor | None = None  # filters, channels last

    def _by_product(self, x: Tensor) -> Tensor | None:
        """The convolution, ReLU included, as PyTorch's own matrix product; None where oneDNN is faster."""
        batch, channels, height, width = x.shape
        pieces = batch * height * width * self._copies
        if pieces > PIECES or pieces * channels * self.plain.out_channels > SMALL:
            return None
        if self._rows is None:
            self._rows = self.plain.weight.detach().contiguous(memory_format=torch.channels_last)
        padding, stride, _, _ = self._how
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.ops.aten.thnn_conv2d(x, self._rows, self.plain.kernel_size, self._bias, stride, padding)
        return y.relu_() if self._act == "relu" else y

    def winograd_of(self, x: Tensor) -> winograd.Winograd | None:
        """What filters images like `x`, if oneDNN does not."""
        if not self._minimal or not winograd.gains(x, any_size=self._border is not None):
            return None
        if self._winograd is None:
            self._winograd = winograd.Winograd(self.plain.weight, self._bias, self.plain.padding_mode)
        return self._winograd

    @property
    def weight(self) -> Tensor:
        return self.plain.weight

    @property
    def bias(self) -> Tensor | None:
        return self.plain.bias

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        filtered = self.winograd_of(x)
        if filtered is not None:
            y = filtered(x)
            y = y.relu_() if self._act == "relu" else y
            return y if residual is None else y.add_(residual)
        product = self._by_product(x) if self._copies else None
        if product is not None:
            return product if residual is None else product.add_(residual)
        weight, how = self._packed, self._how
        if self._border is not None:
            x = F.pad(x, self._border, self.plain.padding_mode)
        if weight is None:
            weight = self.plain.weight.detach()
            if self._prepacked:
                # In the first call: the layout goes by the image's size, not by the batch's.
                weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape))
                self._packed = weight
            elif len(x) == 1 and self._border is None:
                # Rearranging the filters costs more than oneDNN gains: PyTorch multiplies matrices instead.
                return self.plain(x, residual)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(x, weight, self._bias, *how, self._act, [], "")
        if self._act == "relu":  # oneDNN would add first
            y = torch.ops.mkldnn._convolution_pointwise(x, weight, self._bias, *how, self._act, [], "")
            return y.add_(residual)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, weight, self._bias, *how, "add", 1.0, None, [], None
        )


class OneDNNUp(Twin[Upsample]):
    """`Upsample` as one transposed convolution: 16 products where doubling first takes 36.

    Of the 3x3 pixels that a filter sees after the doubling, two rows and two columns are equal: a 2x2 filter with sums
    of weights, another one for even and odd rows and columns, which together are a 4x4 filter with stride 2.
    """

    refolded = True

    def __init__(self, block: Upsample, slope: float | None = None) -> None:
        """slope: of the LeakyReLU that `block` ends in."""
        super().__init__(block)
        self.joined = slope is not None
        self._act: tuple[str, list[float]] = ("none", []) if slope is None else ("leaky_relu", [slope])
        weight = block.conv.weight.detach()
        # Output row 2i + k - 1 gets from row i: w2 for k = 0, w1 + w2, w0 + w1, w0 for k = 3.
        sums = torch.tensor(
            [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64, device=weight.device
        )
        wide = torch.einsum("aj,ocjk,bk->coab", sums, weight.double(), sums)
        self._weight = wide.to(weight.dtype).contiguous()
        self._packed = False

    def forward(self, x: Tensor) -> Tensor:
        how = [1, 1], [0, 0], [2, 2], [1, 1], 1
        if not self._packed:
            self._weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self._weight, *how, list(x.shape)
            )
            self._packed = True
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self._weight, self.plain.conv.bias, *how, *self._act, ""
        )


class OneDNNJoined(Twin["JoinedConvolution"]):
    """`JoinedConvolution` without the joined image: each part by its own filters, the second added in the same pass.

    Small 1x1 ones in float32 are matrix products of channels-last pixels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(JoinedConvolution.of(conv))
        pointwise = {*conv.kernel_size, *conv.stride} == {1} and not any(conv.padding) and conv.groups == 1
        self._matrix: Tensor | None = None  # [out, in]
        if pointwise and conv.weight.dtype == torch.float32:
            self._matrix = conv.weight.detach().flatten(1)
        self._parts: tuple[OneDNNConv, OneDNNConv] | None = None  # once their channels are known
        self._whole = (OneDNNConv(conv, prepacked=True),)  # not a module within this one, nor the parts

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self._matrix is not None and x.shape[2] * x.shape[3] * len(x) * self._matrix.numel() <= PRODUCT:
            return self._product(self._matrix, x, skip)
        if skip is None:
            return self._whole[0](x)
        if self._parts is None:
            conv, seam = self.plain, x.shape[1]
            first, second = (_of_channels(conv, part) for part in (slice(seam), slice(seam, None)))
            first.bias = conv.bias
            self._parts = OneDNNConv(first, prepacked=True), OneDNNConv(second, prepacked=True)
        of_x, of_skip = self._parts
        return of_skip(skip, of_x(x))

    def _product(self, matrix: Tensor, x: Tensor, skip: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
        bias = self.plain.bias
        y = F.linear(pixels, matrix[:, :channels], None if bias is None else bias.detach())
        if skip is not None:
            y.addmm_(skip.permute(0, 2, 3, 1).reshape(len(pixels), -1), matrix[:, channels:].t())
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)


class JoinedConvolution(Convolution):
    """The convolution of [x, skip], whose channels stand behind each other."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return super().forward(x if skip is None else torch.cat([x, skip], dim=1))


def _of_channels(conv: nn.Conv2d, part: slice) -> nn.Conv2d:
    """The convolution of some input channels, without a bias."""
    made = Convolution.of(conv)
    made.weight, made.bias = nn.Parameter(conv.weight.detach()[:, part], requires_grad=False), None
    made.in_channels = made.weight.shape[1]
    return made


def _sides(value: Any) -> list[int]:
    return [int(side) for side in value]


def takes(conv: nn.Module) -> bool:
    """Whether oneDNN's own calls can do `conv` here, on a CPU.

    Never one that has hooks, or whose weight is computed (weight norm).
    """
    if (
        type(conv) is not nn.Conv2d
        or hooked(conv)
        or not isinstance(conv.weight, nn.Parameter)
        or conv.weight.device.type != "cpu"
        or conv.padding_mode not in ("zeros", *BORDERS)
        or isinstance(conv.padding, str)
    ):
        return False
    return why_not(conv.weight.dtype) is None


def takes_up(block: Upsample) -> bool:
    """Whether `OneDNNUp` can stand for `block`."""
    return not hooked(block) and takes(block.conv)


@functools.cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why oneDNN's own calls are not used for tensors of `dtype`; None: they are, and were found right."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN"
    if dtype == torch.bfloat16:
        supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    elif dtype == torch.float16:
        supported = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    else:
        supported = dtype == torch.float32
    if not supported:
        return f"this CPU has no instructions for {str(dtype).removeprefix('torch.')}"
    try:
        with torch.inference_mode(False), torch.no_grad():
            wrong = _wrong(dtype)
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ) as error:  # an operator that is missing or takes other arguments
        return (
            f"oneDNN's calls have changed in PyTorch {torch.__version__}: {str(error).partition(chr(10))[0]}"
        )
    return f"oneDNN's {wrong} gives other numbers in PyTorch {torch.__version__}" if wrong else None


def _wrong(dtype: torch.dtype) -> str | None:
    """Which of the twins above differs from its plain form on small numbers that every type holds exactly."""
    generator = torch.Generator("cpu").manual_seed(0)

    def whole(*shape: int) -> Tensor:  # sums of such products are exact, too, in any order
        return torch.randint(-1, 2, shape, generator=generator, device="cpu").to(dtype)

    def filled(conv: nn.Conv2d) -> nn.Conv2d:
        conv.weight = nn.Parameter(whole(*conv.weight.shape), requires_grad=False)
        conv.bias = nn.Parameter(whole(conv.out_channels), requires_grad=False)
        return conv

    x, skip = (whole(2, 16, 6, 5).contiguous(memory_format=torch.channels_last) for _ in range(2))
    with without_values():
        small, strided, joined = (
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.Conv2d(32, 8, 1),
        )
        up = Upsample(16)
    del up.conv.weight
    up.conv = filled(nn.Conv2d(16, 16, 3, padding=1, device="meta"))
    small, strided, joined = filled(small), filled(strided), filled(joined)
    by_calls = OneDNNJoined(joined)
    by_calls._matrix = None  # what is tried here are oneDNN's own calls
    residual = whole(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    trials: list[tuple[str, Twin, tuple[Tensor, ...]]] = [
        ("convolution", OneDNNConv(small, prepacked=True), (x,)),
        ("convolution with a ReLU", OneDNNConv(small, rectified=True), (x,)),
        ("convolution with a sum", OneDNNConv(small, prepacked=True), (x, residual)),
        ("strided convolution", OneDNNConv(strided, prepacked=True), (x,)),
        ("joined convolution", by_calls, (x, skip)),
        ("transposed convolution", OneDNNUp(up), (x,)),
    ]
    for name, twin, inputs in trials:
        if not torch.equal(twin(*inputs), twin.plain(*inputs)):
            return name
        if isinstance(twin, OneDNNConv) and twin._copies:  # that was a matrix product: oneDNN's own call, too
            twin._copies = 0.0
            if not torch.equal(twin(*inputs), twin.plain(*inputs)):
                return name
    return None
