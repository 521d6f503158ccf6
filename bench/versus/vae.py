"""The VAE engine against its networks in eager PyTorch as they come: encode, decode, same weights, rounds interleaved.

    OMP_NUM_THREADS=1 python -m bench.versus.vae --clock cpu --json bench/results/cpu-vae.json

The rival is the network that is written here in plain torch modules, in eval mode and without gradients: the layers of
disentangling-vae in their order, and AutoencoderKL of diffusers itself. Results are compared before anything is timed;
where they differ no speed is reported. The engine is called as a user calls it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import fastgen
from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.engines import VAEEngine
from fastgen.models.vae.convolutional import ConvolutionalVAE, ConvolutionalVAEConfig

from .header import header

CPU = torch.device("cpu")
PARITY = 1e-4  # float32 of some ten to fifty layers, values of size 1
BATCHES = (1, 64)


class Burgess(nn.Module):
    """The network of disentangling-vae: `layers` of encoder and decoder, ReLUs between them, means and log-variances in
    turns."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        halvings = 3 if side == 32 else 4
        self.down = nn.ModuleList(nn.Conv2d(32 if i else channels, 32, 4, 2, 1) for i in range(halvings))
        self.inner = nn.ModuleList([nn.Linear(512, 256), nn.Linear(256, 256)])
        self.moments = nn.Linear(256, 20)
        self.outer = nn.ModuleList([nn.Linear(10, 256), nn.Linear(256, 256), nn.Linear(256, 512)])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(32, 32 if i + 1 < halvings else channels, 4, 2, 1) for i in range(halvings)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in [0, 1]."""
        for conv in self.down:
            x = torch.relu(conv(x))
        x = x.view(len(x), -1)
        for linear in self.inner:
            x = torch.relu(linear(x))
        mean, log_var = self.moments(x).view(-1, 10, 2).unbind(-1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        for linear in self.outer:
            z = torch.relu(linear(z))
        z = z.view(len(z), 32, 4, 4)
        for conv in self.up[:-1]:
            z = torch.relu(conv(z))
        return torch.sigmoid(self.up[-1](z))


def burgess(
    side: int, channels: int
) -> tuple[VAEEngine, dict[str, Callable[[Tensor], Tensor]], Tensor, Tensor]:
    """(engine, the rival's verbs in the engine's units, x, z) of 64 images."""
    torch.manual_seed(0)
    theirs = Burgess(side, channels).eval().requires_grad_(False)
    config = ConvolutionalVAEConfig(
        sample_size=(side, side), in_channels=channels, channels=(32,) * len(theirs.down)
    )
    ours = ConvolutionalVAE(config)
    convolutions = [m for m in ours.encoder.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in ours.encoder.modules() if isinstance(m, nn.Linear)]
    outer = [m for m in ours.decoder.modules() if isinstance(m, nn.Linear)]
    up = [m for m in ours.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    pairs: list[tuple[Any, Any]] = [
        *zip(convolutions, theirs.down, strict=True),
        *zip(linears[:2], theirs.inner, strict=True),
        *zip(outer, theirs.outer, strict=True),
        *zip(up, theirs.up, strict=True),
    ]
    with torch.no_grad():
        for mine, his in pairs:
            mine.weight.copy_(his.weight)
            mine.bias.copy_(his.bias)
        for part in ("weight", "bias"):
            value = getattr(theirs.moments, part)
            getattr(linears[2], part).copy_(torch.cat([value[0::2], value[1::2]]))
    x, z = 2 * torch.rand(64, channels, side, side) - 1, torch.randn(64, 10)
    verbs = {
        "encode": lambda x: torch.cat(theirs.encode((x + 1) / 2), dim=1),
        "decode": lambda z: 2 * theirs.decode(z) - 1,
    }
    return VAEEngine(ours, device="cpu"), verbs, x, z


def autoencoder() -> tuple[VAEEngine, dict[str, Callable[[Tensor], Tensor]], Tensor, Tensor]:
    """The same of a small AutoencoderKL, 64x64 pixels to 16x16 latents."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=64,
    )
    theirs.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        engine = fastgen.load(folder, device="cpu")
    x, z = 2 * torch.rand(64, 3, 64, 64) - 1, torch.randn(64, 4, 16, 16)
    verbs = {
        "encode": lambda x: theirs.encode(x).latent_dist.parameters,
        "decode": lambda z: theirs.decode(z).sample,
    }
    return engine, verbs, x, z


MODELS: dict[str, Callable[[], tuple[VAEEngine, dict[str, Callable[[Tensor], Tensor]], Tensor, Tensor]]] = {
    "vae 1x32x32": lambda: burgess(32, 1),
    "vae 3x64x64": lambda: burgess(64, 3),
    "AutoencoderKL 3x64x64": autoencoder,
}


def compare(name: str, batch: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    """One row per verb: parity, medians and quartiles of seconds per call, and the median ratio of the rounds."""
    engine, theirs, x, z = MODELS[name]()
    ours: dict[str, Callable[[Tensor], Tensor]] = {
        "encode": lambda x: torch.cat(engine.call("encode", x), dim=1),
        "decode": lambda z: engine.call("decode", z)[0],
    }
    rows = []
    for verb, given in (("encode", x[:batch]), ("decode", z[:batch])):
        off = float((ours[verb](given) - theirs[verb](given)).abs().max())
        row: dict[str, Any] = {"model": name, "verb": verb, "batch": batch, "parity": off}
        rows.append(row)
        if off > PARITY:
            row["error"] = "outputs differ: no speed is reported"
            continue

        def calls(work: Callable[[Tensor], Tensor], given: Tensor = given) -> Callable[[], Any]:
            return lambda: work(given)

        times = interleaved(
            {"fastgen": calls(ours[verb]), "eager": calls(theirs[verb])}, CPU, rounds=rounds, clock=clock
        )
        for who, timing in times.items():
            quartiles = [round(timing.low, 7), round(timing.high, 7)]
            row[who] = {"median_s": round(timing.median, 7), "quartiles_s": quartiles}
        ratio = times["eager"].over(times["fastgen"])
        row["speedup"] = round(ratio.median, 3)
        row["speedup_quartiles"] = [round(ratio.low, 3), round(ratio.high, 3)]
    return rows


@torch.no_grad()
def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    environment = header(args.clock, "diffusers")
    rows: list[dict[str, Any]] = []
    for name in args.models:
        for batch in args.batches:
            new = compare(name, batch, args.rounds, args.clock)
            rows += new
            for row in new:
                print(json.dumps(row), flush=True)
            if args.json:  # kept as they come: a long run that is cut off has not been for nothing
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
