"""An engine's verbs as contests: each as the engine runs it beside its reference in plain PyTorch. No code per family.

The inputs are the verb's own trial tensors. A verb that draws noise is judged on the engine's noise; where a baseline
is timed it makes its own with torch.randn in every call, as its users do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engines.base import Engine
from ..engines.closeness import TIMES, Closeness, rms, spread
from ..engines.verb import Tensors, Verb
from ..runtime.device import dtype_name
from .contest import Contest, Drawing, chosen, plain_pytorch
from .results import Row

BASELINES = ("eager", "compile")
SEED = 0
ENOUGH = 8  # independent numbers, whose root mean square says what rounding costs (see ``closeness.TIMES``)


def contests(
    engine: Engine,
    *,
    suite: str,
    name: str,
    batches: Sequence[int],
    steps: int | None,
    against: Collection[str],
) -> Iterator[Contest]:
    """Every verb at each of `batches`. steps: means nothing to a verb."""
    for batch in batches:
        for verb in engine.verbs().values():
            yield contest(engine, verb, trial(verb, batch), against, suite, name)


@torch.no_grad()
def trial(verb: Verb, batch: int) -> Tensors:
    """The inputs [batch, ...] of a contest."""
    return (verb.timed or verb.trial)(batch, torch.Generator().manual_seed(SEED))


@torch.no_grad()
def contest(
    engine: Engine, verb: Verb, tensors: Tensors, against: Collection[str], suite: str, name: str
) -> Contest:
    """A verb on `tensors` by the engine and its baselines."""
    batch = len(tensors[0])
    noise = None if verb.noise is None else verb.noise(*tensors)

    @cache
    def rules() -> list[tuple[Closeness, float]]:
        """For every result: a few samples in float64, and all of them by plain PyTorch in the engine's type.

        The error of a few numbers may be next to nothing by chance: then what rounding costs is taken of other samples.
        """
        index = spread(batch)
        wide = copy.deepcopy(engine.networks).double()
        few = [_wide(value[index]) for value in tensors]
        exact = verb.plain(wide, *few, noise=None if noise is None else noise[index].double())
        plain = verb.plain(engine.networks, *tensors, noise=noise)
        costs = [0.0] * len(exact)
        if min(value.numel() for value in exact) < ENOUGH:
            others = verb.trial(ENOUGH, torch.Generator().manual_seed(SEED + 1))
            drawn = None if verb.noise is None else verb.noise(*others)
            exactly = verb.plain(wide, *map(_wide, others), noise=None if drawn is None else drawn.double())
            plainly = verb.plain(engine.networks, *others, noise=drawn)
            costs = [rms(b.double() - a) for a, b in zip(exactly, plainly, strict=True)]
        return [
            (Closeness(a, [b], index), TIMES * cost if a.numel() < ENOUGH else 0.0)
            for a, b, cost in zip(exact, plain, costs, strict=True)
        ]

    @torch.no_grad()
    def judge(results: Tensors) -> float:
        return max(rule.error(result, slack) for (rule, slack), result in zip(rules(), results, strict=True))

    def formula(given: Tensor | None) -> Tensors:
        return verb.plain(engine.networks, *tensors, noise=given)

    def drawing(run: Callable[..., Any]) -> Drawing:
        return Drawing(lambda: run(noise), lambda: run(None if noise is None else torch.randn_like(noise)))

    dtype = dtype_name(engine.dtype)
    return Contest(
        row=Row(suite, name, f"{verb.name} {batch}", dtype, batch=batch, images=batch),
        own=lambda: engine.call(verb.name, *tensors),
        judge=judge,
        device=engine.device,
        baselines=chosen(plain_pytorch(formula, drawing, engine.device), against),
    )


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def fresh(
    engine: Engine, name: str, folder: Path, batch: int, steps: int | None, against: Collection[str]
) -> tuple[Contest, dict[str, dict[str, Any]]]:
    """The contest of fresh processes, and what `child.py` is told to do the same there: {"fastgen": order}.

    It is of the first verb that draws noise, where there is one.
    """
    verbs = list(engine.verbs().values())
    verb = next((verb for verb in verbs if verb.noise is not None), verbs[0])
    tensors = trial(verb, batch)
    torch.save(tensors, folder / "tensors.pt")
    orders = {"fastgen": {"verb": verb.name, "tensors": str(folder / "tensors.pt")}}
    return contest(engine, verb, tensors, (), "fresh", name), orders
