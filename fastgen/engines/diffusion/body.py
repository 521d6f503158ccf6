"""What one step of a loop does, on device tensors alone: it can be captured and replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgen_kernels import normals, reverse_step_out
from fastgen_kernels.reverse_step import row
from fastgen_kernels.reverse_step.reference import integer_words

from ...runtime.capture import Step
from .adjust import LANGEVIN, adjusted
from .classifier import towards_label
from .conditions import Conditioned

if TYPE_CHECKING:
    from .loop import Loop


def step_body(
    loop: Loop, batch: int, guided: bool, kinds: tuple[str, ...], *, classified: bool = False
) -> Step:
    """The step of a loop's first `batch` slots. guided, kinds: as in its key; classified: with the classifier."""
    buffers, shape = loop.buffers, loop.shape
    x, history = buffers.x[:batch], buffers.history[:, :batch]
    cursor, seeds, labels = buffers.cursor[:batch], buffers.seeds[:batch], buffers.labels[:batch]
    entries, scales = buffers.entries[:batch], buffers.scales[:batch]
    inputs = buffers.inputs[: 2 * batch if guided else batch]
    noise = None if loop.noise is None else loop.noise.buffer[:batch]

    def evaluate(rows: Tensor, t: Tensor) -> Tensor:
        """The network's output, for both halves where guided; at weight 1 they are asked the same.

        Else u + 1 (c - u) would be c to the bit only where u = c.
        """
        both = torch.cat([t, t]) if guided else t
        if loop.tabled:
            assert loop.conditions is not None
            assert isinstance(loop.network, Conditioned)
            # The idle row, 0, may lie before the first entry.
            places = (cursor[:, None] + entries).clamp_(min=0)
            index = places[:, 0]
            if guided:
                index = torch.cat([index, torch.where(rows[:, row.GUIDANCE] == 1.0, index, places[:, 1])])
            return loop.network.denoise(inputs, loop.conditions.values.index_select(0, index), both)
        if not loop.labelled:
            return loop.network(inputs, both, None)
        if not guided:
            return loop.network(inputs, both, labels)
        null = torch.where(rows[:, row.GUIDANCE] == 1.0, labels, loop.null_label)
        return loop.network(inputs, both, torch.cat([labels, null]))

    def step() -> None:
        rows = loop.pool.rows.index_select(0, cursor)
        t = loop.pool.times.index_select(0, cursor)
        output = evaluate(rows, t).contiguous(memory_format=loop.memory_format)
        if classified:
            assert loop.classifier is not None
            output = towards_label(loop.classifier, output, inputs[:batch], rows, t, labels, scales)
            output = output.contiguous(memory_format=loop.memory_format)
        if kinds:
            z = noise
            if z is None and LANGEVIN in kinds:
                z = normals(seeds, integer_words(rows)[:, row.NOISE_STEP].contiguous(), "step", shape)
            rows = adjusted(rows, x, output, z, guided=guided, kinds=kinds)
        reverse_step_out(x, history, output, inputs, rows, cursor, seeds, learned=loop.learned, noise=noise)

    return step
