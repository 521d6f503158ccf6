"""Operations one after the other, as a network runs them: pix2pix's 70x70 patch discriminator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen_kernels import OPS, pack_weight, patch_conv

from ..runtime.device import dtype_name
from .contest import Contest, chosen, plain_pytorch
from .kernels import deviation
from .results import Row

# Isola et al. 2017, appendix 6.1.2: C64-C128-C256-C512 and one output channel; (inputs, outputs, stride, slope).
LAYERS = ((6, 64, 2, 0.2), (64, 128, 2, 0.2), (128, 256, 2, 0.2), (256, 512, 1, 0.2), (512, 1, 1, None))
SIZE = 256
BATCHES = {"cuda": (1, 64), "cpu": (1,)}  # 64 images keep a CPU busy for minutes


class Discriminator:
    """The 70x70 PatchGAN with batch norm folded into weights and biases: of random weights."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights, self.biases = [], []
        for inputs, outputs, _, _ in LAYERS:
            # Activations keep their size: half of them pass, and LeakyReLU lets a fifth of the others through.
            scale = math.sqrt(2 / 1.04 / (inputs * 16))
            weight = (
                torch.randn(outputs, inputs, 4, 4, generator=generator, dtype=torch.float32, device="cpu")
                * scale
            )
            self.weights.append(weight.to(device, dtype, memory_format=torch.channels_last))
            self.biases.append(
                (torch.randn(outputs, generator=generator, dtype=torch.float32, device="cpu") * 0.1).to(
                    device, dtype
                )
            )
        self.packed = [pack_weight(weight) for weight in self.weights]

    def layers(self, x: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """(arguments of `patch_conv`, its result) for each layer, on the input that it gets in the chain."""
        for (_, _, stride, slope), weight, bias in zip(LAYERS, self.packed, self.biases, strict=True):
            arguments: dict[str, Any] = {"x": x, "weight": weight, "bias": bias}
            arguments |= {"stride": stride, "negative_slope": slope}
            x = patch_conv(**arguments)
            yield arguments, x

    def fused(self, x: Tensor) -> Tensor:
        """[B, 6, H, W] -> [B, 1, H / 8 - 2, W / 8 - 2]: one score per patch."""
        for _, y in self.layers(x):
            x = y
        return x

    def eager(self, x: Tensor) -> Tensor:
        """The same by PyTorch's convolutions, channels-last."""
        for (_, _, stride, slope), weight, bias in zip(LAYERS, self.weights, self.biases, strict=True):
            x = F.conv2d(x, weight, bias, stride=stride, padding=1)
            if slope is not None:
                x = F.leaky_relu_(x, slope)
        return x

    def error(self, x: Tensor) -> float:
        """Worst error of a layer on the input that it gets in the chain, as a fraction of its bound."""
        op = OPS["patch_conv"]
        return max(max(op.errors(arguments, y).values()) for arguments, y in self.layers(x))

    def costs(self, x: Tensor) -> tuple[int, int]:
        """Bytes and FLOPs of all layers."""
        op, moved, flops = OPS["patch_conv"], 0, 0
        for arguments, _ in self.layers(x):
            moved += op.bytes_moved(**arguments)
            flops += op.flops(**arguments)
        return moved, flops


def contests(
    device: torch.device,
    *,
    dtypes: Sequence[torch.dtype],
    against: Sequence[str],
    batches: Sequence[int] | None = None,
    size: int = SIZE,
) -> Iterator[Contest]:
    """One for every batch and type."""
    for dtype in dtypes:
        net = Discriminator(device, dtype)
        for batch in batches or BATCHES[device.type]:
            x = torch.randn(
                batch,
                LAYERS[0][0],
                size,
                size,
                generator=torch.Generator().manual_seed(1),
                dtype=torch.float32,
                device="cpu",
            )
            x = x.to(device, dtype, memory_format=torch.channels_last)
            yield _contest(net, x, against)


def _contest(net: Discriminator, x: Tensor, against: Sequence[str]) -> Contest:
    moved, flops = net.costs(x)
    row = Row("kernels", "patch_gan", f"batch {len(x)}", dtype_name(x.dtype), bytes=moved, flops=flops)
    return Contest(
        row=replace(row, batch=len(x)),
        own=lambda: net.fused(x),
        judge=lambda output: net.error(x),  # layer by layer, on the input that each gets in the chain
        device=x.device,
        baselines=chosen(plain_pytorch(net.eager, lambda formula: partial(formula, x), x.device), against),
        agrees=lambda output: deviation(output, net.fused(x), x.dtype, x.device),
        captured=True,
    )
