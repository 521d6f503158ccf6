"""The style engine against the layouts of MicroAST and pytorch-AdaIN in eager PyTorch, same weights, interleaved.

    python -m bench.versus.style --clock cpu --json bench/results/cpu-style.json

The rival is written here from PyTorch's own modules, as the authors' code has them (ReflectionPad2d before each
convolution, Upsample, AdaIN in single operations), in eval mode, without gradients: "eager" as it comes, contiguous,
and "channels_last", the same in that memory format. A call encodes the style and stylises the content; pictures are
compared before anything is timed. bfloat16 is compared with them in float32, how far it is off is stated.
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

import fastgen
from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.engines.style import StyleEngine
from fastgen.models.style.adain import AdaINTransfer, AdaINTransferConfig

from .header import header

CPU = torch.device("cpu")
# Of values from 0 to 1. float32: some 30 layers that pass rounding on, of features a hundred times as large.
PARITY = {"float32": 5e-4, "bfloat16": 0.5}


class Mirrored(nn.Sequential):
    """Padding and convolution."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.ReflectionPad2d(size // 2), nn.Conv2d(inputs, outputs, size, stride, groups=groups)
        )


def statistics(x: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    flat = x.reshape(*x.shape[:2], -1)
    std = (flat.var(dim=2) + eps).sqrt().view(*x.shape[:2], 1, 1)
    return flat.mean(dim=2).view(*x.shape[:2], 1, 1), std


def adaptive(content: Tensor, style: Tensor) -> Tensor:
    (mean, std), (other_mean, other_std) = statistics(content), statistics(style)
    size = content.shape
    normalised = (content - mean.expand(size)) / std.expand(size)
    return normalised * other_std.expand(size) + other_mean.expand(size)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Mirrored(channels, channels, 3), Mirrored(channels, channels, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if weight is None or bias is None:
            return x + self.conv2(self.relu(self.conv1(x)))
        inner = self.relu(weight * self.conv1(x) + bias * x)
        return x + (weight * self.conv2(inner) + bias * inner)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        shapes = ((3, 16, 9), (16, 32, 3, 2, 16), (32, 32, 1), (32, 64, 3, 2, 32), (64, 64, 1))
        for shape in shapes:
            layers += [Mirrored(*shape), nn.ReLU(inplace=True)]
        self.first, self.last = nn.Sequential(*layers, Residual(64)), Residual(64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        return first, self.last(first)


class MicroASTLayout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.content, self.style = Encoder(), Encoder()
        self.modulators = nn.ModuleList(
            nn.Sequential(Mirrored(64, 64, 3, 1, 64), nn.AdaptiveAvgPool2d(1)) for _ in range(4)
        )
        self.residuals = nn.ModuleList([Residual(64), Residual(64)])
        layers: list[nn.Module] = [nn.Upsample(scale_factor=2, mode="bilinear")]
        for shape in ((64, 32, 3, 1, 32), (32, 32, 1)):
            layers += [Mirrored(*shape), nn.ReLU(inplace=True)]
        layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        for shape in ((32, 16, 3, 1, 16), (16, 16, 1)):
            layers += [Mirrored(*shape), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers, Mirrored(16, 3, 9))

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        styles = self.style(style)
        signals = [self.modulators[i](styles[i // 2]) for i in range(4)]
        x = self.content(content)[1]
        x = self.residuals[0](adaptive(x, styles[1]), *signals[2:])
        return self.decoder(self.residuals[1](adaptive(x, styles[0]), *signals[:2]))

    def own_convolutions(self) -> list[nn.Module]:
        return [self.content, self.style, *self.modulators, *self.residuals, self.decoder]


class AdaINLayout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 3, 1))
        widths = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512)
        for i in range(9):
            if i in (2, 4, 8):
                self.encoder.append(nn.MaxPool2d(2, 2, 0, ceil_mode=True))
            self.encoder.extend([*Mirrored(widths[i], widths[i + 1], 3), nn.ReLU()])
        self.decoder = nn.Sequential()
        widths = (512, 256, 256, 256, 256, 128, 128, 64, 64, 3)
        for i in range(9):
            self.decoder.extend([*Mirrored(widths[i], widths[i + 1], 3), *([nn.ReLU()] if i < 8 else [])])
            if i in (0, 4, 6):
                self.decoder.append(nn.Upsample(scale_factor=2, mode="nearest"))

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        return self.decoder(adaptive(self.encoder(content), self.encoder(style)))

    def own_convolutions(self) -> list[nn.Module]:
        return [self.encoder, self.decoder]


def same_weights(layout: Any, network: nn.Module) -> nn.Module:
    """`layout` with the weights of `network`: both have their convolutions in the same order, but for the modulator."""
    theirs = [m for part in layout.own_convolutions() for m in part.modules() if isinstance(m, nn.Conv2d)]
    ours = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    wanted = ["modulator.weights.0", "modulator.biases.0", "modulator.weights.1", "modulator.biases.1"]
    order = {name: i for i, name in enumerate(wanted)}
    modulator = sorted((pair for pair in ours if pair[0] in order), key=lambda pair: order[pair[0]])
    others = [pair for pair in ours if pair[0] not in order]
    at = next((i for i, pair in enumerate(ours) if pair[0] in order), 0)
    for own, (_, other) in zip(theirs, [*others[:at], *modulator, *others[at:]], strict=True):
        own.load_state_dict(other.state_dict())
    return layout.eval().requires_grad_(False)


def models() -> dict[str, Callable[[str], tuple[StyleEngine, nn.Module]]]:
    """An engine and its rival, by the model's name, of a type."""

    def micro(dtype: str) -> tuple[StyleEngine, nn.Module]:
        engine = fastgen.load("zoo:microast", device="cpu", dtype=dtype)
        return engine, same_weights(MicroASTLayout(), fastgen.load("zoo:microast", device="cpu").network)

    def vgg(dtype: str) -> tuple[StyleEngine, nn.Module]:
        torch.manual_seed(0)
        network = AdaINTransfer(AdaINTransferConfig()).requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # of a size that passes through the layers
                nn.init.normal_(module.weight, 0.0, (2 / module.weight[0].numel()) ** 0.5)
        network.decoder[-1].weight.mul_(0.05)
        rival = same_weights(AdaINLayout(), network)
        return StyleEngine({"network": network}, device="cpu", dtype=dtype), rival

    return {"microast": micro, "adain": vgg}


def compare(name: str, size: int, dtype: str, rounds: int, clock: str) -> dict[str, Any]:
    """A row: parity, then medians and quartiles of seconds per call, and median ratios of the rounds."""
    engine, rival = models()[name](dtype)
    generator = torch.Generator().manual_seed(0)
    content, style = (torch.rand(1, 3, size, size, generator=generator) for _ in range(2))
    last: dict[str, Any] = {"memory_format": torch.channels_last}
    rival_last = copy.deepcopy(rival).to(**last)
    inputs = content.contiguous(**last), style.contiguous(**last)
    ours = content * 2 - 1, style * 2 - 1
    want = rival(content, style).clamp(0, 1)
    got = engine.stylize(*ours) / 2 + 0.5
    row: dict[str, Any] = {"model": name, "size": size, "dtype": dtype}
    row["parity"] = float((got - want).abs().max())
    row["mean_off"] = float((got - want).abs().mean())
    if row["parity"] > PARITY[dtype]:
        return row | {"error": "pictures differ: no speed is reported"}
    code = engine.encode_style(ours[1])
    calls = {
        "fastgen": lambda: engine.stylize(*ours),
        "fastgen_known_style": lambda: engine.stylize(ours[0], code),
        "eager": lambda: rival(content, style),
        "channels_last": lambda: rival_last(*inputs),
    }
    times = interleaved(calls, CPU, rounds=rounds, clock=clock)
    for key, timing in times.items():
        quartiles = [round(timing.low, 5), round(timing.high, 5)]
        row[key] = {"median_s": round(timing.median, 5), "quartiles_s": quartiles}
    for key in ("eager", "channels_last"):
        ratio = times[key].over(times["fastgen"])
        row[f"speedup_{key}"] = round(ratio.median, 3)
        row[f"speedup_{key}_quartiles"] = [round(ratio.low, 3), round(ratio.high, 3)]
    return row


@torch.no_grad()
def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=models(), default=list(models()))
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--dtypes", nargs="+", choices=PARITY, default=list(PARITY))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine in use")
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    environment = header(args.clock)
    rows: list[dict] = []
    for name in args.models:
        for size in args.sizes:
            for dtype in args.dtypes:
                rows.append(compare(name, size, dtype, args.rounds, args.clock))
                print(json.dumps(rows[-1]), flush=True)
                if args.json:  # kept as they come
                    args.json.parent.mkdir(parents=True, exist_ok=True)
                    found = {"environment": environment, "rows": rows}
                    args.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
