"""The translate engine against the eager networks of pix2pix and CycleGAN: same weights, rounds interleaved.

    python -m bench.versus.pix2pix --clock cpu --json bench/results/cpu-pix2pix.json

The baseline is the layout of pytorch-CycleGAN-and-pix2pix in plain PyTorch, as that project's test script runs it
(statistics of norms by image, contiguous images), without dropout; with the images channels-last beside it. The
weights are converted by ``fastgen.converters``. Images are compared before anything is timed; where they differ no
speed is reported. Speedups are of whole calls of ``engine.translate``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.converters import build, from_module
from fastgen.engines import TranslateEngine
from fastgen.runtime.device import cpu_features

from .header import header

CPU = torch.device("cpu")
# float32: sums in other orders, through some 20 layers whose norms pass errors on; images lie in [-1, 1]. bfloat16
# rounds every layer to 8 bits: that is stated, and bounded loosely.
PARITY = {"float32": 2e-4, "bfloat16": 0.25}


class Level(nn.Module):
    """A level of the U-Net with all those within it: [x, model(x)], the outermost model(x) alone."""

    def __init__(self, layers: list[nn.Module], outermost: bool) -> None:
        super().__init__()
        self.model, self.outermost = nn.Sequential(*layers), outermost

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y if self.outermost else torch.cat([x, y], 1)


class Network(nn.Module):
    """A network under the name `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


def unet(downs: int, channels: int = 64) -> nn.Module:
    """The U-Net with batch norm."""
    widths = [channels * min(2**i, 8) for i in range(downs)]
    inner: nn.Module | None = None
    for i in reversed(range(1, downs)):
        layers: list[nn.Module] = [
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(widths[i - 1], widths[i], 4, 2, 1, bias=False),
        ]
        if inner is not None:
            layers += [nn.BatchNorm2d(widths[i]), inner]
        joined = widths[i] * (1 if inner is None else 2)
        up = nn.ConvTranspose2d(joined, widths[i - 1], 4, 2, 1, bias=False)
        inner = Level([*layers, nn.ReLU(True), up, nn.BatchNorm2d(widths[i - 1])], False)
    assert inner is not None
    first, last = nn.Conv2d(3, channels, 4, 2, 1, bias=False), nn.ConvTranspose2d(2 * channels, 3, 4, 2, 1)
    return Network(Level([first, inner, nn.ReLU(True), last, nn.Tanh()], True))


class Block(nn.Module):
    """A residual block with instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv2d(channels, channels, 3)
            layers += [nn.ReflectionPad2d(1), conv, nn.InstanceNorm2d(channels), nn.ReLU(True)]
        self.conv_block = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv_block(x)
        return y


def resnet(blocks: int, channels: int = 64) -> nn.Module:
    """CycleGAN's generator with instance norm."""
    layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, channels, 7)]
    layers += [nn.InstanceNorm2d(channels), nn.ReLU(True)]
    for width in (channels, 2 * channels):
        conv = nn.Conv2d(width, 2 * width, 3, 2, 1)
        layers += [conv, nn.InstanceNorm2d(2 * width), nn.ReLU(True)]
    layers += [Block(4 * channels) for _ in range(blocks)]
    for width in (4 * channels, 2 * channels):
        up = nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(width // 2), nn.ReLU(True)]
    return Network(nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(channels, 3, 7), nn.Tanh()))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "U-Net 256": (lambda: unet(8), 256),
    "U-Net 128": (lambda: unet(7), 128),
    "ResNet 9 blocks, 256": (lambda: resnet(9), 256),
}


def baseline(make: Callable[[], nn.Module]) -> nn.Module:
    """With the project's initial weights; in training mode, as its test script leaves batch norms."""
    torch.manual_seed(0)
    net = make()
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return net.requires_grad_(False)


def by_image(net: nn.Module, batch: int) -> nn.Module:
    """Batch norms whose statistics are those of each image, which for a batch of one they are."""
    if batch == 1:
        return net.train()
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norm = nn.InstanceNorm2d(child.num_features, affine=True)
                norm.weight, norm.bias = child.weight, child.bias
                setattr(module, name, norm)
    return net


def engine_of(make: Callable[[], nn.Module], net: nn.Module, dtype: str) -> TranslateEngine:
    """Ours with the weights of `net`, through the converter."""
    whole = make()
    whole.load_state_dict(net.state_dict(), strict=False)
    networks = build(from_module(whole))
    return TranslateEngine(networks, dtype=dtype, device="cpu", graph=False)


def compare(name: str, batch: int, rounds: int, clock: str) -> dict[str, Any]:
    """Parity, then medians and quartiles of seconds per call, and the median ratio of the rounds."""
    make, side = NETWORKS[name]
    net = baseline(make)
    x = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    alike = by_image(net, batch)
    last = copy.deepcopy(alike).to(memory_format=torch.channels_last)
    images = x.contiguous(memory_format=torch.channels_last)
    # Timed as the project runs it: batch norms over the batch, which is no slower than over images.
    timed = net.train()
    timed_last = copy.deepcopy(timed).to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], Any]] = {
        "eager": lambda: timed(x),
        "channels_last": lambda: timed_last(images),
    }
    row: dict[str, Any] = {"network": name, "batch": batch, "parity": {}}
    want = alike(x)
    assert torch.allclose(last(images), want, rtol=0, atol=PARITY["float32"])
    kinds = [
        "float32",
        *(["bfloat16"] if cpu_features()["avx512_bf16"] or cpu_features()["amx_tile"] else []),
    ]
    for dtype in kinds:
        engine = engine_of(make, net, dtype)
        off = float((engine.translate(x) - want).abs().max())
        row["parity"][dtype] = off
        if not off <= PARITY[dtype]:
            row["error"] = f"{dtype}: images differ by {off}: no speed is reported"
            return row
        calls[dtype] = lambda engine=engine: engine.translate(x)  # type: ignore[misc]
    times = interleaved(calls, CPU, rounds=rounds, clock=clock)
    for call, timing in times.items():
        quartiles = [round(timing.low, 4), round(timing.high, 4)]
        row[call] = {"median_s": round(timing.median, 4), "quartiles_s": quartiles}
    for dtype in kinds:
        for other, key in (("eager", "speedup"), ("channels_last", "over_channels_last")):
            ratio = times[other].over(times[dtype])
            row[dtype][key] = round(ratio.median, 2)
            row[dtype][f"{key}_quartiles"] = [round(ratio.low, 2), round(ratio.high, 2)]
    return row


@torch.no_grad()
def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where images differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    environment = header(args.clock, rounds=args.rounds)
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        for batch in args.batches:
            rows.append(compare(name, batch, args.rounds, args.clock))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:  # kept as they come
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
