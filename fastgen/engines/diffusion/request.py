"""What a caller asked of a diffusion engine, checked once, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

from ...config import named
from ...diffusion.solvers import SOLVERS
from ...diffusion.table import LANGEVIN_BATCH, Table
from ...errors import ArgumentError, ConfigError
from ..arguments import sample_count, sample_labels, sample_seeds
from .given import Given
from .guidance import is_pair
from .plan import COMMON, Plan, check_names, make_plan
from .queue import SampleRequest
from .settings import DiffusionSettings

PAIRS = ("guidance_interval", "guidance_sigmas", "guidance_times")  # one value is itself a list


@dataclass(frozen=True)
class Request:
    """A complete request: it alone repeats a run on the same model. One seed, label and plan per sample.

    given: of each sample, what its caller has given as tensors; none of it is in `to_dict`, and where there is any,
    that repeats the run only together with the same tensors.
    """

    seeds: tuple[int, ...]
    labels: tuple[int | None, ...]
    plans: tuple[Plan, ...]
    given: tuple[Given, ...] = ()

    @property
    def kinds(self) -> list[Plan]:
        """The different plans, in order."""
        return list({id(plan): plan for plan in self.plans}.values())

    def evaluations(self) -> list[int]:
        """Network evaluations, of each sample."""
        return [len(plan.table) for plan in self.plans]

    def singles(self) -> list[SampleRequest]:
        """One request per sample, for the loop."""
        return [
            SampleRequest(
                plan.table,
                seed,
                label,
                # Without a label both halves of guidance would be the same network output.
                1.0 if label is None else plan.weights,
                0.0 if label is None else plan.guidance.rescale,
                0.0 if label is None else plan.guidance.classifier_scale,
                **({} if given is None else vars(given)),
            )
            for seed, label, plan, given in zip(
                self.seeds, self.labels, self.plans, self.given or [None] * len(self.seeds), strict=True
            )
        ]

    @property
    def coupled(self) -> bool:
        """Whether a sample depends on who is drawn beside it: Langevin steps by means over the batch."""
        return any(bool((plan.table.langevin == LANGEVIN_BATCH).any()) for plan in self.kinds)

    def part(self, start: int, stop: int) -> Request:
        """The request for the samples from `start` to before `stop`."""
        return Request(
            self.seeds[start:stop], self.labels[start:stop], self.plans[start:stop], self.given[start:stop]
        )

    def only(self, sample: int) -> Request:
        """The request for one of the samples."""
        return self.part(sample, sample + 1)

    def to_dict(self) -> dict[str, Any]:
        """The keyword arguments of ``sample`` that repeat it, as strict JSON: lists where samples differ.

        Not where samples of a solver's ``step_size="batch"`` are drawn beside others than they were, see `coupled`.
        """
        kinds = self.kinds
        made = {id(plan): plan.to_dict() for plan in kinds}
        arguments: dict[str, Any] = {}
        for name in dict.fromkeys(name for plan in kinds for name in made[id(plan)]):
            values = [made[id(plan)].get(name) for plan in kinds]
            alike = all(type(v) is type(values[0]) and v == values[0] for v in values)
            # A list for all, of weights or of an option, would read as one value per sample.
            if alike and not (isinstance(values[0], list) and name not in PAIRS):
                arguments[name] = values[0]
            else:
                arguments[name] = [made[id(plan)].get(name) for plan in self.plans]
        return {"seeds": list(self.seeds), "labels": list(self.labels), **arguments}

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(str(plan) for plan in self.kinds))


def resolve(
    settings: DiffusionSettings,
    classifier_classes: int | None = None,
    /,
    *,
    n: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    labels: int | str | Sequence[int | str | None] | None = None,
    **arguments: Any,
) -> Request:
    """Check the arguments of ``sample`` against a model's settings. Raises ConfigError or ArgumentError.

    classifier_classes: how many the engine's classifier tells apart, None without one.
    """
    if "num_inference_steps" in arguments:
        if arguments.get("steps") is not None:
            raise ArgumentError("are the same argument: give one", argument="steps, num_inference_steps")
        arguments["steps"] = arguments.pop("num_inference_steps")
    arguments = {name: _plain(value) for name, value in arguments.items()}
    _check_names(settings, arguments)
    lists = {
        name: values for name, value in arguments.items() if (values := _per_sample(name, value)) is not None
    }
    if n is None and seeds is None and lists and _per_sample("labels", labels) is None:
        n = len(next(iter(lists.values())))
    count = sample_count(n, seeds, labels)
    for name, values in lists.items():
        if len(values) != count:
            raise ConfigError(
                f"expected one value, or one per sample ({count}), got {len(values)}", argument=name
            )

    made: dict[Any, Plan] = {}
    plans = []
    for i in range(count if lists else 1):
        own = {**arguments, **{name: values[i] for name, values in lists.items()}}
        key = tuple((name, _frozen(own[name])) for name in lists)
        if key not in made:
            made[key] = make_plan(settings, own)
        plans.append(made[key])
    plans = plans if lists else plans * count

    classes, unlabelled = settings.num_classes, settings.null_class is not None
    if classes is None and classifier_classes is not None:
        classes, unlabelled = classifier_classes, True  # labels are the classifier's alone
    checked = sample_labels(count, labels, classes, settings.class_names, unlabelled)
    if classifier_classes is None and any(plan.guidance.classifier_scale for plan in made.values()):
        raise ConfigError(
            "this engine has no classifier; give it one with engine.guide(classifier)",
            argument="classifier_scale",
        )
    return Request(sample_seeds(count, seed, seeds), checked, tuple(plans))


def _check_names(settings: DiffusionSettings, arguments: Mapping[str, Any]) -> None:
    """Names come before lengths: where one solver draws all samples, whose options are these?"""
    solver = arguments.get("solver")
    solver = settings.solver if solver is None else solver
    if isinstance(solver, (Table, Mapping)) or (isinstance(solver, str) and solver in SOLVERS):
        check_names(solver, [name for name, value in arguments.items() if value is not None])
    elif isinstance(solver, (list, tuple)):
        options = {option.name for known in SOLVERS.values() for option in known.options}
        if unknown := sorted(set(arguments) - options - set(COMMON)):
            raise ArgumentError(
                "unknown argument: neither one of sample() nor an option of any solver",
                argument=", ".join(map(named, unknown[:5])),
            )


def _per_sample(name: str, value: Any) -> list | None:
    """The values of an argument that is given one per sample, None where it is one for all."""
    if not isinstance(value, (list, tuple)) or (name in PAIRS and is_pair(value)):
        return None
    if name in _listed_options() and not any(v is None or isinstance(v, (list, tuple)) for v in value):
        return None
    return list(value)


@cache
def _listed_options() -> frozenset[str]:
    """The options of solvers whose one value is a list of numbers."""
    return frozenset(o.name for s in SOLVERS.values() for o in s.options if o.type.startswith("tuple"))


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's, their arrays as lists."""
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist()
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _frozen(value: Any) -> Any:
    """A key for equal values: 1 and True are not."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return (type(value), id(value) if isinstance(value, dict) or not _hashable(value) else value)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
