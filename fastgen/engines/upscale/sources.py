"""What a caller hands over to be enlarged, window by window, and what becomes of the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...config import shown
from ...errors import ConfigError
from ...image_files import MODES
from ...images import to_pil

OUTPUT_TYPES = ("pt", "uint8", "np", "pil")


class Source:
    """One image, wherever it lies, as windows on the device.

    image: uint8, or float in [-1, 1], [C, H, W]. multiple: what the network's input must be divisible by; the image is
    continued by its mirror image at the right and at the bottom, of which nothing is kept.
    """

    def __init__(self, image: Tensor, multiple: int) -> None:
        self.image, self.size = image, (image.shape[1], image.shape[2])
        self.padded = tuple(-(-side // multiple) * multiple for side in self.size)

    def window(self, top: int, left: int, height: int, width: int, device: torch.device) -> Tensor:
        """float32 [C, height, width] in [-1, 1] on the device."""
        part = self.image
        for dim, (first, length) in enumerate(((top, height), (left, width)), start=1):
            side = part.shape[dim]
            if first + length <= side:
                part = part.narrow(dim, first, length)
            else:
                part = part.index_select(dim, _mirrored(first, length, side).to(part.device))
        part = part.to(device)
        return part.float().div_(127.5).sub_(1) if part.dtype == torch.uint8 else part.float()


def _mirrored(first: int, length: int, side: int) -> Tensor:
    """Indices of `length` pixels from `first` on; those beyond the last one, `side` - 1, come back."""
    index = torch.arange(first, first + length, device="cpu")
    return torch.where(index < side, index, 2 * (side - 1) - index).clamp_(min=0)


class Result:
    """What an image becomes, filled part by part: float32 in [-1, 1], or uint8, [C, H, W]."""

    def __init__(self, channels: int, size: tuple[int, int], whole: bool, device: torch.device) -> None:
        dtype = torch.uint8 if whole else torch.float32
        self.image = torch.empty(channels, *size, dtype=dtype, device=device)

    def put(self, part: Tensor, top: int, left: int) -> None:
        """Write float32 [C, h, w] in [-1, 1], cut off at the image's edges."""
        height = min(part.shape[1], self.image.shape[1] - top)
        width = min(part.shape[2], self.image.shape[2] - left)
        if height > 0 and width > 0:
            part = part[:, :height, :width]
            if self.image.dtype == torch.uint8:
                part = to_levels(part)
            self.image[:, top : top + height, left : left + width] = part


def to_levels(image: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8; what is not finite becomes 0."""
    return image.nan_to_num(nan=-1.0).add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def taken(image: Any, channels: int) -> tuple[list[Tensor], str, bool]:
    """(images, each [C, H, W]; "one", "batch" or "list"; whether they are uint8). Raises ConfigError.

    image: a tensor [C, H, W] or [n, C, H, W], float in [-1, 1] or uint8; an image of Pillow; or a list of such.
    """
    if isinstance(image, (list, tuple)):
        if not image:
            raise ConfigError("expected at least one", argument="image")
        found = [_one(value, channels, f"image[{i}]") for i, value in enumerate(image)]
        kinds = {value.dtype == torch.uint8 for value in found}
        if len(kinds) > 1:
            raise ConfigError("expected all of them uint8 or all float", argument="image")
        return found, "list", kinds.pop()
    if isinstance(image, Tensor) and image.dim() == 4:
        if not len(image):
            raise ConfigError("expected at least one", argument="image")
        found = [_one(value, channels, "image") for value in image]
        return found, "batch", found[0].dtype == torch.uint8
    one = _one(image, channels, "image")
    return [one], "one", one.dtype == torch.uint8


def _one(image: Any, channels: int, name: str) -> Tensor:
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # Pillow's, which need not be there
        if image.mode not in MODES:
            raise ConfigError(
                f"has the mode {image.mode} of Pillow, whose white nobody says; convert it to 8 bits (L, RGB) first",
                argument=name,
            )
        values = np.array(image.convert("L" if channels == 1 else "RGB"))
        image = torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1)
    given = image.dtype if isinstance(image, Tensor) else None
    if given is None or not (given == torch.uint8 or image.is_floating_point()):
        raise ConfigError(
            f"expected a tensor [{channels}, H, W], float in [-1, 1] or uint8, or an image of Pillow, "
            f"got {shown(image)}",
            argument=name,
        )
    if image.dim() != 3 or image.shape[0] != channels or not image.numel():
        raise ConfigError(f"expected [{channels}, H, W], got {list(image.shape)}", argument=name)
    return image.detach()


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[C, H, W] as [C, *size]: bicubic, antialiased; in its type and range."""
    low, high = (0, 255) if image.dtype == torch.uint8 else (-1, 1)
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp_(
        low, high
    )


def handed_out(images: list[Tensor], form: str, output_type: str) -> Any:
    """The results as the caller wants them. form: of what was handed over."""
    made: list[Any] = images
    if output_type == "np":
        made = [value.add(1).div_(2).clamp_(0, 1).permute(1, 2, 0).cpu().numpy() for value in images]
    elif output_type == "pil":
        made = [_pil(value) for value in images]
    if form == "one":
        return made[0]
    if form == "list" or output_type == "pil":
        return made
    return np.stack(made) if output_type == "np" else torch.stack(made)


def _pil(image: Tensor) -> Any:
    from PIL import Image

    if image.dtype != torch.uint8:
        return to_pil(image[None])[0]
    values = image.permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[-1] == 1 else values))
