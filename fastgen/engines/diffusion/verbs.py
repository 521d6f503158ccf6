"""The verb of a diffusion engine: one step of a sample, as its loop does it in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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


class _Step(NamedTuple):
    """The verb's tensors, see `step_verb`."""

    x: Tensor
    history: Tensor
    coefficients: Tensor
    slot: Tensor
    noise_step: Tensor
    t: Tensor
    seeds: Tensor
    label: Tensor | None = None

    def rows(self) -> Tensor:
        """[B, 32], of the coefficients' type."""
        rows = self.coefficients.clone()
        words = reference.integer_words(rows)
        words[:, row.SLOT] = self.slot.to(words.dtype)
        words[:, row.NOISE_STEP] = self.noise_step.to(words.dtype)
        return rows

    def evaluate(self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
        """The network's output for x as the row scales it."""
        scale = self.coefficients[:, row.INPUT_SCALE, None, None, None]
        inputs = (self.x * scale).to(dtype, memory_format=memory_format)
        output: Tensor = (
            network(inputs, self.t) if self.label is None else network(inputs, self.t, self.label)
        )
        return output


def step_verb(engine: DiffusionEngine) -> Verb:
    """One unguided step of each sample by its own row.

    x: float32 [B, C, H, W], the state. history: float32 [B, 4, C, H, W], earlier values of the solver. coefficients:
    float32 [B, 32], its row (``fastgen_kernels.reverse_step.row``) but for the integer words, which are int64 [B]:
    slot, noise_step. t: float32 [B], the network's time. seeds: int64 [B], of the noise. label: int64 [B], where the
    network knows classes. Results: the network's output, and the next x and history.
    """
    layout, settings, shape = engine.loop.memory_format, engine.settings, engine.state_shape
    (part,) = engine.networks

    def fast(*tensors: Tensor) -> Tensors:
        given = _Step(*tensors)
        output = given.evaluate(engine.fused, engine.dtype, layout)
        output = output.contiguous(memory_format=layout)
        slots = given.history.transpose(0, 1).contiguous()
        x, slots, _ = reverse_step(
            given.x.contiguous(), slots, output, given.rows(), given.seeds, learned=settings.learned
        )
        return output, x, slots.transpose(0, 1).contiguous()

    def plain(networks: nn.ModuleDict, *tensors: Tensor, noise: Tensor) -> Tensors:
        given, network = _Step(*tensors), networks[part]
        # A float64 state is asked of a float64 network; else the network is in a type of its own.
        dtype = given.x.dtype if given.x.dtype == torch.float64 else placed(network)[1]
        output = given.evaluate(network, dtype, torch.contiguous_format)
        x, slots, _ = reference.reverse_step(
            given.x,
            given.history.transpose(0, 1),
            output,
            given.rows(),
            given.seeds,
            settings.learned,
            noise.to(given.x.dtype),
        )
        return output, x, slots.transpose(0, 1)

    def trial(batch: int, generator: torch.Generator) -> Tensors:
        table = engine.request(labels=None if settings.num_classes is None else 0).plans[0].table
        rows, times = pack(table, 1, 1.0)
        chosen = torch.randint(len(table), (batch,), generator=generator, device="cpu")
        rows, t = rows[chosen], times[chosen]
        words = reference.integer_words(rows)
        slot, noise_step = (words[:, word].to(torch.int64) for word in (row.SLOT, row.NOISE_STEP))
        words[:, list(reference.INTEGER_WORDS)] = 0
        # Of a size that gives the network unit normal input.
        x = (
            torch.randn(batch, *shape, generator=generator, dtype=torch.float32, device="cpu")
            / rows[:, row.INPUT_SCALE, None, None, None]
        )
        history = torch.randn(
            batch, row.MAX_SLOTS, *shape, generator=generator, dtype=torch.float32, device="cpu"
        )
        seeds = torch.tensor(sample_seeds(batch, 0, None), device="cpu")
        tensors = [x, history, rows, slot, noise_step, t, seeds]
        if settings.num_classes is not None:
            tensors.append(torch.randint(settings.num_classes, (batch,), generator=generator, device="cpu"))
        return tuple(value.to(engine.device) for value in tensors)

    def noise(*tensors: Tensor) -> Tensor:
        given = _Step(*tensors)
        return normals(given.seeds, given.noise_step, "step", shape)

    names = _Step._fields if settings.num_classes is not None else _Step._fields[:-1]
    return Verb("step", names, ("network", "state", "history"), fast, plain, trial, noise, exact=("t",))
