"""The GAN engine against its networks in eager PyTorch as they come, same weights and latents, rounds interleaved.

    python -m bench.versus.gan --clock cpu --json bench/results/cpu-gan.json

DCGANs are written here from torch's modules, in the layout of PyTorch's example: transposed convolution, batch norm,
ReLU, one after the other, the label's embedding joined to z. SAGAN and BigGAN are the reference networks of
``fastgen.models``, whose spectral norms, as in the authors' code, are divided out in every call; so are StyleGAN and
StyleGAN2, whose weights, as in theirs, are multiplied by the equalised learning rate's factors in every call, and which
have fixed noise and no truncation. Both run in evaluation mode without gradients. Images are compared with those of
float64 before anything is timed: where they are off by more than `PARITY`, and by more than twice what eager's are, no
speed is reported.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastgen
from fastgen.bench.families import on_disk
from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.models.gan.dcgan import DCGAN

from .header import header

CPU = torch.device("cpu")
MODELS = (
    *("zoo:gan-mnist", "random:wgan_gp", "random:sagan", "random:biggan", "random:biggan_deep"),
    *("random:stylegan28", "random:stylegan2-28", "random:stylegan64", "random:stylegan2-64"),
)
PARITY = 1e-4  # float32; images in [-1, 1] after up to thirty layers, whose weights the engine has folded


class Layers(nn.Module):
    """A DCGAN as one writes it: torch's modules in a row."""

    def __init__(self, network: DCGAN) -> None:
        super().__init__()
        config = network.config
        self.embedding = None
        if config.num_classes is not None:
            self.embedding = nn.Embedding(config.num_classes, config.embedding)
        layers: list[nn.Module] = []
        before = config.latent + config.embedding
        for i, width in enumerate(config.widths):
            shape = config.kernels[i], config.strides[i], config.paddings[i]
            layers.append(nn.ConvTranspose2d(before, width, *shape, bias=config.bias))
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            before = width
        shape = config.kernels[-1], config.strides[-1], config.paddings[-1]
        layers += [nn.ConvTranspose2d(before, config.out_channels, *shape, bias=config.bias), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.load_state_dict(network.state_dict())
        self.eval()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of latents and labels."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(labels)], dim=1)
        x: Tensor = self.layers(z[:, :, None, None])
        return x


def as_it_comes(network: nn.Module) -> nn.Module:
    """The generator in plain PyTorch, its weights where PyTorch puts them."""
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format).eval()
    return Layers(plain) if isinstance(plain, DCGAN) else plain


def compare(name: str, batch: int, rounds: int, clock: str, folder: Path) -> dict[str, Any]:
    """Parity, then medians and quartiles of seconds per call, and the median ratio of the rounds."""
    engine = fastgen.load(on_disk(name, folder), device="cpu", dtype="float32", graph=False)
    plain = as_it_comes(engine.generator)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, engine.generator.config.latent, generator=generator)
    labels = None
    if engine.classes is not None:
        labels = torch.randint(engine.classes, (batch,), generator=generator)

    styled = hasattr(plain, "num_ws")  # its images are clamped by the engine, and not by the network
    options: dict[str, Any] = {"truncation_psi": 1.0, "noise_mode": "const"} if styled else {}

    def ours() -> Tensor:
        found: Tensor = engine.generate(z, labels=labels, **options)
        return found

    def eager() -> Tensor:
        found: Tensor = plain(z, labels)
        return found.clamp_(-1, 1) if styled else found

    exact = copy.deepcopy(plain).double()(z.double(), labels)
    exact = exact.clamp_(-1, 1) if styled else exact
    off, own = (float((images() - exact).abs().max()) for images in (ours, eager))
    row: dict[str, Any] = {"model": name, "batch": batch, "parity": off, "eager_parity": own}
    if not off <= max(PARITY, 2 * own):
        row["error"] = "images differ: no speed is reported"
        return row
    calls = {"fastgen": ours, "eager": eager}
    times = interleaved(calls, CPU, rounds=rounds, clock=clock)
    for form, timing in times.items():
        quartiles = [round(timing.low, 5), round(timing.high, 5)]
        row[form] = {"median_s": round(timing.median, 5), "quartiles_s": quartiles}
    ratio = times["eager"].over(times["fastgen"])
    row["speedup"] = round(ratio.median, 3)
    row["speedup_quartiles"] = [round(ratio.low, 3), round(ratio.high, 3)]
    return row


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """By models as they are listed, others at the end; by batch."""
    return MODELS.index(row["model"]) if row["model"] in MODELS else len(MODELS), row["batch"]


@torch.no_grad()
def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where images differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    environment = header(args.clock)
    rows: list[dict] = []
    kept = []  # what is measured for other models and batches stays
    if args.json and args.json.exists():
        measured = {(name, batch) for name in args.models for batch in args.batches}
        known = json.loads(args.json.read_text())["rows"]
        kept = [row for row in known if (row["model"], row["batch"]) not in measured]
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            for batch in args.batches:
                rows.append(compare(name, batch, args.rounds, args.clock, Path(folder)))
                print(json.dumps(rows[-1]), flush=True)
                if args.json:
                    args.json.parent.mkdir(parents=True, exist_ok=True)
                    found = sorted([*rows, *kept], key=_place)
                    args.json.write_text(
                        json.dumps({"environment": environment, "rows": found}, indent=2) + "\n"
                    )
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
