"""The diffusion engine's work: `sample`, judged by a plain PyTorch loop over the same network and table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen_kernels import normals

from ..diffusion.interpreter import run
from ..diffusion.solvers import SOLVERS
from ..diffusion.table import Table
from ..engines import DiffusionEngine
from ..engines.closeness import Closeness, spread
from ..engines.diffusion.plan import Plan
from ..engines.diffusion.request import Request
from ..runtime.device import dtype_name
from .baselines import diffusers, onnxruntime
from .contest import Contest, Drawing, chosen, fastest
from .results import Row

GUIDANCE = 1.5
UNIT = 2.0**-24  # a rounding to float32
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def contests(
    engine: DiffusionEngine,
    *,
    suite: str,
    name: str,
    batches: Sequence[int],
    steps: int | None,
    against: Sequence[str],
    solver: str | None = None,
) -> Iterator[Contest]:
    """Sampling at each of `batches`: classes in turn with guidance, where the model knows them."""
    for batch in batches:
        request = ask(engine, batch, steps, solver)
        plan = plan_of(request)
        case = f"sample {batch}, {plan.solver} {plan.steps}"
        yield contest(engine, request, against, suite, name, case)


def ask(engine: DiffusionEngine, batch: int, steps: int | None, solver: str | None = None) -> Request:
    """What is drawn: seeds from 0, classes in turn and guidance where the model knows them.

    A solver that is named runs as diffusers runs it where their defaults differ, so that both do the same work.
    """
    arguments: dict[str, Any] = {"seed": 0, "steps": steps, "solver": solver}
    if solver is not None and SOLVERS[solver].diffusers:
        arguments["as_diffusers"] = True
    if engine.settings.num_classes is not None:
        arguments["labels"] = [i % engine.settings.num_classes for i in range(batch)]
    if engine.settings.null_class is not None:
        arguments["guidance_scale"] = GUIDANCE
    return engine.request(batch, **arguments)


def plan_of(request: Request) -> Plan:
    """The plan of a request whose samples all have the same."""
    (plan,) = request.kinds
    return plan


def contest(
    engine: DiffusionEngine, request: Request, against: Sequence[str], suite: str, name: str, case: str
) -> Contest:
    """One request by the engine and its baselines."""
    batch = len(request.seeds)
    arguments = request.to_dict()

    @cache
    def rule() -> Closeness:
        index = spread(batch)
        double = copy.deepcopy(engine.network).double()
        exact = drawing(engine, part(request, index), double, torch.float64)
        plain = drawing(engine, request, engine.network, engine.dtype)
        return Closeness(exact.judged(), [plain.judged()], index)

    dtype, evaluations = dtype_name(engine.dtype), request.evaluations()[0]
    return Contest(
        row=Row(suite, name, case, dtype, batch=batch, steps=evaluations, images=batch),
        own=lambda: engine.sample(**arguments),
        judge=lambda output: rule().error(output),
        device=engine.device,
        baselines=chosen(
            {key: partial(prepare, engine, request) for key, prepare in PREPARE.items()}, against
        ),
        agrees=lambda output: rule().error(output, schedule_error(plan_of(request).table)),
    )


def schedule_error(table: Table, timesteps: int = 1000) -> float:
    """How far images, root mean square, may be off where a project keeps its noise schedule in float32.

    alphas_cumprod is a product of up to `timesteps` factors. Their roundings add up like a random walk, to
    sqrt(timesteps) of them, and at worst each evaluation adds that once more to a state of size 1. Another formula, a
    timestep off by one, or another last step are off by 1e-3 and more; this is 4e-5 at 20 steps.
    """
    return len(table) * timesteps**0.5 * UNIT


def part(request: Request, index: Sequence[int]) -> Request:
    """The request of some of the samples."""
    seeds, labels = tuple(request.seeds[i] for i in index), tuple(request.labels[i] for i in index)
    return replace(request, seeds=seeds, labels=labels, plans=tuple(request.plans[i] for i in index))


def drawing(engine: DiffusionEngine, request: Request, network: Network, dtype: torch.dtype) -> Drawing:
    """`request` in plain PyTorch: the table's arithmetic, one operation after the other.

    Judged on the engine's noise, made before; timed with torch.randn in every call, once for the whole batch. The calls
    return float32 samples as the engine does, clamped where it clamps; float64 where dtype is.
    """
    state = torch.float64 if dtype == torch.float64 else torch.float32
    table = plan_of(request).table
    evaluate = guided(engine, request, network, dtype)
    given, known = start(engine, request, state)
    layout = engine.loop.memory_format

    def F(inputs: Tensor, t: float) -> Tensor:
        return evaluate(inputs.to(dtype, memory_format=layout), t).to(state)

    @torch.no_grad()
    def call(own_noise: bool) -> Tensor:
        if own_noise:
            x = run(table, F, torch.randn_like(given) * table.initial_scale, Randn(given, table))
        else:
            x = run(table, F, given, known)
        return engine.outward(x if engine.value_range is None else x.clamp(*engine.value_range))

    return Drawing(lambda: call(False), lambda: call(True))


class Randn(Sequence[Tensor]):
    """Noise as torch.randn makes it for a batch [B, C, H, W] like `x`, when a row that needs some asks for it."""

    def __init__(self, x: Tensor, table: Table) -> None:
        self.x, self.needed = x, table.needs_noise

    def __len__(self) -> int:
        return len(self.needed)

    def __getitem__(self, row: Any) -> Any:
        return torch.randn_like(self.x) if self.needed[row] else self.x  # the latter is not read


def start(
    engine: DiffusionEngine, request: Request, state: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """The initial state, and each evaluation's noise: the engine's own."""
    table = plan_of(request).table
    draw = partial(normals, request.seeds, shape=engine.state_shape, device=engine.device)
    x = draw(0, "initial").to(state) * table.initial_scale
    none = torch.zeros_like(x)
    noise = [
        draw(int(step), "step").to(state) if needed else none
        for step, needed in zip(table.noise_step, table.needs_noise, strict=True)
    ]
    return x, noise


def guided(
    engine: DiffusionEngine, request: Request, network: Network, dtype: torch.dtype
) -> Callable[[Tensor, float], Tensor]:
    """The network with the request's labels and guidance: (input [B, C, H, W] in `dtype`, t) -> its output."""
    settings, device = engine.settings, engine.device
    null = settings.null_class or 0
    weight = plan_of(request).guidance.scale
    assert isinstance(weight, (int, float)), "one weight for the whole run"
    labels, both = None, False
    if settings.num_classes is not None:
        labels = torch.tensor([null if i is None else i for i in request.labels], device=device)
        both = weight != 1 and any(i is not None for i in request.labels)
        if both:
            labels = torch.cat([labels, torch.full_like(labels, null)])
    count = len(request.seeds) * (2 if both else 1)
    times = torch.empty(
        count, device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32
    )

    def evaluate(x: Tensor, t: float) -> Tensor:
        times.fill_(t)
        if not both:
            return network(x, times, labels)
        conditional, free = network(torch.cat([x, x]), times, labels).chunk(2)
        return free + weight * (conditional - free)

    return evaluate


def _eager(engine: DiffusionEngine, request: Request) -> Drawing:
    return drawing(engine, request, engine.network, engine.dtype)


def _compile(engine: DiffusionEngine, request: Request) -> Drawing:
    """The same loop over the compiled network, on CUDA in whichever mode is faster."""
    torch._dynamo.reset()  # PyTorch limits how often one function is compiled: cases after the eighth would fail
    if engine.device.type != "cuda":
        return compiled_loop(engine, request, "default")
    modes = ("max-autotune", "reduce-overhead")
    found = {mode: compiled_loop(engine, request, mode) for mode in modes}
    return found[fastest({mode: one.timed for mode, one in found.items()}, engine.device)]


def compiled_loop(engine: DiffusionEngine, request: Request, mode: str) -> Drawing:
    """The plain loop over the network under torch.compile in one of its modes."""
    network = torch.compile(engine.network, mode=mode, dynamic=False, fullgraph=True)
    # A graph's output is overwritten by its next replay, and a loop's history outlives it.
    return drawing(engine, request, lambda x, t, label: network(x, t, label).clone(), engine.dtype)


def _diffusers(engine: DiffusionEngine, request: Request) -> Drawing:
    x, noise = start(engine, request)
    evaluate = guided(engine, request, diffusers.network(engine), engine.dtype)
    judged = diffusers.sample(engine, plan_of(request), evaluate, x, noise)
    return Drawing(judged, diffusers.sample(engine, plan_of(request), evaluate, x))


def _onnxruntime(engine: DiffusionEngine, request: Request) -> Drawing:
    return drawing(engine, request, onnxruntime.network(engine), torch.float32)


PREPARE: Mapping[str, Callable[[DiffusionEngine, Request], Drawing]] = {
    "eager": _eager,
    "compile": _compile,
    "diffusers": _diffusers,
    "onnxruntime": _onnxruntime,
}
BASELINES = tuple(PREPARE)


def fresh(
    engine: DiffusionEngine, name: str, folder: Path, batch: int, steps: int | None, against: Sequence[str]
) -> tuple[Contest, dict[str, dict[str, Any]]]:
    """The contest of fresh processes, and what `child.py` is told to draw the same there.

    folder: for what baselines need on disk. Orders are those of "fastgen" and of the baselines.
    """
    (case,) = contests(engine, suite="fresh", name=name, batches=[batch], steps=steps, against=())
    request = ask(engine, batch, steps)
    orders: dict[str, dict[str, Any]] = {"fastgen": {"verb": "sample", "arguments": request.to_dict()}}
    if "diffusers" in against:
        x, _ = start(engine, request)
        orders["diffusers"] = diffusers.on_disk(engine, request, x, folder)
    return case, orders
