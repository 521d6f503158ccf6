"""What surrounds a denoiser in exported samplers: noise, row adjustments and the update, as modules to be exported.

The twin of ``fastgen_kernels.reverse_step`` and of ``fastgen.engines.diffusion.adjust`` for ONNX. A row's integer words
come as tensors of their own, the history is [B, 4, C, H, W], and guidance is told by indices: the network is evaluated
N times for B samples, sample by sample with their labels first, then without a label for those that are guided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen_kernels.reverse_step import row

from .form import BATCH, Interface, Port
from .noise import export_normals

Shape = tuple[int, int, int]
EVALUATIONS = "evaluations"
WIDTH = row.H + row.MAX_SLOTS
LARGEST = 3.4028234663852886e38  # stands for an infinite bound, which JSON has no number for


def spread(scalars: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]"""
    return scalars[:, None, None, None]


class Noise(nn.Module):
    """(seeds, noise_step, stream) -> z: the engine's standard normal noise of a stream, float32 [B, C, H, W].

    stream: int64 [1], a number of ``fastgen_kernels.STREAMS``.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, seeds: Tensor, noise_step: Tensor, stream: Tensor) -> tuple[Tensor]:
        z = export_normals(seeds, noise_step, stream, math.prod(self.shape))
        return (z.view(-1, *self.shape),)

    def interface(self) -> Interface:
        return Interface(
            (
                Port("seeds", (BATCH,), "", torch.int64),
                Port("noise_step", (BATCH,), "", torch.int64),
                Port("stream", (1,), "", torch.int64),
            ),
            (Port("z", (BATCH, *self.shape), ""),),
        )

    def example(self) -> tuple[Tensor, ...]:
        return (
            torch.arange(3, device="cpu"),
            torch.arange(3, device="cpu"),
            torch.ones(1, dtype=torch.int64, device="cpu"),
        )


class _AfterNetwork(nn.Module):
    """What follows the network. learned: how its variance channels are read, as in ``reverse_step``."""

    def __init__(self, shape: Shape, learned: int, guided: bool) -> None:
        super().__init__()
        self.shape, self.learned, self.guided = shape, learned, guided

    def guide(self, output: Tensor, x: Tensor, guidance: Tensor | None, unguided: Tensor | None) -> Tensor:
        """F after guidance, [B, C, H, W]."""
        conditional = self.conditional(output, x)
        if guidance is None or unguided is None:
            return conditional
        without = output[unguided, : self.shape[0]]
        weight = spread(guidance)
        # A where: the bits of a sample that is not guided do not depend on whether others are.
        return torch.where(weight == 1.0, conditional, without + weight * (conditional - without))

    def conditional(self, output: Tensor, x: Tensor) -> Tensor:
        return self.of_samples(output, x)[:, : self.shape[0]]

    def of_samples(self, output: Tensor, x: Tensor) -> Tensor:
        """The evaluations with the samples' own labels, which come first."""
        return output[torch.arange(x.shape[0], device=x.device)] if self.guided else output

    def ports(self) -> dict[str, Port]:
        image = (BATCH, *self.shape)
        outputs = (
            EVALUATIONS if self.guided else BATCH,
            self.shape[0] * (2 if self.learned else 1),
            *self.shape[1:],
        )
        found = {
            "x": Port("x", image, ""),
            "history": Port("history", (BATCH, row.MAX_SLOTS, *self.shape), ""),
            "output": Port("output", outputs, ""),
            "rows": Port("rows", (BATCH, row.ROW_WORDS), ""),
            "slot": Port("slot", (BATCH,), "", torch.int64),
            "z": Port("z", image, ""),
        }
        if self.guided:
            found["guidance"] = Port("guidance", (BATCH,), "")
            found["unguided"] = Port("unguided", (BATCH,), "", torch.int64)
        return found

    def examples(self) -> dict[str, Tensor]:
        count, (channels, *size) = 3, self.shape
        evaluations = 5 if self.guided else count
        return {
            "x": torch.randn(count, *self.shape, dtype=torch.float32, device="cpu"),
            "history": torch.randn(count, row.MAX_SLOTS, *self.shape, dtype=torch.float32, device="cpu"),
            "output": torch.randn(
                evaluations, channels * (2 if self.learned else 1), *size, dtype=torch.float32, device="cpu"
            ),
            "rows": torch.rand(count, row.ROW_WORDS, dtype=torch.float32, device="cpu"),
            "slot": torch.arange(count, device="cpu"),
            "z": torch.randn(count, *self.shape, dtype=torch.float32, device="cpu"),
            "guidance": torch.rand(count, dtype=torch.float32, device="cpu"),
            "unguided": torch.tensor([3, 4, 2], device="cpu"),
        }


class Update(_AfterNetwork):
    """(x, history, output, rows, slot, z, [guidance, unguided]) -> the next x and history."""

    names = ("x", "history", "output", "rows", "slot", "z")

    def forward(
        self,
        x: Tensor,
        history: Tensor,
        output: Tensor,
        rows: Tensor,
        slot: Tensor,
        z: Tensor,
        guidance: Tensor | None = None,
        unguided: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        F = self.guide(output, x, guidance, unguided)
        clip = spread(rows[:, row.CLIP])
        x0 = spread(rows[:, row.P]) * x + spread(rows[:, row.Q]) * F
        x0 = torch.minimum(torch.maximum(x0, -clip), clip)
        if self.learned:
            z = z * self._deviation(self.of_samples(output, x)[:, self.shape[0] :], rows)
        a, b = (rows[:, word : word + WIDTH, None, None, None] for word in (row.A, row.B))
        used = ((a != 0) | (b != 0))[:, row.H :]
        memory = torch.where(used, history, 0.0)  # what is not used may be anything
        # One after the other, in the engine's order: a reduction's order depends on the batch.
        terms = (x, x0, F, z, *memory.unbind(1))
        next_x, g = (_combined(terms, coefficients.unbind(1)) for coefficients in (a, b))
        written = slot[:, None] == torch.arange(row.MAX_SLOTS, device=slot.device)
        return next_x, torch.where(written[:, :, None, None, None], g[:, None], history)

    def _deviation(self, V: Tensor, rows: Tensor) -> Tensor:
        """Of z, as the network's second half of channels says it; see ``reverse_step.reference.noise_scale``."""
        if self.learned == 2:
            return V.clamp(min=0.0).sqrt()
        low, high = (spread(rows[:, word]) for word in (row.LOG2_STD_MIN, row.LOG2_STD_MAX))
        return torch.exp2((low + (V * 0.5 + 0.5) * (high - low)).clamp(-126.0, 126.0))

    def interface(self) -> Interface:
        ports = self.ports()
        names = self.names + (("guidance", "unguided") if self.guided else ())
        results = (Port("next_x", ports["x"].axes, ""), Port("next_history", ports["history"].axes, ""))
        return Interface(tuple(ports[name] for name in names), results)

    def example(self) -> tuple[Tensor, ...]:
        found = self.examples()
        return tuple(found[port.name] for port in self.interface().inputs)


class Adjust(_AfterNetwork):
    """(x, output, rows, z, [guidance, unguided]) -> rows, by what is known once the network has answered.

    Guidance rescale, a dynamic threshold and a Langevin step's norms, as in ``fastgen.engines.diffusion.adjust``.
    """

    names = ("x", "output", "rows", "z")

    def forward(
        self,
        x: Tensor,
        output: Tensor,
        rows: Tensor,
        z: Tensor,
        guidance: Tensor | None = None,
        unguided: Tensor | None = None,
    ) -> tuple[Tensor]:
        F = self.guide(output, x, guidance, unguided)
        k = torch.ones_like(rows[:, 0])
        if guidance is not None:
            spread_now, wanted = _std(F), _std(self.conditional(output, x))
            works = (guidance != 1.0) & (rows[:, row.RESCALE] != 0) & (spread_now > 0)
            k = torch.where(works, 1.0 + rows[:, row.RESCALE] * (wanted / spread_now - 1.0), 1.0)
        x0 = spread(rows[:, row.P]) * x + spread(rows[:, row.Q] * k) * F
        s = _upper_quantile(x0.flatten(1).abs(), rows[:, row.THRESHOLD_TAIL])
        largest = rows[:, row.THRESHOLD_MAX]
        bounded = largest > 0
        s = torch.minimum(s.clamp(min=1.0), largest)
        root = _langevin(rows[:, row.LANGEVIN], z, x0)
        factors = {
            row.Q: k,
            **{start + row.F: k for start in (row.A, row.B)},
            **{start + row.X0: torch.where(bounded, 1.0 / s, 1.0) * root * root for start in (row.A, row.B)},
            **{start + row.Z: root for start in (row.A, row.B)},
        }
        words = [
            rows[:, word] * factors[word] if word in factors else rows[:, word]
            for word in range(row.ROW_WORDS)
        ]
        words[row.CLIP] = torch.where(bounded, s, words[row.CLIP])
        return (torch.stack(words, 1),)

    def interface(self) -> Interface:
        ports = self.ports()
        names = self.names + (("guidance", "unguided") if self.guided else ())
        return Interface(
            tuple(ports[name] for name in names), (Port("adjusted_rows", ports["rows"].axes, ""),)
        )

    def example(self) -> tuple[Tensor, ...]:
        found = self.examples()
        return tuple(found[port.name] for port in self.interface().inputs)


def _combined(terms: Sequence[Tensor], coefficients: Sequence[Tensor]) -> Tensor:
    total = coefficients[0] * terms[0]
    for term, coefficient in zip(terms[1:], coefficients[1:], strict=True):
        total = total + coefficient * term
    return total


def _std(values: Tensor) -> Tensor:
    """[B], over everything but the first axis, about the mean (two passes)."""
    flat = values.flatten(1)
    return (flat - flat.mean(1, keepdim=True)).square().mean(1).sqrt()


def _upper_quantile(values: Tensor, tail: Tensor) -> Tensor:
    """The (1 - tail)-quantile of each row [B, N] by linear interpolation; tail [B] in [0, 1]."""
    ordered = values.sort(1).values
    last = values.shape[1] - 1
    rank = last * (1.0 - tail.double())[:, None]
    below = rank.floor()
    low = ordered.gather(1, below.long())
    high = ordered.gather(1, (below + 1).clamp(max=last).long())
    fraction = (rank - below).float()
    return torch.where(fraction > 0, low + fraction * (high - low), low)[:, 0]


def _langevin(mode: Tensor, z: Tensor, score: Tensor) -> Tensor:
    """|z| / |score| of each sample (mode 1) or of the batch's means (mode 2), 1 elsewhere: [B]."""
    noise_norm, score_norm = (t.flatten(1).square().sum(1).sqrt() for t in (z, score))
    together = mode == 2
    noise_sum, score_sum = (torch.where(together, norm, 0.0).sum() for norm in (noise_norm, score_norm))
    root = torch.where(together, noise_sum / score_sum, noise_norm / score_norm)
    return torch.where(mode > 0, root, 1.0)
