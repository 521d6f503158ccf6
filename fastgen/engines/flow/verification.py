"""Is the flow engine right on this machine? Every step against float64, both directions, and the round trip."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgen_kernels import OPS, signed_seeds
from fastgen_kernels.op import UNIT_ROUNDOFF

from ...errors import ConfigError
from ...fused.chain import CouplingStep, FoldedStep, Step
from ...fused.channel_map import fold
from ...fused.onednn import OneDNNConv
from ...models.flow.coupling import Coupling
from ...models.flow.flow import Flow
from ...models.flow.layers import Layer
from ...runtime.capture import plainly
from ..arguments import sample_seeds
from ..verification import (
    MARGIN,
    SIMULATIONS,
    Check,
    Verification,
    deviation,
    jittering,
    judge_layer,
    summed,
    watching,
)
from .request import conditions

if TYPE_CHECKING:
    from .engine import FlowEngine


@dataclass
class _Exact:
    """A step's layers in float64 on the CPU, and how far the step was from them in each direction: (state, log_det)."""

    layers: Sequence[Layer]
    there: tuple[float, float] = (0.0, 0.0)
    back: tuple[float, float] = (0.0, 0.0)


@plainly
def verify(engine: FlowEngine, reference: Flow | None, batch: int, seed: int) -> Verification:
    """As ``FlowEngine.verify`` describes. The engine's lock is held."""
    generator = torch.Generator().manual_seed(seed)
    flow, fused, state = engine.flow, engine.fused, engine.state_dtype
    labels = None if flow.classes is None else torch.randint(flow.classes, (batch,), generator=generator)
    context = torch.randn(batch, flow.context, generator=generator) if flow.context else None
    condition = conditions(engine.settings, flow, batch, labels, context, engine.device, state)
    there = condition[0] if condition else None
    numbers = signed_seeds(sample_seeds(batch, seed, None)).to(engine.device)
    warmth = torch.full((batch,), engine.settings.temperature, device=engine.device, dtype=state)
    x = engine.calls.inward(engine.calls.sample(numbers, warmth, *condition)[0])

    exact, wanted = _exact(flow), _exact(reference or flow)
    twins = dict(zip(flow.modules(), exact.modules(), strict=True))
    steps = [[_Exact([twins[la] for la in s.layers]) for s in chain.steps] for chain in fused.chains]  # type: ignore[misc]
    checks: list[Check] = []
    latents, _ = fused.encode(x, there)
    for inverse in (False, True):
        walk = _states(engine, x, latents, there, inverse)
        for (i, k), given in walk:
            checks += _step(engine, fused.chains[i].steps[k], steps[i][k], given, there, inverse, generator)

    plain = None if there is None else there.cpu()
    x64, z64 = x.double().cpu(), [latent.double().cpu() for latent in latents]
    outputs = {
        **{f"latents {i}": latent for i, latent in enumerate(latents)},
        "log_prob": fused.log_prob(x, there),
        "decode": fused.decode(latents, there),
        "round trip": fused.decode(latents, there),
    }
    truth = _whole(exact, steps, x64, z64, plain)
    drifts = truth if reference is None else _whole(wanted, None, x64, z64, plain)
    unit = UNIT_ROUNDOFF[state]
    explained = dict.fromkeys(truth, 4.0 * unit)
    for _ in range(SIMULATIONS):
        jittered = _whole(exact, steps, x64, z64, plain, generator, unit, abs(fused.log_det))
        for name, value in jittered.items():
            explained[name] = max(explained[name], deviation(value, truth[name]))
    for name, value in outputs.items():
        error = deviation(value, truth[name])
        check = Check(name, "flow", tuple(value.shape), error, error / (MARGIN * explained[name]))
        checks.append(replace(check, drift=deviation(value, drifts[name])))
    checks += list(_graphs(engine, x, latents, numbers, warmth, condition))
    facts = {
        "model": engine.source,
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "reference": "float64 on the CPU"
        + (", rounded weights" if reference is None and engine.dtype.itemsize < 4 else ""),
        "batch": batch,
        "seed": seed,
        "max |x - decode(encode(x))|": f"{float((outputs['round trip'] - x).abs().max()):.2e}, x as the flow sees it",
    }
    return Verification(facts, checks)


def check_reference(reference: object, flow: Flow) -> None:
    """Raise ConfigError where `reference` cannot stand beside `flow`."""

    def facts(one: Flow) -> dict[str, object]:
        return {
            "data": list(one.data_shape),
            "latents": [list(shape) for shape in one.latent_shapes],
            "classes": one.classes,
            "context": one.context,
        }

    if not isinstance(reference, Flow):
        raise ConfigError(
            f"expected a flow in full precision, got {type(reference).__qualname__}", argument="reference"
        )
    got, want = facts(reference), facts(flow)
    for name, value in want.items():
        if got[name] != value:
            raise ConfigError(
                f"expected a flow whose {name} are {value}, got {got[name]}", argument="reference"
            )


def _exact(flow: Flow) -> Flow:
    """A copy in float64 on the CPU, to be compared with."""
    return copy.deepcopy(flow).to("cpu", torch.float64).eval()


def _states(
    engine: FlowEngine, x: Tensor, latents: Sequence[Tensor], condition: Tensor | None, inverse: bool
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """(scale, step) and the state that the step is given, in the order in which a direction runs them."""
    flow, chains = engine.flow, engine.fused.chains
    order = range(len(chains))
    state = latents[-1] if inverse else x
    for i in reversed(order) if inverse else order:
        if inverse and i < len(chains) - 1:
            state = torch.cat([state, latents[i]], dim=1)
        steps = list(enumerate(chains[i].steps))
        for k, step in reversed(steps) if inverse else steps:
            yield (i, k), state
            run = step.inverse if inverse else step.forward
            state = run(state.clone(), condition, None)
        if not inverse and i < len(chains) - 1:
            state = flow.split(state)[0].clone()


def _step(
    engine: FlowEngine,
    step: Step,
    exact: _Exact,
    given: Tensor,
    condition: Tensor | None,
    inverse: bool,
    generator: torch.Generator,
) -> Iterator[Check]:
    """One step on the very state that it gets; fills in how far it is from `exact`."""
    log_det = given.new_zeros(len(given))
    got = (step.inverse if inverse else step.forward)(given.clone(), condition, log_det)
    want, change = _apply(
        exact.layers, given.double().cpu(), None if condition is None else condition.cpu(), inverse
    )
    total = log_det.double().cpu() + (-step.log_det if inverse else step.log_det)
    off = (got.double().cpu() - want).abs().nan_to_num(nan=math.inf)
    distance = float(off.max()), float((total - change).abs().nan_to_num(nan=math.inf).max())
    if inverse:
        exact.back = distance
    else:
        exact.there = distance
    names = [layer.name for layer in step.layers]
    name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"
    way = ", inverse" if inverse else ""
    error = deviation(got, want)
    if isinstance(step, FoldedStep):
        bound = _fraction(got, want, _folded_bound(step, given, inverse))
        yield Check(name, f"folded{way}", tuple(got.shape), error, bound)
    elif isinstance(step, CouplingStep):
        if not inverse:
            yield _network(engine, step, exact.layers[0], name, given, condition, generator)
        yield Check(
            name,
            f"coupling{way}",
            tuple(got.shape),
            error,
            _coupling_bound(step, exact.layers[0], given, condition, inverse),
        )
    else:
        yield Check(name, f"{type(step.layers[0]).__name__.lower()}{way}", tuple(got.shape), error)


def _apply(
    layers: Sequence[Layer], x: Tensor, condition: Tensor | None, inverse: bool
) -> tuple[Tensor, Tensor]:
    total = x.new_zeros(len(x))
    for layer in reversed(layers) if inverse else layers:
        x, change = layer.inverse(x, condition) if inverse else layer(x, condition)
        total = total + change
    return x, total


def _folded_bound(step: FoldedStep, given: Tensor, inverse: bool) -> Tensor:
    """What rounding explains, of each element: of a sum of C products and the shift, as large as layer by layer.

    Beside it that of the inverse matrix, computed in float64, which loses as many digits as the condition number has.
    """
    x = given.double().cpu().abs()
    channels = x.shape[1]
    working = UNIT_ROUNDOFF[given.dtype] / UNIT_ROUNDOFF[torch.float32]
    relative = (summed(channels + 1) * working + 4.0 * UNIT_ROUNDOFF[given.dtype]) * len(step.layers)
    for layer in reversed(step.layers) if inverse else step.layers:
        there = fold([layer], channels)
        matrix = there.dense()
        if inverse:
            back = torch.linalg.inv(matrix)
            relative += 8.0 * UNIT_ROUNDOFF[torch.float64] * float(torch.linalg.cond(matrix)) * channels
            x = _times(back.abs(), x + _column(there.shift.abs(), x))
        else:
            x = _times(matrix.abs(), x) + _column(there.shift.abs(), x)
    return relative * x + torch.finfo(given.dtype).smallest_normal


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,bj...->bi...", matrix, x)


def _column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


class _Said(nn.Module):
    """A network that says what another one said."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, kept: Tensor, condition: Tensor | None) -> Tensor:
        return self.raw


def _coupling_bound(
    step: CouplingStep, exact: Layer, given: Tensor, condition: Tensor | None, inverse: bool
) -> float:
    """A step against its layer in float64, given what its network said, as a fraction of the operation's tolerance."""
    assert isinstance(exact, Coupling)
    state, log_det = given.clone(), given.new_zeros(len(given))
    kept, changed = step.parts(state)
    raw = step.raw(kept, condition)
    direction = step.layer.reverse != inverse
    before = step.layer.parts(given)[1]
    options = step.layer.options(given)
    step.couple(changed, raw, log_det, direction)
    op = OPS["affine_coupling"]
    arguments = {"x": before, "network": raw, **options, "inverse": direction}
    allowed, total = op.tolerance(op.exact(**arguments), arguments)
    # What the step should leave alone must keep its bits.
    bound = torch.zeros_like(given, dtype=torch.float64, device="cpu")
    exact.parts(bound)[1].copy_(allowed)
    told = copy.copy(exact)
    told._modules = {**exact._modules, "network": _Said(raw.double().cpu())}
    want, change = _apply([told], given.double().cpu(), None, inverse)
    return max(_fraction(state, want, bound), _fraction(log_det, change, total.cpu()))


def _fraction(got: Tensor, want: Tensor, bound: Tensor) -> float:
    """Greatest |got - want| as a fraction of its bound; inf where only one is a number."""
    off = (got.double().cpu() - want).abs()
    return float(torch.where(off == 0, 0.0, off / bound).nan_to_num(nan=math.inf).max())


def _network(
    engine: FlowEngine,
    step: CouplingStep,
    exact: Layer,
    name: str,
    given: Tensor,
    condition: Tensor | None,
    generator: torch.Generator,
) -> Check:
    """The network inside a coupling: its layers as they run, and the whole against what rounding of them explains."""
    kept = step.layer.parts(given)[0]
    dtype = step.dtype or kept.dtype
    with watching(step.network) as seen:
        got = step.raw(step.parts(given)[0], condition)
    bounds = [0.0]
    for inner, call in seen.items():
        if isinstance(call.module, OneDNNConv):
            call = replace(call, module=call.module.plain)
        judged = judge_layer(inner, call, dtype)
        if judged is not None and judged[0].bound is not None:
            bounds.append(judged[0].bound)
    with watching(step.layer.network) as seen:
        step.layer.network(kept.to(dtype), condition)
    rounding = {}
    for inner, call in seen.items():
        judged = judge_layer(inner, call, dtype)
        rounding[inner] = None if judged is None else judged[1]
    network: nn.Module = exact.network  # type: ignore[assignment]
    inputs = kept.to(dtype).double().cpu()
    plain = None if condition is None else condition.cpu()
    want = network(inputs, plain)
    u = UNIT_ROUNDOFF[dtype]
    explained = 4.0 * u
    for _ in range(SIMULATIONS):
        with jittering(network, rounding, u, generator):
            explained = max(explained, deviation(network(inputs, plain), want))
    error = deviation(got, want)
    return Check(name, "network", tuple(got.shape), error, max(*bounds, error / (MARGIN * explained)))


def _whole(
    flow: Flow,
    steps: Sequence[Sequence[_Exact]] | None,
    x: Tensor,
    latents: Sequence[Tensor],
    condition: Tensor | None,
    generator: torch.Generator | None = None,
    unit: float = 0.0,
    constant: float = 0.0,
) -> dict[str, Tensor]:
    """What the engine's whole is compared with; with a generator, steps are off at random by as much as they were.

    steps: None runs the flow as it is. unit: roundoff of sums of log-densities, which begin with `constant`.
    """
    if steps is None:
        z, _ = flow(x, condition)
        back = flow.inverse(latents, condition)[0]
        found = {"log_prob": flow.log_prob(x, condition), "decode": back, "round trip": x}
        return {**{f"latents {i}": value for i, value in enumerate(z)}, **found}

    def noise(like: Tensor, size: float | Tensor) -> Tensor | float:
        if generator is None:
            return 0.0
        return torch.as_tensor(size).nan_to_num(posinf=0.0) * (
            torch.rand(like.shape, generator=generator, dtype=torch.float64) * 2 - 1
        )

    def decode(values: Sequence[Tensor]) -> Tensor:
        state = values[-1]
        for i in reversed(range(len(steps))):
            if i < len(steps) - 1:
                state = torch.cat([state, values[i]], dim=1)
            for step in reversed(steps[i]):
                state, _ = _apply(step.layers, state, condition, True)
                state = state + noise(state, step.back[0])
        return state

    state, log_prob = x, x.new_zeros(len(x))
    found, kept = {}, []
    for i, scale in enumerate(steps):
        for step in scale:
            state, change = _apply(step.layers, state, condition, False)
            state = state + noise(state, step.there[0])
            log_prob = log_prob + change
            log_prob = log_prob + noise(log_prob, step.there[1] + unit * (log_prob.abs() + constant))
        state, latent = (state, state) if i == len(steps) - 1 else flow.split(state)
        found[f"latents {i}"] = latent
        kept.append(None if i == len(steps) - 1 else state)
    for i, prior in enumerate(flow.priors):
        term = prior.log_prob(found[f"latents {i}"], kept[i], condition)  # type: ignore[operator]
        log_prob = log_prob + term
        log_prob = log_prob + noise(log_prob, unit * (log_prob.abs() + 4.0 * term.abs()))
    trip = decode([found[f"latents {i}"] for i in range(len(steps))])
    return {**found, "log_prob": log_prob, "decode": decode(latents), "round trip": trip}


def _graphs(
    engine: FlowEngine,
    x: Tensor,
    latents: Sequence[Tensor],
    seeds: Tensor,
    temperature: Tensor,
    condition: tuple[Tensor, ...],
) -> Iterator[Check]:
    """Every captured call against the same call uncaptured, which it must equal bit for bit."""
    if not engine.batches.graphs.freezes:
        return
    # A captured call has a batch of a power of two; uncaptured it must have the same, for libraries to choose alike.
    count = 1 << (len(x).bit_length() - 1)
    outward = engine.calls.outward(x.clone())
    for name, function, inputs in (
        ("log_prob", engine.calls.log_prob, (outward,)),
        ("encode", engine.calls.encode, (outward,)),
        ("decode", engine.calls.decode, tuple(latents)),
        ("sample", engine.calls.sample, (seeds, temperature)),
    ):
        given = [value[:count] for value in (*inputs, *condition)]
        captured, plain = engine.batches(name, function, *given), function(*given)
        equal = all(torch.equal(a, b) for a, b in zip(captured, plain, strict=True))
        error = max(deviation(a, b) for a, b in zip(captured, plain, strict=True))
        yield Check(f"captured {name}", "graph", tuple(captured[0].shape), error, 0.0 if equal else math.inf)
