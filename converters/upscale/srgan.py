"""The generator of leftthomas/SRGAN: SRResNet whose output is (tanh + 1) / 2.

block1.{0,1}                                 9x9 convolution, PReLU
block2. ... .{conv1,bn1,prelu,conv2,bn2}      residual blocks
blockN-1.{0,1}                                3x3 convolution, batch norm; in the released weights PReLU
blockN.{0,1,...}.{conv,prelu}, blockN.last    pixel shuffles, 9x9 convolution
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.config import bounded, from_dict, one_of
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.upscale.srresnet import SRResNetConfig
from fastgen.models.upscale.upscaler import STEPS

from ..base import Report
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, converter, same
from ..flows.state import State

SUPPORTED = "Generator of leftthomas/SRGAN (model.py), any number of blocks and channels"
ASSUMED: Table = {
    "output": Assumed("tanh", source="model.py, Generator.forward"),
    "norm_eps": Assumed(1e-5, ("torch.nn.BatchNorm2d:eps",)),
}
NORM = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"  # only training may read it, and files of old PyTorch have none
CONV = ("weight", "bias")


@dataclass(frozen=True)
class SRGANOptions:
    """output: tanh or linear. norm_eps: of the batch norms."""

    output: str = one_of("tanh", "linear", default=ASSUMED["output"].value)
    norm_eps: float = bounded(0.0, 1.0, default=ASSUMED["norm_eps"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of the Generator."""
    found = set(names)
    return {
        *("block1.0.weight", "block1.1.weight", "block2.conv1.weight", "block2.bn1.running_mean"),
        "block2.prelu.weight",
    } <= found


def read(state: State, options: SRGANOptions, report: Report) -> Result:
    """The generator."""
    numbers = sorted({int(m[1]) for n in state.names if (m := re.match(r"block(\d{1,4})\.", n))})
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) < 4:
        raise CheckpointError(f"has blocks {numbers}; is the file whole?", argument=state.where)
    residual, last = numbers[1:-2], numbers[-1]
    ups = state.numbers(f"block{last}")
    if ups != list(range(len(ups))):
        raise CheckpointError(f"block{last} has parts {ups}; is the file whole?", argument=state.where)

    names: dict[str, str] = {}  # ours: theirs

    def conv(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{part}": f"{theirs}.{part}" for part in CONV})

    def norm(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{part}": f"{theirs}.{part}" for part in NORM})

    conv("conv_in", "block1.0")
    names["act_in.weight"] = "block1.1.weight"
    for i, number in enumerate(residual):
        for k in (1, 2):
            conv(f"blocks.{i}.conv{k}", f"block{number}.conv{k}")
            norm(f"blocks.{i}.norm{k}", f"block{number}.bn{k}")
        names[f"blocks.{i}.act.weight"] = f"block{number}.prelu.weight"
    conv("conv_body", f"block{last - 1}.0")
    ends_in_prelu = not state.has(f"block{last - 1}.1.running_mean")
    if ends_in_prelu:
        names["end_body.weight"] = f"block{last - 1}.1.weight"
    else:
        norm("end_body", f"block{last - 1}.1")
    for i in ups[:-1]:
        conv(f"ups.{i}.conv", f"block{last}.{i}.conv")
        names[f"ups.{i}.act.weight"] = f"block{last}.{i}.prelu.weight"
    conv("conv_out", f"block{last}.{ups[-1]}")
    # Filters have four axes, all else is a vector.
    tensors = {
        ours: state.take(theirs, *[None] * (4 if re.search(r"conv\w*\.weight$", ours) else 1))
        for ours, theirs in names.items()
    }
    for ours, theirs in list(names.items()):
        if ours.endswith("running_mean"):
            counter = theirs.replace("running_mean", COUNTER)
            count = (
                state.take(counter)
                if state.has(counter)
                else torch.zeros((), dtype=torch.int64, device="cpu")
            )
            tensors[ours.replace("running_mean", COUNTER)] = count

    features, channels, outer, _ = _shape(tensors["conv_in.weight"], state.where)
    slopes = [t for name, t in tensors.items() if name.endswith(("act.weight", "act_in.weight"))]
    if ends_in_prelu:
        slopes.append(tensors["end_body.weight"])
    shared = same([len(t) == 1 for t in slopes], "whether slopes are shared", state.where)
    factors = [
        math.isqrt(_shape(tensors[f"ups.{i}.conv.weight"], state.where)[0] // features) for i in ups[:-1]
    ]
    scale = math.prod(factors)
    if tuple(factors) != STEPS.get(scale):
        raise ConfigError(
            f"block{last} enlarges by {factors}; supported: {', '.join(str(list(s)) for s in STEPS.values())}",
            argument=state.where,
        )
    values = {
        "scale": scale,
        "in_channels": channels,
        "out_channels": len(tensors["conv_out.weight"]),
        "num_features": features,
        "num_blocks": len(residual),
        "outer_kernel": outer,
        "norm": "batch",
        "norm_eps": options.norm_eps,
        "prelu": "shared" if shared else "channel",
        "body_end": "prelu" if ends_in_prelu else "norm",
        "output": options.output,
    }
    return Result("srresnet", from_dict(SRResNetConfig, values, state.where), tensors)


def _shape(weight: Tensor, where: str) -> tuple[int, int, int, int]:
    if weight.dim() != 4 or not weight.numel():
        raise CheckpointError(
            f"expected the filters of a convolution, got {list(weight.shape)}", argument=where
        )
    a, b, c, d = weight.shape
    return a, b, c, d


CONVERTER = converter(
    Source(
        name="srgan",
        about="SRGAN's generator (leftthomas/SRGAN)",
        supported=SUPPORTED,
        options=SRGANOptions,
        recognises=recognises,
        read=read,
        family="upscale",
        part="upscaler",
    )
)
