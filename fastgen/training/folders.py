"""Images in folders, decoded when asked for: by themselves, in pairs of equal names, or side by side in one file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError
from ..image_folders import image_paths
from .batch import Batch
from .decode import BACKGROUND, IMAGE_SUFFIXES, check_header, colour, pixels, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5  # names of images in a message
ENDING = re.compile(r"(?<=[^/])[_-][A-Za-z]+$")  # of a name: what tells the folders of pairs apart


class ImageFolder:
    """Images in a folder, resized and centre-cropped to `size` (height, width), uint8.

    channels: 1 (grey) or 3 (RGB). background: the colour under transparent pixels; where there are such and it is None,
    it is white, and a warning says so. Where the images lie in sub-folders, the names of the first level are the
    classes, sorted, those made of digits as numbers and first; class_names: another order of them, a model's own.

    Raises DataError, when it is made, for a folder without images and for images whose header says that they cannot be
    read, and in `batch` for an image whose pixels are damaged.
    """

    paired = False

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        channels: int,
        *,
        background: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
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
            self.class_names = ordered({parts[0] for parts in paths}, class_names)
            for name in self.class_names:
                check_name(name, str(folder / name))
            number = {name: i for i, name in enumerate(self.class_names)}
            self.labels = torch.tensor([number[parts[0]] for parts in paths], device="cpu")
            self.num_classes = len(number)
        self.background = colour(background)
        self._pool = ThreadPoolExecutor(8)  # Pillow releases the GIL while it decodes
        transparent = self._check_headers()
        if transparent and background is None:
            warnings.warn(
                f"{folder}: {transparent} of {len(self._paths())} images have transparency; what shows through is "
                f"{BACKGROUND} (another colour: background, --background)",
                stacklevel=4,
            )

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int]) -> Batch:
        """See ``Dataset``."""
        samples = list(self._pool.map(self._sample, indices))
        x, *target = (torch.stack(images) for images in zip(*samples, strict=True))
        label = None if self.labels is None else self.labels[torch.as_tensor(indices, device="cpu")]
        return Batch(x, label, target[0] if target else None)

    def _paths(self) -> list[Path]:
        """All images that belong to it."""
        return self.files

    def _check_headers(self) -> int:
        """How many images have transparency. Raises DataError, for the first one, where some cannot be read."""

        def checked(path: Path) -> bool | DataError:
            try:
                return check_header(path)
            except DataError as error:
                return error

        found = list(self._pool.map(checked, self._paths()))
        wrong = [error for error in found if isinstance(error, DataError)]
        if not wrong:
            return sum(map(bool, found))
        others = [str(error.argument) for error in wrong[1:]]
        if others:
            more = ", ..." if len(others) > SHOWN else ""
            raise DataError(
                f"{wrong[0].reason}; {len(others)} more images cannot be used: {', '.join(others[:SHOWN])}{more}",
                argument=wrong[0].argument,
            )
        raise wrong[0]

    def _read(self, path: Path) -> Image:
        return read_image(path, self.shape[0], self.background)

    def _sample(self, index: int) -> tuple[Tensor, ...]:
        """x [C, H, W]; of paired data also its target."""
        return (pixels(self._read(self.files[index]), self.files[index], self.shape),)


class PairedFolders(ImageFolder):
    """Pairs: an image of `folder` and the image of `targets` that has the same path there, whatever its suffix.

    An ending that all names of a folder have, as "1_A" and "1_B", is no part of the name. Both images of a pair have
    the same size, so that they are cropped alike. Raises DataError for names without a
    partner, and in `batch` for a pair of unequal sizes.
    """

    paired = True

    def __init__(
        self, folder: Path, targets: Path, size: tuple[int, int], channels: int, **options: Any
    ) -> None:
        """options: those of ``ImageFolder``."""
        self.targets = [target for _, target in matched(folder, targets).values()]
        super().__init__(folder, size, channels, **options)

    def _paths(self) -> list[Path]:
        return [*self.files, *self.targets]

    def _sample(self, index: int) -> tuple[Tensor, ...]:
        paths = (self.files[index], self.targets[index])
        x, target = map(self._read, paths)
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
        whole = self._read(path)
        width, height = whole.size
        if width % 2:
            raise DataError(f"is {width} wide, which has no two equal halves", argument=path)
        halves = (whole.crop((left, 0, left + width // 2, height)) for left in (0, width // 2))
        x, target = (pixels(half, path, self.shape) for half in halves)
        return x, target


def images_in(folder: Path) -> list[Path]:
    """The images that can be trained on, see `image_paths`."""
    return image_paths(folder, IMAGE_SUFFIXES)


def matched(
    folder: Path, others: Path, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> dict[str, tuple[Path, Path]]:
    """The images of two folders that have the same path within them, by this path, in sorted order of `folder`'s files.

    Suffixes, out of `suffixes`, are no part of it, nor is an ending that all names of a folder have. Raises DataError
    for names without a partner.
    """
    mine, found = (_without_ending(_by_name(root, image_paths(root, suffixes))) for root in (folder, others))
    for one, other, where in ((mine, found, others), (found, mine, folder)):
        if alone := sorted(set(one) - set(other)):
            raise DataError(
                f"has no image for {len(alone)} names of the other folder, the first is {alone[0]}",
                argument=where,
            )
    return {name: (path, found[name]) for name, path in mine.items()}


def ordered(found: Collection[str], known: Sequence[str] | None = None) -> list[str]:
    """Names of classes in the order of their labels: `known`, if each of `found` is in it, else sorted.

    Names made of digits are sorted as numbers, before all others.
    """
    if known is not None and set(found) <= set(known):
        return list(known)
    return sorted(found, key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


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


def _without_ending(found: dict[str, Path]) -> dict[str, Path]:
    """`found` without the ending, from an underscore or a hyphen on, that all of its names have."""
    endings = {match[0] if (match := ENDING.search(name)) else "" for name in found}
    if len(endings) > 1:
        return found
    ending = endings.pop()
    return {name.removesuffix(ending): path for name, path in found.items()}
