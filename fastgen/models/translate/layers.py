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


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics at inference are chosen.

    In training mode it does what it always does. In evaluation mode `norm_mode` says whose mean and variance it takes:
    those of each image ("instance"), of the batch ("batch": what the original project's test script does), or those
    that it has kept in training ("running").
    """

    def forward(self, x: Tensor, norm_mode: str = "running") -> Tensor:
        """x: [B, C, H, W]."""
        if self.training or norm_mode == "running":
            return super().forward(x)
        if norm_mode == "batch":
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class ConvNorm(nn.Module):
    """A convolution, or a transposed one, and the norm behind it.

    norm: "batch", with scale, shift and running statistics; "instance", without any of them; "none".
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, norm: str) -> None:
        super().__init__()
        self.conv = conv
        if norm == "batch":
            self.norm: nn.Module = BatchNorm(conv.out_channels)
        else:
            self.norm = nn.InstanceNorm2d(conv.out_channels) if norm == "instance" else nn.Identity()

    def forward(self, x: Tensor, norm_mode: str) -> Tensor:
        """x: [B, in, H, W] -> [B, out, H', W']. norm_mode: of a :class:`BatchNorm`; others have no choice."""
        x = self.conv(x)
        y: Tensor = self.norm(x, norm_mode) if isinstance(self.norm, BatchNorm) else self.norm(x)
        return y


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


def check_kept(kept: Tensor, batch: int, count: int) -> None:
    """ConfigError unless masks are bool [batch, count]."""
    if kept.dtype != torch.bool or kept.shape != (batch, count):
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
