"""What one step of a loop does, on device tensors alone: it can be captured and replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgen_kernels import known_region_out, normals, reverse_step_out
from fastgen_kernels.reverse_step import reference, row
from fastgen_kernels.reverse_step.reference import integer_words

from ...runtime.capture import Step
from .adjust import LANGEVIN, adjusted
from .classifier import towards_label
from .conditions import Conditioned
from .queue import DIRECTED, KNOWN

if TYPE_CHECKING:
    from .loop import Loop


def step_body(
    loop: Loop,
    batch: int,
    guided: bool,
    kinds: tuple[str, ...],
    *,
    classified: bool = False,
    given: bool = False,
) -> Step:
    """The step of a loop's first `batch` slots. guided, kinds: as in its key; classified: with the classifier.

    given: on a GPU, whose kernel makes its noise itself: some samples have it as tensors, and the row is run in plain
    PyTorch.
    """
    buffers, shape = loop.buffers, loop.shape
    x, history = buffers.x[:batch], buffers.history[:, :batch]
    cursor, seeds, labels = buffers.cursor[:batch], buffers.seeds[:batch], buffers.labels[:batch]
    entries, scales = buffers.entries[:batch], buffers.scales[:batch]
    inputs = buffers.inputs[: 2 * batch if guided else batch]
    noise = None if loop.noise is None else loop.noise.buffer[:batch]
    known, directed = KNOWN in kinds, DIRECTED in kinds
    kinds = tuple(kind for kind in kinds if kind not in (KNOWN, DIRECTED))

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
        levels = loop.pool.levels.index_select(0, cursor) if known else None
        output = evaluate(rows, t).contiguous(memory_format=loop.memory_format)
        if classified:
            assert loop.classifier is not None
            output = towards_label(loop.classifier, output, inputs[:batch], rows, t, labels, scales)
            output = output.contiguous(memory_format=loop.memory_format)
        z = noise
        if z is None and (given or LANGEVIN in kinds):
            z = normals(seeds, integer_words(rows)[:, row.NOISE_STEP].contiguous(), "step", shape)
        if given:
            assert z is not None
            loop.put_given(z)
        if kinds:
            rows = adjusted(rows, x, output, z, guided=guided, kinds=kinds)
        if given:
            in_plain_pytorch(rows, output, z)
        else:
            reverse_step_out(
                x, history, output, inputs, rows, cursor, seeds, learned=loop.learned, noise=noise
            )
        if levels is not None:
            hold(levels)

    def in_plain_pytorch(rows: Tensor, output: Tensor, z: Tensor | None) -> None:
        results = reference.reverse_step(x, history, output, rows, seeds, loop.learned, z)
        for state, new in zip((x, history, inputs), results, strict=True):
            state.copy_(new)
        cursor.copy_(integer_words(rows)[:, row.NEXT])

    def hold(levels: Tensor) -> None:
        """Put what is known into the states that the rows have left. levels: of those, [B, 4]."""
        if loop.known_noise is not None:
            fresh = loop.known_noise.buffer[:batch]
        else:
            fresh = normals(seeds, levels[:, 3].nan_to_num().long(), "inpaint", shape)
        known_region_out(
            x,
            inputs,
            buffers.known[:batch],
            buffers.keep[:batch],
            fresh,
            levels[:, :3].contiguous(),
            direction=buffers.direction[:batch] if directed else None,
        )

    return step
