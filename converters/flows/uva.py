"""The flows of the UvA deep learning tutorial 11 (phlippe), one scale: ``MNISTFlow_simple``, ``MNISTFlow_vardeq``.

flows.0                                 the dequantisation; variational: flows.0.flows.N.* as below
flows.N.mask                            [1, 1, H, W]: what stays, a checkerboard
flows.N.scaling_factor                  [C]
flows.N.network.nn.*                    the GatedConvNet
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.flow.realnvp import RealNVPConfig

from ..base import Report
from .assumed import Assumed, Table
from .source import Result, Source, converter, same
from .state import State, most, precisely

SUPPORTED = (
    "CouplingLayer with checkerboard masks over GatedConvNet, Dequantization, VariationalDequantization"
)
# Tutorial 11, class Dequantization, ``def __init__(self, alpha=1e-5, quants=256)``.
ASSUMED: Table = {
    "quants": Assumed(256, source="Dequantization"),
    "alpha": Assumed(1e-5, source="Dequantization"),
}


@dataclass(frozen=True)
class UvaOptions:
    """quants: levels of a pixel. alpha: of the logit, as the tutorial counts it: x (1 - alpha) + alpha / 2."""

    quants: int = bounded(2, 65_536, default=ASSUMED["quants"].value)
    alpha: float = bounded(2e-7, 0.98, default=ASSUMED["alpha"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of the tutorial's ImageFlow."""
    found = set(names)
    return {"flows.1.scaling_factor", "flows.1.mask", "flows.1.network.nn.0.weight"} <= found


def read(state: State, options: UvaOptions, report: Report) -> Result:
    """The flow."""
    tensors: dict[str, Tensor] = {}
    numbers = state.numbers("flows")
    main = [n for n in numbers if n != 0]
    if main != list(range(1, len(main) + 1)):
        raise ConfigError(
            f"flows.{min(set(range(1, main[-1])) - set(main))} has no tensors: SqueezeFlow and "
            f"SplitFlow (the multi-scale flow) are not supported; supported: {SUPPORTED}",
            argument=state.where,
        )
    if len(main) > (limit := most(RealNVPConfig, "checkerboard")):
        raise ConfigError(
            f"flows: {len(main)} couplings; at most {limit} are supported", argument=state.where
        )
    size = same([state.peek(f"flows.{n}.mask").shape for n in main], "the mask's shape", state.where)
    if len(size) != 4 or size[1] != 1:
        raise ConfigError(
            f"flows.1.mask: expected [1, 1, H, W], a checkerboard, got {list(size)}", argument=state.where
        )
    parts = []
    for i, n in enumerate(main):
        found = _coupling(state, f"flows.{n}")
        tensors |= {f"scales.0.{i}.{name}": value for name, value in found.tensors.items()}
        parts.append(found)
    first = parts[0]
    channels = len(first.tensors["rescale"])
    values = {
        "sample_size": list(size[2:]),
        "in_channels": channels,
        "levels": options.quants,
        "preprocessing": "logit",
        "alpha": options.alpha / 2,
        "checkerboard": [len(main)],
        "channelwise": [0],
        "checkerboard_changes": _in_turn([p.changes for p in parts], state.where),
        "network": "gated",
        "hidden_channels": [same([p.hidden for p in parts], "the networks' width", state.where)],
        "blocks": same([p.blocks for p in parts], "the networks' depth", state.where),
        "actnorm": False,
        "scale": "tanh",
        "rescale": True,
        "shift_first": True,
    }
    if 0 in numbers:
        count = state.count("flows.0.flows", most(RealNVPConfig, "dequantisation_layers"))
        inner = [_coupling(state, f"flows.0.flows.{n}") for n in range(count)]
        if not inner or _in_turn([p.changes for p in inner], state.where) != 0:
            raise ConfigError(
                "flows.0: couplings whose first changes other pixels are not supported", argument=state.where
            )
        for i, part in enumerate(inner):
            tensors |= {f"dequantiser.layers.{i}.{name}": value for name, value in part.tensors.items()}
        values |= {
            "dequantisation": "variational",
            "dequantisation_layers": len(inner),
            "dequantisation_channels": same([p.hidden for p in inner], "the networks' width", state.where),
            "dequantisation_blocks": same([p.blocks for p in inner], "the networks' depth", state.where),
        }
    return Result("realnvp", from_dict(RealNVPConfig, values, state.where), tensors)


@dataclass
class _Part:
    tensors: dict[str, Tensor]
    changes: int
    hidden: int
    blocks: int


def _coupling(state: State, prefix: str) -> _Part:
    """Their factor is exp(f) tanh(s / exp(f)): the networks' rows of s are divided once and for all."""
    mask = state.take(f"{prefix}.mask", 1, 1, None, None)[0, 0]
    rows, columns = (torch.arange(n, device=mask.device) for n in mask.shape)
    board = (rows[:, None] + columns) % 2
    changes = next((c for c in (0, 1) if torch.equal(mask != 0, board != c)), None)
    if changes is None:
        raise ConfigError(f"{prefix}.mask is no checkerboard; supported: {SUPPORTED}", argument=state.where)
    factor = state.take(f"{prefix}.scaling_factor", None)
    nn = f"{prefix}.network.nn"
    tensors = {"rescale": precisely(torch.exp, factor)}
    numbers = state.numbers(nn)
    blocks = (len(numbers) - 2) // 2
    if numbers != [0, *range(1, 2 * blocks + 1), 2 * blocks + 2]:
        raise CheckpointError(
            f"{nn}: not the layers of a GatedConvNet; supported: {SUPPORTED}", argument=state.where
        )
    names = {f"{nn}.0": "network.first"}
    for b in range(blocks):
        names |= {f"{nn}.{2 * b + 1}.net.{j}": f"network.blocks.{b}.branch.{j}" for j in (1, 3)}
        for theirs, ours in (("gamma", "weight"), ("beta", "bias")):
            value = state.take(f"{nn}.{2 * b + 2}.{theirs}", 1, None, 1, 1)
            tensors[f"network.blocks.{b}.norm.{ours}"] = value.flatten()
    for theirs, ours in names.items():
        tensors |= {f"{ours}.{part}": state.take(f"{theirs}.{part}") for part in ("weight", "bias")}
    channels = len(factor)
    for part in ("weight", "bias"):
        value = state.take(f"{nn}.{2 * blocks + 2}.{part}")
        if len(value) != 2 * channels:
            raise CheckpointError(f"{nn}: {len(value)} outputs for {channels} channels", argument=state.where)
        divisor = torch.cat([factor.exp(), torch.ones_like(factor)]).view(-1, *[1] * (value.dim() - 1))
        tensors[f"network.last.conv.{part}"] = precisely(torch.div, value, divisor)
    return _Part(tensors, changes, len(tensors["network.first.bias"]), blocks)


def _in_turn(changes: list[int], where: str) -> int:
    """What the first changes, if the others take turns. Raises ConfigError."""
    if changes != [(changes[0] + i) % 2 for i in range(len(changes))]:
        raise ConfigError("checkerboards that do not take turns are not supported", argument=where)
    return changes[0]


CONVERTER = converter(
    Source(
        name="uva",
        about="flows of the UvA deep learning tutorial 11: a checkpoint of one scale",
        supported=SUPPORTED,
        options=UvaOptions,
        recognises=recognises,
        read=read,
    )
)
