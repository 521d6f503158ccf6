"""A classifier of handwritten digits that ships with the tests: what `tests/zoo/agreement.py` judges drawn digits by.

    FASTGEN_REAL_DATA=... python -m tests.zoo.judge

fits it to MNIST's test digits 0-8999, writes ``judge.npz`` and prints how many of digits 9000-9999 it gets right. It
shares images with zoo:ddpm-mnist, and nothing else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .quality import HELD_OUT, TRAINING, Images, deskew

FILE = Path(__file__).with_name("judge.npz")
HIDDEN = 64
SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))  # pixels, by which the fit sees every digit moved


def features(images: Images) -> NDArray[np.float64]:
    """[N, 196]: upright, each pixel a mean of four."""
    return deskew(images).reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(len(images), -1)


def predict(images: Images) -> NDArray[np.int64]:
    """The label that one hidden layer gives each image, [N]; [N, 28, 28] in [0, 1]."""
    return probabilities(images).argmax(1)


def entropy(labels: NDArray[np.int64]) -> float:
    """Of the distribution of `labels` [N], in nats: log(10) = 2.303 of ten that occur equally often, 0 of one alone."""
    shares = np.bincount(labels) / len(labels)
    return float((shares[shares > 0] * np.log(1 / shares[shares > 0])).sum())


def probabilities(images: Images) -> NDArray[np.float64]:
    """[N, 10], of each label; the largest of a row is how sure the classifier is. images: see `predict`."""
    with np.load(FILE, allow_pickle=False) as fitted:
        first, second = (fitted[f"weight_{i}"].astype(np.float64) for i in range(2))
        bias, end = (fitted[f"bias_{i}"].astype(np.float64) for i in range(2))
    hidden = np.maximum(features(images) @ first + bias, 0.0)
    logits = hidden @ second + end
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def fit(images: Images, labels: NDArray[np.int64]) -> None:
    """Write `FILE`. images: [N, 28, 28] in [0, 1]."""
    from sklearn.neural_network import MLPClassifier

    moved = np.concatenate([np.roll(images, shift, (1, 2)) for shift in SHIFTS])
    model = MLPClassifier((HIDDEN,), alpha=0.1, max_iter=40, random_state=0)
    model.fit(features(moved), np.tile(labels, len(SHIFTS)))
    layers = {f"weight_{i}": w.astype(np.float16) for i, w in enumerate(model.coefs_)}
    np.savez_compressed(FILE, **layers, **{f"bias_{i}": b for i, b in enumerate(model.intercepts_)})


def main() -> None:
    from tests import real

    images, labels = real.mnist()
    images = images / 255.0
    fit(images[TRAINING], labels[TRAINING])
    print(f"{(predict(images[HELD_OUT]) == labels[HELD_OUT]).mean():.1%} of held-out digits")


if __name__ == "__main__":
    main()
