"""Images that are handed to an engine: checked, brought to sizes that networks take, and put back in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...config import shown
from ...errors import ConfigError
from ...runtime.device import dtype_name


def checked(name: str, images: Any, channels: int) -> tuple[list[Tensor], bool]:
    """Images [C, H, W] one by one, float32 where they were, and whether they came as a list. Raises ConfigError."""
    listed = isinstance(images, (list, tuple))
    wanted = f"float [n, {channels}, H, W] in [-1, 1], or a list of [{channels}, H, W]"
    if not listed and (not isinstance(images, Tensor) or images.dim() != 4):
        got = list(images.shape) if isinstance(images, Tensor) else shown(images)
        raise ConfigError(f"expected {wanted}, got {got}", argument=name)
    if not len(images):
        raise ConfigError(f"expected {wanted}, at least one, got none", argument=name)
    for i, image in enumerate(images) if listed else [(None, images)]:
        place = name if i is None else f"{name}[{i}]"
        if not isinstance(image, Tensor) or image.dim() != (4 if i is None else 3):
            got = list(image.shape) if isinstance(image, Tensor) else shown(image)
            raise ConfigError(f"expected {wanted}, got {got}", argument=place)
        if not image.is_floating_point():
            raise ConfigError(
                f"expected {wanted}, got {dtype_name(image.dtype)}; of uint8: x / 127.5 - 1", argument=place
            )
        if image.shape[-3] != channels or min(image.shape) == 0:
            raise ConfigError(f"expected {wanted}, got {list(image.shape)}", argument=place)
    return [image.detach().float() for image in images], listed


def padded_side(side: int, multiple: int, least: int) -> int:
    """The side that a network takes in place of `side`: a multiple of `multiple`, at least `least`."""
    return -(-max(side, least) // multiple) * multiple


def padded(image: Tensor, height: int, width: int) -> Tensor:
    """[C, H, W] as [C, height, width]: what is missing below and to the right is the image reflected, again and again.

    The border itself is not repeated, as with ``mode="reflect"``, which needs an image larger than the border; an image
    of one pixel is repeated.
    """
    rows, columns = (_reflected(old, new) for old, new in zip(image.shape[1:], (height, width), strict=True))
    if rows is not None:
        image = image[:, rows.to(image.device)]
    return image if columns is None else image[:, :, columns.to(image.device)]


def _reflected(old: int, new: int) -> Tensor | None:
    if old == new:
        return None
    place = torch.arange(new, device="cpu") % max(2 * old - 2, 1)
    return torch.minimum(place, 2 * old - 2 - place) if old > 1 else place


def by_size(
    images: Sequence[Sequence[Tensor]],
    size: Callable[[int, int], tuple[int, int]],
    run: Callable[..., Tensor],
    device: torch.device,
) -> list[Tensor]:
    """`run` of images that are padded to one size together, for each size; the results in the images' order.

    images: lists of [C, H, W] of one length, as (x,) or (x, y), whose entries have one size. size: of what `run` takes.
    run: ([indices], *batches [n, C, H', W'] on the device) -> [n, ...].
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images[0]):
        groups.setdefault(size(image.shape[1], image.shape[2]), []).append(i)
    found: dict[int, Tensor] = {}
    for (height, width), members in groups.items():
        batches = [
            torch.stack([padded(kind[i].to(device), height, width) for i in members]) for kind in images
        ]
        found.update(zip(members, run(members, *batches), strict=True))
    return [found[i] for i in range(len(images[0]))]
