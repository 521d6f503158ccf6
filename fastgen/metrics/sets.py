"""Two sets of images compared: every distance, batch by batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import shown
from ..errors import ConfigError, DataError
from ..files import open_ordinary
from ..image_files import SUFFIXES, read_image_file
from ..image_folders import image_paths
from ..training.arrays import read_idx
from . import METRICS
from .distances import (
    NEIGHBOURS,
    SEED,
    SPLITS,
    SUBSET_SIZE,
    SUBSETS,
    Moments,
    count,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold,
)
from .features import FeatureNetwork
from .pairs import over_white, warn_of_transparency

FLOATS = (-1.05, 1.05)  # of images in [-1, 1], which a network may leave a little


@dataclass
class Described:
    """What is kept of a set of images: moments of features, the features themselves (float32), logits."""

    moments: Moments = field(default_factory=Moments)
    features: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return self.moments.count


def describe(
    network: FeatureNetwork, batches: Iterable[Tensor], metrics: Sequence[str] | None = None
) -> Described:
    """Run `network` over uint8 images [B, C, H, W]; of what `metrics` (None: all) do not need nothing is kept.

    Raises ConfigError where "score" is in `metrics` and the network is no classifier, DataError for no images.
    """
    found, wanted = Described(), METRICS if metrics is None else metrics
    for features, logits in network.of(batches):
        if metrics is not None and "score" in metrics and logits is None:
            raise ConfigError(
                f"score is of a classifier's answers, and {network.name} gives none", argument="metrics"
            )
        found.moments.add(features)
        if "kernel" in wanted or "manifold" in wanted:
            found.features.append(features)
        if "score" in wanted and logits is not None:
            found.logits.append(logits)
    if not len(found):
        raise DataError("holds no images", argument=network.name)
    return found


def compare(
    real: Described,
    fake: Described,
    *,
    metrics: Sequence[str] | None = None,
    inception: bool = False,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
    neighbours: int = NEIGHBOURS,
    seed: int = SEED,
) -> dict[str, float]:
    """The numbers of `metrics`, names in METRICS, by the names that the papers give them for Inception's features.

    None: all of them, without the score where the network is no classifier, which a warning says.

    inception: whether the features are Inception's; only then are they called FID, KID and Inception score.
    subset_size: of the kernel distance; None: 1000, or all samples where there are fewer. Raises ConfigError.
    """
    asked, metrics = metrics, METRICS if metrics is None else metrics
    check_metrics(metrics)
    if "score" in metrics and not fake.logits:
        if asked is not None:
            raise ConfigError("score is of a classifier's answers, and there are none", argument="metrics")
        warnings.warn("the network is no classifier: there is no classifier score", stacklevel=2)
        metrics = tuple(name for name in metrics if name != "score")
    _check_counts(real, fake, metrics, neighbours)
    found: dict[str, float] = {}
    if "frechet" in metrics:
        found["fid" if inception else "frechet_distance"] = frechet_distance(real.moments, fake.moments)
    if "kernel" in metrics:
        size = min(SUBSET_SIZE, len(real), len(fake)) if subset_size is None else subset_size
        distance = kernel_distance(
            torch.cat(real.features), torch.cat(fake.features), subsets=subsets, subset_size=size, seed=seed
        )
        name = "kid" if inception else "kernel_distance"
        found |= {name: distance.mean, f"{name}_std": distance.std}
    if "score" in metrics:
        score = inception_score(torch.cat(fake.logits), seed=seed)
        name = "inception_score" if inception else "classifier_score"
        found |= {name: score.mean, f"{name}_std": score.std}
    if "manifold" in metrics:
        found |= manifold(torch.cat(real.features), torch.cat(fake.features), neighbours=neighbours)
    return found


def _check_counts(real: Described, fake: Described, metrics: Sequence[str], neighbours: int) -> None:
    """Raise ConfigError where there are too few images for one of `metrics`."""
    count(neighbours, "neighbours", 1)
    least = {"frechet": 2, "kernel": 2, "score": SPLITS, "manifold": neighbours + 1}
    for name in metrics:
        for which, images in (("real", real), ("fake", fake)):
            if len(images) < least[name] and (which == "fake" or name != "score"):
                raise ConfigError(
                    f"{name} takes at least {least[name]} images, there are {len(images)}: take more, or other metrics",
                    argument=which,
                )


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ConfigError for a name that is not in METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"expected some of {', '.join(METRICS)}, got {shown(name)}", argument="metrics")


def images(source: str | Path, channels: int, batch: int) -> Iterator[Tensor]:
    """uint8 [B, channels, H, W], B <= batch, of a folder of images, an IDX file, or a NPY or NPZ file of images: uint8,
    or float in [-1, 1] as ``fastgen sample`` writes them.

    Images of a folder keep their sizes: those of unlike size come in batches of their own; what is transparent shows
    white, which a warning says. A warning also says where floats may be meant for [0, 1]. Raises DataError for what
    holds no images, or values out of [-1, 1]; ConfigError.
    """
    count(batch, "batch", 1)
    if channels not in (1, 3):
        raise ConfigError(f"expected 1 (grey) or 3 (RGB), got {shown(channels)}", argument="channels")
    path = Path(source)
    if path.is_dir():
        yield from _of_folder(path, channels, batch)
        return
    values = _array(path) if path.suffix.lower() in (".npy", ".npz") else read_idx(path)
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in (1, 3) and values.shape[1] not in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    floats = np.issubdtype(values.dtype, np.floating)
    fits = values.ndim == 4 and values.shape[1] in (1, 3) and 0 not in values.shape
    if not fits or not (floats or values.dtype == np.uint8):
        raise DataError(
            f"expected images, uint8 or float in [-1, 1], [N, H, W], [N, C, H, W] or [N, H, W, C] with C = 1 or 3; got "
            f"{values.dtype} {list(values.shape)}",
            argument=path,
        )
    if floats:
        _check_range(values, batch, path)
    for at in range(0, len(values), batch):
        # Also of the other byte order, and wider than PyTorch has.
        part = torch.from_numpy(np.array(values[at : at + batch], dtype=np.float32 if floats else np.uint8))
        part = part.add(1).mul(127.5).round().clamp(0, 255).byte() if floats else part
        yield _with_channels(part, channels)


def _check_range(values: np.ndarray, batch: int, path: Path) -> None:
    """Whether floats are images in [-1, 1]: a DataError names the range found, a warning says where it is doubtful."""
    parts = [values[at : at + batch] for at in range(0, len(values), batch)]
    low = float(np.min([part.min() for part in parts]))
    high = float(np.max([part.max() for part in parts]))
    if not (FLOATS[0] <= low and high <= FLOATS[1]):  # a NaN is neither
        raise DataError(
            f"expected float images in [-1, 1], got values from {low:g} to {high:g}", argument=path
        )
    if low >= 0 and high <= 1:
        warnings.warn(
            f"{path}: its values, from {low:g} to {high:g}, are taken for images in [-1, 1]; those in [0, 1] must be "
            "scaled first (2 x - 1), or be uint8",
            stacklevel=3,
        )


def _array(path: Path) -> np.ndarray:
    """The numbers of a NPY file, or the images of a NPZ file, never a pickle. Raises DataError."""
    open_ordinary(path, DataError).close()
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            name = next((n for n in ("x", "images", "arr_0") if n in found.files), None)
            if name is None:
                raise DataError(
                    f"has no x, images or arr_0, but {', '.join(found.files[:20])}", argument=path
                )
            values: np.ndarray = found[name]
            return values
    except DataError:
        raise
    except Exception as error:  # NumPy raises any type of error for a damaged file
        raise DataError(f"cannot be read: {error}", argument=path) from error


def _of_folder(folder: Path, channels: int, batch: int) -> Iterator[Tensor]:
    held: list[Tensor] = []
    transparent: list[Path] = []
    for path in image_paths(folder, SUFFIXES):
        file = read_image_file(path, channels)
        if file.alpha is not None:
            transparent.append(path)
        image = over_white(file.pixels, file.alpha).round().byte()
        if held and (len(held) == batch or image.shape != held[0].shape):
            yield torch.stack(held)
            held = []
        held.append(image)
    yield torch.stack(held)
    warn_of_transparency(transparent)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """Grey as RGB, RGB as grey (ITU-R BT.601, as Pillow has it)."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
    return (images.float() * weights).sum(1, keepdim=True).round().clamp(0, 255).byte()
