"""Fast twins of networks for style transfer: AdaIN as one operation, on a CPU convolutions as oneDNN does them best.

MirroredUp      nearest neighbours, then a 3x3 convolution, as one transposed convolution
FewOutputs      a convolution to three colours, four pixels of a row at a time
Separable       a grouped convolution and the 1x1 one behind it, by depthwise convolutions
FusedResidual   a style's factors within the filters
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen_kernels import adain

from ..models.style import adain as vgg
from ..models.style import microast
from ..models.style.network import AdaIN, StyleNetwork
from .exactly import hooked
from .onednn import Convolution, OneDNNConv, takes
from .twin import Twin

# They call the modules in them, and look at nothing else of them.
CONTAINERS = (
    vgg.AdaINTransfer,
    vgg.Encoder,
    microast.MicroAST,
    microast.Encoder,
    microast.Modulator,
    nn.ModuleList,
)
LANES = 16  # outputs that oneDNN computes together, whether there are as many or not
ROW = 4  # pixels that `FewOutputs` makes at a time


@torch.no_grad()
def fused(network: StyleNetwork) -> StyleNetwork:
    """A network that computes what `network` does at inference, with twins of its blocks that share its parameters.

    What is folded holds the parameters' values of now. Modules that are not known, and those with hooks, stay.
    """
    return cast(StyleNetwork, _twin(network))


def _twin(module: nn.Module) -> nn.Module:
    kind = type(module)
    if hooked(module):
        return module
    if kind is AdaIN:
        return FusedAdaIN(cast(AdaIN, module))
    if kind is microast.Residual and not any(map(hooked, module.modules())):
        return FusedResidual(cast(microast.Residual, module))
    if kind is nn.Sequential:
        return _sequential(cast(nn.Sequential, module))
    if kind in CONTAINERS:
        shallow = copy.copy(module)
        shallow._modules = {name: None if m is None else _twin(m) for name, m in module._modules.items()}
        return shallow
    if takes(module):
        return OneDNNConv(cast(nn.Conv2d, module), prepacked=True)
    return module


def _sequential(blocks: nn.Sequential) -> nn.Sequential:
    """What follows each other, by the names that their outputs have."""
    left = list(blocks.named_children())
    made: dict[str, nn.Module] = {}
    while left:
        twin, count = _first(_plain_prefix([block for _, block in left]))
        made[left[count - 1][0]] = twin
        left = left[count:]
    result = nn.Sequential()
    for name, block in made.items():
        result.add_module(name, block)
    return result


def _plain_prefix(blocks: list[nn.Module]) -> list[nn.Module]:
    """The first block, and those behind it that have no hooks."""
    for i, block in enumerate(blocks[1:], start=1):
        if hooked(block):
            return blocks[:i]
    return blocks


def _first(blocks: Sequence[nn.Module]) -> tuple[nn.Module, int]:
    """The twin of the first of `blocks`, or of some; how many."""
    first, *others = blocks
    if hooked(first):
        return first, 1
    if _up(first) == "bilinear" and len(others) > 3 and _separable(others[:4]):
        return Separable(nn.Sequential(*blocks[:5])), 5
    if len(others) > 2 and _separable(blocks[:4]):
        return Separable(nn.Sequential(*blocks[:4])), 4
    if _up(first) == "nearest" and others and _mirrored3(others[0]):
        rectified = len(others) > 1 and type(others[1]) is nn.ReLU
        return MirroredUp(cast(nn.Conv2d, others[0]), rectified), 2 + rectified
    if not takes(first):
        return _twin(first), 1
    conv = cast(nn.Conv2d, first)
    rectified = bool(others) and type(others[0]) is nn.ReLU
    if not rectified and conv.out_channels * ROW <= LANES and conv.groups == 1 and conv.stride == (1, 1):
        return FewOutputs(conv), 1
    return OneDNNConv(conv, rectified, prepacked=True), 1 + rectified


def _up(block: nn.Module) -> str | None:
    """How it doubles both sides, None where it does not."""
    if type(block) not in (nn.Upsample, nn.UpsamplingNearest2d) or block.scale_factor not in (2, 2.0):
        return None
    return None if block.align_corners else str(block.mode)


def _mirrored3(block: nn.Module) -> bool:
    """Whether it is a 3x3 convolution with mirrored borders."""
    if not takes(block):
        return False
    conv = cast(nn.Conv2d, block)
    return (
        conv.padding_mode == "reflect"
        and conv.kernel_size == (3, 3)
        and conv.padding == conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
    )


def _separable(blocks: Sequence[nn.Module]) -> bool:
    """Whether these are a grouped convolution with one input or one output to each group, and a 1x1 one."""
    first, relu, second, last = blocks
    if not (type(relu) is type(last) is nn.ReLU and takes(first) and takes(second)):
        return False
    grouped, dense = cast(nn.Conv2d, first), cast(nn.Conv2d, second)
    inputs, outputs = grouped.in_channels // grouped.groups, grouped.out_channels // grouped.groups
    return (
        grouped.groups > 1
        and 1 in (inputs, outputs)
        and max(inputs, outputs) > 1
        and grouped.padding_mode == "reflect"
        and dense.kernel_size == dense.stride == (1, 1)
        and dense.groups == 1
        and not any(cast(tuple[int, int], dense.padding))
    )


def _given(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, **other: object) -> nn.Conv2d:
    """`conv` with other parameters, and other attributes."""
    made = nn.Conv2d.__new__(nn.Conv2d)
    nn.Module.__init__(made)
    vars(made).update({name: value for name, value in vars(conv).items() if name not in vars(made)})
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    vars(made).update(other)
    return made


class UpConvolution(Convolution):
    """Nearest neighbours x2, then a convolution, and a ReLU if `rectified`."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"), residual)


class MirroredUp(Twin[UpConvolution]):
    """`UpConvolution` of 3x3 with mirrored borders as one transposed convolution, see ``OneDNNUp``.

    Behind the doubling both pixels next to a border are the same: mirroring repeats the outermost pixel of the input.
    """

    refolded = True

    def __init__(self, conv: nn.Conv2d, rectified: bool) -> None:
        super().__init__(UpConvolution.of(conv, rectified))
        weight = conv.weight.detach()
        # As in `OneDNNUp`: output row 2i + k - 1 gets from row i w2, w1 + w2, w0 + w1, w0.
        sums = torch.tensor(
            [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64, device=weight.device
        )
        wide = torch.einsum("aj,ocjk,bk->coab", sums, weight.double(), sums)
        self._weight = wide.to(weight.dtype).contiguous()
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._act = "relu" if rectified else "none"
        self._packed = False

    def forward(self, x: Tensor) -> Tensor:
        how = [3, 3], [0, 0], [2, 2], [1, 1], 1
        padded = F.pad(x, (1, 1, 1, 1), "replicate")
        if not self._packed:
            self._weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                self._weight, *how, list(padded.shape)
            )
            self._packed = True
        return torch.ops.mkldnn._convolution_transpose_pointwise(
            padded, self._weight, self._bias, *how, self._act, [], ""
        )


class FewOutputs(Twin[Convolution]):
    """A convolution with few outputs, which makes four pixels of a row at a time.

    oneDNN multiplies by 16 filters at least. A filter for each of four pixels, one pixel further to the right for each,
    makes 12 of three; they come out as channels, which in channels-last memory is the row itself.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(Convolution.of(conv))
        weight = conv.weight.detach()
        outputs, inputs, height, width = weight.shape
        reach = (width - 1) * conv.dilation[1] + 1
        wide = weight.new_zeros(ROW, outputs, inputs, height, reach + ROW - 1)
        for i in range(ROW):
            wide[i, ..., i : i + reach : conv.dilation[1]] = weight
        bias = None if conv.bias is None else conv.bias.detach().repeat(ROW)
        made = _given(
            conv,
            wide.flatten(0, 1).contiguous(memory_format=torch.channels_last),
            bias,
            padding=(0, 0),
            padding_mode="zeros",
            stride=(1, ROW),
            dilation=(conv.dilation[0], 1),
            out_channels=ROW * outputs,
            kernel_size=(height, reach + ROW - 1),
        )
        self._border = conv._reversed_padding_repeated_twice
        self._mode = "reflect" if conv.padding_mode == "reflect" else "constant"
        self._wide = (OneDNNConv(made, prepacked=True),)  # not a module within this one

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self._border
        width = x.shape[3] + left + right - self.plain.kernel_size[1] * self.plain.dilation[1]
        width += self.plain.dilation[1]
        padded = F.pad(x, (left, right, top, bottom), self._mode)
        if rest := -width % ROW:
            padded = F.pad(padded, (0, rest))
        y = self._wide[0](padded).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return y.unflatten(3, (ROW, -1)).flatten(2, 3).permute(0, 3, 1, 2)[..., :width]


class Separable(Twin[nn.Sequential]):
    """Perhaps a bilinear doubling, then a grouped convolution, ReLU, 1x1 convolution, ReLU.

    oneDNN is fast for depthwise convolutions, where each group has one input and one output. With several inputs to a
    group, as many depthwise ones are added up; with several outputs, the 1x1 convolution adds them up.
    """

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__(blocks)
        *_, grouped, _, dense, _ = blocks
        self._doubles = len(blocks) == 5
        self._grouped, self._dense = cast(nn.Conv2d, grouped), cast(nn.Conv2d, dense)
        groups = self._grouped.groups
        self._inputs = self._grouped.in_channels // groups
        self._outputs = self._grouped.out_channels // groups
        weight = self._grouped.weight.detach()
        last = torch.channels_last
        if self._inputs > 1:
            self._depthwise = [self._part(weight[:, i : i + 1], i == 0) for i in range(self._inputs)]
            self._pointwise = [OneDNNConv(self._dense, True, prepacked=True)]
        else:
            self._depthwise = [
                self._part(weight[i :: self._outputs], True, slice(i, None, self._outputs), rectified=True)
                for i in range(self._outputs)
            ]
            matrix = self._dense.weight.detach()
            self._pointwise = [
                OneDNNConv(
                    _given(
                        self._dense,
                        matrix[:, i :: self._outputs].contiguous(memory_format=last),
                        self._dense.bias.detach() if i == 0 and self._dense.bias is not None else None,
                        in_channels=groups,
                    ),
                    prepacked=True,
                )
                for i in range(self._outputs)
            ]

    def _part(
        self, weight: Tensor, biased: bool, rows: slice = slice(None), rectified: bool = False
    ) -> OneDNNConv:
        """One depthwise convolution."""
        conv, bias = self._grouped, self._grouped.bias
        given = bias.detach()[rows].contiguous() if biased and bias is not None else None
        groups = conv.groups
        made = _given(conv, weight.contiguous(), given, in_channels=groups, out_channels=groups)
        return OneDNNConv(made, rectified, prepacked=True)

    def forward(self, x: Tensor) -> Tensor:
        if self._inputs > 1:
            total: Tensor | None = None
            for i, conv in enumerate(self._depthwise):
                part = x[:, i :: self._inputs].contiguous(memory_format=torch.channels_last)
                if self._doubles:
                    part = F.interpolate(part, scale_factor=2.0, mode="bilinear")
                total = conv(part, total)
            assert total is not None
            return self._pointwise[0](total.relu_())
        if self._doubles:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        made: Tensor | None = None
        for conv, pointwise in zip(self._depthwise, self._pointwise, strict=True):
            made = pointwise(conv(x), made)
        assert made is not None
        return made.relu_()


class FusedAdaIN(Twin[AdaIN]):
    """`AdaIN` by the fused operation; rows may be in float32 beside features of half precision."""

    def statistics(self, x: Tensor) -> Tensor:
        """See ``AdaIN``; float32 at least."""
        return self.plain.statistics(x.to(torch.promote_types(x.dtype, torch.float32)))

    def forward(self, x: Tensor, mean: Tensor, std: Tensor, alpha: float = 1.0) -> Tensor:
        eps = self.plain.eps
        if mean.shape[2:] == (1, 1):
            shift, scale = mean[:, :, 0, 0], std[:, :, 0, 0]
            return adain(x, mean=shift, std=scale, alpha=alpha, eps=eps, correction=1)
        y = adain(x, eps=eps, correction=1).mul_(std).add_(mean)  # in x's type
        return y if alpha == 1.0 else torch.lerp(x, y, alpha)


class FusedResidual(Twin[microast.Residual]):
    """`Residual` whose filters are multiplied by the style's factors beforehand.

    That goes sample by sample; many samples on a GPU run as they are.
    """

    refolded = True

    def __init__(self, block: microast.Residual) -> None:
        super().__init__(block)
        convs = block.conv1, block.conv2
        self._direct = all(map(takes, convs))  # by oneDNN's own calls
        self._convs = (
            (OneDNNConv(convs[0], True, prepacked=True), OneDNNConv(convs[1], prepacked=True))
            if self._direct
            else None
        )
        weight, size = block.conv1.weight.detach(), block.conv1.kernel_size[0]
        identity = torch.zeros_like(weight)
        torch.diagonal(identity[:, :, size // 2, size // 2]).fill_(1)
        self._identity = identity

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if weight is None or bias is None:
            return self.plain(x) if self._convs is None else self._convs[1](self._convs[0](x), x)
        if weight.shape[2:] != (1, 1) or (x.device.type != "cpu" and len(x) > 1):
            return self.plain(x, weight.to(x.dtype), bias.to(x.dtype))
        made = [self._one(*(value[i : i + 1] for value in (x, weight, bias))) for i in range(len(x))]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _one(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        first, second = (self._folded(conv, weight, bias) for conv in (self.plain.conv1, self.plain.conv2))
        if not self._direct:
            return F.conv2d(self._padded(F.conv2d(self._padded(x), *first).relu_()), *second).add_(x)
        how = [0, 0], [1, 1], [1, 1], 1
        calls = torch.ops.mkldnn._convolution_pointwise
        inner = calls(self._padded(x), *first, *how, "relu", [], "")
        return calls.binary(self._padded(inner), x, *second, *how, "add", 1.0, None, [], None)

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self.plain.conv1._reversed_padding_repeated_twice, "reflect")

    def _folded(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
        factor, share = weight[0, :, :, :, None], bias[0, :, :, :, None]
        filters = (factor * conv.weight.detach() + share * self._identity).to(conv.weight.dtype)
        own = None if conv.bias is None else (factor.flatten() * conv.bias.detach()).to(conv.bias.dtype)
        return filters, own
