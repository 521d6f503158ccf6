"""Convolutions on the CPU by oneDNN's own call: with the ReLU behind them, and filters laid out beforehand.

PyTorch rearranges a convolution's filters in every call. For a bfloat16 Glow (3x32x32, networks of 256 to 512
channels) that is a fifth of the time, at batch 1 and at batch 64. In float32 it is some percent, and a second copy of
the filters would double a model's memory; in half precision both copies together are what float32's one was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .exactly import hooked

HALF = (torch.bfloat16, torch.float16)


class RectifiedConv(nn.Conv2d):
    """A convolution and a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


class OneDNNConv(nn.Module):
    """What `plain` computes: `conv`, whose weights it shares, and a ReLU if `rectified`."""

    def __init__(self, conv: nn.Conv2d, rectified: bool) -> None:
        super().__init__()
        with torch.device("meta"):
            kind, size = RectifiedConv if rectified else nn.Conv2d, conv.weight.shape
            plain = kind(size[1], size[0], (size[2], size[3]), padding=conv.padding)  # type: ignore[arg-type]
        plain.weight, plain.bias = conv.weight, conv.bias
        self._plain = (plain,)  # in a tuple: not a module within this one
        self._padding = [int(side) for side in conv.padding]
        self._act = "relu" if rectified else "none"
        self._packed: Tensor | None = None

    @property
    def plain(self) -> nn.Conv2d:
        return self._plain[0]

    @property
    def weight(self) -> Tensor:
        return self.plain.weight

    @property
    def bias(self) -> Tensor | None:
        return self.plain.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.detach()
        if weight.dtype in HALF:
            # In the first call: the layout goes by the image's size, not by the batch's.
            if self._packed is None:
                self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                    weight, self._padding, [1, 1], [1, 1], 1, list(x.shape)
                )
            weight = self._packed
        elif len(x) == 1:
            # Rearranging the filters costs more than oneDNN gains: PyTorch multiplies matrices instead.
            return self.plain(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, self._padding, [1, 1], [1, 1], 1, self._act, [], ""
        )


def takes(conv: nn.Module, rectified: bool) -> bool:
    """Whether `conv` gains by oneDNN's own call here: in half precision, or with a ReLU behind it, on a CPU.

    Never one that has hooks, or whose weight is computed (weight norm).
    """
    if (
        type(conv) is not nn.Conv2d
        or hooked(conv)
        or not isinstance(conv.weight, nn.Parameter)
        or conv.weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    if conv.stride != (1, 1) or conv.dilation != (1, 1) or conv.groups != 1:
        return False
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    dtype = conv.weight.dtype
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32 and rectified
