"""Generators and discriminators of pytorch-CycleGAN-and-pix2pix (junyanz): ``*_net_G.pth``, ``*_net_D.pth``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.checkpoint import CONFIG_FILE, Part, Spec
from fastgen.config import from_dict, to_dict
from fastgen.errors import CheckpointError, ConfigError

from .. import weights
from ..base import Converted, Converter, Report, Tensors, check_plain
from ..wrapping import StateDict, choose
from .networks import KINDS, Network, Pix2pixOptions, is_resnet, is_unet

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
FILE = re.compile(r"(?P<epoch>.+)_net_(?P<network>[GD])(?:_(?P<direction>[AB]))?\.pth")
PARTS = {"G": "generator", "D": "discriminator"}


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
            getters[f"{part}.{ours}"] = lambda shape=shape, kind=kind: torch.zeros(
                shape, dtype=kind, device="cpu"
            )  # type: ignore[misc]
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
