"""Is an engine right on this machine? Every layer, verb and captured call against plain float64 on the CPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen_kernels.op import UNIT_ROUNDOFF

from ..runtime.capture import plainly
from ..runtime.device import dtype_name, out_of_memory, placed
from .closeness import Closeness, deviation
from .layers import Name, judge_layer, rounded_off, watching
from .verb import Tensors, Verb

if TYPE_CHECKING:
    from .base import Engine

SIMULATIONS = 4


@dataclass(frozen=True)
class Check:
    """One comparison.

    error: greatest deviation, divided by the greatest value of the reference. bound: the deviation as a fraction of
    what rounding explains, at most 1 when right; None where no bound is known. drift: deviation from the reference
    networks as a whole up to here, divided likewise: what lower precision costs.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    error: float
    bound: float | None = None
    drift: float | None = None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.bound <= 1.0


@dataclass(frozen=True)
class Verification:
    """What ``engine.verify()`` found. ``print`` it for a table; ``to_dict()`` is JSON."""

    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything that has a bound is within it."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; a figure that is not finite is None."""
        checks = []
        for check in self.checks:
            values = {**asdict(check), "shape": list(check.shape), "passed": check.passed}
            checks.append({k: None if v in (math.inf, -math.inf) or v != v else v for k, v in values.items()})
        return {**self.facts, "passed": self.passed, "checks": checks}

    def __str__(self) -> str:
        head = ("", "", "shape", "error", "of bound", "drift", "")
        rows = [head]
        for c in self.checks:
            bound = "" if c.bound is None else f"{c.bound:.2f}"
            drift = "" if c.drift is None else f"{c.drift:.1e}"
            shape = "x".join(map(str, c.shape))
            rows.append((c.name, c.kind, shape, f"{c.error:.1e}", bound, drift, "" if c.passed else "WRONG"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = []
        for row in rows:
            words = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
            figures = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join([*words, *figures]).rstrip())
        facts = [f"{name}: {value}" for name, value in self.facts.items()]
        wrong = [c.name for c in self.checks if not c.passed]
        verdict = "all within what rounding explains" if not wrong else f"WRONG: {', '.join(wrong)}"
        return "\n".join([*facts, "", *lines, "", verdict])


@plainly
def verify(engine: Engine, reference: nn.ModuleDict | None, batch: int, seed: int) -> Verification:
    """As ``Engine.verify`` describes. The engine works for this call already."""
    generator = torch.Generator().manual_seed(seed)
    verbs = engine.verbs()
    trials = {name: verb.trial(batch, generator) for name, verb in verbs.items()}
    own = Exact.of(engine.networks, verbs, trials)
    wanted = own if reference is None else Exact.of(reference, verbs, trials)
    checks: dict[tuple[str, str], Check] = {}  # of a layer that several verbs run through, the worst
    for name, verb in verbs.items():
        for check in _verb(engine, verb, trials[name], own, wanted, generator):
            kept = checks.setdefault((check.name, check.kind), check)
            if check.bound is not None and not check.bound <= (kept.bound or 0.0):
                checks[check.name, check.kind] = check
    found = [*checks.values(), *engine.more_checks(batch, seed, generator)]
    for name, verb in verbs.items():
        found += list(_captured(engine, verb, trials[name]))
    weights = placed(engine.networks if reference is None else reference)[1]
    facts = {
        "model": engine.source,
        "device": str(engine.device),
        "dtype": dtype_name(engine.dtype),
        "reference": f"{dtype_name(wanted.dtype)} on the CPU, {dtype_name(weights)} weights",
        "batch": batch,
        "seed": seed,
    }
    return Verification(facts, found)


@dataclass
class Exact:
    """Copies of networks on the CPU in `dtype`: float64, or float32 where they make tensors of their own in that."""

    networks: nn.ModuleDict
    dtype: torch.dtype

    @classmethod
    def of(cls, networks: nn.ModuleDict, verbs: Mapping[str, Verb], trials: Mapping[str, Tensors]) -> Exact:
        """Of `networks`, in a type in which every verb runs."""
        copies = copy.deepcopy(networks).cpu().eval()
        for parameter in copies.parameters():
            parameter.data = parameter.data.contiguous()
        exact = cls(copies.to(torch.float64), torch.float64)
        try:
            for name, verb in verbs.items():
                exact.run(verb, trials[name])
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            exact = cls(copies.to(torch.float32), torch.float32)
        return exact

    def run(self, verb: Verb, tensors: Tensors, inputs: Sequence[Tensor] | None = None) -> Tensors:
        """The results of the verb's reference for `tensors`, as the engine gets them, or for `inputs` made of them."""
        noise = None if verb.noise is None else self.given(verb.noise(*tensors))
        return verb.plain(self.networks, *(inputs or map(self.given, tensors)), noise=noise)

    def given(self, value: Tensor) -> Tensor:
        """A tensor as these networks take it."""
        return value.to("cpu", self.dtype if value.is_floating_point() else None).contiguous()


def _verb(
    engine: Engine, verb: Verb, tensors: Tensors, own: Exact, wanted: Exact, generator: torch.Generator
) -> Iterator[Check]:
    """The layers that the verb runs through, each alone; then its results."""
    with watching(engine.running()) as seen:
        got = verb.fast(*(value.clone() for value in tensors))
    with watching(wanted.networks) as others:
        want = wanted.run(verb, tensors)
    rounding: dict[Name, Tensor | None] = {}
    whole: dict[str, list[Check]] = {}
    for name, call in seen.items():
        judged = judge_layer(call, engine.dtype)
        if judged is None:  # it cannot work in float64, and is judged by the verb's results
            continue
        error, bound, rounding[name] = judged
        other = others.get(name)
        more = getattr(call.module, "joined", False)
        if other is not None and (more or len(other.inputs) != len(call.inputs)):
            other = None  # it does more, such as adding the shortcut
        drift = None if other is None else deviation(call.output, other.output)
        check = Check(name[1], type(call.module).__name__, tuple(call.output.shape), error, bound, drift)
        whole.setdefault(name[0], []).append(check)
    yield from engine.layer_checks(whole)

    truth = want if wanted is own else own.run(verb, tensors)
    rounded = []
    for _ in range(SIMULATIONS):
        inputs = [
            given
            if name in verb.exact
            else rounded_off(given, UNIT_ROUNDOFF.get(value.dtype, 0.0), generator)
            for name, value, given in zip(verb.arguments, tensors, map(own.given, tensors), strict=True)
        ]
        with engine.rounding_off(own.networks, rounding, generator):
            rounded.append(own.run(verb, tensors, inputs))
    for i, result in enumerate(verb.results):
        close = Closeness(
            truth[i].double(), [values[i] for values in rounded], unit=UNIT_ROUNDOFF[got[i].dtype]
        )
        title = verb.name if len(verb.results) == 1 else result
        error, drift = deviation(got[i], truth[i]), deviation(got[i], want[i])
        yield Check(title, "verb", tuple(got[i].shape), error, close.error(got[i], peak=True), drift)


def _captured(engine: Engine, verb: Verb, tensors: Tensors) -> Iterator[Check]:
    """The captured verb against the same call uncaptured, which it must equal bit for bit."""
    if not engine.batches.graphs.freezes:
        return
    # A captured call has a batch of a power of two; uncaptured it must have the same, for libraries to choose alike.
    count = 1 << (len(tensors[0]).bit_length() - 1)
    given = [value[:count] for value in tensors]
    captured = engine.batches(verb.name, verb.fast, *given)
    plain = verb.fast(*(value.clone() for value in given))
    equal = all(torch.equal(a, b) for a, b in zip(captured, plain, strict=True))
    error = max(deviation(a, b) for a, b in zip(captured, plain, strict=True))
    yield Check(f"captured {verb.name}", "graph", tuple(captured[0].shape), error, 0.0 if equal else math.inf)
