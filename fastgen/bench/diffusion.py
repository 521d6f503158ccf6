"""The diffusion engine's work: `sample`, judged by a plain PyTorch loop over the same network and table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen_kernels import normals

from ..diffusion.table import run
from ..engines import DiffusionEngine
from ..engines.request import Request
from .contest import Contest, compiled, fastest
from .parity import Precision, spread
from .results import Row
from .rivals import diffusers, onnxruntime
from .timing import Call

GUIDANCE = 1.5
# Other projects keep their schedules in float32, and what that loses grows over the steps: seen up to 1.3
# bounds of ours.
RIVALS_TIMES = 8.0
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
        case = f"sample {batch}, {request.solver} {request.steps}"
        yield contest(engine, request, against, suite, name, case)


def ask(engine: DiffusionEngine, batch: int, steps: int | None, solver: str | None = None) -> Request:
    """What is drawn: seeds from 0, classes in turn and guidance where the model knows them."""
    arguments: dict[str, Any] = {"seed": 0, "steps": steps, "solver": solver}
    if engine.settings.num_classes is not None:
        arguments["labels"] = [i % engine.settings.num_classes for i in range(batch)]
    if engine.settings.null_class is not None:
        arguments["guidance_scale"] = GUIDANCE
    return engine.request(batch, **arguments)


def contest(
    engine: DiffusionEngine, request: Request, against: Sequence[str], suite: str, name: str, case: str
) -> Contest:
    """One request by the engine and its rivals."""
    batch = len(request.seeds)
    arguments = request.to_dict()
    precision: list[Precision] = []

    def judge(output: Tensor) -> float:
        if not precision:
            index = spread(batch)
            double = copy.deepcopy(engine.network).double()
            exact = plain(engine, part(request, index), double, torch.float64)()
            precision.append(Precision(exact, plain(engine, request, engine.network, engine.dtype)(), index))
        return precision[0].error(output)

    return Contest(
        row=Row(
            suite,
            name,
            case,
            str(engine.dtype).removeprefix("torch."),
            float("nan"),
            batch=batch,
            steps=request.evaluations(engine.settings.noise_schedule),
            images=batch,
        ),
        own=lambda: engine.sample(**arguments),
        judge=judge,
        device=engine.device,
        rivals={rival: partial(RIVALS[rival], engine, request) for rival in against if rival in RIVALS},
        agrees=lambda output: judge(output) / RIVALS_TIMES,
    )


def part(request: Request, index: Sequence[int]) -> Request:
    """The request of some of the samples."""
    seeds, labels = tuple(request.seeds[i] for i in index), tuple(request.labels[i] for i in index)
    return replace(request, seeds=seeds, labels=labels)


def plain(
    engine: DiffusionEngine, request: Request, network: Network, dtype: torch.dtype
) -> Callable[[], Tensor]:
    """A call that draws `request` in plain PyTorch: the table's arithmetic, one operation after the other.

    Noise is made beforehand, and costs the call nothing. float32 [B, C, H, W] in [-1, 1]; float64 where dtype is.
    """
    state = torch.float64 if dtype == torch.float64 else torch.float32
    table = request.table(engine.settings.noise_schedule)
    evaluate = guided(engine, request, network, dtype)
    x, noise = start(engine, request, state)
    layout = engine.loop.memory_format

    def F(inputs: Tensor, t: float) -> Tensor:
        return evaluate(inputs.to(dtype, memory_format=layout), t).to(state)

    @torch.no_grad()
    def call() -> Tensor:
        return run(table, F, x, noise).clamp(-1, 1)

    return call


def start(
    engine: DiffusionEngine, request: Request, state: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """The initial state, and each evaluation's noise: the engine's own."""
    table = request.table(engine.settings.noise_schedule)
    draw = partial(normals, request.seeds, shape=engine.shape, device=engine.device)
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
    labels, both = None, False
    if settings.num_classes is not None:
        labels = torch.tensor([null if i is None else i for i in request.labels], device=device)
        both = request.guidance_scale != 1 and any(i is not None for i in request.labels)
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
        return free + request.guidance_scale * (conditional - free)

    return evaluate


def _eager(engine: DiffusionEngine, request: Request) -> Call:
    return plain(engine, request, engine.network, engine.dtype)


def _compile(engine: DiffusionEngine, request: Request) -> Call:
    """The same loop over the compiled network, on CUDA in whichever mode is faster."""
    if engine.device.type != "cuda":
        return plain(engine, request, _cast(compiled(engine.network, False)), engine.dtype)
    modes = ("max-autotune", "reduce-overhead")
    nets = {mode: torch.compile(engine.network, mode=mode, dynamic=False, fullgraph=True) for mode in modes}
    calls = {mode: plain(engine, request, _cast(net), engine.dtype) for mode, net in nets.items()}
    return fastest(calls, engine.device)


def _cast(network: Callable[..., Any]) -> Network:
    # A graph's output is overwritten by its next replay, and a loop's history outlives it.
    return lambda x, t, label: network(x, t, label).clone()


def _diffusers(engine: DiffusionEngine, request: Request) -> Call:
    x, noise = start(engine, request)
    network = diffusers.network(engine)
    evaluate = guided(engine, request, network, engine.dtype)
    return diffusers.sample(engine, request, evaluate, x, noise)


def _onnxruntime(engine: DiffusionEngine, request: Request) -> Call:
    return plain(engine, request, onnxruntime.network(engine), torch.float32)


RIVALS: Mapping[str, Callable[[DiffusionEngine, Request], Call]] = {
    "eager": _eager,
    "compile": _compile,
    "diffusers": _diffusers,
    "onnxruntime": _onnxruntime,
}


def fresh(
    engine: DiffusionEngine, folder: Path, batch: int, steps: int | None, against: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What `child.py` is told to draw the same in a process of its own: {"fastgen" and rivals: order}.

    folder: for what rivals need on disk.
    """
    request = ask(engine, batch, steps)
    orders = {"fastgen": {"verb": "sample", "arguments": request.to_dict()}}
    if "diffusers" in against:
        x, _ = start(engine, request)
        orders["diffusers"] = diffusers.on_disk(engine, request, x, folder)
    return orders


class Scaled(nn.Module):
    """The least network there is, one operation: what a sampler costs beside it is the sampler's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return x * self.weight
