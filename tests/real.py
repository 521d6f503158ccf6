"""Images and weights made by others, in the folder that FASTGEN_REAL_DATA names; never shipped."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fastgen.training.arrays import read_idx


def folder() -> Path:
    """The folder; where there is none a skip that says why, and an exit of programs that are not tests."""
    path = os.environ.get("FASTGEN_REAL_DATA")
    if not path:
        reason = "FASTGEN_REAL_DATA is not set: the folder with data/mnist and the rest"
        if "PYTEST_VERSION" not in os.environ:
            raise SystemExit(reason)
        pytest.skip(reason)
    if not Path(path).is_dir():
        pytest.fail(f"FASTGEN_REAL_DATA={path} is no folder")
    return Path(path)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's test set: uint8 [10000, 28, 28] and int64 labels [10000]."""
    images = read_idx(folder() / "data/mnist/t10k-images-idx3-ubyte.gz")
    labels = read_idx(folder() / "data/mnist/t10k-labels-idx1-ubyte.gz")
    return images, labels.astype(np.int64)
