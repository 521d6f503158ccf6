"""The two halves of a residual block by `conv_norm`, for a GPU that a few small images leave idle.

cuDNN's convolutions of 32x32 pixels and less occupy a part of a large GPU, and leave bias, embedding, shortcut and norm
to kernels of their own: the operation splits its sums among programs and takes all of that in
(docs/kernels/conv_norm.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen_kernels import conv_norm, pack_weight

from .twin import Twin

SMALL_PIXELS = 64 * 64  # of a whole batch: more of them give cuDNN enough tiles
DEVICES = ("cuda",)


def is_small(x: Tensor) -> bool:
    """Whether `conv_norm` is the faster way for images like x [B, C, H, W], on a GPU."""
    return x.device.type in DEVICES and len(x) * x.shape[2] * x.shape[3] <= SMALL_PIXELS


class PlainHalf(nn.Module):
    """A convolution and what follows it in a residual block, one operation after the other.

    norm: of the convolution's result, or None. shortcut: a 1x1 convolution of another image, or None. output_scale:
    divides the sum.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.GroupNorm | None, shortcut: nn.Conv2d | None, output_scale: float
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.shortcut, self.output_scale = conv, norm, shortcut, output_scale

    def forward(self, x: Tensor, **given: Tensor | None) -> Tensor:
        """See `arguments`."""
        raw, normed = conv_norm(**self.arguments(x, **given))
        return raw if self.norm is None else normed

    def bias(self) -> Tensor | None:
        """Of convolution and shortcut together."""
        found = [
            layer.bias for layer in (self.conv, self.shortcut) if layer is not None and layer.bias is not None
        ]
        return found[0] + found[1] if len(found) == 2 else found[0] if found else None

    def arguments(
        self,
        x: Tensor,
        *,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        short: Tensor | None = None,
        skip: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> dict[str, Any]:
        """Those of `conv_norm`.

        short: the block's input, for the shortcut; skip: stands behind its channels. bias: what `bias` returns, where
        the caller has it.
        """
        given: dict[str, Any] = {
            "x": x,
            "weight": self.conv.weight,
            "add": add,
            "output_scale": self.output_scale,
        }
        given["bias"] = self.bias() if bias is None else bias
        if self.shortcut is not None and short is not None:
            given |= {"shortcut": short, "shortcut_beside": skip, "shortcut_weight": self.shortcut.weight}
        elif short is not None:
            given["residual"] = short if skip is None else torch.cat([short, skip], dim=1)
        if self.norm is not None:
            given |= {
                "num_groups": self.norm.num_groups,
                "norm_weight": self.norm.weight,
                "norm_bias": self.norm.bias,
                "eps": self.norm.eps,
                "scale": scale,
                "shift": shift,
            }
        return given


class SmallHalf(Twin[PlainHalf]):
    """`PlainHalf` with weights that are laid out beforehand and the biases added once."""

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.GroupNorm | None = None,
        shortcut: nn.Conv2d | None = None,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__(PlainHalf(conv, norm, shortcut, output_scale))
        bias = self.plain.bias()
        self._bias = None if bias is None else bias.detach()
        self._packed: dict[str, Tensor] = {}

    def forward(self, x: Tensor, **given: Tensor | None) -> Tensor:
        arguments = self.plain.arguments(x, bias=self._bias, **given)
        if not self._packed:  # in the first call: most models never draw so few
            for name in ("weight", "shortcut_weight"):
                if arguments.get(name) is not None:
                    self._packed[name] = pack_weight(arguments[name].detach())
        raw, normed = conv_norm(**{**arguments, **self._packed})
        return raw if self.plain.norm is None else normed
