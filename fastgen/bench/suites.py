"""The suites: which cases each has, and the rows they give, one at a time as they are measured."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastgen_kernels import OPS, Case, Op

from ..api import load
from ..diffusion.solvers import SOLVERS
from ..engines import DiffusionEngine
from ..errors import ConfigError, FastgenError
from ..runtime.device import DTYPES, dtype_name
from . import chains, diffusion, fresh, kernels, samplers
from .contest import Contest, How, NotApplicable, forget
from .environment import copy_bandwidth, product_rate
from .families import first_models, models, on_disk, without_model, workload
from .results import Results, Row

BATCHES = {"cuda": (1, 16, 64), "cpu": (1, 8)}  # of the families suite
FRESH_ROUNDS = 5
FRESH_BASELINES = ("diffusers",)  # `child.py` has a script for each
TOUR_BATCHES = (1, 4, 16)
TOUR_STEPS = 10
CASES = 150  # `all` and the tour measure about so many: each has its share of the time for its rounds


@dataclass
class Plan:
    """What the command line asked for, checked. Empty sequences stand for a suite's own choice.

    asked: whether the user named the baselines, and wants to hear of those that a suite does not have. folder: an empty
    one, for models that are made here. seconds: the time that there is, from now on.
    """

    device: torch.device
    against: Sequence[str]
    how: How
    results: Results
    ops: Sequence[str] = ()
    cases: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    models: Sequence[str] = ()
    batches: Sequence[int] = ()
    steps: int | None = None
    asked: bool = False
    folder: Path = Path()
    seconds: float = math.inf
    engines: dict[tuple[str, str], Any] = field(default_factory=dict)

    def engine(self, model: str, dtype: str) -> Any:
        """The engine of a model, opened once."""
        if (model, dtype) not in self.engines:
            self.engines[model, dtype] = load(on_disk(model, self.folder), device=self.device, dtype=dtype)
        return self.engines[model, dtype]

    def leave_out(self, what: str, why: str) -> None:
        """Print and record what is not measured."""
        if what not in self.results.left_out:
            self.results.left_out[what] = why
            self.how.say(f"without {what}: {why}")

    def baselines(self, known: Sequence[str], of: str) -> list[str]:
        """Those of the baselines asked for that `of` has."""
        for name in self.against:
            if self.asked and name not in known:
                why = f"it has no such baseline; there is {', '.join(known) or 'none'}"
                self.leave_out(f"{name} in {of}", why)
        return [name for name in self.against if name in known]

    def kernel_dtypes(self) -> list[torch.dtype]:
        own = ("float32", "bfloat16") if self.device.type == "cuda" else ("float32",)
        return [DTYPES[name] for name in self.dtypes or own]


@dataclass(frozen=True)
class Unit:
    """Something that is measured or left out as a whole.

    group: the last unit of it says what this one will cost. size: how much work it is, relative to others of its group.
    """

    group: str
    name: str
    rows: Callable[[], Iterable[Row]]
    size: float = 1.0


def run(suite: str, plan: Plan) -> Iterator[Row]:
    """The rows of a suite of SUITES, of "tour" or of "all", in about `plan.seconds`."""
    if suite in ("tour", "all"):
        plan.how = replace(plan.how, seconds=plan.seconds / CASES)
    parts: Iterable[tuple[float, Iterable[Unit]]]
    if suite == "tour":
        parts = tour(plan)
    elif suite == "all":  # coldstart measures memory as well
        shares = {"families": 0.35, "samplers": 0.55, "coldstart": 0.75, "kernels": 1.0}
        parts = [(share, SUITES[name](plan)) for name, share in shares.items()]
    else:
        parts = [(1.0, SUITES[suite](plan))]
    yield from measured(parts, plan)


def measured(parts: Iterable[tuple[float, Iterable[Unit]]], plan: Plan) -> Iterator[Row]:
    """The rows of the units of each part: all of them in order, or where time is bounded those that it suffices for.

    parts: (share of the time that is over when the part ends, its units). Of bounded time the first unit of every group
    is always measured, then the second ones, third ones and so on while there is time; what did not fit its part goes
    last, or is named. A unit is expected to cost what the last one of its group did per size, and half as much again.
    """
    start = time.perf_counter()
    costs: dict[str, float] = {}  # seconds per size
    waiting: list[Unit] = []

    def rows_of(units: Iterable[Unit], share: float) -> Iterator[Row]:
        for unit in units:
            began = time.perf_counter()
            if began + 1.5 * costs.get(unit.group, -math.inf) * unit.size > start + share * plan.seconds:
                waiting.append(unit)
                continue
            yield from unit.rows()
            costs[unit.group] = (time.perf_counter() - began) / unit.size

    for share, units in parts:
        yield from rows_of(units if plan.seconds == math.inf else _in_turns(units), share)
    rest, waiting[:] = list(waiting), []
    yield from rows_of(rest, 1.0)
    for group in dict.fromkeys(unit.group for unit in waiting):
        names = [unit.name for unit in waiting if unit.group == group]
        plan.leave_out(f"{group}: {', '.join(names)}", "no time left")


def _in_turns(units: Iterable[Unit]) -> list[Unit]:
    """The first unit of every group, then the second ones, and so on."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(unit.group, []).append(unit)
    return [unit for turn in itertools.zip_longest(*groups.values()) for unit in turn if unit is not None]


def finished(contests: Iterable[Contest], plan: Plan) -> Iterator[Row]:
    """The row of each contest, with its share of the copy's bandwidth where it says how many bytes it moves.

    contests: made one at a time, so that the memory of each is given back before the next one.
    """
    for contest in contests:
        row = contest.run(plan.how)
        del contest
        forget(plan.device)
        if row.bytes:
            share = kernels.copy_share(row, plan.results.ceilings["copy"], plan.device)
            row = replace(row, copy_share=share)
        yield row


def kernel_units(plan: Plan, dtypes: Sequence[torch.dtype] = ()) -> Iterator[Unit]:
    """Every case that was asked for; by default all production cases.

    Cases grow: on a CPU the next one is taken to be four times as large; a GPU spends the time compiling.
    """
    ceilings(plan)
    growth = 1.0 if plan.device.type == "cuda" else 4.0
    dtypes = dtypes or plan.kernel_dtypes()
    against = plan.baselines(kernels.BASELINES, "the kernels suite")

    def of_case(op: Op, case: Case, dtype: torch.dtype) -> Iterator[Row]:
        contests = (kernels.contest(op, case, dtype, plan.device, against) for _ in range(1))
        yield from finished(contests, plan)

    for name in plan.ops or OPS:
        for i, found in enumerate(kernels.selected([name], plan.cases, dtypes, plan.device.type)):
            title = found[1].name if len(dtypes) == 1 else f"{found[1].name} {dtype_name(found[2])}"
            yield Unit(name, title, partial(of_case, *found), growth**i)


def kernel_suite(plan: Plan) -> Iterator[Unit]:
    """`kernel_units` and, where no operation or case was named, PatchGAN as a chain of them."""
    yield from kernel_units(plan)
    if not plan.ops and not plan.cases:
        against = plan.baselines(kernels.BASELINES, "the kernels suite")
        made = partial(chains.contests, plan.device, dtypes=plan.kernel_dtypes(), against=against)
        yield Unit("patch_gan", "patch_gan", lambda: finished(made(), plan))


def ceilings(plan: Plan) -> None:
    """A copy's bandwidth and a product's rate in this run."""
    found, how = plan.results.ceilings, plan.how
    found["copy"] = copy_bandwidth(plan.device, how.rounds, how.clock)
    for dtype in plan.kernel_dtypes():
        found[dtype_name(dtype)] = product_rate(plan.device, dtype, how.rounds, how.clock)


def sampler_units(plan: Plan) -> Iterator[Unit]:
    """Every solver, over the least network or over --model's; those that do not fit a model are named."""
    against = plan.baselines(diffusion.BASELINES, "the samplers suite")
    how: dict[str, Any] = {"batches": plan.batches, "steps": plan.steps, "against": against}

    def of_solver(solver: str, engine: DiffusionEngine | None) -> Iterator[Row]:
        try:
            yield from finished(samplers.contests(plan.device, solver, engine, **how), plan)
        except FastgenError as error:  # a learned variance, more steps than it can take
            plan.leave_out(f"solver {solver}", str(error))

    for model in plan.models or (None,):
        for dtype in plan.dtypes or ("auto",):
            engine = None if model is None else plan.engine(model, dtype)
            if engine is not None and not isinstance(engine, DiffusionEngine):
                raise ConfigError(
                    f"the samplers suite takes diffusion models, {model} is another", argument="model"
                )
            for solver in SOLVERS:
                if engine is not None and (why := samplers.unfit(solver, engine)):
                    plan.leave_out(f"solver {solver} on {model}", why)
                else:
                    group = "samplers" if model is None else f"samplers of {model}"
                    yield Unit(group, solver, partial(of_solver, solver, engine))


def family_units(plan: Plan, batches: Sequence[int] = (), chosen: Sequence[str] = ()) -> Iterator[Unit]:
    """Every verb of a model for each architecture, or of --model."""
    if not plan.models and not chosen:
        for architecture in without_model():
            plan.leave_out(f"architecture {architecture}", "its family names no model for it")

    def of_model(model: str, batch: int) -> Iterator[Row]:
        for dtype in plan.dtypes or ("auto",):
            engine = plan.engine(model, dtype)
            work = workload(engine)
            against = plan.baselines(work.BASELINES, engine.kind)
            how: dict[str, Any] = {"batches": [batch], "steps": plan.steps, "against": against}
            yield from finished(work.contests(engine, suite="families", name=model, **how), plan)

    for batch in batches or plan.batches or BATCHES[plan.device.type]:
        for model in chosen or plan.models or models(plan.device.type):
            yield Unit(model, f"batch {batch}", partial(of_model, model, batch), batch)


def fresh_units(plan: Plan, chosen: Sequence[str] = ()) -> Iterator[Unit]:
    """Time to the first image and peak memory of fresh processes, of every model or --model."""
    for model in chosen or plan.models or models(plan.device.type):
        yield Unit("fresh processes", model, partial(_fresh_rows, plan, model))


def _fresh_rows(plan: Plan, model: str) -> Iterator[Row]:
    batch = plan.batches[0] if plan.batches else 1
    how = replace(plan.how, rounds=min(plan.how.rounds, FRESH_ROUNDS), seconds=plan.seconds / 10)
    for dtype in plan.dtypes or ("auto",):
        engine = plan.engine(model, dtype)
        work = workload(engine)
        known = [baseline for baseline in FRESH_BASELINES if baseline in work.BASELINES]
        against = plan.baselines(known, f"fresh processes of {model}")
        with TemporaryDirectory() as folder:
            told = partial(work.fresh, engine, model, Path(folder), batch, plan.steps)
            try:
                contest, orders = told(against)
            except (NotApplicable, FastgenError) as error:
                plan.leave_out(f"{', '.join(against)} in fresh processes of {model}", str(error))
                contest, orders = told(())
            common = {"device": str(plan.device), "dtype": dtype, "folder": engine.source}
            orders = {name: {**common, **order} for name, order in orders.items()}
            yield fresh.measure(contest.row, contest.judge, orders, how, floor=True)


def tour(plan: Plan) -> Iterator[tuple[float, Iterable[Unit]]]:
    """Something of everything, as `measured` takes it: kernels in one type, one model per family, time to an image.

    Samplers, and what else the tour never measures, it names.
    """
    plan.steps = TOUR_STEPS
    first = first_models()
    yield 0.4, kernel_units(plan, plan.kernel_dtypes()[-1:])
    yield 0.7, family_units(plan, TOUR_BATCHES, first)
    yield 1.0, fresh_units(plan, first[:1])
    if others := [model for model in models(plan.device.type) if model not in first]:
        plan.leave_out(", ".join(others), "the tour has one model per family; the families suite has all")
    plan.leave_out(f"{len(SOLVERS)} solvers by themselves", "not in the tour; the samplers suite has all")


SUITES: dict[str, Callable[[Plan], Iterable[Unit]]] = {
    "kernels": kernel_suite,
    "samplers": sampler_units,
    "families": family_units,
    "coldstart": fresh_units,
    "memory": fresh_units,
}
