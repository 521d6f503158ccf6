"""How good zoo:pix2pix-mnist is, which fills the outlines of digits.

    FASTGEN_REAL_DATA=... python -m tests.zoo.pix2pix_mnist --pairs FOLDER

writes the pairs that it is trained on, outline left and digit right, and without --pairs

    FASTGEN_REAL_DATA=... python -m tests.zoo.pix2pix_mnist [RUN]

takes the model from the folder of a training run, if one is given, measures it and writes what its folder shows:
``quality.json``, the loss curve, the sheet and the numbers of its README.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tests import real
from tests.zoo import judge, quality

NAME = "pix2pix-mnist"
FILES = ("config.json", "model.safetensors", "loss.csv")
SHOWN = 24  # held-out digits on the sheet


def outlines(digits: Tensor) -> Tensor:
    """White lines one pixel wide around digits, float [N, 1, H, W] in [-1, 1]: what lies beside their strokes."""
    strokes = (digits > 0).float()
    return 2 * (F.max_pool2d(strokes, 3, 1, 1) - strokes) - 1


def pairs(part: slice) -> tuple[Tensor, Tensor]:
    """(outlines, digits) of MNIST's test set, float [N, 1, 28, 28] in [-1, 1]."""
    digits = torch.from_numpy(real.mnist()[0][part].copy()).float()[:, None] / 127.5 - 1
    return outlines(digits), digits


def write_pairs(folder: Path) -> None:
    """Those of digits 0-8999 as side-by-side PNG files."""
    folder.mkdir(parents=True)
    x, y = pairs(quality.TRAINING)
    joined = torch.cat([x, y], dim=3).add(1).mul(127.5).round().byte()
    for i, image in enumerate(joined):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:05d}.png")


def errors(images: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean absolute error and mean PSNR, values in [0, 1]."""
    difference = (images - truth) / 2
    mse = difference.square().mean((1, 2, 3))
    return {
        "l1": round(float(difference.abs().mean()), 4),
        "psnr": round(float((-10 * torch.log10(mse)).mean()), 2),
    }


def measure(engine: Any) -> dict[str, Any]:
    """On digits 9000-9999, which the model has not seen: distance from the truth, and which digits are read."""
    x, y = pairs(quality.HELD_OUT)
    labels = real.mnist()[1][quality.HELD_OUT]
    mean = pairs(quality.TRAINING)[1].mean(0, keepdim=True).expand_as(y)
    made = engine.translate(x)
    found: dict[str, Any] = {
        name: {**errors(images, y), "read_right": _read_right(images, labels)}
        for name, images in (("translated", made), ("outline", x), ("mean digit", mean))
    }
    found["digit"] = {"read_right": _read_right(y, labels)}
    found["prefers_truth"] = round(float((engine.score(x, y) > engine.score(x, made)).double().mean()), 4)
    return found


def _read_right(images: Tensor, labels: np.ndarray) -> float:
    """The share that the independent classifier of `tests/zoo/judge.py` takes for what they should be."""
    read = judge.predict(images[:, 0].add(1).div(2).double().numpy())
    return round(float((read == labels).mean()), 4)


def sheet(engine: Any, path: Path) -> None:
    """Outlines, what becomes of them, and the digits."""
    from fastgen.images import save_grid

    x, y = (images[:SHOWN] for images in pairs(quality.HELD_OUT))
    rows = torch.stack([x, engine.translate(x), y], dim=1).flatten(0, 1)
    save_grid(rows, path, columns=12, scale=2)


def main() -> None:
    import fastgen
    from fastgen.zoo import folder

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--pairs", type=Path)
    args = parser.parse_args()
    if args.pairs is not None:
        write_pairs(args.pairs)
        return
    where = folder(NAME)
    if args.run is not None:
        where.mkdir(exist_ok=True)
        for name in FILES:
            shutil.copy(args.run / name, where / name)
    engine = fastgen.load(where, device="cpu")
    found = measure(engine)
    (where / "quality.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    sheet(engine, where / "sheet.png")
    quality.plot_losses(where, "generator", f"zoo:{NAME}, training loss")


if __name__ == "__main__":
    main()
