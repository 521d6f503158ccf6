"""The project's networks, told by the names of their tensors, and their layers by ours.

Its classes put layers into ``nn.Sequential``, so that names hold numbers of layers, also of those without tensors:

    UnetGenerator       model.model.0, .1.model.1, .1.model.3.model.1, ...  one level within the other
    ResnetGenerator     model.1, model.4, ..., model.N.conv_block.1, ...
    NLayerDiscriminator model.0, model.2, model.5, ...
    PixelDiscriminator  net.0, net.2, net.5
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastgen.config import bounded, one_of
from fastgen.errors import CheckpointError, ConfigError

from ..base import Report, Tensors
from ..flows.assumed import Assumed, Table

SUPPORTED = "UnetGenerator, ResnetGenerator, NLayerDiscriminator and PixelDiscriminator with batch, instance or no norm"
# The project's own defaults, in options/base_options.py, models/pix2pix_model.py and models/networks.py.
ASSUMED: Table = {
    "dropout": Assumed(True, source="--no_dropout, which pix2pix leaves out (CycleGAN sets it)"),
    "padding": Assumed("reflect", source="ResnetGenerator(padding_type)"),
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Pix2pixOptions:
    """What tensors do not say, with the project's defaults.

    dropout: of a U-Net: whether its full-width up layers are followed by dropout (``--no_dropout``; pix2pix has it).
    padding: of residual blocks that do not pad with zeros. upsampling: of resize-convolutions, which are not the
    project's own. condition_channels: of x, for a discriminator without its generator: None takes all but 3 channels.
    """

    dropout: bool = ASSUMED["dropout"].value
    padding: str = one_of("reflect", "replicate", default=ASSUMED["padding"].value)
    upsampling: str = one_of("bilinear", "nearest", default="bilinear")
    condition_channels: int | None = bounded(0, 64, default=None)


@dataclass(frozen=True)
class Network:
    """One network in our terms. names: {our name: theirs}; zeros: tensors that they have not, with their shapes.

    unsaid: the options that it took from `Pix2pixOptions`.
    """

    architecture: str
    config: dict[str, Any]
    names: dict[str, str]
    zeros: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    unsaid: tuple[str, ...] = ()


def is_unet(names: Iterable[str]) -> bool:
    """Whether these are names of a UnetGenerator."""
    return {"model.model.0.weight", "model.model.1.model.1.weight", "model.model.3.weight"} <= set(names)


def is_resnet(names: Iterable[str]) -> bool:
    """Whether these are names of a ResnetGenerator."""
    found = set(names)
    block = re.compile(r"model\.\d+\.conv_block\.\d+\.weight")
    return "model.1.weight" in found and any(map(block.fullmatch, found))


def is_patch(names: Iterable[str]) -> bool:
    """Whether these are names of an NLayerDiscriminator: convolutions at 0, 2, 5, 8, ..., norms behind them."""
    layers = {n: int(m[1]) if (m := re.fullmatch(r"model\.(\d{1,3})\.\w+", n)) else -1 for n in names}
    weighted = [number for name, number in layers.items() if name.endswith(".weight") and number % 3 != 0]
    numbered = all(number == 0 or (number >= 2 and number % 3 != 1) for number in layers.values())
    expected = [3 * i + 2 for i in range(len(weighted))]
    return (
        numbered
        and {"model.0.weight", "model.0.bias"} <= set(layers)
        and len(weighted) >= 2
        and sorted(weighted) == expected
    )


def is_pixel(names: Iterable[str]) -> bool:
    """Whether these are names of a PixelDiscriminator."""
    return {"net.0.weight", "net.0.bias", "net.2.weight", "net.5.weight"} <= set(names)


class _Layout:
    """The tensors of one network, looked up by layer."""

    def __init__(self, tensors: Tensors, report: Report) -> None:
        self.tensors, self.where, self.report = tensors, tensors.where, report
        self.names: dict[str, str] = {}
        self.zeros: dict[str, tuple[int, ...]] = {}
        self.dropped: list[str] = []

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a convolution's filters. Raises CheckpointError."""
        found = self.tensors.shapes.get(f"{name}.weight", ())
        if len(found) != 4:
            raise CheckpointError(
                f"{name}.weight is no convolution's: its shape is {list(found)}; supported: {SUPPORTED}"
                if found
                else f"{name}.weight is missing; is the file whole?",
                argument=self.where,
            )
        return found

    def conv(self, theirs: str, ours: str, biased: bool | None = None) -> None:
        """Take a convolution. biased: what our layer has, where theirs may have none: a bias of zeros."""
        shape = self.shape(theirs)
        self.names[f"{ours}.weight"] = f"{theirs}.weight"
        if f"{theirs}.bias" in self.tensors.shapes:
            self.names[f"{ours}.bias"] = f"{theirs}.bias"
        elif biased:
            self.zeros[f"{ours}.bias"] = (shape[0],)

    def norm(self, theirs: str, ours: str, kind: str) -> None:
        """Take what a norm has: of a batch norm everything, of an instance norm nothing.

        Only statistics of an instance norm are dropped; whatever else there is `network` refuses.
        """
        held = [name for name in self.tensors.shapes if name.startswith(f"{theirs}.")]
        if kind == "instance":
            self.dropped += [name for name in held if name.removeprefix(f"{theirs}.") in STATISTICS]
        if kind != "batch":
            return
        for name in ("weight", "bias", *STATISTICS):
            if f"{theirs}.{name}" in held:
                self.names[f"{ours}.{name}"] = f"{theirs}.{name}"
            elif name == "num_batches_tracked":
                self.zeros[f"{ours}.{name}"] = ()  # files of PyTorch 0.4 and older have none
            else:
                raise CheckpointError(f"{theirs}.{name} is missing; is the file whole?", argument=self.where)

    def kind(self, conv: str, norm: str) -> str:
        """The norm behind a convolution: what `norm` holds tells, and whether the convolution has a bias.

        An instance norm of PyTorch 0.3 may have running statistics; the convolution before it has a bias, and it has
        neither scales nor biases itself. Raises CheckpointError for any other norm that has lost its scales.
        """
        has = {name for name in ("weight", "bias", *STATISTICS) if f"{norm}.{name}" in self.tensors.shapes}
        biased = f"{conv}.bias" in self.tensors.shapes
        if has and "weight" not in has and ("bias" in has or not biased):
            first = next(name for name in ("bias", *STATISTICS) if name in has)
            raise CheckpointError(
                f"{norm}.weight is missing, although there is {norm}.{first}: is the file whole? Batch norms without "
                "scales (affine=False) are not supported",
                argument=self.where,
            )
        if {"weight", "running_mean"} <= has and not biased:
            return "batch"
        if "weight" in has:
            raise ConfigError(
                f"{norm} is a norm with scales {'without running statistics' if not biased else 'behind a bias'}; "
                f"supported: {SUPPORTED}",
                argument=self.where,
            )
        return "instance" if biased else "none"

    def network(self, architecture: str, config: dict[str, Any], unsaid: Iterable[str] = ()) -> Network:
        """What was taken. Raises CheckpointError for tensors that were not."""
        if self.dropped:
            self.report.ignored.append(
                f"running statistics of {len(self.dropped)} tensors, the first is {self.dropped[0]}: "
                "an instance norm takes those of each image"
            )
        used = {*self.names.values(), *self.dropped}
        if left := sorted(set(self.tensors.shapes) - used):
            raise CheckpointError(
                f"{len(left)} tensors belong to layers that are not supported, the first is {left[0]}; "
                f"supported: {SUPPORTED}",
                argument=self.where,
            )
        return Network(architecture, config, self.names, self.zeros, tuple(unsaid))


def read_unet(tensors: Tensors, options: Pix2pixOptions, report: Report) -> Network:
    """Levels within each other: [conv, inner, relu, up conv, tanh], [lrelu, conv, norm, inner, relu, up conv, norm],
    innermost [lrelu, conv, relu, up conv, norm]."""
    at, level = _Layout(tensors, report), "model.model"
    (channels, inputs, *_), outputs = at.shape(f"{level}.0"), at.shape(f"{level}.3")[1]
    inner = f"{level}.1.model"
    norm = at.kind(f"{inner}.1", f"{inner}.2")
    downs = 0
    while True:
        last = downs > 0 and f"{level}.3.model.1.weight" not in tensors.shapes
        down, up = (0, 3) if downs == 0 else (1, 3 if last else 5)
        at.conv(f"{level}.{down}", f"down.{downs}.conv")
        at.conv(f"{level}.{up}", f"up.{downs}.conv")
        if downs:
            at.norm(f"{level}.{up + 1}", f"up.{downs}.norm", norm)
            if not last:
                at.norm(f"{level}.2", f"down.{downs}.norm", norm)
        level, downs = f"{level}.{3 if downs else 1}.model", downs + 1
        if last:
            break
    config = {
        "in_channels": inputs,
        "out_channels": outputs,
        "channels": channels,
        "downs": downs,
        "norm": norm,
        "dropout": options.dropout and downs > 5,
    }
    return at.network("unet_generator", config, ["dropout"] if downs > 5 else [])


def read_resnet(tensors: Tensors, options: Pix2pixOptions, report: Report) -> Network:
    """[pad, conv, norm, relu], downs [conv, norm, relu], blocks, ups, [pad, conv, tanh]."""
    at = _Layout(tensors, report)
    layers: dict[int, set[str]] = {}
    for name in tensors.shapes:
        digits, _, rest = name.removeprefix("model.").partition(".")
        if name.startswith("model.") and digits.isdigit():
            layers.setdefault(int(digits), set()).add(rest)
    blocks = [n for n in sorted(layers) if any(name.startswith("conv_block.") for name in layers[n])]
    convs = [n for n in sorted(layers) if len(tensors.shapes.get(f"model.{n}.weight", ())) == 4]
    before, behind = [n for n in convs if n < blocks[0]], [n for n in convs if n > blocks[-1]]
    if blocks != list(range(blocks[0], blocks[-1] + 1)) or len(before) < 2 or len(behind) != len(before):
        raise CheckpointError(
            f"{len(before)} convolutions before {len(blocks)} residual blocks and {len(behind)} behind them are not "
            f"those of a ResnetGenerator; supported: {SUPPORTED}",
            argument=at.where,
        )
    norm = at.kind(f"model.{before[0]}", f"model.{before[0] + 1}")
    (channels, inputs, *_), outputs = at.shape(f"model.{before[0]}"), at.shape(f"model.{behind[-1]}")[0]
    deconvolution = behind[0] == blocks[-1] + 1
    if not deconvolution and behind[0] != blocks[-1] + 3:
        raise ConfigError(
            f"model.{behind[0]}: resize-convolutions without ReflectionPad2d are not supported",
            argument=at.where,
        )
    for number, ours in zip(before, ["stem", *(f"down.{i}" for i in range(len(before) - 1))], strict=True):
        at.conv(f"model.{number}", f"{ours}.conv")
        at.norm(f"model.{number + 1}", f"{ours}.norm", norm)
    padding, dropout = _blocks(at, blocks, norm)
    for i, number in enumerate(behind[:-1]):
        at.conv(f"model.{number}", f"up.{i}.conv", None if deconvolution else True)
        at.norm(f"model.{number + 1}", f"up.{i}.norm", norm)
    at.conv(f"model.{behind[-1]}", "head")
    config = {
        "in_channels": inputs,
        "out_channels": outputs,
        "channels": channels,
        "blocks": len(blocks),
        "downs": len(before) - 1,
        "norm": norm,
        "padding": padding or options.padding,
        "upsampling": "deconvolution" if deconvolution else options.upsampling,
        "dropout": dropout,
    }
    unsaid = [*([] if padding else ["padding"]), *([] if deconvolution else ["upsampling"])]
    return at.network("resnet_generator", config, unsaid)


def _blocks(at: _Layout, blocks: list[int], norm: str) -> tuple[str | None, bool]:
    """Take residual blocks [(pad,) conv, norm, relu, (dropout,) (pad,) conv, norm]: (padding if known, dropout)."""
    first = f"model.{blocks[0]}.conv_block"
    found = [n for n in range(8) if len(at.tensors.shapes.get(f"{first}.{n}.weight", ())) == 4]
    known: dict[tuple[int, ...], tuple[str | None, bool]]
    known = {(1, 5): (None, False), (1, 6): (None, True), (0, 3): ("zero", False), (0, 4): ("zero", True)}
    if tuple(found) not in known:
        raise ConfigError(f"{first} has convolutions at {found}; supported: {SUPPORTED}", argument=at.where)
    for i, block in enumerate(blocks):
        for j, layer in enumerate(found, 1):
            at.conv(f"model.{block}.conv_block.{layer}", f"blocks.{i}.conv{j}.conv")
            at.norm(f"model.{block}.conv_block.{layer + 1}", f"blocks.{i}.conv{j}.norm", norm)
    return known[tuple(found)]


def read_patch(tensors: Tensors, options: Pix2pixOptions, report: Report) -> Network:
    """[conv, lrelu], [conv, norm, lrelu] ..., conv."""
    at = _Layout(tensors, report)
    norm, count = at.kind("model.2", "model.3"), 0
    at.conv("model.0", "layers.0.conv")
    while f"model.{3 * count + 5}.weight" in tensors.shapes:
        count += 1
        at.conv(f"model.{3 * count - 1}", f"layers.{count}.conv")
        at.norm(f"model.{3 * count}", f"layers.{count}.norm", norm)
    at.conv(f"model.{3 * count + 2}", "head")
    channels, inputs, *_ = at.shape("model.0")
    config = {"in_channels": 0, "out_channels": inputs, "channels": channels, "layers": count, "norm": norm}
    return at.network("patch_discriminator", config)


def read_pixel(tensors: Tensors, options: Pix2pixOptions, report: Report) -> Network:
    """[conv, lrelu, conv, norm, lrelu, conv]."""
    at = _Layout(tensors, report)
    norm = at.kind("net.2", "net.3")
    for theirs, ours in (("0", "layers.0.conv"), ("2", "layers.1.conv"), ("5", "head")):
        at.conv(f"net.{theirs}", ours)
    at.norm("net.3", "layers.1.norm", norm)
    channels, inputs, *_ = at.shape("net.0")
    config = {"in_channels": 0, "out_channels": inputs, "channels": channels, "norm": norm}
    return at.network("pixel_discriminator", config)


KINDS: tuple[tuple[str, Callable[[Iterable[str]], bool], Callable[..., Network]], ...] = (
    ("generator", is_unet, read_unet),
    ("generator", is_resnet, read_resnet),
    ("discriminator", is_patch, read_patch),
    ("discriminator", is_pixel, read_pixel),
)
