"""The suites: which cases each has, and the rows they give, one at a time as they are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastgen_kernels import OPS

from ..api import load
from ..errors import FastgenError
from ..runtime.device import DTYPES
from . import chains, fresh, kernels, samplers
from .contest import Contest, How, NotApplicable, forget
from .environment import copy_bandwidth, product_rate
from .families import FAMILIES, family_of, models, on_disk, without_workload
from .results import Results, Row

SUITES = ("kernels", "samplers", "families", "coldstart", "memory")
ALL = ("families", "samplers", "coldstart", "kernels")  # the long one last; coldstart measures memory as well
BATCHES = {"cuda": (1, 16, 64), "cpu": (1, 8)}  # of the families suite
FRESH_ROUNDS = 5
FRESH_RIVALS = ("diffusers",)  # `child.py` has a script for each
# The tour's parts end at these shares of its time; what does not fit is left out by name.
TOUR_KERNELS, TOUR_FAMILIES = 0.4, 0.7
TOUR_STEPS = 10
TOUR_FRESH_ROUNDS = 3


@dataclass
class Plan:
    """What the command line asked for, checked. Empty sequences stand for a suite's own choice.

    asked: whether the user named the rivals, and wants to hear of those that a suite does not have. folder: an empty
    one, for models that are made here.
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
    engines: dict[tuple[str, str], Any] = field(default_factory=dict)

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

    def rivals(self, known: Sequence[str], of: str) -> list[str]:
        """Those of the rivals asked for that `of` has."""
        for name in self.against:
            if self.asked and name not in known:
                self.leave_out(f"{name} in {of}", f"it has no such rival; there is {', '.join(known)}")
        return [name for name in self.against if name in known]


def run(suite: str, plan: Plan) -> Iterator[Row]:
    """The rows of a suite of SUITES, or of the "tour"."""
    rows: dict[str, Callable[[Plan], Iterator[Row]]] = {
        "kernels": kernel_rows,
        "samplers": sampler_rows,
        "families": family_rows,
        "coldstart": fresh_rows,
        "memory": fresh_rows,
    }
    return rows[suite](plan)


def kernel_rows(plan: Plan) -> Iterator[Row]:
    """Every case that was asked for; all production cases, and PatchGAN as a chain, by default."""
    ceilings(plan)
    against = plan.rivals(kernels.RIVALS, "the kernels suite")
    dtypes = kernel_dtypes(plan)
    for op, case, dtype in kernels.selected(plan.ops, plan.cases, dtypes):
        yield finished(kernels.contest(op, case, dtype, plan.device, against), plan)
    if not plan.ops and not plan.cases:
        for contest in chains.contests(plan.device, dtypes=dtypes, against=against):
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


def finished(contest: Contest, plan: Plan, how: How | None = None) -> Row:
    """A contest's row, with its share of the copy's bandwidth where it says how many bytes it moves."""
    row = contest.run(how or plan.how)
    del contest
    forget(plan.device)
    if row.bytes:
        row = replace(row, copy_share=kernels.copy_share(row, plan.results.ceilings["copy"], plan.device))
    return row


def sampler_rows(plan: Plan) -> Iterator[Row]:
    """Every solver, over the least network or over --model's."""
    against = plan.rivals(tuple(FAMILIES["diffusion"].rivals), "the samplers suite")
    for model in plan.models or (None,):
        for dtype in plan.dtypes or ("auto",):
            engine = None if model is None else plan.engine(model, dtype)
            how: dict[str, Any] = {"batches": plan.batches, "steps": plan.steps, "against": against}
            skipped: dict[str, str] = {}
            for contest in samplers.contests(plan.device, engine, **how, skipped=skipped):
                yield finished(contest, plan)
            for what, why in skipped.items():
                plan.leave_out(what, why)


def family_rows(plan: Plan) -> Iterator[Row]:
    """Every verb of a model for each architecture, or of --model."""
    if not plan.models:
        for architecture in without_workload():
            plan.leave_out(f"architecture {architecture}", "no workload in fastgen/bench/families.py")
    for contest in family_contests(plan, plan.models or models(), plan.batches or BATCHES[plan.device.type]):
        yield finished(contest, plan)


def family_contests(plan: Plan, names: Sequence[str], batches: Sequence[int]) -> Iterator[Contest]:
    for model in names:
        for dtype in plan.dtypes or ("auto",):
            engine = plan.engine(model, dtype)
            family = family_of(engine, model)
            against = plan.rivals(tuple(family.rivals), engine.describe()["engine"])
            how: dict[str, Any] = {"batches": batches, "steps": plan.steps, "against": against}
            yield from family.contests(engine, suite="families", name=model, **how)


def fresh_rows(plan: Plan, names: Sequence[str] = (), how: How | None = None) -> Iterator[Row]:
    """Time to the first picture and peak memory of fresh processes."""
    batch = plan.batches[0] if plan.batches else 1
    how = how or replace(plan.how, rounds=min(plan.how.rounds, FRESH_ROUNDS))
    against = plan.rivals(FRESH_RIVALS, "fresh processes")
    for model in names or plan.models or models():
        for dtype in plan.dtypes or ("auto",):
            engine = plan.engine(model, dtype)
            family = family_of(engine, model)
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
    more of them while time is left.
    """
    start = time.perf_counter()

    def left(share: float = 1.0) -> float:
        return start + share * seconds - time.perf_counter()

    plan.steps = TOUR_STEPS
    how = replace(plan.how, seconds=seconds / 150)
    ceilings(plan)
    yield from _tour_kernels(plan, how, lambda: left(TOUR_KERNELS))
    for name, family in FAMILIES.items():
        model = next(iter(family.models.values()))
        slowest = 0.0
        for batch in (1, 4, 16):
            if batch > 1 and left(TOUR_FAMILIES) < 5 * slowest:
                plan.leave_out(f"{name} at batch {batch} and above", "no time left in the tour")
                break
            began = time.perf_counter()
            for contest in family_contests(plan, [model], [batch]):
                yield finished(contest, plan, how)
            slowest = time.perf_counter() - began
    (model, *_) = models()
    rounds = replace(how, rounds=TOUR_FRESH_ROUNDS, seconds=max(0.0, left() / 2))
    yield from fresh_rows(plan, [model], rounds)


def _tour_kernels(plan: Plan, how: How, left: Callable[[], float]) -> Iterator[Row]:
    """A production case of every operation, then the next ones, while time is left."""
    against = plan.rivals(kernels.RIVALS, "the kernels suite")
    (dtype,) = kernel_dtypes(plan)[-1:]
    waiting = {name: list(kernels.selected([name], [], [dtype])) for name in OPS}
    cost = dict.fromkeys(OPS, 0.0)
    while any(waiting.values()):
        for name, cases in waiting.items():
            if not cases:
                continue
            if cost[name] and left() < 4 * cost[name]:  # the first one is always measured
                plan.leave_out(
                    f"{len(cases)} more cases of {name}",
                    "no time left in the tour; the kernels suite has all",
                )
                cases.clear()
                continue
            began = time.perf_counter()
            op, case, kind = cases.pop(0)
            yield finished(kernels.contest(op, case, kind, plan.device, against), plan, how)
            cost[name] = time.perf_counter() - began
