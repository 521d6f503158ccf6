"""Small flows of every architecture, with weights of a size that training gives, and data for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict
from fastgen.models.flow.coupling import Coupling
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import ActNorm, Layer
from fastgen.models.flow.linear import PlainConv
from fastgen.models.flow.priors import StandardNormal

# Options of each architecture, and why the case is there.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "glow": ("glow", {"sample_size": [8, 8], "num_scales": 2, "steps_per_scale": 2, "prior": "conv"}),
    "glow, everything else": (
        "glow",
        {
            "sample_size": [8, 8],
            "num_scales": 2,
            "steps_per_scale": 2,
            "linear": "plain",
            "conv_actnorm": True,
            "conv_border": 1.0,
            "act_fn": "leaky_relu",
            "prior": "element",
            "num_classes": 3,
            "class_couplings": True,
            "class_priors": "all",
            "changes": 0,
            "shift_first": True,
            "parameters": "shift_scale_interleaved",
        },
    ),
    "glow, one channel, odd halves": (
        "glow",
        {
            "sample_size": [12, 4],
            "in_channels": 1,
            "num_scales": 1,
            "steps_per_scale": 2,
            "linear": "shuffle",
        },
    ),
    "realnvp": ("realnvp", {"sample_size": [8, 8], "in_channels": 1, "blocks": 1}),
    "realnvp, a prior looks at what the next scale changes": (
        "realnvp",
        {
            "sample_size": [8, 8],
            "blocks": 1,
            "checkerboard": [1, 2],
            "channelwise": [1, 0],
            "prior": "conv",
        },
    ),
    "realnvp, gated, masks": (
        "realnvp",
        {
            "sample_size": [8, 8],
            "in_channels": 1,
            "network": "gated",
            "blocks": 1,
            "checkerboard": [2, 0],
            "channelwise": [2, 2],
            "channel_split": "mask",
            "dequantisation": "variational",
            "dequantisation_layers": 2,
            "dequantisation_channels": 4,
            "dequantisation_blocks": 1,
        },
    ),
    "nice": ("nice", {"sample_size": [4, 4], "hidden_features": [16, 16]}),
    "vector_flow": (
        "vector_flow",
        {
            "features": 5,
            "standardise": True,
            "layers": ["actnorm", "lu", "coupling", "swap", "shuffle"],
            "steps": 3,
            "linear_bias": True,
            "context_features": 2,
            "network": "residual",
            "hidden_features": [16],
        },
    ),
    "vector_flow, masks": (
        "vector_flow",
        {
            "features": 4,
            "split": "mask",
            "scale": "exp",
            "reverse": True,
            "separate_networks": True,
            "steps": 4,
            "num_classes": 3,
            "prior": "learned",
            "class_priors": True,
        },
    ),
    "vector_flow, halves": ("vector_flow", {"features": 5, "split": "half", "steps": 3}),
}


@dataclass
class Case:
    """A flow, data x [6, *shape] as it sees it, and what that is conditioned on."""

    flow: Flow
    x: Tensor
    condition: Tensor | None

    @property
    def given(self) -> dict[str, Any]:
        """The condition as an engine's verbs take it."""
        if self.condition is None:
            return {}
        return {"context" if self.condition.is_floating_point() else "labels": self.condition}


def make(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Case:
    """The case `name` with random weights, its ActNorms set by the data."""
    architecture, options = CASES[name]
    if architecture in ("glow", "realnvp"):
        options = {"hidden_channels": [8], **options}
    built = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    flow = built.module(from_dict(built.config, {**options, **changes}, name))
    assert isinstance(flow, Flow)
    return filled(flow, dtype)


def filled(flow: Flow, dtype: torch.dtype = torch.float32, count: int = 6) -> Case:
    flow = flow.to(dtype)
    condition = None
    if flow.classes:
        condition = torch.arange(count) % flow.classes
    elif flow.context:
        condition = torch.randn(count, flow.context, dtype=dtype)
    x = torch.rand(count, *flow.data_shape, dtype=dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
        flow.initialize(x, condition)
    return Case(flow.eval().requires_grad_(False), x, condition)


def noise(flow: Flow, count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = next(flow.parameters()).dtype
    return [torch.randn(count, *shape, generator=generator, dtype=dtype) for shape in flow.latent_shapes]


def architectures() -> Iterator[str]:
    """Names in ARCHITECTURES that build flows."""
    for name, architecture in ARCHITECTURES.items():
        if isinstance(architecture.module, type) and issubclass(architecture.module, Flow):
            yield name


class Shift(nn.Module):
    """A coupling network that says s and t whatever it sees: [B, 2n, ...]."""

    def __init__(self, s: float, t: float, channels: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([s] * channels + [t] * channels), requires_grad=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.values.to(x.dtype).expand(len(x), -1)


class Cube(Layer):
    """y = x^3 + x: a layer that the engine has never heard of."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x**3 + x, (3 * x**2 + 1).log().flatten(1).sum(1)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = torch.zeros_like(y)
        for _ in range(60):  # Newton's method, whose steps never leave the right side of this convex problem
            x = x - (x**3 + x - y) / (3 * x**2 + 1)
        return x, -(3 * x**2 + 1).log().flatten(1).sum(1)


def own_flow() -> Flow:
    torch.manual_seed(0)
    coupling = Coupling(Shift(0.3, -0.2, 2), channels=4, split="alternate", scale="exp")
    layers = [ActNorm(4), Cube(), coupling, PlainConv(4, bias=True)]
    return Flow((4,), [], [layers], lambda i, latent, kept: StandardNormal(latent))
