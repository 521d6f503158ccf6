"""The flow engine's work: `sample` and `log_prob`, judged by the reference flow in plain PyTorch and in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen_kernels import normals

from ..engines import FlowEngine
from ..models.flow.flow import Flow
from .contest import Contest, Drawing, compiled
from .parity import Precision, spread
from .results import Row
from .timing import Call


def contests(
    engine: FlowEngine,
    *,
    suite: str,
    name: str,
    batches: Sequence[int],
    steps: int | None,
    against: Sequence[str],
) -> Iterator[Contest]:
    """Sampling and log-densities at each of `batches`; classes in turn where the model knows them. No steps."""
    for batch in batches:
        arguments = ask(engine, batch)
        draw = _drawing(engine, arguments)
        yield _contest(
            engine, suite, name, f"sample {batch}", batch, draw, _own(engine.sample, arguments), against
        )
        x = engine.sample(**arguments)
        assert isinstance(x, Tensor)  # not the pictures that output_type asks for
        x = x.clone()
        labels = {"labels": arguments["labels"]} if "labels" in arguments else {}
        density = _density(engine, x, labels)
        own = _own(engine.log_prob, {"x": x, **labels})
        yield _contest(engine, suite, name, f"log_prob {batch}", batch, density, own, against)


def ask(engine: FlowEngine, batch: int) -> dict[str, Any]:
    """The arguments of `sample`."""
    labels = (
        {} if engine.flow.classes is None else {"labels": [i % engine.flow.classes for i in range(batch)]}
    )
    return {"n": batch, "seed": 0, **labels}


Index = list[int] | slice
EVERYONE = slice(None)


@dataclass(frozen=True)
class Work:
    """run(flow, index, noise): the results of samples `index`.

    noise: the engine's, [B, ...] a latent; none for densities.
    """

    run: Callable[[Flow, Index, Sequence[Tensor]], Tensor]
    noise: Sequence[Tensor] = ()

    def of(self, flow: Flow, index: Index = EVERYONE) -> Tensor:
        """On the engine's noise."""
        return self.run(flow, index, self.noise)

    def drawing(self, run: Callable[..., Tensor]) -> Drawing:
        """run(*noise), judged on the engine's noise and timed with torch.randn's, made in every call."""
        return Drawing(
            lambda: run(*self.noise), lambda: run(*[torch.randn_like(part) for part in self.noise])
        )


def _contest(
    engine: FlowEngine,
    suite: str,
    name: str,
    case: str,
    batch: int,
    work: Work,
    own: Call,
    against: Sequence[str],
) -> Contest:
    precision: list[Precision] = []

    def judge(output: Tensor) -> float:
        if not precision:
            index = spread(batch)
            exact = work.of(copy.deepcopy(engine.flow).double(), index)
            precision.append(Precision(exact, work.of(engine.flow), index))
        return precision[0].error(output)

    def eager(*noise: Tensor) -> Tensor:
        return work.run(engine.flow, EVERYONE, noise)

    row = Row(suite, name, case, str(engine.dtype).removeprefix("torch."), float("nan"))
    prepared: dict[str, Callable[[], Drawing]] = {
        "eager": lambda: work.drawing(eager),
        "compile": lambda: work.drawing(_compiled(eager, engine.device)),
    }
    return Contest(
        row=replace(row, batch=batch, images=batch),
        own=own,
        judge=judge,
        device=engine.device,
        baselines={baseline: prepared[baseline] for baseline in against if baseline in prepared},
    )


def _own(verb: Callable[..., Any], arguments: Mapping[str, Any]) -> Call:
    return lambda: verb(**arguments)


def _compiled(run: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    fast: Any = compiled(run, device.type == "cuda")
    return fast


def _drawing(engine: FlowEngine, arguments: Mapping[str, Any]) -> Work:
    """Pictures from the engine's own noise, one counter range over all latents, made beforehand."""
    request = engine.request(**arguments)
    shapes = engine.flow.latent_shapes
    sizes = [math.prod(shape) for shape in shapes]
    flat = normals(request.seeds, 0, "initial", (sum(sizes),), device=engine.device)
    noise = [part.reshape(-1, *shape) for part, shape in zip(flat.split(sizes, 1), shapes, strict=True)]
    condition = _condition(engine, arguments)

    @torch.no_grad()
    def run(flow: Flow, index: Index, given: Sequence[Tensor]) -> Tensor:
        latents = [part[index].to(_state(flow)) for part in given]
        x = flow.sample(latents, request.temperature, None if condition is None else condition[index])
        return (2 * x - 1).clamp(-1, 1) if engine.discrete else x

    return Work(run, noise)


def _density(engine: FlowEngine, x: Tensor, labels: Mapping[str, Any]) -> Work:
    condition = _condition(engine, labels)
    shift = math.prod(engine.flow.data_shape) * math.log(2) if engine.discrete else 0.0

    @torch.no_grad()
    def run(flow: Flow, index: Index, _: Sequence[Tensor]) -> Tensor:
        given = x[index].to(_state(flow))
        given = (given + 1) / 2 if engine.discrete else given
        return flow.log_prob(given, None if condition is None else condition[index]) - shift

    return Work(run)


def _condition(engine: FlowEngine, arguments: Mapping[str, Any]) -> Tensor | None:
    return torch.tensor(arguments["labels"], device=engine.device) if "labels" in arguments else None


def _state(flow: Flow) -> torch.dtype:
    """float64 where all of the flow is, else float32: networks inside couplings may be of a smaller type."""
    return torch.float64 if all(p.dtype == torch.float64 for p in flow.parameters()) else torch.float32


def fresh(
    engine: FlowEngine, folder: Path, batch: int, steps: int | None, against: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What `child.py` is told: nobody but fastgen draws in a process of its own."""
    return {"fastgen": {"verb": "sample", "arguments": ask(engine, batch)}}


BASELINES = ("eager", "compile")
