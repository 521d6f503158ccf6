"""Networks inside couplings that see vectors: (x [B, in], condition) -> [B, out].

condition: a context [B, context], any real numbers, where the network was built with context > 0; it is laid behind x.
Labels int64 [B] become such a context, one column a class. Each network ends in a layer that starts at zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .networks import activation


def context_of(condition: Tensor | None, width: int, x: Tensor) -> Tensor:
    """The condition as a context [B, width], typed as x."""
    if condition is None:
        raise ConfigError(f"expected labels [B] or a context [B, {width}], got None", argument="condition")
    if condition.dim() == 1 and not condition.is_floating_point():
        return (condition[:, None] == torch.arange(width, device=x.device)).to(x.dtype)
    if condition.dim() != 2 or condition.shape[1] != width:
        raise ConfigError(
            f"expected labels int64 [B] or a context [B, {width}], "
            f"got {condition.dtype} of shape {list(condition.shape)}",
            argument="condition",
        )
    return condition.to(x.dtype)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Linear layers with activations between. hidden: their widths; may be empty."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int],
        act: str = "relu",
        slope: float = 0.01,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.context = context
        widths = [inputs + context, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), activation(act, slope)]
        self.layers = nn.Sequential(*layers, zero_linear(widths[-1], outputs))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.context:
            x = torch.cat([x, context_of(condition, self.context, x)], dim=1)
        return self.layers(x)


class ResidualBlock(nn.Module):
    """x + linear(act(linear(act(x)))); a context gates the branch: times sigmoid(linear(context))."""

    def __init__(self, width: int, act: str, slope: float, context: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            activation(act, slope), nn.Linear(width, width), activation(act, slope), nn.Linear(width, width)
        )
        self.gate = nn.Linear(context, width) if context else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        branch = self.branch(x)
        if self.gate is not None:
            assert context is not None
            branch = branch * torch.sigmoid(self.gate(context))
        return x + branch


class ResidualMLP(nn.Module):
    """Linear, residual blocks of one width, linear: the `ResidualNet` of nflows (Durkan et al. 2019)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        blocks: int,
        act: str = "relu",
        slope: float = 0.01,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.context = context
        self.first = nn.Linear(inputs + context, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, act, slope, context) for _ in range(blocks))
        self.last = zero_linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        context = context_of(condition, self.context, x) if self.context else None
        x = self.first(x if context is None else torch.cat([x, context], dim=1))
        for block in self.blocks:
            x = block(x, context)
        return self.last(x)


class Pair(nn.Module):
    """Two networks, one for the raw scale and one for the shift: their outputs [B, n] side by side, [B, 2n]."""

    def __init__(self, scale: nn.Module, shift: nn.Module) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.cat([self.scale(x, condition), self.shift(x, condition)], dim=1)
