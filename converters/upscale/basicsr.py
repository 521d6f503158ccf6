"""Networks of BasicSR and Real-ESRGAN: MSRResNet, RRDBNet (also under the names of the first ESRGAN), SRVGGNetCompact.

Their files hold {"params_ema": ..., "params": ...} or one of them, which `wrapping` takes off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fastgen.config import from_dict, one_of
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.upscale.msrresnet import MSRResNetConfig
from fastgen.models.upscale.rrdbnet import DENSE, UNSHUFFLED, RRDBNetConfig
from fastgen.models.upscale.srvgg import SRVGGConfig

from ..base import Converter, Report
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, converter, without
from ..flows.state import State, most

CONV = ("weight", "bias")
ASSUMED: Table = {
    "act_type": Assumed("prelu", ("basicsr.archs.srvgg_arch.SRVGGNetCompact:act_type",)),
}
ACTS = {"prelu": "prelu", "leakyrelu": "leaky_relu", "relu": "relu"}  # theirs: ours


@dataclass(frozen=True)
class NoOptions:
    """Everything follows from the tensors."""


@dataclass(frozen=True)
class SRVGGOptions:
    """act_type: of a network whose activations have no tensors: leakyrelu or relu."""

    act_type: str = one_of(*ACTS, default=ASSUMED["act_type"].value)


def is_msrresnet(names: Iterable[str]) -> bool:
    """Whether these are names of MSRResNet."""
    wanted = {
        "conv_first.weight",
        "body.0.conv1.weight",
        "upconv1.weight",
        "conv_hr.weight",
        "conv_last.weight",
    }
    return wanted <= set(names)


def is_rrdbnet(names: Iterable[str]) -> bool:
    """Whether these are names of RRDBNet, new or old."""
    found = set(names)
    new = {"conv_first.weight", "body.0.rdb1.conv1.weight", "conv_up2.weight", "conv_last.weight"}
    old = {"model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight", "model.6.weight", "model.10.weight"}
    return new <= found or old <= found


def is_srvgg(names: Iterable[str]) -> bool:
    """Whether these are names of SRVGGNetCompact: convolutions at even places of `body`, and nothing but slopes."""
    found = set(names)
    numbers: dict[int, set[str]] = {}
    for name in found:
        if (match := re.fullmatch(r"body\.(\d{1,4})\.(weight|bias)", name)) is None:
            return False
        numbers.setdefault(int(match[1]), set()).add(match[2])
    if (
        not numbers
        or max(numbers) % 2
        or any(n % 2 == 0 and parts != set(CONV) for n, parts in numbers.items())
    ):
        return False
    return set(range(0, max(numbers) + 1, 2)) <= set(numbers) and max(numbers) >= 2


def read_msrresnet(state: State, options: NoOptions, report: Report) -> Result:
    """MSRResNet of scale 2, 3 or 4."""
    count = state.count("body", most(MSRResNetConfig, "num_blocks"))
    names = {"conv_in": "conv_first", "conv_hr": "conv_hr", "conv_out": "conv_last", "ups.0.conv": "upconv1"}
    twice = state.has("upconv2.weight")
    if twice:
        names["ups.1.conv"] = "upconv2"
    names |= {f"blocks.{i}.conv{k}": f"body.{i}.conv{k}" for i in range(count) for k in (1, 2)}
    tensors = _taken(state, names)
    features, channels = _channels(tensors["conv_in.weight"], state.where)
    factor = math.isqrt(len(tensors["ups.0.conv.weight"]) // features)
    values = {
        "scale": factor**2 if twice else factor,
        "in_channels": channels,
        "out_channels": len(tensors["conv_out.weight"]),
        "num_features": features,
        "num_blocks": count,
    }
    return Result("msrresnet", from_dict(MSRResNetConfig, values, state.where), tensors)


def read_rrdbnet(state: State, options: NoOptions, report: Report) -> Result:
    """RRDBNet; its scale follows from the channels that the first convolution sees."""
    old = state.has("model.0.weight")
    limit = most(RRDBNetConfig, "num_blocks")
    if old:
        count = len(
            [n for n in state.numbers("model.1.sub") if f"model.1.sub.{n}.RDB1.conv1.0.weight" in state.names]
        )
        first, body, dense = "model.0", f"model.1.sub.{count}", "model.1.sub.{}.RDB{}.conv{}.0"
        rest = {"up1.conv": "model.3", "up2.conv": "model.6", "conv_hr": "model.8", "conv_out": "model.10"}
        if count > limit:
            raise ConfigError(f"has {count} blocks; at most {limit} are supported", argument=state.where)
        report.mapped.append("names of the first ESRGAN's code (model.0, model.1.sub, ...)")
    else:
        count = state.count("body", limit)
        first, body, dense = "conv_first", "conv_body", "body.{}.rdb{}.conv{}"
        rest = {n: n for n in ("conv_hr",)} | {"conv_out": "conv_last"}
        rest |= {f"up{k}.conv": f"conv_up{k}" for k in (1, 2)}
    names = {"conv_in": first, "conv_body": body, **rest}
    names |= {
        f"blocks.{i}.dense.{j}.convs.{k}": dense.format(i, j + 1, k + 1)
        for i in range(count)
        for j in range(3)
        for k in range(DENSE)
    }
    tensors = _taken(state, names)
    features, seen = _channels(tensors["conv_in.weight"], state.where)
    made = len(tensors["conv_out.weight"])
    scale = next((s for s, side in UNSHUFFLED.items() if seen == made * side**2), None)
    if scale is None:
        raise ConfigError(
            f"its first convolution sees {seen} channels, its last makes {made}; supported: as many (scale 4), 4 times "
            "(scale 2) or 16 times as many (scale 1)",
            argument=state.where,
        )
    report.mapped.append(f"scale = {scale}: {seen} channels in, {made} out")
    values = {
        "scale": scale,
        "in_channels": made,
        "out_channels": made,
        "num_features": features,
        "num_blocks": count,
        "growth": len(tensors["blocks.0.dense.0.convs.0.weight"]),
    }
    return Result("rrdbnet", from_dict(RRDBNetConfig, values, state.where), tensors)


def read_srvgg(state: State, options: SRVGGOptions, report: Report) -> Result:
    """SRVGGNetCompact; its scale follows from the channels of the last convolution."""
    numbers = state.numbers("body")
    last = numbers[-1]
    slopes = [n for n in numbers if n % 2]
    if slopes and slopes != list(range(1, last, 2)):
        raise CheckpointError(
            f"slopes at {slopes} of {last} layers; is the file whole?", argument=state.where
        )
    if slopes:
        if options.act_type != "prelu":
            raise ConfigError(
                f"act_type is prelu in {state.where} itself, whose activations have slopes, not "
                f"{options.act_type}",
                argument="assume",
            )
        without(options, report, "its activations have slopes: prelu", "act_type")
    elif options.act_type == "prelu":
        raise ConfigError(
            "its activations have no tensors: say which they are, assume={'act_type': 'leakyrelu'} or 'relu' "
            "(--assume act_type=...)",
            argument="act_type",
        )
    names = {f"body.{n}": f"body.{n}" for n in range(0, last, 2)} | {"conv_out": f"body.{last}"}
    tensors = _taken(state, names)
    tensors |= {f"body.{n}.weight": state.take(f"body.{n}.weight", None) for n in slopes}
    features, channels = _channels(tensors["body.0.weight"], state.where)
    values = {
        "scale": math.isqrt(len(tensors["conv_out.weight"]) // channels),
        "in_channels": channels,
        "out_channels": channels,
        "num_features": features,
        "num_convs": last // 2 - 1,
        "act": "prelu" if slopes else ACTS[options.act_type],
    }
    return Result("srvgg", from_dict(SRVGGConfig, values, state.where), tensors)


def _taken(state: State, names: dict[str, str]) -> dict[str, Tensor]:
    """Weight [out, in, h, w] and bias [out] of the convolutions {ours: theirs}. Raises CheckpointError."""
    axes: dict[str, list[None]] = {"weight": [None] * 4, "bias": [None]}
    return {f"{a}.{part}": state.take(f"{b}.{part}", *axes[part]) for a, b in names.items() for part in CONV}


def _channels(weight: Tensor, where: str) -> tuple[int, int]:
    """Of the first convolution: channels out, and in."""
    if weight.dim() != 4 or not weight.numel():
        raise CheckpointError(
            f"expected the filters of a convolution, got {list(weight.shape)}", argument=where
        )
    return weight.shape[0], weight.shape[1]


_SOURCES = (
    Source(
        name="msrresnet",
        about="MSRResNet (BasicSR)",
        supported="MSRResNet of BasicSR, upscale 2, 3 or 4",
        options=NoOptions,
        recognises=is_msrresnet,
        read=read_msrresnet,
        family="upscale",
        part="upscaler",
    ),
    Source(
        name="rrdbnet",
        about="RRDBNet (ESRGAN, BasicSR, Real-ESRGAN)",
        supported="RRDBNet of BasicSR, scale 1, 2 or 4, and of ESRGAN's first code, scale 4",
        options=NoOptions,
        recognises=is_rrdbnet,
        read=read_rrdbnet,
        family="upscale",
        part="upscaler",
    ),
    Source(
        name="srvgg",
        about="SRVGGNetCompact (Real-ESRGAN)",
        supported="SRVGGNetCompact of BasicSR and Real-ESRGAN",
        options=SRVGGOptions,
        recognises=is_srvgg,
        read=read_srvgg,
        family="upscale",
        part="upscaler",
    ),
)
CONVERTERS: dict[str, Converter] = {source.name: converter(source) for source in _SOURCES}
