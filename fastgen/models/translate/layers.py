"""What generators and discriminators are made of: convolutions with a norm, dropout by given masks, initial weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import shown
from ...errors import ConfigError

NORMS = ("batch", "instance", "none")
NORM_MODES = ("instance", "batch", "running")
RATE = 0.5  # of every dropout layer


class ConvNorm(nn.Module):
    """A convolution, or a transposed one, and the norm behind it.

    norm: "batch", with scale, shift and running statistics; "instance", without any of them; "none".
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, norm: str) -> None:
        super().__init__()
        self.conv = conv
        if norm == "batch":
            self.norm: nn.Module = nn.BatchNorm2d(conv.out_channels)
        else:
            self.norm = nn.InstanceNorm2d(conv.out_channels) if norm == "instance" else nn.Identity()

    def forward(self, x: Tensor, norm_mode: str) -> Tensor:
        """x: [B, in, H, W] -> [B, out, H', W']. norm_mode: see :func:`normalise`."""
        return normalise(self.norm, self.conv(x), norm_mode)


def normalise(norm: nn.Module, x: Tensor, norm_mode: str) -> Tensor:
    """`norm` of x [B, C, H, W].

    In training mode a batch norm does what it always does. In evaluation mode it takes mean and variance of each image
    ("instance"), of the batch ("batch": what the original project's test script does), or those that it has kept in
    training ("running"). An instance norm always takes those of each image.
    """
    if norm.training or norm_mode == "running" or not isinstance(norm, nn.BatchNorm2d):
        y: Tensor = norm(x)
        return y
    if norm_mode == "batch":
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)


def check_norm_mode(norm_mode: str) -> None:
    """ConfigError unless it is one of `NORM_MODES`."""
    if norm_mode not in NORM_MODES:
        raise ConfigError(
            f"expected one of {', '.join(NORM_MODES)}, got {shown(norm_mode)}", argument="norm_mode"
        )


class Masks:
    """The parts of given dropout masks, layer by layer.

    kept: bool [B, N], whether an activation is kept, for all dropout layers one behind the other, each in the order
    of its [C, H, W]; None for no dropout at inference. In training mode without masks PyTorch's dropout draws them.
    """

    def __init__(self, kept: Tensor | None) -> None:
        self.kept, self.taken = kept, 0

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        if self.kept is None:
            return F.dropout(x, RATE, training)
        count = x[0].numel()
        kept = self.kept[:, self.taken : self.taken + count].view(x.shape)
        self.taken += count
        return x * kept * (1 / (1 - RATE))


def check_kept(kept: Tensor | None, batch: int, count: int) -> None:
    """ConfigError unless masks are None or bool [batch, count]."""
    if kept is not None and (kept.dtype != torch.bool or kept.shape != (batch, count)):
        raise ConfigError(
            f"expected bool [{batch}, {count}], got {kept.dtype} {list(kept.shape)}", argument="kept"
        )


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02^2), scales of batch norms from N(1, 0.02^2), biases 0 (Isola et al. 2017, section 6.2)."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
