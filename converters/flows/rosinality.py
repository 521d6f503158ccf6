"""Glow as rosinality/glow-pytorch has it.

blocks.N.flows.M.actnorm.{loc, scale, initialized}
blocks.N.flows.M.invconv.{w_p, w_l, w_u, w_s, s_sign}, or .weight [C, C, 1, 1]
blocks.N.flows.M.coupling.net.{0, 2}.{weight, bias}, .net.4.{scale, conv.weight, conv.bias}
blocks.N.prior.{scale, conv.weight, conv.bias}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.errors import ConfigError
from fastgen.models.flow.glow import GlowConfig

from ..base import Report
from .assumed import Assumed, Table
from .source import Result, Source, converter, same
from .state import State, most, permutation_of, precisely, set_flag

SUPPORTED = (
    "Glow of rosinality/glow-pytorch: blocks of ActNorm, InvConv2d or InvConv2dLU, AffineCoupling, and prior"
)
# glow-pytorch, train.py: ``parser.add_argument("--n_bits", default=5, type=int, help="number of bits")``.
ASSUMED: Table = {"n_bits": Assumed(5, source="train.py")}


@dataclass(frozen=True)
class RosinalityOptions:
    """img_size: side of the images, which the weights do not say. n_bits: a channel has 2^n_bits levels."""

    img_size: int = bounded(0, 4096, default=0)
    n_bits: int = bounded(1, 16, default=ASSUMED["n_bits"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of that Glow."""
    return {"blocks.0.flows.0.actnorm.loc", "blocks.0.flows.0.coupling.net.4.conv.weight"} <= set(names)


def read(state: State, options: RosinalityOptions, report: Report) -> Result:
    """The flow."""
    if not options.img_size:
        raise ConfigError(
            "the weights do not say how large the images are: give their side, "
            "assume={'img_size': 64} (--assume img_size=64)",
            argument=state.where,
        )
    scales = state.count("blocks", most(GlowConfig, "num_scales"))
    limit = most(GlowConfig, "steps_per_scale")
    steps = same(
        [state.count(f"blocks.{i}.flows", limit) for i in range(scales)], "the number of flows", state.where
    )
    channels = state.peek("blocks.0.flows.0.actnorm.loc").shape[1]
    halves, affine, hidden = [], [], []
    places = [f"blocks.{i}.flows.{j}.invconv" for i in range(scales) for j in range(steps)]
    plain = [state.has(f"{place}.weight") for place in places]
    if any(plain) and not all(plain):  # with --no_lu its last block has factors all the same
        report.renamed.append(
            f"{len(plain) - sum(plain)} 1x1 convolutions of LU factors, beside others of plain matrices: multiplied out"
        )
    tensors: dict[str, Tensor] = {}
    for i in range(scales):
        for j in range(steps):
            theirs, at = f"blocks.{i}.flows.{j}", 1 + 3 * j
            width = state.peek(f"{theirs}.actnorm.loc").numel()
            tensors |= _actnorm(state, f"{theirs}.actnorm", f"scales.{i}.{at}", width)
            tensors |= _linear(state, f"{theirs}.invconv", f"scales.{i}.{at + 1}", width, any(plain))
            ours = f"scales.{i}.{at + 2}.network"
            names = {"net.0": "first", "net.2": "inner.1", "net.4.conv": "last.conv"}
            for source, target in names.items():
                for part in ("weight", "bias"):
                    tensors[f"{ours}.{target}.{part}"] = state.take(f"{theirs}.coupling.{source}.{part}")
            scale = state.take(f"{theirs}.coupling.net.4.scale", 1, None, 1, 1).flatten()
            tensors[f"{ours}.last.log_scale"] = scale
            hidden.append(len(tensors[f"{ours}.first.bias"]))
            halves.append(width % 2)
            affine.append(len(scale) == 2 * (width // 2))
        prior = f"blocks.{i}.prior"
        tensors[f"priors.{i}.conv.log_scale"] = state.take(f"{prior}.scale", 1, None, 1, 1).flatten()
        for part in ("weight", "bias"):
            tensors[f"priors.{i}.conv.conv.{part}"] = state.take(f"{prior}.conv.{part}")
    if any(halves) or channels % 4:
        raise ConfigError(
            f"{channels} channels after the first squeeze; expected a multiple of 4", argument=state.where
        )
    values = {
        "sample_size": [options.img_size, options.img_size],
        "in_channels": channels // 4,
        "levels": 2**options.n_bits,
        "preprocessing": "centre",
        "num_scales": scales,
        "steps_per_scale": steps,
        "linear": "plain" if any(plain) else "lu",
        "hidden_channels": [same(hidden, "the networks' width", state.where)],
        "scale": "sigmoid" if same(affine, "whether couplings are affine", state.where) else "additive",
        "shift_first": affine[0],
        "conv_border": 1.0,
        "prior": "conv",
        "prior_border": 1.0,
    }
    return Result("glow", from_dict(GlowConfig, values, state.where), tensors)


def _actnorm(state: State, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    found = {f"{ours}.{n}": state.take(f"{theirs}.{n}", 1, width, 1, 1).flatten() for n in ("loc", "scale")}
    flag = state.take(f"{theirs}.initialized") if state.has(f"{theirs}.initialized") else True
    return {**found, f"{ours}.initialised": set_flag(flag)}


def _linear(state: State, theirs: str, ours: str, width: int, plain: bool) -> dict[str, Tensor]:
    """plain: as a matrix, whatever it is there."""
    if state.has(f"{theirs}.weight"):
        return {f"{ours}.weight": state.take(f"{theirs}.weight", width, width, 1, 1)[:, :, 0, 0]}
    state.drop(*(f"{theirs}.{name}" for name in ("u_mask", "l_mask", "l_eye")))  # of triangles
    p, lower, upper = (state.take(f"{theirs}.{name}", width, width) for name in ("w_p", "w_l", "w_u"))
    log_s, sign = (state.take(f"{theirs}.{name}", width) for name in ("w_s", "s_sign"))
    permutation = permutation_of(p, f"{state.where}: {theirs}.w_p")
    if plain:
        return {f"{ours}.weight": precisely(_product, lower, upper, log_s, sign, p)}
    return {
        f"{ours}.permutation": permutation,
        f"{ours}.lower": lower,
        f"{ours}.upper": upper,
        f"{ours}.log_s": log_s,
        f"{ours}.sign": sign,
    }


def _product(lower: Tensor, upper: Tensor, log_s: Tensor, sign: Tensor, p: Tensor) -> Tensor:
    """The matrix of ``calc_weight``."""
    unit = lower.tril(-1) + torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    return p @ unit @ (upper.triu(1) + torch.diag(sign * log_s.exp()))


CONVERTER = converter(
    Source(
        name="rosinality",
        about="Glow of rosinality/glow-pytorch: a state dict",
        supported=SUPPORTED,
        options=RosinalityOptions,
        recognises=recognises,
        read=read,
    )
)
