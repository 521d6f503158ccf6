"""Super-resolution of photographs, measured and shown: the figures and the sheet of docs/super-resolution.md.

    python -m tests.zoo.srgan FOLDER                     luma PSNR of every image: bicubic, zoo:srgan-x2 and -x4
    python -m tests.zoo.srgan FOLDER --sheet sheet.png    crops: bicubic, the engine, the truth

Small images are made by Pillow's bicubic; PSNR is of the luma, without a border of `scale` pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fastgen
from fastgen.image_files import SUFFIXES
from fastgen.images import save_grid
from fastgen.metrics.pairs import cropped, luma, psnr

SCALES = (2, 4)
CROP = 160  # pixels a side, from the middle of the upper half, where portraits have faces


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def enlarged(truth: Image.Image, scale: int) -> dict[str, Tensor]:
    """uint8 [3, H, W] by name, of an image whose sides are multiples of `scale`."""
    small = truth.resize((truth.width // scale, truth.height // scale), Image.Resampling.BICUBIC)
    engine = fastgen.load(f"zoo:srgan-x{scale}", device="cpu")
    return {
        "bicubic": tensor(small.resize(truth.size, Image.Resampling.BICUBIC)),
        "engine": engine.upscale(tensor(small)),
        "truth": tensor(truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    cells, captions, sums = [], [], {scale: np.zeros(2) for scale in SCALES}
    paths = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    for path in paths:
        image = Image.open(path).convert("RGB")
        truth = image.crop((0, 0, image.width // 4 * 4, image.height // 4 * 4))
        for scale in SCALES:
            found = enlarged(truth, scale)
            wanted = cropped(luma(found["truth"]), scale)
            figures = {name: psnr(cropped(luma(y), scale), wanted) for name, y in found.items()}
            print(
                f"{path.name} x{scale}: bicubic {figures['bicubic']:.2f} dB, engine {figures['engine']:.2f} dB"
            )
            sums[scale] += figures["bicubic"], figures["engine"]
            left, top = (truth.width - CROP) // 2, (truth.height - CROP) // 4
            for name, y in found.items():
                cells.append(y[:, top : top + CROP, left : left + CROP].float() / 127.5 - 1)
                captions.append(f"x{scale} {name}" + ("" if name == "truth" else f" {figures[name]:.2f} dB"))
    for scale, total in sums.items():
        bicubic, engine = total / len(paths)
        print(f"mean of {len(paths)} x{scale}: bicubic {bicubic:.2f} dB, engine {engine:.2f} dB")
    if args.sheet is not None:
        save_grid(torch.stack(cells), args.sheet, columns=3, captions=captions, scale=2)


if __name__ == "__main__":
    main()
