"""A generative family: its engine, the flags that only it has, its models."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engines.base import Engine
    from .recipe import Recipe
    from .sampling import Sampling


@dataclass(frozen=True)
class Flag:
    """An option of a command. name: ``--temperature``. options: keyword arguments of argparse's ``add_argument``."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments."""
        return self.name.removeprefix("--").replace("-", "_")

    def add(self, group: argparse._ActionsContainer) -> None:
        """Declare it. Where the user does not give it, the parsed arguments do not have it at all."""
        group.add_argument(self.name, **{**self.options, "default": argparse.SUPPRESS})


def given(args: argparse.Namespace, flags: Iterable[Flag]) -> dict[str, Any]:
    """The values of those of `flags` that the user has given, by ``Flag.dest``."""
    return {flag.dest: getattr(args, flag.dest) for flag in flags if hasattr(args, flag.dest)}


@dataclass(frozen=True)
class Family:
    """One generative family.

    name: ``Spec.engine`` of its checkpoints. engine: "module:class" of its Engine. flags: by command ("sample"), those
    that only some families have; two families may declare the same flag if it is equal. sampling: how the command
    ``sample`` draws, None where it cannot. likelihood: whether engines have log_prob and bits_per_dim, and their
    describe() has `levels` and `classes`, for ``fastgen evaluate``. chunk: samples that it hands over at a time.
    use: the command that uses a trained model, {} standing for its folder. models: for each architecture a model
    that the benchmark opens, as ``fastgen.load`` or ``fastgen.bench`` names it; the first one stands for the family
    in the tour. large: models that keep a CPU busy for minutes, and are measured on a GPU. recipes: how ``fastgen
    train`` makes its models, by architecture of the model's first part, which is what ``--model`` takes.
    """

    name: str
    engine: str
    flags: Mapping[str, Sequence[Flag]] = field(default_factory=dict)
    sampling: Sampling | None = None
    likelihood: bool = False
    chunk: int = 256
    use: str = "fastgen sample {}"
    models: Mapping[str, str] = field(default_factory=dict)
    large: Sequence[str] = ()
    recipes: Mapping[str, Recipe] = field(default_factory=dict)

    def engine_class(self) -> type[Engine]:
        """The engine, imported now: it needs PyTorch."""
        module, _, name = self.engine.partition(":")
        found: type[Engine] = getattr(importlib.import_module(module), name)
        return found
