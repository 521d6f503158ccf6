"""Super-resolution networks: what their configurations allow, and the receptive field that they state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict
from fastgen.errors import ConfigError
from tests.refusals import refused

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "srresnet x2": ("srresnet", {"scale": 2, "num_features": 4, "num_blocks": 1}),
    "srresnet x3": (
        "srresnet",
        {"scale": 3, "num_features": 4, "num_blocks": 1, "outer_kernel": 5, "norm": "none"},
    ),
    "srresnet x8": ("srresnet", {"scale": 8, "num_features": 4, "num_blocks": 1, "prelu": "channel"}),
    "msrresnet x4": ("msrresnet", {"scale": 4, "num_features": 4, "num_blocks": 2}),
    "rrdbnet x4": ("rrdbnet", {"scale": 4, "num_features": 4, "num_blocks": 1, "growth": 2}),
    "rrdbnet x2": ("rrdbnet", {"scale": 2, "num_features": 4, "num_blocks": 1, "growth": 2}),
    "rrdbnet x1": ("rrdbnet", {"scale": 1, "num_features": 4, "num_blocks": 1, "growth": 2}),
    "srvgg x4": ("srvgg", {"scale": 4, "num_features": 4, "num_convs": 3}),
}


def small(name: str) -> Any:
    architecture, values = SMALL[name]
    torch.manual_seed(0)
    entry = ARCHITECTURES[architecture]
    network = entry.module(from_dict(entry.config, values, "test")).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.PReLU):  # a slope of 0 would stop what comes through
            module.weight.fill_(0.25)
    return network


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_receptive_field(name: str) -> None:
    """A pixel that is NaN makes everything NaN that depends on it, and nothing else."""
    network = small(name)
    m, reached = network.multiple, 0
    side = -(-(2 * network.radius + 9) // m) * m
    for phase in range(m):
        centre = side // 2 // m * m + phase
        x = torch.zeros(1, 3, side, side)
        x[:, :, centre, centre] = torch.nan
        y = network(x)
        assert y.shape[2:] == (side * network.scale,) * 2
        rows = y.isnan().any(1)[0].any(1).nonzero().flatten() // network.scale
        reached = max(reached, centre - int(rows.min()), int(rows.max()) - centre)
        assert not y.isnan().all(1)[0].any(1).all()
    # Where the result's pixels are finer than the input's, or coarser inside, the stated one is rounded up.
    assert network.radius - m <= reached <= network.radius


@pytest.mark.parametrize(
    ("architecture", "values", "argument"),
    [
        ("srresnet", {"scale": 5}, "srresnet: scale"),
        ("srresnet", {"outer_kernel": 4}, "srresnet: outer_kernel"),
        ("srresnet", {"num_blocks": 0}, "test: num_blocks"),
        ("msrresnet", {"out_channels": 1}, "msrresnet: out_channels"),
        ("rrdbnet", {"scale": 3}, "rrdbnet: scale"),
        ("rrdbnet", {"growth": 0}, "test: growth"),
        ("srvgg", {"act": "elu"}, "test: act"),
        ("srvgg", {"in_channels": 1}, "srvgg: out_channels"),
    ],
)
def test_configurations_that_are_refused(architecture: str, values: dict[str, Any], argument: str) -> None:
    with refused(ConfigError, argument):
        from_dict(ARCHITECTURES[architecture].config, values, "test")
