"""The networks of pytorch-CycleGAN-and-pix2pix as their files lay them out, from PyTorch's modules: an oracle."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "none": lambda channels: nn.Identity(),
}
PADS: dict[str, list[nn.Module]] = {
    "reflect": [nn.ReflectionPad2d(1)],
    "replicate": [nn.ReplicationPad2d(1)],
    "zero": [],
}


class Wrapped(nn.Module):
    """A Sequential under the name `model`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class Outer(nn.Module):
    """A module under the name `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class Beside(Wrapped):
    """[x, model(x)]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.model(x)], 1)


def unet(inputs: int, outputs: int, channels: int, downs: int, norm: str, dropout: bool) -> Outer:
    """Levels, each within the one around it."""
    widths = [channels * min(2**i, 8) for i in range(downs)]
    bias, inner = norm == "instance", None
    for i in reversed(range(1, downs)):
        down: list[nn.Module] = [
            nn.LeakyReLU(0.2),
            nn.Conv2d(widths[i - 1], widths[i], 4, 2, 1, bias=bias),
        ]
        if inner is not None:
            down += [NORMS[norm](widths[i]), inner]
        up = nn.ConvTranspose2d(widths[i] * (1 if inner is None else 2), widths[i - 1], 4, 2, 1, bias=bias)
        layers = [*down, nn.ReLU(), up, NORMS[norm](widths[i - 1])]
        inner = Beside(*layers, *([nn.Dropout(0.5)] if dropout and 4 <= i < downs - 1 else []))
    assert inner is not None
    first, last = (
        nn.Conv2d(inputs, channels, 4, 2, 1, bias=bias),
        nn.ConvTranspose2d(2 * channels, outputs, 4, 2, 1),
    )
    return Outer(Wrapped(first, inner, nn.ReLU(), last, nn.Tanh()))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int, norm: str, padding: str, dropout: bool) -> None:
        super().__init__()

        def half() -> list[nn.Module]:
            conv = nn.Conv2d(channels, channels, 3, 1, int(padding == "zero"), bias=norm == "instance")
            return [*PADS[padding], conv, NORMS[norm](channels)]

        self.conv_block = nn.Sequential(*half(), nn.ReLU(), *([nn.Dropout(0.5)] if dropout else []), *half())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_block(x)
        return y


def resnet(
    inputs: int,
    outputs: int,
    channels: int,
    blocks: int,
    norm: str,
    dropout: bool,
    padding: str = "reflect",
    upsampling: str = "deconvolution",
) -> Wrapped:
    """Down twice, blocks, up twice. upsampling: or a mode of nn.Upsample, before a 3x3 convolution."""
    bias, layers = norm == "instance", [nn.ReflectionPad2d(3)]

    def normed(conv: nn.Module, width: int) -> list[nn.Module]:
        return [conv, NORMS[norm](width), nn.ReLU()]

    layers += normed(nn.Conv2d(inputs, channels, 7, bias=bias), channels)  # type: ignore[arg-type]
    for width in (channels, 2 * channels):
        layers += normed(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=bias), 2 * width)  # type: ignore[arg-type]
    layers += [Block(4 * channels, norm, padding, dropout) for _ in range(blocks)]  # type: ignore[misc]
    for width in (4 * channels, 2 * channels):
        if upsampling == "deconvolution":
            up: nn.Module = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1, bias=bias)
        else:
            layers += [nn.Upsample(scale_factor=2, mode=upsampling), nn.ReflectionPad2d(1)]  # type: ignore[list-item]
            up = nn.Conv2d(width, width // 2, 3)
        layers += normed(up, width // 2)  # type: ignore[arg-type]
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(channels, outputs, 7), nn.Tanh()]  # type: ignore[list-item]
    return Wrapped(*layers)


def patch(inputs: int, channels: int, layers: int, norm: str) -> Wrapped:
    """The discriminator of patches."""
    widths = [channels * min(2**i, 8) for i in range(layers + 1)]
    made: list[nn.Module] = [nn.Conv2d(inputs, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
    for i in range(1, layers + 1):
        conv = nn.Conv2d(widths[i - 1], widths[i], 4, 2 if i < layers else 1, 1, bias=norm == "instance")
        made += [conv, NORMS[norm](widths[i]), nn.LeakyReLU(0.2)]
    return Wrapped(*made, nn.Conv2d(widths[-1], 1, 4, 1, 1))


class Pixel(nn.Module):
    """The discriminator of pixels."""

    def __init__(self, inputs: int, channels: int, norm: str) -> None:
        super().__init__()
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(inputs, channels, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 1, bias=bias),
            NORMS[norm](2 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 1, 1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


@torch.no_grad()
def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` with random weights and statistics of a trained one's size."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, mean in (
                (module.weight, 1.0),
                (module.bias, 0.0),
                (module.running_mean, 0.0),
                (module.running_var, 1.0),
            ):
                assert tensor is not None
                tensor.copy_(mean + 0.2 * torch.rand(tensor.shape, generator=generator))
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            fan = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) / fan**0.5)
            if module.bias is not None:
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
    return network
