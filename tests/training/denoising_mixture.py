"""Eight Gaussians on a circle, learned by every objective of a denoiser: by `fastgen train`, drawn by the model's own
defaults.

    python -m tests.training.denoising_mixture

trains all of them (600 steps each), prints what each has learned, and draws
``docs/images/denoising-mixture.png``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import fastgen
from fastgen.cli import main as command

from .mixture import MODES, covered, drawn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "images" / "denoising-mixture.png"
ROWS, DRAWN, MATCHED = 20_000, 2000, 1000
STEPS = 600
RUN = (
    "--model",
    "diffusion_mlp",
    "--batch-size",
    "256",
    "--lr",
    "3e-3",
    "--option",
    "blocks=2",
    "--warmup",
    "50",
)
RUN += ("--ema-decay", "0.99", "--save-every", "100000000", "--quiet", "--device", "cpu")
# Title -> flags of `fastgen train`.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "DDPM, epsilon": ("--prediction-type", "epsilon"),
    "DDPM, v": (),
    "DDPM, sample, SNR": ("--prediction-type", "sample", "--loss-weighting", "snr"),
    "DDPM, sample, truncated SNR": ("--prediction-type", "sample", "--loss-weighting", "truncated-snr"),
    "DDPM, v, min-SNR": ("--loss-weighting", "min-snr"),
    "DDPM, v, EDM weighting": ("--loss-weighting", "edm"),
    "DDPM, epsilon, learned variance": ("--prediction-type", "epsilon", "--learn-sigma"),
    "VP, epsilon": ("--process", "vp"),
    "VP, v": ("--process", "vp", "--prediction-type", "v_prediction"),
    "VP, score": ("--process", "vp", "--prediction-type", "score"),
    "sub-VP, epsilon": ("--process", "subvp"),
    "VE, score": ("--process", "ve"),
    "VE, epsilon": ("--process", "ve", "--prediction-type", "epsilon"),
    "EDM": ("--process", "edm"),
    "flow, velocity": ("--process", "flow"),
    "flow, sample, min-SNR": (
        *("--process", "flow", "--prediction-type", "sample"),
        *("--loss-weighting", "min-snr"),
    ),
}


def truth(seed: int, count: int = DRAWN) -> Tensor:
    """Samples of the mixture, [count, 2]."""
    return drawn(count, torch.Generator().manual_seed(seed))


def train(folder: Path, flags: tuple[str, ...], steps: int = STEPS) -> fastgen.DiffusionEngine:
    """The model that `fastgen train` makes of `ROWS` rows with `flags`, loaded."""
    data = folder / "rows.npy"
    np.save(data, truth(1000, ROWS).numpy())
    model = folder / "model"
    assert command(["train", str(model), "--data", str(data), "--steps", str(steps), *RUN, *flags]) == 0
    return fastgen.load(model, device="cpu", max_batch=1000)


def wasserstein(a: Tensor, b: Tensor) -> float:
    """The 1-Wasserstein distance of two sets of as many points: the best matching, exactly."""
    cost = torch.cdist(a.double(), b.double()).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def distance(x: Tensor) -> float:
    """Mean distance of thousands of `x` [DRAWN, 2] to as many of the mixture's own."""
    parts = range(0, DRAWN, MATCHED)
    return sum(wasserstein(x[i : i + MATCHED], truth(i, MATCHED)) for i in parts) / len(parts)


def learned(name: str, steps: int = STEPS) -> Tensor:
    """What the objective has learned: `DRAWN` samples of its model, by its defaults, [DRAWN, 2]."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return torch.as_tensor(train(Path(folder), OBJECTIVES[name], steps).sample(DRAWN, seed=0))


def page(results: Mapping[str, Tensor], place: Path | None) -> None:
    """Print what each objective has learned, and draw it into `place`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 4, figsize=(10, 11), dpi=90)
    real = truth(5)
    own = [distance(truth(seed)) for seed in range(10_000, 10_020)]
    print(f"true samples: {np.mean(own):.3f} ({min(own):.3f} to {max(own):.3f})")
    for axis, (name, x) in zip(axes.flat, results.items(), strict=False):
        modes, near = covered(x)
        away = distance(x)
        print(f"| {name} | {away:.3f} | {modes} | {near:.1%} |", flush=True)
        axis.scatter(*real.T, s=1, color="0.8", rasterized=True)
        axis.scatter(*x.T, s=1, rasterized=True)
        axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"{name}\n{modes} of {MODES} modes, distance {away:.3f}", fontsize=9)
    if place is not None:
        figure.tight_layout()
        place.parent.mkdir(exist_ok=True)
        figure.savefig(place, metadata={"Software": None})


def main() -> None:
    """Train all, print, draw. Arguments: titles of some, for which no figure is drawn."""
    chosen = sys.argv[1:] or list(OBJECTIVES)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        results = dict(zip(chosen, pool.map(learned, chosen), strict=True))
    page(results, None if sys.argv[1:] else PAGE)


if __name__ == "__main__":
    main()
