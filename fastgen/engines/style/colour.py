"""A picture's own colours under a style's lightness (Gatys et al. 2016, "Preserving Color in Neural Artistic Style
Transfer", section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
ROWS = 256  # worked on at a time


def with_colours_of(content: Tensor, stylised: Tensor) -> Tensor:
    """`stylised` with the chroma of `content`, in place; both [n, 3, H, W] in [-1, 1], as is the result.

    Luma is the stylised picture's, B - Y and R - Y are the content's: each colour of the content is moved by the
    difference of the lumas, and what leaves [-1, 1] is clipped.
    """
    weights = torch.tensor(LUMA, dtype=stylised.dtype, device=stylised.device).view(1, 3, 1, 1)
    for top in range(0, stylised.shape[2], ROWS):
        new, old = stylised[:, :, top : top + ROWS], content[:, :, top : top + ROWS].to(stylised)
        moved = ((new - old) * weights).sum(1, keepdim=True)
        torch.add(old, moved, out=new)
        new.clamp_(-1, 1)
    return stylised
