"""Models of BigGAN-PyTorch (ajbrock): a file of either network, or the folder that its training writes.

G_ema.pth, or else G.pth    the generator
D.pth                       the discriminator, if it is there
G_ema_best0.pth, ...        other sets of both: the variant best0
G_optim.pth, ...            the state of a training run
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastgen.checkpoint import CONFIG_FILE, Spec
from fastgen.errors import CheckpointError, ConfigError

from ..base import Converted, Converter, Tensors
from ..flows.source import converter
from . import ajbrock, ajbrock_discriminator
from .ajbrock import GENERATOR

DISCRIMINATOR = converter(ajbrock_discriminator.SOURCE)
FILE = re.compile(r"(?P<part>G_ema|G|D)(?:_(?P<variant>(?!ema|optim)\w+))?\.pth")
TRAINING = re.compile(r"(G_optim|D_optim|state_dict)(_\w+)?\.pth")
OF_DISCRIMINATORS = {field.name for field in dataclasses.fields(ajbrock_discriminator.DiscriminatorOptions)}


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of one of its networks."""
    found = set(names)
    return ajbrock.recognises(found) or ajbrock_discriminator.recognises(found)


def files(path: Path, variant: str | None = None) -> dict[str, Path]:
    """The files of one model in a folder, by G_ema, G and D.

    variant: what follows their names, such as best0; by default nothing, or the only one. Raises CheckpointError where
    there are several, or no generator; ConfigError for a variant that is not there.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(path.iterdir()):
        if (match := FILE.fullmatch(file.name)) and file.is_file():
            found.setdefault(match["variant"] or "", {})[match["part"]] = file
    there = ", ".join(name or "one without a suffix" for name in found)
    if variant is not None and variant not in found:
        raise ConfigError(f"{variant!r} was asked for, and there are: {there}", argument="variant")
    if variant is None:
        variant = "" if "" in found else next(iter(found)) if len(found) == 1 else None
    if variant is None:
        raise CheckpointError(
            f"holds several models: {there}; say which, with variant= (--variant)", argument=path
        )
    if not {"G", "G_ema"} & set(found[variant]):
        raise CheckpointError("holds a discriminator, and no G_ema.pth or G.pth to it", argument=path)
    return found[variant]


def detect(path: Path) -> bool:
    """A file of either network, or a folder with such files and no config.json."""
    try:
        if not path.is_dir():
            return GENERATOR.detect(path) or DISCRIMINATOR.detect(path)
        if (path / CONFIG_FILE).exists():
            return False
        named = [file for file in path.iterdir() if FILE.fullmatch(file.name)]
        return any(GENERATOR.detect(file) or DISCRIMINATOR.detect(file) for file in named[:1])
    except OSError:
        return False


def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
    """See ``Converter``."""
    if not path.is_dir():
        part = DISCRIMINATOR if DISCRIMINATOR.detect(path) else GENERATOR
        return part.read(path, variant, assume)
    chosen, assume = files(path, variant), assume or {}
    of_discriminator = {name: value for name, value in assume.items() if name in OF_DISCRIMINATORS}
    of_generator = {name: value for name, value in assume.items() if name not in OF_DISCRIMINATORS}
    generator = GENERATOR.read(chosen.get("G_ema", chosen.get("G")), None, of_generator)
    made = generator
    if "D" in chosen:
        made = _joined(generator, _beside(generator, chosen["D"], of_discriminator), path)
    report = made.report
    if {"G_ema", "G"} <= set(chosen):
        report.assumed.append(
            f"averaged weights, not those of {chosen['G'].name}: give that file to take them"
        )
    if "D" not in chosen:
        report.ignored += [f"{name}: there is no discriminator" for name in of_discriminator]
    if left := sorted(file.name for file in path.iterdir() if TRAINING.fullmatch(file.name)):
        report.ignored.append(f"{', '.join(left[:8])}: the state of a training run")
    if variant is None:
        return made
    spec = dataclasses.replace(made.spec, provenance={**made.spec.provenance, "variant": variant})
    return dataclasses.replace(made, spec=spec)


def _beside(generator: Converted, path: Path, assume: Mapping[str, Any]) -> Converted:
    """The discriminator to a generator, which says how large images are."""
    config = generator.spec.parts["generator"].config
    side = config["bottom"] << len(config["multipliers"]) - 1
    source = dataclasses.replace(ajbrock_discriminator.SOURCE, beside=lambda _: {"size": side})
    found = converter(source).read(path, None, assume)
    classes = found.spec.parts["discriminator"].config["num_classes"]
    if classes != config["num_classes"]:
        raise CheckpointError(
            f"is of {classes} classes, and the generator of {config['num_classes']}", argument=path
        )
    return found


def _joined(generator: Converted, discriminator: Converted, where: Path) -> Converted:
    """Both networks as one model."""
    g, d = generator.spec, discriminator.spec
    part = d.parts["discriminator"]
    if g.parts["generator"].architecture == "sagan":  # which has the same discriminator
        part = dataclasses.replace(part, architecture="sagan_discriminator")
    provenance = {
        **g.provenance,
        "options": {**g.provenance["options"], **d.provenance["options"]},
        "weights": [*g.provenance["weights"], *d.provenance["weights"]],
        "sha256": hashlib.sha256((g.provenance["sha256"] + d.provenance["sha256"]).encode()).hexdigest(),
    }
    spec = Spec(g.engine, {**g.parts, "discriminator": part}, g.settings, provenance)
    held = generator.tensors, discriminator.tensors
    tensors = Tensors(
        {**held[0].shapes, **held[1].shapes},
        lambda name: held[name not in held[0].shapes].get(name),
        str(where),
        {**held[0].dtypes, **held[1].dtypes},
    )
    report = generator.report.followed_by(discriminator.report)
    return Converted(spec, tensors, report)


def read_module(model: nn.Module, assume: Mapping[str, Any]) -> Converted:
    """See ``Converter``: a live generator or discriminator."""
    part = DISCRIMINATOR if "embed.weight" in {n[-12:] for n in model.state_dict()} else GENERATOR
    assert part.read_module is not None
    return part.read_module(model, assume)


CONVERTER = Converter(
    name="biggan-pytorch",
    about="ajbrock's BigGAN-PyTorch (a folder with G_ema.pth or G.pth, and D.pth; or one of them): BigGAN, "
    "BigGAN-deep, SAGAN",
    detect=detect,
    read=read,
    recognises=recognises,
    read_module=read_module,
)
