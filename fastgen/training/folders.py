"""Images in folders, decoded when asked for: by themselves, in pairs of equal names, or side by side in one file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import open_ordinary
from .batch import Batch

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Decided by content, not by name: Pillow would hand a PostScript file in disguise to another program.
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 1 << 26  # of one image: eight of them are decoded at a time, into 4 bytes per pixel or more


class ImageFolder:
    """Images in a folder, resized and centre-cropped to `size` (height, width), uint8.

    channels: 1 (grey) or 3 (RGB). Where the images lie in sub-folders, the names of the first level are the classes, in
    sorted order. Raises DataError, when it is made for a folder without images, and in `batch` for a damaged image.
    """

    paired = False

    def __init__(self, folder: Path, size: tuple[int, int], channels: int) -> None:
        if channels not in (1, 3):
            raise DataError(f"an image folder gives 1 (grey) or 3 (RGB), not {channels}", argument="channels")
        self.folder, self.files = folder, images_in(folder)
        self.shape: tuple[int, ...] = (channels, *size)
        paths = [p.relative_to(folder).parts for p in self.files]
        outside = [parts[0] for parts in paths if len(parts) == 1]
        if outside and len(outside) < len(paths):
            raise DataError(
                f"{len(outside)} images lie beside folders of images, the first is {outside[0]}; "
                "put all of them into folders (the classes), or none",
                argument=folder,
            )
        self.class_names: list[str] | None = None
        self.labels: Tensor | None = None
        self.num_classes: int | None = None
        if not outside:
            self.class_names = sorted({parts[0] for parts in paths})
            for name in self.class_names:
                check_name(name, str(folder / name))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = torch.tensor([number[parts[0]] for parts in paths])
            self.num_classes = len(number)
        self._pool = ThreadPoolExecutor(8)  # Pillow releases the GIL while it decodes

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset``."""
        samples = list(self._pool.map(self._sample, indices))
        x, *target = (torch.stack(images) for images in zip(*samples, strict=True))
        label = None if self.labels is None else self.labels[torch.as_tensor(indices)]
        return Batch(x, label, target[0] if target else None)

    def _sample(self, index: int) -> tuple[Tensor, ...]:
        """x [C, H, W]; of paired data also its target."""
        return (pixels(read_image(self.files[index], self.shape[0]), self.files[index], self.shape),)


class PairedFolders(ImageFolder):
    """Pairs: an image of `folder` and the image of `targets` that has the same path there, whatever its suffix.

    Both images of a pair have the same size, so that they are cropped alike. Raises DataError for names without a
    partner, and in `batch` for a pair of unequal sizes.
    """

    paired = True

    def __init__(self, folder: Path, targets: Path, size: tuple[int, int], channels: int) -> None:
        super().__init__(folder, size, channels)
        names, found = _by_name(folder, self.files), _by_name(targets, images_in(targets))
        for one, other, where in ((names, found, targets), (found, names, folder)):
            if alone := sorted(set(one) - set(other)):
                raise DataError(
                    f"has no image for {len(alone)} names of the other folder, the first is {alone[0]}",
                    argument=where,
                )
        self.targets = [found[name] for name in names]

    def _sample(self, index: int) -> tuple[Tensor, ...]:
        paths = (self.files[index], self.targets[index])
        x, target = (read_image(path, self.shape[0]) for path in paths)
        if x.size != target.size:
            raise DataError(
                f"is {target.width}x{target.height}, its partner {x.width}x{x.height}: "
                "the images of a pair must have the same size",
                argument=paths[1],
            )
        return pixels(x, paths[0], self.shape), pixels(target, paths[1], self.shape)


class SideBySide(ImageFolder):
    """Pairs in one file: x is the left half of an image, the target its right half.

    Raises DataError in `batch` for an image of odd width.
    """

    paired = True

    def _sample(self, index: int) -> tuple[Tensor, ...]:
        path = self.files[index]
        whole = read_image(path, self.shape[0])
        width, height = whole.size
        if width % 2:
            raise DataError(f"is {width} wide, which has no two equal halves", argument=path)
        halves = (whole.crop((left, 0, left + width // 2, height)) for left in (0, width // 2))
        x, target = (pixels(half, path, self.shape) for half in halves)
        return x, target


def images_in(folder: Path) -> list[Path]:
    """The images in `folder` and its sub-folders, in sorted order. Raises DataError where there are none."""
    files = sorted(p for p in folder.rglob("*") if _is_image(p.relative_to(folder)) and p.is_file())
    if not files:
        raise DataError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it", argument=folder)
    return files


def read_image(path: Path, channels: int) -> Image:
    """Decode `path`, upright, as grey (1 channel) or RGB (3). Raises DataError."""
    from PIL import Image, ImageOps

    try:
        with open_ordinary(path, DataError) as data, Image.open(data, formats=IMAGE_FORMATS) as file:
            if math.prod(file.size) > MAX_PIXELS:
                raise DataError(
                    f"{file.width} x {file.height} are more than {MAX_PIXELS} pixels; scale it down",
                    argument=path,
                )
            if file.mode.startswith("I"):
                raise DataError("has 16 or 32 bits per pixel; convert it to 8 bits first", argument=path)
            return ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders fail in any way there is on a damaged file
        raise DataError(f"cannot be read as an image: {error}", argument=path) from error


def pixels(image: Image, path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 [C, H, W] of `shape`: `image` resized and centre-cropped; `path` is named in errors. Raises DataError."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    except Exception as error:  # an image without area, for one
        raise DataError(f"cannot be resized: {error}", argument=path) from error
    values = np.asarray(fitted, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def check_name(name: str, where: str) -> None:
    """Names are kept with the run and the model, in UTF-8. Raises DataError where that cannot hold them."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name!r} is not UTF-8, as names that are kept must be; rename it", argument=where
        ) from error


def _by_name(folder: Path, files: list[Path]) -> dict[str, Path]:
    """`files` by their path within `folder`, without suffix. Raises DataError where two are the same."""
    found: dict[str, Path] = {}
    for path in files:
        name = str(path.relative_to(folder).with_suffix(""))
        if name in found:
            raise DataError(
                f"has two images named {name}: {found[name].name} and {path.name}", argument=folder
            )
        found[name] = path
    return found


def _is_image(path: Path) -> bool:
    """Names that begin with a dot or ``__`` are skipped: they are thumbnails, or left by archive programs."""
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden
