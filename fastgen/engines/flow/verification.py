"""What `verify` looks at in a flow engine besides its verbs: every step of the fused flow, in both directions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen_kernels.op import UNIT_ROUNDOFF

from ...errors import ConfigError
from ...fused.chain import CouplingStep, FoldedStep, Step
from ...fused.flow import FusedFlow
from ...models.flow.coupling import Coupling
from ...models.flow.flow import Flow
from ...models.flow.layers import Layer
from ...models.flow.priors import Prior
from ..closeness import Closeness, deviation
from ..layers import jittering, rounded_off
from ..verification import SIMULATIONS, Check
from .verbs import FlowVerbs

if TYPE_CHECKING:
    from .engine import FlowEngine


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


def running(fused: FusedFlow) -> dict[str, nn.Module]:
    """The networks of couplings as they run, by the coupling's name."""
    steps = [step for chain in fused.chains for step in chain.steps]
    return {step.layer.name: step.network for step in steps if isinstance(step, CouplingStep)}


def coupling_networks(found: Mapping[str, list[Check]]) -> Iterator[Check]:
    """One check per coupling's network: the worst of its layers."""
    for name, checks in found.items():
        worst = max(checks, key=lambda check: check.bound or 0.0)
        yield replace(worst, name=name, kind="network")


@contextmanager
def rounding_off(
    networks: nn.ModuleDict, dtype: torch.dtype, state: torch.dtype, generator: torch.Generator
) -> Iterator[None]:
    """Within the block, the layers of flows round at random in both directions: `state` is the type of what passes
    between layers and of log-determinants, `dtype` that of the networks inside couplings.
    """
    unit = 4.0 * UNIT_ROUNDOFF[state]

    def off(values: Any) -> Any:
        if isinstance(values, tuple):
            return tuple(map(off, values))
        return rounded_off(values, unit, generator)

    with ExitStack() as stack:
        for module in networks.modules():
            if isinstance(module, Coupling):
                stack.enter_context(jittering({"": module.network}, {}, dtype, generator))
            if isinstance(module, (Layer, Prior)):
                for name in ("forward", "inverse") if isinstance(module, Layer) else ("log_prob", "draw"):
                    stack.enter_context(_patched(module, name, off))
        yield


@contextmanager
def _patched(module: nn.Module, name: str, change: Any) -> Iterator[None]:
    """Within the block, `change` is applied to what a method of this one module returns."""
    method = getattr(module, name)
    setattr(module, name, lambda *arguments, **named: change(method(*arguments, **named)))
    try:
        yield
    finally:
        delattr(module, name)


def step_checks(engine: FlowEngine, batch: int, generator: torch.Generator) -> Iterator[Check]:
    """Every step of both directions on the very state that it gets; and the way there and back."""
    work = FlowVerbs(engine)
    x, *condition = work.trial_x(batch, generator)
    x = work.inward(x)
    given = condition[0] if condition else None
    latents, _ = engine.fused.encode(x, given)
    exact = copy.deepcopy(engine.flow).to("cpu", torch.float64)
    twins = dict(zip(engine.flow.modules(), exact.modules(), strict=True))
    for inverse in (False, True):
        for step, state in _states(engine, x, latents, given, inverse):
            layers = [twins[layer] for layer in step.layers]
            yield _step(engine, step, layers, state, given, inverse, generator)
    yield _round_trip(engine, exact, x, given, generator)


def _round_trip(
    engine: FlowEngine, exact: Flow, x: Tensor, condition: Tensor | None, generator: torch.Generator
) -> Check:
    """decode(encode(x)) beside x."""
    back = engine.fused.decode(engine.fused.encode(x, condition)[0], condition)
    truth, plain = x.double().cpu(), None if condition is None else condition.cpu()
    rounded = []
    for _ in range(SIMULATIONS):
        with rounding_off(nn.ModuleDict({"flow": exact}), engine.dtype, engine.state_dtype, generator):
            rounded.append(exact.inverse(exact(truth, plain)[0], plain)[0])
    bound = Closeness(truth, rounded, unit=UNIT_ROUNDOFF[engine.state_dtype]).error(back, peak=True)
    return Check("round trip", "verb", tuple(x.shape), deviation(back, truth), bound)


def _states(
    engine: FlowEngine, x: Tensor, latents: Sequence[Tensor], condition: Tensor | None, inverse: bool
) -> Iterator[tuple[Step, Tensor]]:
    """Each step and the state that it is given, in the order in which a direction runs them."""
    flow, chains = engine.flow, engine.fused.chains
    order = range(len(chains))
    state = latents[-1] if inverse else x
    for i in reversed(order) if inverse else order:
        if inverse and i < len(chains) - 1:
            state = torch.cat([state, latents[i]], dim=1)
        for step in reversed(chains[i].steps) if inverse else chains[i].steps:
            yield step, state
            run = step.inverse if inverse else step.forward
            state = run(state.clone(), condition, None)
        if not inverse and i < len(chains) - 1:
            state = flow.split(state)[0].clone()


def _step(
    engine: FlowEngine,
    step: Step,
    layers: Sequence[nn.Module],
    given: Tensor,
    condition: Tensor | None,
    inverse: bool,
    generator: torch.Generator,
) -> Check:
    """State and log-determinant of a step, against its layers in float64."""
    log_det = given.new_zeros(len(given))
    state = (step.inverse if inverse else step.forward)(given.clone(), condition, log_det)
    log_det = log_det + (-step.log_det if inverse else step.log_det)
    plain = None if condition is None else condition.cpu()
    before = given.double().cpu()
    networks = nn.ModuleDict({str(i): layer for i, layer in enumerate(layers)})
    unit = UNIT_ROUNDOFF[engine.state_dtype]

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in reversed(layers) if inverse else layers:
            x, change = layer.inverse(x, plain) if inverse else layer(x, plain)  # type: ignore[operator]
            total = total + change
        return x, total

    want, rounded = run(before), []
    for _ in range(SIMULATIONS):
        with rounding_off(networks, engine.dtype, engine.state_dtype, generator):
            rounded.append(run(rounded_off(before, unit, generator)))
    bound = max(
        Closeness(want[i], [values[i] for values in rounded], unit=unit).error(got, peak=True)
        for i, got in enumerate((state, log_det))
    )
    if isinstance(step, CouplingStep) and not torch.equal(
        step.layer.parts(state)[0], step.layer.parts(given)[0]
    ):
        bound = math.inf  # what a coupling leaves alone keeps its bits
    kind = "folded" if isinstance(step, FoldedStep) else type(step.layers[0]).__name__.lower()
    names = [layer.name for layer in step.layers]
    name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1].rpartition('.')[2]}"
    way = ", inverse" if inverse else ""
    return Check(name, kind + way, tuple(state.shape), deviation(state, want[0]), bound)
