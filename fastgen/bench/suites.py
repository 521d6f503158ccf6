"""The suites: which cases each has, and the rows they give, one at a time as they are measured."""

from __future__ import annotations

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
from ..runtime.device import DTYPES
from . import chains, fresh, kernels, samplers
from .contest import Contest, How, NotApplicable, forget
from .environment import copy_bandwidth, product_rate
from .families import FAMILIES, family_of, models, on_disk, without_workload
from .results import Results, Row

SUITES = ("kernels", "samplers", "families", "coldstart", "memory")
# The order of `all`, and the share of its time that is over when each ends; coldstart measures memory as well.
ALL = {"families": 0.35, "samplers": 0.55, "coldstart": 0.75, "kernels": 1.0}
BATCHES = {"cuda": (1, 16, 64), "cpu": (1, 8)}  # of the families suite
FRESH_ROUNDS = 5
FRESH_BASELINES = ("diffusers",)  # `child.py` has a script for each
TOUR_KERNELS, TOUR_FAMILIES = 0.4, 0.7  # the shares of its time at which the tour's parts end
TOUR_BATCHES = (1, 4, 16)
TOUR_STEPS = 10
TOUR_FRESH_ROUNDS = 3


@dataclass
class Plan:
    """What the command line asked for, checked. Empty sequences stand for a suite's own choice.

    asked: whether the user named the baselines, and wants to hear of those that a suite does not have. folder: an empty
    one, for models that are made here. until: on time.perf_counter, when nothing further is begun. waiting: what did
    not fit in the time there was. costs: by group, the seconds and the size of the unit that was measured last.
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
    until: float = float("inf")
    engines: dict[tuple[str, str], Any] = field(default_factory=dict)
    waiting: list[Unit] = field(default_factory=list)
    costs: dict[str, tuple[float, float]] = field(default_factory=dict)

    def engine(self, model: str, dtype: str) -> Any:
        """The engine of a model, opened once."""
        if (model, dtype) not in self.engines:
            self.engines[model, dtype] = load(on_disk(model, self.folder), device=self.device, dtype=dtype)
        return self.engines[model, dtype]

    def leave_out(self, what: str, why: str) -> None:
        """Say and record what is not measured."""
        if what not in self.results.left_out:
            self.results.left_out[what] = why
            self.how.say(f"without {what}: {why}")

    def baselines(self, known: Sequence[str], of: str) -> list[str]:
        """Those of the baselines asked for that `of` has."""
        for name in self.against:
            if self.asked and name not in known:
                self.leave_out(
                    f"{name} in {of}", f"it has no such baseline; there is {', '.join(known) or 'none'}"
                )
        return [name for name in self.against if name in known]


@dataclass(frozen=True)
class Unit:
    """Something that is measured or left out as a whole.

    group: the last one of it says what this one will cost. size: how much work it is, beside others of its group.
    """

    group: str
    name: str
    rows: Callable[[], Iterator[Row]]
    size: float = 1.0


def while_time_is_left(units: Iterable[Unit], plan: Plan) -> Iterator[Row]:
    """The rows of `units` in turn; the first one of a group always, the next while there is time until `plan.until`.

    What does not fit is added to `plan.waiting`: for more time, or to be named by `leave_waiting`. A unit is supposed
    to cost what the last one of its group did, times as much as it is larger, and half as much again.
    """
    for unit in units:
        began = time.perf_counter()
        if unit.group in plan.costs:
            seconds, size = plan.costs[unit.group]
            if began + 1.5 * seconds * max(1.0, unit.size / size) > plan.until:
                plan.waiting.append(unit)
                continue
        yield from unit.rows()
        plan.costs[unit.group] = time.perf_counter() - began, unit.size


def leave_waiting(plan: Plan) -> None:
    """Name what there was no time for."""
    groups: dict[str, list[str]] = {}
    for unit in plan.waiting:
        groups.setdefault(unit.group, []).append(unit.name)
    for group, names in groups.items():
        plan.leave_out(f"{group}: {', '.join(names)}", "no time left")
    plan.waiting = []


def run(suite: str, plan: Plan) -> Iterator[Row]:
    """The rows of a suite of SUITES."""
    rows: dict[str, Callable[[Plan], Iterator[Row]]] = {
        "kernels": kernel_rows,
        "samplers": sampler_rows,
        "families": family_rows,
        "coldstart": fresh_rows,
        "memory": fresh_rows,
    }
    return rows[suite](plan)


def everything(plan: Plan, seconds: float) -> Iterator[Row]:
    """All suites, in about `seconds`: at least a case of every operation, a batch of every model, one solver.

    Each suite has its share of the time; what is left of it in the end goes to what did not fit.
    """
    start = time.perf_counter()
    plan.how = replace(plan.how, seconds=seconds / 150)
    for name, share in ALL.items():
        plan.until = start + share * seconds
        yield from run(name, plan)
    waiting, plan.waiting = plan.waiting, []
    yield from while_time_is_left(waiting, plan)


def kernel_rows(plan: Plan) -> Iterator[Row]:
    """Every case that was asked for; all production cases, and PatchGAN as a chain, by default."""
    ceilings(plan)
    against = plan.baselines(kernels.BASELINES, "the kernels suite")
    units = [*kernel_units(plan, against)]
    if not plan.ops and not plan.cases:
        units.append(Unit("patch_gan", "patch_gan", partial(_chain_rows, plan, against)))
    yield from while_time_is_left(units, plan)


def kernel_units(plan: Plan, against: Sequence[str]) -> Iterator[Unit]:
    """A case of every operation, then the next one of each.

    Cases grow: on a CPU the next one is supposed to be four times as large; a GPU spends the time compiling.
    """
    growth = 1.0 if plan.device.type == "cuda" else 4.0
    sizes = dict.fromkeys(OPS, 1.0)
    dtypes = kernel_dtypes(plan)
    kind = plan.device.type
    waiting = {name: kernels.selected([name], plan.cases, dtypes, kind) for name in plan.ops or OPS}
    while waiting:
        for name, cases in list(waiting.items()):
            found = next(cases, None)
            if found is None:
                del waiting[name]
                continue
            _, case, dtype = found
            title = case.name if len(dtypes) == 1 else f"{case.name} {kernels.name_of(dtype)}"
            yield Unit(name, title, partial(_kernel_rows, plan, against, *found), sizes[name])
            sizes[name] *= growth


def _kernel_rows(plan: Plan, against: Sequence[str], op: Op, case: Case, dtype: torch.dtype) -> Iterator[Row]:
    yield finished(kernels.contest(op, case, dtype, plan.device, against), plan)


def _chain_rows(plan: Plan, against: Sequence[str]) -> Iterator[Row]:
    for contest in chains.contests(plan.device, dtypes=kernel_dtypes(plan), against=against):
        yield finished(contest, plan)


def kernel_dtypes(plan: Plan) -> list[torch.dtype]:
    own = ("float32", "bfloat16") if plan.device.type == "cuda" else ("float32",)
    return [DTYPES[name] for name in plan.dtypes or own]


def ceilings(plan: Plan) -> None:
    """A copy's bandwidth and a product's rate in this run."""
    found, how = plan.results.ceilings, plan.how
    if "copy" not in found:
        found["copy"] = copy_bandwidth(plan.device, how.rounds, how.clock)
        for dtype in kernel_dtypes(plan):
            found[kernels.name_of(dtype)] = product_rate(plan.device, dtype, how.rounds, how.clock)


def finished(contest: Contest, plan: Plan) -> Row:
    """A contest's row, with its share of the copy's bandwidth where it says how many bytes it moves."""
    row = contest.run(plan.how)
    del contest
    forget(plan.device)
    if row.bytes:
        row = replace(row, copy_share=kernels.copy_share(row, plan.results.ceilings["copy"], plan.device))
    return row


def sampler_rows(plan: Plan) -> Iterator[Row]:
    """Every solver, over the least network or over --model's; those that do not fit a model are named."""
    against = plan.baselines(tuple(FAMILIES["diffusion"].baselines), "the samplers suite")
    for model in plan.models or (None,):
        for dtype in plan.dtypes or ("auto",):
            engine = None if model is None else plan.engine(model, dtype)
            if engine is not None and not isinstance(engine, DiffusionEngine):
                raise ConfigError(
                    f"the samplers suite takes diffusion models, {model} is another", argument="--model"
                )
            fit = []
            for solver in SOLVERS:
                if engine is not None and (why := samplers.unfit(solver, engine)):
                    plan.leave_out(f"solver {solver} on {model}", why)
                else:
                    group = "samplers" if model is None else f"samplers of {model}"
                    fit.append(Unit(group, solver, partial(_solver_rows, plan, against, solver, engine)))
            yield from while_time_is_left(fit, plan)


def _solver_rows(
    plan: Plan, against: Sequence[str], solver: str, engine: DiffusionEngine | None
) -> Iterator[Row]:
    how: dict[str, Any] = {"batches": plan.batches, "steps": plan.steps, "against": against}
    try:
        for contest in samplers.contests(plan.device, solver, engine, **how):
            yield finished(contest, plan)
    except FastgenError as error:  # a learned variance, more steps than it can take
        plan.leave_out(f"solver {solver}", str(error))


def family_rows(plan: Plan) -> Iterator[Row]:
    """Every verb of a model for each architecture, or of --model."""
    if not plan.models:
        for architecture in without_workload():
            plan.leave_out(f"architecture {architecture}", "no workload in fastgen/bench/families.py")
    batches = plan.batches or BATCHES[plan.device.type]
    units = [
        Unit(model, f"batch {batch}", partial(_family_rows, plan, model, batch), batch)
        for batch in batches
        for model in plan.models or models(plan.device.type)
    ]
    yield from while_time_is_left(units, plan)


def _family_rows(plan: Plan, model: str, batch: int) -> Iterator[Row]:
    for dtype in plan.dtypes or ("auto",):
        engine = plan.engine(model, dtype)
        family = family_of(engine, model)
        against = plan.baselines(tuple(family.baselines), engine.describe()["engine"])
        how: dict[str, Any] = {"batches": [batch], "steps": plan.steps, "against": against}
        for contest in family.contests(engine, suite="families", name=model, **how):
            yield finished(contest, plan)


def fresh_rows(plan: Plan) -> Iterator[Row]:
    """Time to the first picture and peak memory of fresh processes."""
    chosen = plan.models or models(plan.device.type)
    units = [Unit("fresh processes", model, partial(_fresh_rows, plan, model)) for model in chosen]
    yield from while_time_is_left(units, plan)


def _fresh_rows(plan: Plan, model: str, rounds: int = FRESH_ROUNDS) -> Iterator[Row]:
    batch = plan.batches[0] if plan.batches else 1
    left = plan.until - time.perf_counter()
    how = replace(plan.how, rounds=min(plan.how.rounds, rounds), seconds=max(0.0, left / 2))
    for dtype in plan.dtypes or ("auto",):
        engine = plan.engine(model, dtype)
        family = family_of(engine, model)
        known = [baseline for baseline in FRESH_BASELINES if baseline in family.baselines]
        against = plan.baselines(known, f"fresh processes of {model}")
        given: dict[str, Any] = {"batches": [batch], "steps": plan.steps, "against": ()}
        contest = next(family.contests(engine, suite="fresh", name=model, **given))
        with TemporaryDirectory() as folder:
            try:
                orders = family.fresh(engine, Path(folder), batch, plan.steps, against)
            except (NotApplicable, FastgenError) as error:
                plan.leave_out(f"{', '.join(against)} in fresh processes of {model}", str(error))
                orders = family.fresh(engine, Path(folder), batch, plan.steps, ())
            common = {"device": str(plan.device), "dtype": dtype, "folder": engine.source}
            told = {name: {**common, **order} for name, order in orders.items()}
            yield fresh.measure(contest.row, contest.judge, told, how)


def tour(plan: Plan, seconds: float) -> Iterator[Row]:
    """Something of everything in about `seconds`: kernels, a workload a family, time to the first picture.

    Each operation's first production case and each family's first model are always measured, and one fresh process;
    more of them while time is left. Samplers, and what else the tour never measures, it names.
    """
    start = time.perf_counter()
    plan.steps, plan.how = TOUR_STEPS, replace(plan.how, seconds=seconds / 150)
    ceilings(plan)
    against = plan.baselines(kernels.BASELINES, "the kernels suite")
    plan.dtypes = [kernels.name_of(kernel_dtypes(plan)[-1])]
    plan.until = start + TOUR_KERNELS * seconds
    yield from while_time_is_left(kernel_units(plan, against), plan)
    plan.dtypes = ()
    plan.until = start + TOUR_FAMILIES * seconds
    first = [next(iter(family.models.values())) for family in FAMILIES.values()]
    units = [
        Unit(model, f"batch {batch}", partial(_family_rows, plan, model, batch), batch)
        for batch in TOUR_BATCHES
        for model in first
    ]
    yield from while_time_is_left(units, plan)
    plan.until = start + seconds
    yield from _fresh_rows(plan, first[0], TOUR_FRESH_ROUNDS)
    if others := [model for model in models(plan.device.type) if model not in first]:
        plan.leave_out(", ".join(others), "the tour has one model a family; the families suite has all")
    plan.leave_out(f"{len(SOLVERS)} solvers by themselves", "not in the tour; the samplers suite has all")
