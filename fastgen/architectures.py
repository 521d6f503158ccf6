"""Every network fastgen can build: a name in a checkpoint -> its configuration, its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import Any

from torch import nn

from .checkpoint import Part, Spec
from .config import from_dict
from .errors import ConfigError


@dataclass(frozen=True)
class Architecture:
    """How to build a network: a config dataclass and a class that takes an instance of it."""

    config: type
    module: Callable[[Any], nn.Module]


class _Listed(Architecture):
    """A network `name` and its config `nameConfig` in a module of ``fastgen.models``, which is imported when used."""

    def __init__(self, module: str, name: str) -> None:
        self.__dict__["place"] = module, name

    def _get(self, suffix: str) -> Any:
        module, name = self.__dict__["place"]
        return getattr(import_module(f".models.{module}", __package__), name + suffix)

    @cached_property
    def config(self) -> type:
        found: type = self._get("Config")
        return found

    @cached_property
    def module(self) -> Callable[[Any], nn.Module]:
        found: Callable[[Any], nn.Module] = self._get("")
        return found


ARCHITECTURES: dict[str, Architecture] = {
    "glow": _Listed("flow.glow", "Glow"),
    "nice": _Listed("flow.nice", "NICE"),
    "realnvp": _Listed("flow.realnvp", "RealNVP"),
    "unet": _Listed("unet", "UNet"),
    "vector_flow": _Listed("flow.vector", "VectorFlow"),
}


def part_config(part: Part, where: str) -> Any:
    """The checked config dataclass of a checkpoint's part."""
    if part.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"unknown architecture {part.architecture!r}; known: {', '.join(ARCHITECTURES)}", argument=where
        )
    return from_dict(ARCHITECTURES[part.architecture].config, part.config, f"{where}.config")


def builders(spec: Spec) -> dict[str, Callable[[], nn.Module]]:
    """A function for each part of `spec` that makes its untrained network. Configs are checked at once."""
    made: dict[str, Callable[[], nn.Module]] = {}
    for name, part in spec.parts.items():
        config = part_config(part, f"parts.{name}")
        made[name] = partial(ARCHITECTURES[part.architecture].module, config)
    return made
