"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) as the graph of 2015-12-05 has it, by whose features FID goes.

Names are those of torch-fidelity's file of weights. What differs from the paper: averages do not count the padding, and
the last block takes a maximum where the others average.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 299  # pixels a side, to which images are resized
CLASSES = 1008


class Conv(nn.Module):
    """relu(batch norm(convolution without bias))."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


WIDE, TALL = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))  # kernel, stride, padding
FLAT, HIGH = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))


class Block(nn.Module):
    """Chains of convolutions side by side, and a pooled branch; their results one behind the other.

    chains: names of the convolutions of each chain; the last entry of a chain may be a pair, which splits in two.
    """

    def __init__(
        self, convolutions: dict[str, Conv], chains: list[list[str | tuple[str, str]]], pool: str
    ) -> None:
        super().__init__()
        for name, conv in convolutions.items():
            self.add_module(name, conv)
        self.chains, self.pool = chains, pool

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for chain in self.chains:
            hidden = x
            for step in chain:
                names = step if isinstance(step, tuple) else (step,)
                parts = [self.get_submodule(name)(hidden) for name in names]
                hidden = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            made.append(hidden)
        if self.pool == "stride":
            made.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            made.append(self.get_submodule("branch_pool")(F.max_pool2d(x, 3, 1, 1)))
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            made.append(self.get_submodule("branch_pool")(pooled))
        return torch.cat(made, 1)


def _a(inputs: int, pooled: int) -> Block:
    convolutions = {
        "branch1x1": Conv(inputs, 64, 1),
        "branch5x5_1": Conv(inputs, 48, 1),
        "branch5x5_2": Conv(48, 64, 5, 1, 2),
        "branch3x3dbl_1": Conv(inputs, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3, 1, 1),
        "branch3x3dbl_3": Conv(96, 96, 3, 1, 1),
        "branch_pool": Conv(inputs, pooled, 1),
    }
    return Block(convolutions, [["branch1x1"], _named("branch5x5", 2), _named("branch3x3dbl", 3)], "average")


def _b(inputs: int) -> Block:
    convolutions = {
        "branch3x3": Conv(inputs, 384, 3, 2),
        "branch3x3dbl_1": Conv(inputs, 64, 1),
        "branch3x3dbl_2": Conv(64, 96, 3, 1, 1),
        "branch3x3dbl_3": Conv(96, 96, 3, 2),
    }
    return Block(convolutions, [["branch3x3"], _named("branch3x3dbl", 3)], "stride")


def _c(width: int) -> Block:
    convolutions = {
        "branch1x1": Conv(768, 192, 1),
        "branch7x7_1": Conv(768, width, 1),
        "branch7x7_2": Conv(width, width, *WIDE),
        "branch7x7_3": Conv(width, 192, *TALL),
        "branch7x7dbl_1": Conv(768, width, 1),
        "branch7x7dbl_2": Conv(width, width, *TALL),
        "branch7x7dbl_3": Conv(width, width, *WIDE),
        "branch7x7dbl_4": Conv(width, width, *TALL),
        "branch7x7dbl_5": Conv(width, 192, *WIDE),
        "branch_pool": Conv(768, 192, 1),
    }
    return Block(convolutions, [["branch1x1"], _named("branch7x7", 3), _named("branch7x7dbl", 5)], "average")


def _d() -> Block:
    convolutions = {
        "branch3x3_1": Conv(768, 192, 1),
        "branch3x3_2": Conv(192, 320, 3, 2),
        "branch7x7x3_1": Conv(768, 192, 1),
        "branch7x7x3_2": Conv(192, 192, *WIDE),
        "branch7x7x3_3": Conv(192, 192, *TALL),
        "branch7x7x3_4": Conv(192, 192, 3, 2),
    }
    return Block(convolutions, [_named("branch3x3", 2), _named("branch7x7x3", 4)], "stride")


def _e(inputs: int, pool: str) -> Block:
    convolutions = {
        "branch1x1": Conv(inputs, 320, 1),
        "branch3x3_1": Conv(inputs, 384, 1),
        "branch3x3_2a": Conv(384, 384, *FLAT),
        "branch3x3_2b": Conv(384, 384, *HIGH),
        "branch3x3dbl_1": Conv(inputs, 448, 1),
        "branch3x3dbl_2": Conv(448, 384, 3, 1, 1),
        "branch3x3dbl_3a": Conv(384, 384, *FLAT),
        "branch3x3dbl_3b": Conv(384, 384, *HIGH),
        "branch_pool": Conv(inputs, 192, 1),
    }
    chains: list[list[str | tuple[str, str]]] = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
    ]
    return Block(convolutions, chains, pool)


def _named(branch: str, count: int) -> list[str | tuple[str, str]]:
    return [f"{branch}_{i}" for i in range(1, count + 1)]


class Inception(nn.Module):
    """uint8 RGB [B, 3, H, W] of any size -> (features [B, 2048], logits without the bias [B, 1008])."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        self.Mixed_7a = _d()
        self.Mixed_7b, self.Mixed_7c = _e(1280, "average"), _e(2048, "max")
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (resized(images.to(self.fc.weight.dtype), SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return features, features @ self.fc.weight.T


def resized(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, C, size, size] by bilinear interpolation as TensorFlow 1 has it.

    Output pixel i is input pixel i * H / size, and nothing is filtered before it is made smaller.
    """
    for axis in (3, 2):
        length = x.shape[axis]
        # In float32, as there: positions round alike.
        place = torch.arange(size, dtype=torch.float32, device=x.device) * torch.tensor(
            length / size, dtype=torch.float32, device=x.device
        )
        low = place.long()
        high = (low + 1).clamp_(max=length - 1)
        weight = (place - low).to(x.dtype).view(-1, 1) if axis == 2 else (place - low).to(x.dtype)
        first, second = x.index_select(axis, low), x.index_select(axis, high)
        x = first + (second - first) * weight
    return x
