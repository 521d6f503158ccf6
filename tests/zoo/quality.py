"""How good drawn digits are: agreement with an independent classifier, variety, distance to the training set.

    FASTGEN_REAL_DATA=... python -m tests.zoo.quality

prints the numbers of zoo:ddpm-mnist and writes its ``quality.json``, its loss curve and its sheet.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAINING = slice(0, 9000)  # what the model saw
HELD_OUT = slice(9000, 10000)
COUNT, GUIDANCE = 1000, 1.5
Images = NDArray[np.float64]  # [N, 28, 28] in [0, 1]
QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9)  # 0 is the smallest


def measure(images: NDArray[np.uint8], labels: NDArray[np.int64], guidance: float = GUIDANCE) -> dict:
    """The numbers of the zoo's README, from MNIST's 10,000 test digits [N, 28, 28] and their labels.

    variety: mean distance between two drawn digits of one label over that between two real ones.
    nearest_training_digit: quantiles of the distance from a drawn digit, and from a real one that the model never saw,
    to the closest digit it was trained on.
    """
    import fastgen

    asked = np.arange(COUNT) % 10
    engine = fastgen.load("zoo:ddpm-mnist")
    arguments = {"seed": 0, "solver": "dpm++2m", "steps": 20, "guidance_scale": guidance, "output_type": "np"}
    drawn = np.asarray(engine.sample(COUNT, labels=asked.tolist(), **arguments))[..., 0].astype(np.float64)
    return judged(drawn, asked, images, labels, guidance)


def judged(
    drawn: Images,
    asked: NDArray[np.int64],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    guidance: float,
) -> dict:
    """:func:`measure` of digits `drawn` [N, 28, 28] with `guidance`, of which the labels `asked` [N] were asked for."""
    images = images / 255.0
    judge = classifier(images[TRAINING], labels[TRAINING])
    held_out, held_out_labels = images[HELD_OUT], labels[HELD_OUT]
    real_spread, drawn_spread = spread(held_out, held_out_labels), spread(drawn, asked)
    return {
        "samples": len(asked),
        "guidance_scale": guidance,
        "classifier_on_held_out": float((judge.predict(features(held_out)) == held_out_labels).mean()),
        "agreement": float((judge.predict(features(drawn)) == asked).mean()),
        "variety": round(sum(drawn_spread.values()) / sum(real_spread.values()), 4),
        "variety_by_label": {str(i): round(drawn_spread[i] / real_spread[i], 3) for i in drawn_spread},
        "nearest_training_digit": _quantiles(nearest(drawn, images[TRAINING])),
        "nearest_training_digit_of_held_out": _quantiles(nearest(held_out, images[TRAINING])),
    }


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    return {str(q): round(float(np.quantile(values, q)), 3) for q in QUANTILES}


def deskew(images: Images) -> Images:
    """Slanted digits made upright and centred by their second moments: what a pixel classifier trips over."""
    from scipy.ndimage import affine_transform

    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    upright = np.empty_like(images)
    for i, image in enumerate(images):
        mass = max(image.sum(), 1e-6)
        row, column = (rows * image).sum() / mass, (columns * image).sum() / mass
        spread = ((rows - row) ** 2 * image).sum() / mass
        slant = ((rows - row) * (columns - column) * image).sum() / mass / max(spread, 1e-6)
        matrix = np.array([[1.0, 0.0], [slant, 1.0]])
        centre = np.array(image.shape) / 2
        upright[i] = affine_transform(image, matrix, np.array([row, column]) - matrix @ centre, order=1)
    return upright


def classifier(images: Images, labels: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    """A support vector machine on deskewed pixels; call ``predict(features(images))``."""
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(features(images), labels)


def features(images: Images) -> NDArray[np.float64]:
    """[N, 784] for the classifier."""
    return deskew(images).reshape(len(images), -1)


def spread(images: Images, labels: NDArray[np.int64]) -> dict[int, float]:
    """For each label, the mean Euclidean distance between two different images of it."""
    means = {}
    for label in np.unique(labels):
        flat = images[labels == label].reshape((labels == label).sum(), -1)
        distances = pairwise(flat, flat)
        means[int(label)] = float(distances.sum() / (len(flat) * (len(flat) - 1)))
    return means


def nearest(images: Images, training: Images) -> NDArray[np.float64]:
    """[N]: the Euclidean distance of each image to the closest training image."""
    flat = images.reshape(len(images), -1)
    return pairwise(flat, training.reshape(len(training), -1)).min(axis=1)


def pairwise(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, M] Euclidean distances between rows."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances = np.sqrt(np.maximum(squared, 0.0))
    if a is b:
        np.fill_diagonal(distances, 0.0)  # rounding leaves 1e-7 there
    return distances


def plot_losses(folder: Path, unit: str, title: str) -> None:
    """``loss.png`` from ``loss.csv``: each step's loss, and the mean of 50."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses = np.loadtxt(folder / "loss.csv", delimiter=",", skiprows=1)[:, 1]
    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=110)
    axes.semilogy(np.arange(1, len(losses) + 1), losses, lw=0.4, color="0.7", label="step")
    mean = np.convolve(losses, np.ones(50) / 50, mode="valid")
    axes.semilogy(np.arange(50, len(losses) + 1), mean, lw=1.4, label="mean of 50")
    axes.set(xlabel="step", ylabel=unit, title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "loss.png", metadata={"Software": None})


def main() -> None:
    """Measure the model and write what its folder shows."""
    from fastgen.cli import main as command
    from fastgen.zoo import folder
    from tests import real

    home = folder("ddpm-mnist")
    report = measure(*real.mnist())
    print(json.dumps(report, indent=2))
    (home / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_losses(home, "mean squared error of v", "zoo:ddpm-mnist, training loss")
    sheet = [
        "--count",
        "64",
        "--labels",
        "0-9",
        "--seed",
        "0",
        "--out",
        str(home / "sheet.png"),
        "--overwrite",
    ]
    command(["sample", "zoo:ddpm-mnist", *sheet])


if __name__ == "__main__":
    main()
