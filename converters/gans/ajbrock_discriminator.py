"""Discriminators of BigGAN-PyTorch (ajbrock): ``D.pth`` of its BigGAN, BigGANdeep and SAGAN settings.

input_conv                      of BigGAN-deep, before all blocks
blocks.i.j.conv1, ...           stage i, block j; conv_sc where channels or sides change, in BigGAN-deep channels
blocks.i.J.theta, phi, g, o     self-attention behind the stage's J blocks, with gamma
linear, embed                   the logit, and the projection of the label

Each weight has u0 and sv0, as in generators. Where sides are halved has no tensors: see `_halvings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastgen.config import bounded, from_dict
from fastgen.errors import ConfigError
from fastgen.models.gan.biggan import BigGANDeepDiscriminatorConfig, BigGANDiscriminatorConfig
from fastgen.models.gan.residual import MAX_SIDE, MAX_STAGES

from ..base import Report
from ..flows.source import Result, Source, same
from ..flows.state import State
from .ajbrock import CONVS, DEEP_CONVS, Found

SUPPORTED = "Discriminator of BigGAN.py and BigGANdeep.py with wide blocks (D_wide) and one logit"
SMALLEST = 32  # pixels; of this size networks keep their channels, and halve the sides twice


@dataclass(frozen=True)
class DiscriminatorOptions:
    """What tensors do not say; None: as D_arch has it.

    halvings: stages, from the first, that halve the image's sides. size: height and width of the images; what the
    generator beside it draws says it, too.
    """

    halvings: int | None = bounded(0, MAX_STAGES, default=None)
    size: int | None = bounded(1, MAX_SIDE, default=None)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of one of its discriminators."""
    return {"linear.weight", "embed.weight", "blocks.0.0.conv1.weight", "blocks.0.0.conv2.weight"} <= set(
        names
    )


def read(state: State, options: DiscriminatorOptions, report: Report) -> Result:
    """The discriminator."""
    deep = state.has("input_conv.weight")
    stages, convs = state.count("blocks", MAX_STAGES + 1), DEEP_CONVS if deep else CONVS
    spectral = state.has("linear.u0")
    depths = [
        sum(state.has(f"blocks.{i}.{j}.conv1.weight") for j in state.numbers(f"blocks.{i}"))
        for i in range(stages)
    ]
    depth = same(depths, "how many blocks there are", state.where)
    if not deep and depth != 1:
        raise ConfigError(f"has stages of {depth} blocks; supported: {SUPPORTED}", argument=state.where)
    shapes = [[tuple(state.peek(f"blocks.{i}.0.{c}.weight").shape) for c in convs] for i in range(stages)]
    if not deep and any(first[0] != second[0] for first, second in shapes):
        raise ConfigError(f"has narrow blocks; supported: {SUPPORTED}", argument=state.where)
    widths = [shape[-1][0] for shape in shapes]
    first = state.peek("input_conv.weight" if deep else "blocks.0.0.conv1.weight").shape
    channels = first[0]
    if any(width % channels for width in widths):
        raise ConfigError(f"channels {widths} are no multiples of the first", argument=state.where)
    halvings = (
        _halvings(state, stages, deep, widths, channels) if options.halvings is None else options.halvings
    )
    size = options.size or (SMALLEST if halvings == 2 else 4 << halvings)
    if options.halvings is None or options.size is None:
        report.assumed.append(f"halvings = {halvings}, size = {size}, of D_arch")
    found = Found(state, spectral)
    attention = []
    if deep:
        found.layer("input_conv", "first", True)
    for i in range(stages):
        for j in range(depth):
            theirs, ours = f"blocks.{i}.{j}", f"blocks.{i * depth + j}"
            for conv in convs:
                found.layer(f"{theirs}.{conv}", f"{ours}.{conv}", True)
            if state.has(f"{theirs}.conv_sc.weight"):
                found.layer(f"{theirs}.conv_sc", f"{ours}.shortcut", True)
        if state.has(f"blocks.{i}.{depth}.gamma"):
            attention.append(i)
            found.attention(f"blocks.{i}.{depth}", f"attention.{i}")
    found.layer("linear", "head", True)
    classes = len(state.peek("embed.weight"))
    found.weight("embed", "embedding", spectral)
    if len(found.tensors["head.bias"]) != 1:
        raise ConfigError(
            f"has {len(found.tensors['head.bias'])} logits; supported: {SUPPORTED}", argument=state.where
        )
    values = {
        "in_channels": first[1],
        "size": size,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "halvings": halvings,
        "attention": attention,
        "num_classes": classes,
        "spectral_norm": spectral,
    }
    if deep:
        of_deep = from_dict(BigGANDeepDiscriminatorConfig, values | {"depth": depth}, state.where)
        return Result("biggan_deep_discriminator", of_deep, found.tensors)
    return Result(
        "biggan_discriminator", from_dict(BigGANDiscriminatorConfig, values, state.where), found.tensors
    )


def _halvings(state: State, stages: int, deep: bool, widths: list[int], channels: int) -> int:
    """As D_arch has it.

    A stage of BigGAN that keeps channels has a map on its shortcut only where it halves sides, and the last stage never
    does. Stages of BigGAN-deep all do, but in networks for 32 pixels, whose channels never grow.
    """
    if not deep:
        mapped = [state.has(f"blocks.{i}.0.conv_sc.weight") for i in range(stages)]
        return mapped.index(False) if False in mapped else stages - 1
    return 2 if stages == 3 and set(widths) == {channels} else stages


SOURCE = Source(
    name="biggan-pytorch",
    about="discriminators of ajbrock's BigGAN-PyTorch (D.pth)",
    supported=SUPPORTED,
    options=DiscriminatorOptions,
    recognises=recognises,
    read=read,
    family="gan",
    part="discriminator",
)
