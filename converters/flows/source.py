"""What a source of models without a configuration is, of flows above all, and the converter made of it.

A flow's file is a state dict without a configuration. Its structure follows from names and shapes; what does not is a
field of the source's options: taken from the module where there is one, else assumed, and reported. `assume` says
otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.checkpoint import Part, Spec
from fastgen.config import from_dict, to_dict
from fastgen.errors import CheckpointError, ConfigError, FastgenError

from .. import weights
from ..base import Converted, Converter, Report, Tensors
from ..wrapping import of_module
from .state import State

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".model", ".safetensors")


@dataclass(frozen=True)
class Result:
    """A network in our terms. tensors: by their names in the network. settings: of the engine."""

    architecture: str
    config: Any
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What a live module says: its tensors, as a file of its kind has them, options, and what has no effect."""

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One kind of network.

    family: whose engine runs it. part: its name in the model.
    options: a config dataclass of what tensors do not say. recognises(names): whether a state dict is of this kind.
    read(state, options, report): the flow; it takes every tensor. facts(module, where): of a live module, ConfigError
    for what is not supported; None where the project has no package of that name and modules are told by their names.
    beside(path): options that a configuration beside the weights says.
    beside_weights: names of tensors at the top of a file, beside the state dict, that belong to the model all the same.
    """

    name: str
    about: str
    supported: str
    options: type
    recognises: Callable[[Iterable[str]], bool]
    read: Callable[[State, Any, Report], Result]
    facts: Callable[[nn.Module, str], Facts] | None = None
    family: str = "flow"
    part: str = "flow"
    beside: Callable[[Path], Mapping[str, Any]] | None = None
    beside_weights: tuple[str, ...] = ()


def converter(source: Source) -> Converter:
    """The converter of files and live modules of `source`."""

    def detect(path: Path) -> bool:
        try:
            if path.is_file() and path.suffix not in SUFFIXES:
                return False
            return weights.hold(weights.of(path), source.recognises)
        except (CheckpointError, OSError, ValueError):
            return False

    def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
        report = Report()
        found = weights.of(path)
        tensors = weights.open_weights(found, source.recognises, report, variant)
        if path.is_dir():
            report.ignored.extend(weights.beside(found) + weights.training(path))
        values = {name: tensors.get(name) for name in tensors.shapes}
        values |= {
            n: t for n, t in weights.at_the_top(found, source.beside_weights).items() if n not in values
        }
        origin = {"weights": [file.name for file in found.files], "sha256": weights.sha256(found)}
        if variant is not None:
            origin["variant"] = variant
        known = {} if source.beside is None else source.beside(path)
        return convert(source, values, tensors.where, assume or {}, known, report, origin)

    def read_module(model: nn.Module, assume: Mapping[str, Any]) -> Converted:
        where = f"{type(model).__module__}.{type(model).__qualname__}"
        report = Report()
        if source.facts is None:
            tensors = of_module(model.state_dict(), source.recognises, where, report)
            return convert(source, tensors, where, assume, {}, report, {"class": where})
        facts = source.facts(model, where)
        report.ignored.extend(facts.without)
        return convert(source, facts.tensors, where, assume, facts.options, report, {"class": where})

    return Converter(
        name=source.name,
        about=source.about,
        detect=detect,
        read=read,
        package=None if source.facts is None else source.name,
        recognises=source.recognises,
        read_module=read_module,
    )


def convert(
    source: Source,
    tensors: Mapping[str, Tensor],
    where: str,
    assume: Mapping[str, Any],
    known: Mapping[str, Any],
    report: Report,
    origin: Mapping[str, Any],
) -> Converted:
    """What `source` makes of tensors by their names there. known: options that the module itself says; assume: those
    that the user says. origin: for the provenance. Raises CheckpointError, ConfigError.
    """
    report.title = f"{where}: {_noun(source.part)} of {source.name} -> fastgen"
    from_dict(source.options, assume, "assume")
    for name in sorted(set(assume) & set(known)):
        if assume[name] != known[name]:
            raise ConfigError(
                f"{name} is {known[name]!r} in {where} itself, not {assume[name]!r}", argument="assume"
            )
    options: Any = from_dict(source.options, {**assume, **known}, f"{where}: options")
    for name, value in to_dict(options).items():
        if name in assume or name in known:
            report.mapped.append(f"{name} = {value}")
        else:
            report.assumed.append(
                f"{name} = {value}; assume={{{name!r}: ...}} (--assume {name}=...) says otherwise"
            )
    state = State(tensors, where, live="class" in origin)
    try:
        result = source.read(state, options, report)
    except FastgenError:
        raise
    # Of tensors that do not go together.
    except (RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"its tensors do not fit each other: {error}", argument=where) from error
    state.finish(source.supported)
    named = {f"{source.part}.{name}": value for name, value in result.tensors.items()}
    report.renamed.append(f"{len(tensors)} tensors became {len(named)} of a {result.architecture}")
    config = to_dict(result.config)
    settings = {"num_classes": config["num_classes"]} if config.get("num_classes") else {}
    settings |= result.settings
    spec = Spec(
        source.family,
        {source.part: Part(result.architecture, config)},
        settings,
        {"converted_from": source.name, "options": to_dict(options), **origin},
    )
    held = Tensors(
        {name: tuple(value.shape) for name, value in named.items()},
        named.__getitem__,
        where,
        {name: value.dtype for name, value in named.items()},
    )
    return Converted(spec, held, report)


def without(options: Any, report: Report, why: str, *names: str) -> None:
    """Strike options that have no effect here from what the report calls assumed; one that was given is ignored.

    That a given value is ignored is in the report, with `why`, where it is not the default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        kept = [line for line in report.assumed if not line.startswith(f"{name} = ")]
        given = len(kept) == len(report.assumed)
        report.assumed[:] = kept
        if given and getattr(options, name) != defaults[name]:
            report.ignored.append(f"{name} = {getattr(options, name)}: {why}")


def same(values: Iterable[Any], what: str, where: str) -> Any:
    """The one value that all have. Raises ConfigError."""
    found = list(values)
    for value in found[1:]:
        if value != found[0]:
            raise ConfigError(
                f"{what} is {found[0]!r} in one layer and {value!r} in another; supported: one for all",
                argument=where,
            )
    return found[0]


def refuse(where: str, module: nn.Module, path: str, supported: str) -> ConfigError:
    """What to raise for a layer that has no counterpart."""
    return ConfigError(
        f"{path}: {type(module).__name__} is not supported; supported: {supported}", argument=where
    )


def scalar(value: Any) -> float:
    """A number from a number or a tensor of one element."""
    return float(value.detach().double()) if isinstance(value, torch.Tensor) else float(value)


def _noun(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
