"""What editing with zoo:ddpm-mnist comes to, measured: the numbers and figures of docs/editing.md.

    python -m tests.zoo.editing inpaint        the label of half-hidden digits, by replacement and by RePaint
    python -m tests.zoo.editing encode         images encoded and decoded again, by steps; docs/images/encode.png
    python -m tests.zoo.editing sheet          docs/images/inpaint.png: before, hidden, and filled in

Digits are drawn by the model itself (seeds 1000 and up, ten labels in turn), so that no data is needed. Their right
halves are hidden, and filled in without a label: what it was has to be seen from what is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastgen
from tests.diffusion.deviations import replace_block

from . import judge

MODEL = "zoo:ddpm-mnist"
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "editing.md"
FIRST_SEED = 1000
COUNT = 60
EDGE = 14  # the first column that is hidden
STEPS = (10, 25, 50, 100)
CODINGS: dict[str, dict[str, Any]] = {
    "ddim, 1 iteration": {"solver": "ddim", "iterations": 1},
    "ddim, 2 iterations": {"solver": "ddim", "iterations": 2},
    "heun": {"solver": "heun", "iterations": 2},
}
CODED = 5  # digits that are encoded, of the labels 0 to 4
SHOWN = 10  # digits on the sheet, one of each label


@dataclass(frozen=True)
class Way:
    """A way of filling in: its name, its arguments, how many network evaluations it takes."""

    name: str
    arguments: dict[str, Any]
    evaluations: int


WAYS = (
    Way("replace, the model's own dpm++2m x 20", {"method": "replace"}, 20),
    Way(
        "replace, ddim with eta=1 x 105",
        {"method": "replace", "solver": "ddim", "eta": 1.0, "steps": 105},
        105,
    ),
    Way("repaint, ddim with eta=1 x 25", {}, 105),
)


def digits(engine: fastgen.DiffusionEngine, count: int) -> tuple[Tensor, np.ndarray]:
    """(digits [count, 1, 28, 28] in [-1, 1], their labels)."""
    labels = np.arange(count) % 10
    return engine.sample(count, seed=FIRST_SEED, labels=labels.tolist(), solver="dpm++2m", steps=20), labels


def right_half() -> Tensor:
    """The mask: True where pixels are hidden."""
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[:, EDGE:] = True
    return mask


def agreeing(images: Tensor, labels: np.ndarray) -> int:
    """How many of the images [n, 1, 28, 28] the judge takes for their labels."""
    return int((judge.predict((images[:, 0].double().numpy() + 1.0) / 2.0) == labels).sum())


def jump(images: Tensor) -> float:
    """Mean difference of neighbouring pixels across the edge, in [-1, 1] units."""
    return float((images[..., EDGE] - images[..., EDGE - 1]).abs().mean())


def inpaint(engine: fastgen.DiffusionEngine, count: int) -> list[str]:
    """The rows of the page's table."""
    images, labels = digits(engine, count)
    hidden = images.clone()
    hidden[..., EDGE:] = -1.0
    rows = [
        "| filled in by | network evaluations | label seen, of "
        f"{count} | difference across the edge |\n|---|---|---|---|",
        f"| nothing: the digits themselves | | {agreeing(images, labels)} | {jump(images):.3f} |",
        f"| nothing: half of them black | | {agreeing(hidden, labels)} | {jump(hidden):.3f} |",
    ]
    for way in WAYS:
        made = engine.inpaint(images, right_half(), seed=0, **way.arguments)
        assert torch.equal(made[..., :EDGE], images[..., :EDGE]), way.name
        rows.append(f"| {way.name} | {way.evaluations} | {agreeing(made, labels)} | {jump(made):.3f} |")
        print(rows[-1], flush=True)
    return rows


def encode(
    engine: fastgen.DiffusionEngine, steps: Sequence[int]
) -> dict[str, list[tuple[int, float, float]]]:
    """By way of coding: (steps, root of the mean square error, largest error) of the round trip."""
    images, labels = digits(engine, CODED)
    found: dict[str, list[tuple[int, float, float]]] = {}
    for name, arguments in CODINGS.items():
        for count in steps:
            there = engine.round_trip(images, labels=labels.tolist(), steps=count, **arguments)
            rms = float(there.rms.square().mean().sqrt())
            found.setdefault(name, []).append((count, rms, float(there.largest.max())))
            print(name, *found[name][-1], flush=True)
    return found


def plot(found: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """The errors over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=110)
    for name, points in found.items():
        axes.loglog([p[0] for p in points], [p[1] for p in points], "o-", label=name)
    axes.set_xlabel("steps")
    axes.set_ylabel("error of encode, then decode (rms)")
    axes.set_xticks([*STEPS], [str(s) for s in STEPS])
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def sheet(engine: fastgen.DiffusionEngine, path: Path) -> None:
    """A row of digits, the row with their right halves hidden, and a row for each way of filling in."""
    images, labels = digits(engine, SHOWN)
    hidden = images.clone()
    hidden[..., EDGE:] = -0.5
    made = [engine.inpaint(images, right_half(), seed=0, **way.arguments) for way in WAYS[::2]]
    rows = [images, hidden, *made]
    rows.append(engine.inpaint(images, right_half(), seed=0, labels=labels.tolist()))
    fastgen.save_grid(torch.cat(rows), path, columns=SHOWN, scale=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and bring the page and its figures up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("what", choices=("inpaint", "encode", "sheet"))
    parser.add_argument("--count", type=int, default=COUNT, help=f"digits to fill in (default {COUNT})")
    chosen = parser.parse_args(arguments)
    engine = fastgen.load(MODEL, device="cpu")
    if chosen.what == "sheet":
        sheet(engine, DOCS / "images" / "inpaint.png")
        return
    if chosen.what == "inpaint":
        rows = inpaint(engine, chosen.count)
    else:
        found = encode(engine, STEPS)
        plot(found, DOCS / "images" / "encode.png")
        rows = ["| | " + " | ".join(f"{s} steps" for s in STEPS) + " |", "|---" * (len(STEPS) + 1) + "|"]
        rows += [
            f"| {name} | " + " | ".join(f"{rms:.4f} ({most:.2f})" for _, rms, most in points) + " |"
            for name, points in found.items()
        ]
    PAGE.write_text(replace_block(PAGE.read_text(), chosen.what, "\n".join(rows)))


if __name__ == "__main__":
    main()
