"""An image's score in plain PyTorch: the mean over patches of the discriminator's last layer.

    score[b] = mean over (h, w) of conv4x4(x[b], stride, padding = 1) + bias

Isola et al. 2017, section 3.2.2: the discriminator is run across the image, "averaging all responses".
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..patch_conv.reference import PADDING


def patch_score(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """Mean over an image's patches; arguments and result as `fastgen_kernels.patch_score` describes."""
    if x.element_size() == 2:  # a patch is not rounded to 16 bits on its way to the mean
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    return F.conv2d(x, weight, bias, stride, PADDING).mean((1, 2, 3))
