"""Generators and discriminators of pytorch-CycleGAN-and-pix2pix (junyanz): ``*_net_G.pth``, ``*_net_D.pth``.

Its classes put layers into ``nn.Sequential``, so that names hold numbers of layers, also of those without tensors:

    UnetGenerator       model.model.0, .1.model.1, .1.model.3.model.1, ...  one level within the other
    ResnetGenerator     model.1, model.4, ..., model.N.conv_block.1, ...
    NLayerDiscriminator model.0, model.2, model.5, ...
    PixelDiscriminator  net.0, net.2, net.5
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.checkpoint import CONFIG_FILE, Part, Spec
from fastgen.config import bounded, from_dict, one_of, to_dict
from fastgen.errors import CheckpointError, ConfigError

from . import weights
from .base import Converted, Converter, Report, Tensors, check_plain
from .flows.assumed import Assumed, Table
from .wrapping import StateDict, choose

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
FILE = re.compile(r"(?P<epoch>.+)_net_(?P<network>[GD])(?:_(?P<direction>[AB]))?\.pth")
PARTS = {"G": "generator", "D": "discriminator"}
SUPPORTED = "UnetGenerator, ResnetGenerator, NLayerDiscriminator and PixelDiscriminator with batch, instance or no norm"
# The project's own defaults, in options/base_options.py, models/pix2pix_model.py and models/networks.py.
ASSUMED: Table = {
    "dropout": Assumed(True, source="--no_dropout, which pix2pix leaves out (CycleGAN sets it)"),
    "padding": Assumed("reflect", source="ResnetGenerator(padding_type)"),
}


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
        """Take what a norm has: of a batch norm everything, of an instance norm nothing."""
        held = [name for name in self.tensors.shapes if name.startswith(f"{theirs}.")]
        if kind != "batch":
            self.dropped += held
            return
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"{theirs}.{name}" in held:
                self.names[f"{ours}.{name}"] = f"{theirs}.{name}"
            elif name == "num_batches_tracked":
                self.zeros[f"{ours}.{name}"] = ()  # files of PyTorch 0.4 and older have none
            else:
                raise CheckpointError(f"{theirs}.{name} is missing; is the file whole?", argument=self.where)

    def kind(self, conv: str, norm: str) -> str:
        """The norm behind a convolution: what `norm` holds tells, and whether the convolution has a bias."""
        has = {name for name in ("weight", "running_mean") if f"{norm}.{name}" in self.tensors.shapes}
        biased = f"{conv}.bias" in self.tensors.shapes
        if has == {"weight", "running_mean"} and not biased:
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
        number, _, rest = name.removeprefix("model.").partition(".")
        if name.startswith("model.") and number.isdigit():
            layers.setdefault(int(number), set()).add(rest)
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


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of one of the networks."""
    found = list(names)
    return any(known(found) for _, known, _ in KINDS)


def files(path: Path, variant: str | None = None) -> dict[str, Path]:
    """The files of one model in a folder of checkpoints, by part.

    variant: an epoch, a direction of CycleGAN (A or B), or both ("200_A"); by default the latest epoch, or the only
    one. Raises CheckpointError where there are several models, ConfigError for a variant that is not there.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        if (match := FILE.fullmatch(file.name)) and file.is_file():
            label = "_".join(filter(None, (match["epoch"], match["direction"])))
            found.setdefault(label, {})[PARTS[match["network"]]] = file
    usual = [v for v in found if v.split("_")[0] == "latest"] or list(found)
    if variant is not None:
        usual = [variant] if variant in found else [v for v in usual if v.split("_")[-1] == variant]
    if len(usual) == 1:
        return found[usual[0]]
    there = ", ".join(found) or "none"
    if variant is not None:
        raise ConfigError(f"{variant!r} was asked for, and there are {there}", argument="variant")
    raise CheckpointError(
        f"holds several models: {there}; say which, with variant= (--variant); A and B are CycleGAN's directions",
        argument=path,
    )


def detect(path: Path) -> bool:
    """A folder with such files and no config.json, or a file with such names."""
    try:
        if path.is_dir():
            named = any(FILE.fullmatch(file.name) for file in path.iterdir())
            return named and not (path / CONFIG_FILE).exists()
        return path.suffix in SUFFIXES and weights.hold(weights.of(path), recognises)
    except (CheckpointError, OSError, ValueError):
        return False


def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
    """See ``Converter``."""
    report, folder = Report(), path.is_dir()
    chosen = list(files(path, variant).values()) if folder else [path]
    sources, digests = [], []
    for file in chosen:
        found = weights.Found((file,))
        tensors = weights.open_weights(found, recognises, report, None if folder else variant)
        for name in tensors.shapes:
            check_plain(tensors.get(name), f"{file}: {name}")
        sources.append(tensors)
        digests.append(weights.sha256(found))
    origin = {
        "weights": [file.name for file in chosen],
        "sha256": digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
    }
    if variant is not None:
        origin["variant"] = variant
    return _convert(sources, str(path), assume or {}, {}, report, origin)


def read_module(model: nn.Module, assume: Mapping[str, Any]) -> Converted:
    """See ``Converter``: a live generator or discriminator."""
    where, report = f"{type(model).__module__}.{type(model).__qualname__}", Report()
    state = model.state_dict()
    for name, value in state.items():
        check_plain(value, f"{where}: {name}")
    whole = Tensors({n: tuple(t.shape) for n, t in state.items()}, state.__getitem__, where)
    tensors = choose([StateDict("", whole)], recognises, where, report).renamed()
    kinds = {type(module) for module in model.modules()}
    known: dict[str, Any] = {}
    if is_unet(tensors.shapes):
        known["dropout"] = nn.Dropout in kinds
    if is_resnet(tensors.shapes):
        known["padding"] = "replicate" if nn.ReplicationPad2d in kinds else "reflect"
        if modes := {str(m.mode) for m in model.modules() if isinstance(m, nn.Upsample)}:
            known["upsampling"] = modes.pop()
    return _convert([tensors], where, assume, known, report, {"class": where})


def _convert(
    sources: list[Tensors],
    where: str,
    assume: Mapping[str, Any],
    known: Mapping[str, Any],
    report: Report,
    origin: Mapping[str, Any],
) -> Converted:
    """known: options that a module itself says; assume: those that the user says."""
    report.title = f"{where}: pix2pix -> fastgen"
    from_dict(Pix2pixOptions, assume, "assume")
    if wrong := [n for n in sorted(set(assume) & set(known)) if assume[n] != known[n]]:
        raise ConfigError(f"{wrong[0]} is {known[wrong[0]]!r} in {where} itself", argument="assume")
    options = from_dict(Pix2pixOptions, {**assume, **known}, f"{where}: options")
    networks: dict[str, tuple[Network, Tensors]] = {}
    for tensors in sources:
        part, _, take = next(kind for kind in KINDS if kind[1](tensors.shapes))
        if part in networks:
            raise CheckpointError(f"{tensors.where} is a second {part}", argument=where)
        networks[part] = take(tensors, options, report), tensors
    unsaid = {name for network, _ in networks.values() for name in network.unsaid}
    if "discriminator" in networks:
        unsaid |= _condition(networks, options, where)
    for name, value in to_dict(options).items():
        if name in unsaid and name not in assume and name not in known:
            report.assumed.append(
                f"{name} = {value}; assume={{{name!r}: ...}} (--assume {name}=...) says otherwise"
            )
        elif name in unsaid:
            report.mapped.append(f"{name} = {value}")
        elif name in assume:
            report.ignored.append(f"{name} = {value}: the tensors say it, or nothing has it")
    return _converted(networks, options, where, report, origin)


def _condition(
    networks: Mapping[str, tuple[Network, Tensors]], options: Pix2pixOptions, where: str
) -> set[str]:
    """How many channels of a discriminator's input are x's, the rest being y's. Returns options that were asked."""
    discriminator = networks["discriminator"][0]
    total = discriminator.config["out_channels"]
    asked: set[str] = set()
    if "generator" in networks:
        config = networks["generator"][0].config
        condition = total - config["out_channels"]
        if condition not in (0, config["in_channels"]):
            raise ConfigError(
                f"the discriminator sees {total} channels; the generator's images have {config['in_channels']} and "
                f"{config['out_channels']}: are the files of one model?",
                argument=where,
            )
    else:
        asked.add("condition_channels")
        given = options.condition_channels
        condition = (total - 3 if total > 3 else 0) if given is None else given
        if condition >= total:
            raise ConfigError(f"condition_channels: {condition} of {total} channels", argument="assume")
    discriminator.config.update(in_channels=condition, out_channels=total - condition)
    return asked


def _converted(
    networks: Mapping[str, tuple[Network, Tensors]],
    options: Pix2pixOptions,
    where: str,
    report: Report,
    origin: Mapping[str, Any],
) -> Converted:
    shapes: dict[str, tuple[int, ...]] = {}
    getters: dict[str, Callable[[], Tensor]] = {}
    for part, (network, tensors) in networks.items():
        for ours, theirs in network.names.items():
            shapes[f"{part}.{ours}"] = tensors.shapes[theirs]
            getters[f"{part}.{ours}"] = lambda tensors=tensors, theirs=theirs: tensors.get(theirs)  # type: ignore[misc]
        for ours, shape in network.zeros.items():
            shapes[f"{part}.{ours}"] = shape
            kind = torch.int64 if ours.endswith("num_batches_tracked") else torch.float32
            getters[f"{part}.{ours}"] = lambda shape=shape, kind=kind: torch.zeros(shape, dtype=kind)  # type: ignore[misc]
        report.renamed.append(f"{len(tensors.shapes)} tensors became those of a {network.architecture}")
    spec = Spec(
        "translate",
        {part: Part(network.architecture, network.config) for part, (network, _) in networks.items()},
        {},
        {"converted_from": "pix2pix", "options": to_dict(options), **origin},
    )
    return Converted(spec, Tensors(shapes, lambda name: getters[name](), where), report)


CONVERTER = Converter(
    name="pix2pix",
    about="generators and discriminators of junyanz's pytorch-CycleGAN-and-pix2pix: *_net_G.pth, *_net_D.pth",
    detect=detect,
    read=read,
    recognises=recognises,
    read_module=read_module,
)
