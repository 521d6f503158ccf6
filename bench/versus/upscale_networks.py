"""Super-resolution networks laid out as their projects have them, of torch's own modules alone: what others run.

Names of tensors are theirs. Written from the papers and the names in released files; `bench.versus.upscale` times them,
and tests hold the converters and the fused networks against them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, 1, size // 2)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.prelu = conv(channels, 4 * channels), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(F.pixel_shuffle(self.conv(x), 2))


class NormResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = conv(channels, channels), nn.BatchNorm2d(channels), nn.PReLU()
        self.conv2, self.bn2 = conv(channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class SRGANGenerator(nn.Module):
    """leftthomas/SRGAN: `blocks` residual blocks, x2 or x4; end: batch norm (code) or PReLU (released weights)."""

    def __init__(self, scale: int, blocks: int = 5, channels: int = 64, end: str = "prelu") -> None:
        super().__init__()
        self.count = blocks + 3
        self.block1 = nn.Sequential(conv(3, channels, 9), nn.PReLU())
        for i in range(blocks):
            setattr(self, f"block{i + 2}", NormResidual(channels))
        last = nn.PReLU() if end == "prelu" else nn.BatchNorm2d(channels)
        setattr(self, f"block{blocks + 2}", nn.Sequential(conv(channels, channels), last))
        ups = [Up(channels) for _ in range({2: 1, 4: 2, 8: 3}[scale])]
        setattr(self, f"block{blocks + 3}", nn.Sequential(*ups, conv(channels, 3, 9)))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.block1(x)
        for i in range(2, self.count):
            x = getattr(self, f"block{i}")(x)
        return (torch.tanh(getattr(self, f"block{self.count}")(first + x)) + 1) / 2


class PlainResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class MSRResNet(nn.Module):
    """BasicSR."""

    def __init__(self, scale: int, blocks: int = 16, channels: int = 64) -> None:
        super().__init__()
        self.scale, self.factor = scale, 3 if scale == 3 else 2
        self.conv_first = conv(3, channels)
        self.body = nn.Sequential(*(PlainResidual(channels) for _ in range(blocks)))
        self.upconv1 = conv(channels, channels * self.factor**2)
        if scale == 4:
            self.upconv2 = conv(channels, channels * 4)
        self.conv_hr, self.conv_last = conv(channels, channels), conv(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(F.leaky_relu(self.conv_first(x), 0.1))
        y = F.leaky_relu(F.pixel_shuffle(self.upconv1(y), self.factor), 0.1)
        if self.scale == 4:
            y = F.leaky_relu(F.pixel_shuffle(self.upconv2(y), 2), 0.1)
        y = self.conv_last(F.leaky_relu(self.conv_hr(y), 0.1))
        return y + F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)


class Dense(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        for k in range(5):
            setattr(self, f"conv{k + 1}", conv(channels + k * growth, channels if k == 4 else growth))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for k in range(1, 5):
            seen.append(F.leaky_relu(getattr(self, f"conv{k}")(torch.cat(seen, 1)), 0.2))
        return self.conv5(torch.cat(seen, 1)) * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(channels, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """BasicSR and Real-ESRGAN."""

    def __init__(self, scale: int, blocks: int = 23, channels: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.side = {4: 1, 2: 2, 1: 4}[scale]
        self.conv_first = conv(3 * self.side**2, channels)
        self.body = nn.Sequential(*(RRDB(channels, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2 = (conv(channels, channels) for _ in range(3))
        self.conv_hr, self.conv_last = conv(channels, channels), conv(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(F.pixel_unshuffle(x, self.side) if self.side > 1 else x)
        x = x + self.conv_body(self.body(x))
        x = F.leaky_relu(self.conv_up1(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        x = F.leaky_relu(self.conv_up2(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


class SRVGGNetCompact(nn.Module):
    """Real-ESRGAN. act: prelu, relu or leakyrelu."""

    def __init__(self, scale: int, convs: int = 16, channels: int = 64, act: str = "prelu") -> None:
        super().__init__()
        self.scale = scale
        acts = {"prelu": lambda: nn.PReLU(channels), "relu": nn.ReLU, "leakyrelu": lambda: nn.LeakyReLU(0.1)}
        self.body = nn.ModuleList()
        for i in range(convs + 1):
            self.body.extend([conv(channels if i else 3, channels), acts[act]()])
        self.body.append(conv(channels, 3 * scale**2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.body:
            y = layer(y)
        return F.pixel_shuffle(y, self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


def with_statistics(network: nn.Module) -> nn.Module:
    """`network`, in eval mode, its batch norms with statistics and PReLUs with slopes as training leaves them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.2, 0.4)
    return network.eval().requires_grad_(False)
