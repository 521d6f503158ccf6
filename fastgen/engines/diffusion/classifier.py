"""Classifier guidance: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (arXiv:2105.05233)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen_kernels.reverse_step import row

# c(network input [B, C, H, W], t [B], label int64 [B]) -> log p(label | x_t), [B]
Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]


def towards_label(
    classifier: Classifier,
    output: Tensor,
    inputs: Tensor,
    rows: Tensor,
    t: Tensor,
    labels: Tensor,
    scales: Tensor,
) -> Tensor:
    """A network's `output` [B or 2B, C or 2C, H, W] moved along the classifier's gradient, scale by scale.

    Algorithm 2's epsilon - sigma scale d log p(label | x) / dx, for any process and prediction: `rows` [B, 32] say what
    that is for this network. Both halves of a guided output move alike, and so does what guidance makes of them.

    inputs: [B, C, H, W], what the network was given. t, scales: float32 [B], labels: int64 [B].
    """
    batch, channels = inputs.shape[:2]
    with torch.enable_grad():
        asked = inputs.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier(asked, t, labels).sum(), asked)
    # The state is inputs / INPUT_SCALE.
    weight = (scales * rows[:, row.GRADIENT] * rows[:, row.INPUT_SCALE])[:, None, None, None]
    shift = torch.where(weight != 0, weight * gradient.float(), 0.0)  # not by multiplication: 0 * nan is nan
    moved = output.to(torch.float32, copy=True)
    for half in range(0, len(output), batch):
        moved[half : half + batch, :channels] += shift
    return moved.to(output.dtype)
