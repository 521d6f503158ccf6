"""Known pixels put into a noisy state, in plain PyTorch.

For each sample, at its noise level (alpha, sigma),

    t  = alpha * known + sigma * noise             the known image, as noisy as the state
    t  = x + d (d . (t - x))                       where there is a direction d of unit length: only the part along d
    x' = x + keep (t - x)                          x where keep is 0, t where it is 1, bit for bit
    y  = c * x'                                    the network's next input

Replacement: Song et al. 2021 (arXiv:2011.13456), section 5 and appendix I.2, where a direction in the channels is their
decoupled form of colourisation; Lugmayr et al. 2022 (arXiv:2201.09865), equation 8.
"""

from __future__ import annotations

import torch
from torch import Tensor


def network_format(y: Tensor) -> torch.memory_format:
    """The memory format of the network's input."""
    return torch.contiguous_format if y.is_contiguous() else torch.channels_last


def known_region(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results as `fastgen_kernels.known_region` describes."""
    alpha, sigma, scale = levels[:, :, None, None, None].unbind(1)
    target = alpha * known + sigma * noise
    if direction is not None:
        d = direction[:, :, None, None]
        along = x + d * (d * (target - x)).sum(1, keepdim=True)
        target = torch.where((direction != 0).any(1)[:, None, None, None], along, target)
    share = torch.where(alpha.isnan(), 0.0, keep)
    mixed = x + share * (target - x)
    # The ends are selected: 0 * nan is nan, and x + (t - x) is t only to a rounding.
    x_next = torch.where(share == 0, x, torch.where(share == 1, target, mixed))
    scaled = (scale * x_next).to(y.dtype)
    scaled = torch.cat((scaled, scaled)) if y.shape[0] != x.shape[0] else scaled
    # A sample without a level keeps its input: there is no scale to go by.
    off = alpha.isnan() if y.shape[0] == x.shape[0] else torch.cat((alpha, alpha)).isnan()
    return x_next, torch.where(off, y, scaled).contiguous(memory_format=network_format(y))
