"""How good drawn digits are: agreement with an independent classifier, variety, distance to the training set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pictures = NDArray[np.float64]  # [N, 28, 28] in [0, 1]
QUANTILES = (0.01, 0.1, 0.5, 0.9)


def deskew(images: Pictures) -> Pictures:
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


def classifier(images: Pictures, labels: NDArray[np.int64]):  # type: ignore[no-untyped-def]
    """A support vector machine on deskewed pixels; call ``predict(features(images))``."""
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale").fit(features(images), labels)


def features(images: Pictures) -> NDArray[np.float64]:
    """[N, 784] for the classifier."""
    return deskew(images).reshape(len(images), -1)


def spread(images: Pictures, labels: NDArray[np.int64]) -> dict[int, float]:
    """For each label, the mean Euclidean distance between two different pictures of it."""
    means = {}
    for label in np.unique(labels):
        flat = images[labels == label].reshape((labels == label).sum(), -1)
        distances = pairwise(flat, flat)
        means[int(label)] = float(distances.sum() / (len(flat) * (len(flat) - 1)))
    return means


def nearest(images: Pictures, training: Pictures) -> NDArray[np.float64]:
    """[N]: the Euclidean distance of each picture to the closest training picture."""
    flat = images.reshape(len(images), -1)
    return pairwise(flat, training.reshape(len(training), -1)).min(axis=1)


def pairwise(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, M] Euclidean distances between rows."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances = np.sqrt(np.maximum(squared, 0.0))
    if a is b:
        np.fill_diagonal(distances, 0.0)  # rounding leaves 1e-7 there
    return distances
