"""How near a translation model comes to the truth on pairs that it has not seen, beside what needs no model.

    python -m bench.paired MODEL --data testB --target testA --train trainA --sheet sheet.png

prints L1 (values in [0, 1]) and PSNR of the translations, of the inputs themselves and of the mean picture of --train,
and writes a sheet: input, translation, truth.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.images import save_grid
from fastgen.metrics.pairs import l1, psnr
from fastgen.training import data

ROWS = 8  # pairs on the sheet


def images(source: str, target: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(inputs, truths), uint8 [n, 3, H, W]."""
    pairs = data.load(source, target=target, size=size)
    batch = pairs.batch(range(len(pairs)))
    assert batch.target is not None
    return batch.x, batch.target


def errors(made: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean L1 and mean PSNR of images in [0, 255]."""
    count = len(truth)
    pairs = list(zip(made, truth, strict=True))
    return sum(l1(a, b) for a, b in pairs) / count, math.fsum(psnr(a, b) for a, b in pairs) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--train", required=True, help="folder whose mean picture is compared")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    size = (args.size, args.size)
    x, truth = images(args.data, args.target, size)
    engine: Any = fastgen.load(args.model)
    made = torch.cat([engine.translate(part.float() / 127.5 - 1).cpu() for part in x.split(8)])
    shown = made.add(1).mul(127.5).round().clamp(0, 255)
    trained_on = data.load(args.train, size=size)
    mean = trained_on.batch(range(len(trained_on))).x.double().mean(0).round().expand(len(truth), -1, -1, -1)
    print(f"{len(truth)} pairs of {args.size}x{args.size}")
    for name, other in (("translation", shown), ("input", x), ("mean picture", mean)):
        print("  {}: L1 {:.4f}, PSNR {:.2f} dB".format(name, *errors(other, truth)))
    if args.sheet is not None:
        every = max(1, len(x) // ROWS)
        rows = [(image.float() / 127.5 - 1)[::every][:ROWS] for image in (x, shown, truth)]
        save_grid(torch.stack(rows, dim=1).flatten(0, 1), args.sheet, columns=6)


if __name__ == "__main__":
    main()
