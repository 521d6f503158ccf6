"""What `verify` looks at in a diffusion engine besides its verb: the fused step's cases and the captured loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgen_kernels import OPS
from fastgen_kernels.reverse_step import cases

from ..closeness import deviation
from ..verification import Check

if TYPE_CHECKING:
    from .engine import DiffusionEngine


def steps(engine: DiffusionEngine, batch: int, generator: torch.Generator) -> Iterator[Check]:
    """The fused step at this engine's shape, on the path that it takes here."""
    op = OPS["reverse_step"]
    last = engine.loop.memory_format == torch.channels_last
    for guided in (False, True):
        arguments = cases.arguments(
            generator,
            engine.device,
            engine.dtype,
            (batch, *engine.state_shape),
            slots=4,
            guided=guided,
            learned=engine.settings.learned,
            channels_last=last,
            sliced=True,
        )
        outputs = op.function(**arguments)
        fraction = max(op.errors(arguments, outputs).values())
        worst = max(deviation(a, b) for a, b in zip(outputs, op.exact(**arguments), strict=True))
        name = "reverse_step, guided" if guided else "reverse_step"
        yield Check(name, "fused", (batch, *engine.state_shape), worst, fraction)


def captured_loop(engine: DiffusionEngine, batch: int, seed: int) -> Iterator[Check]:
    """Samples of the captured loop against those of an uncaptured one, which they must equal bit for bit."""
    if not engine.loop.graphs.freezes:
        return
    # A captured step has a batch of a power of two; uncaptured it must have the same, for libraries to choose alike.
    count = min(1 << (batch - 1).bit_length(), engine.loop.max_batch)
    settings = engine.settings
    labels = None if settings.num_classes is None else [k % settings.num_classes for k in range(count)]
    for guidance in (1.0, 2.0) if settings.null_class is not None else (1.0,):
        request = engine.request(
            seeds=range(seed, seed + count),
            labels=labels,
            steps=min(3, settings.steps),
            guidance_scale=guidance,
        )
        drawn = []
        for backend in (engine.loop.graphs.backend, "eager"):
            loop = engine.new_loop(backend=backend)
            tickets = [loop.add(single) for single in request.singles()]
            done: dict[int, Tensor] = {}
            while loop.step():
                done.update(loop.finished())
            drawn.append(torch.stack([done[ticket] for ticket in tickets]))
        captured, eager = drawn
        bound = 0.0 if torch.equal(captured, eager) else math.inf
        name = "captured loop" if guidance == 1 else "captured loop, guided"
        yield Check(name, "graph", tuple(eager.shape), deviation(captured, eager), bound)
