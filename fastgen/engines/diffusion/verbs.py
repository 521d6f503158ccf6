"""The verb of a diffusion engine: one step of a sample, as its loop does it in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastgen_kernels import normals, reverse_step
from fastgen_kernels.reverse_step import reference, row

from ...diffusion.table import pack
from ...runtime.device import placed
from ..arguments import sample_seeds
from ..verb import Tensors, Verb

if TYPE_CHECKING:
    from .engine import DiffusionEngine


def step_verb(engine: DiffusionEngine) -> Verb:
    """One unguided step of each sample by its own row.

    x: float32 [B, C, H, W], the state. history: float32 [B, 4, C, H, W], earlier values of the solver. coefficients:
    float32 [B, 32], its row (``fastgen_kernels.reverse_step.row``) but for the integer words, which are int64 [B]:
    slot, noise_step. t: float32 [B], the network's time. seeds: int64 [B], of the noise. label: int64 [B], where the
    network knows classes. Results: the network's output, and the next x and history.
    """
    loop, settings, shape = engine.loop, engine.settings, engine.shape
    (part,) = engine.networks

    def fast(
        x: Tensor,
        history: Tensor,
        coefficients: Tensor,
        slot: Tensor,
        noise_step: Tensor,
        t: Tensor,
        seeds: Tensor,
        *label: Tensor,
    ) -> Tensors:
        rows = _rows(coefficients, slot, noise_step)
        inputs = _scaled(x, rows).to(engine.dtype, memory_format=loop.memory_format)
        output = engine.network(inputs, t, *label).contiguous(memory_format=loop.memory_format)
        slots = history.transpose(0, 1).contiguous()
        x, slots, _ = reverse_step(x.contiguous(), slots, output, rows, seeds, learned=settings.learned)
        return output, x, slots.transpose(0, 1).contiguous()

    def plain(
        networks: nn.ModuleDict,
        x: Tensor,
        history: Tensor,
        coefficients: Tensor,
        slot: Tensor,
        noise_step: Tensor,
        t: Tensor,
        seeds: Tensor,
        *label: Tensor,
        noise: Tensor,
    ) -> Tensors:
        network = networks[part]
        # A float64 state is asked of a float64 network; else the network is in a type of its own.
        dtype = x.dtype if x.dtype == torch.float64 else placed(network)[1]
        rows = _rows(coefficients, slot, noise_step)
        output = network(_scaled(x, rows).to(dtype), t, *label)
        x, slots, _ = reference.reverse_step(
            x, history.transpose(0, 1), output, rows, seeds, settings.learned, noise.to(x.dtype)
        )
        return output, x, slots.transpose(0, 1)

    def trial(batch: int, generator: torch.Generator) -> Tensors:
        table = engine.request(labels=None if settings.num_classes is None else 0).plans[0].table
        rows, times = pack(table, 1, 1.0)
        chosen = torch.randint(len(table), (batch,), generator=generator)
        rows, t = rows[chosen], times[chosen]
        words = reference.integer_words(rows)
        slot, noise_step = (words[:, word].to(torch.int64) for word in (row.SLOT, row.NOISE_STEP))
        words[:, list(reference.INTEGER_WORDS)] = 0
        # Of a size that gives the network unit normal input.
        x = torch.randn(batch, *shape, generator=generator) / rows[:, row.INPUT_SCALE, None, None, None]
        history = torch.randn(batch, row.MAX_SLOTS, *shape, generator=generator)
        seeds = torch.tensor(sample_seeds(batch, 0, None))
        tensors = [x, history, rows, slot, noise_step, t, seeds]
        if settings.num_classes is not None:
            tensors.append(torch.randint(settings.num_classes, (batch,), generator=generator))
        return tuple(value.to(engine.device) for value in tensors)

    def noise(
        x: Tensor,
        history: Tensor,
        coefficients: Tensor,
        slot: Tensor,
        noise_step: Tensor,
        t: Tensor,
        seeds: Tensor,
        *label: Tensor,
    ) -> Tensor:
        return normals(seeds, noise_step, "step", shape)

    label = ("label",) if settings.num_classes is not None else ()
    arguments = ("x", "history", "coefficients", "slot", "noise_step", "t", "seeds", *label)
    return Verb("step", arguments, ("network", "state", "history"), fast, plain, trial, noise)


def _scaled(x: Tensor, rows: Tensor) -> Tensor:
    return x * rows[:, row.INPUT_SCALE, None, None, None]


def _rows(coefficients: Tensor, slot: Tensor, noise_step: Tensor) -> Tensor:
    rows = coefficients.clone()
    words = reference.integer_words(rows)
    words[:, row.SLOT] = slot.to(words.dtype)
    words[:, row.NOISE_STEP] = noise_step.to(words.dtype)
    return rows
