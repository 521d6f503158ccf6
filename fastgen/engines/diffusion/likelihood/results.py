"""What a diffusion model says of data: log-likelihoods and bits per dimension, and what kind of number each is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...estimates import Estimates
from ...flow.bits import BitsPerDim

EXACT, HUTCHINSON, BOUND, HUTCHINSON_BOUND = "exact", "Hutchinson", "bound", "Hutchinson bound"


@dataclass(frozen=True)
class Terms:
    """The variational bound by its terms: their sum is the bound of a sample.

    prior: float64 [n], KL(q(x_T | x) | p(x_T)).
    by_timestep: float64 [n, T]; entry 0 is -log p(x | x_0), of the decoder, entry t > 0
        KL(q(x_(t-1) | x_t, x) | p(x_(t-1) | x_t)), by one draw of x_t each. NaN where a term was not evaluated: those
        that were stand for the ones around them.
    times: float64 [T], what the network is told at each.
    """

    prior: Tensor
    by_timestep: Tensor
    times: Tensor

    def mean(self) -> Tensor:
        """[T]: of each term over the samples of data in which it was evaluated; NaN where it was in none."""
        return self.by_timestep.nanmean(0)


@dataclass(frozen=True)
class LogProb(Estimates):
    """log p(x) of continuous x in nats, float64 [n], on the CPU.

    kind: "exact": by the probability flow with the whole trace; off by the solver's error alone.
        "Hutchinson": its trace estimated without bias by `samples` random directions for each evaluation.
        "bound": a lower bound, the variational one, by `samples` draws of the noise.
    errors: float64 [n], the standard error of each value by its draws: 0 where it is exact, NaN of a single draw.
    evaluations: of the network for each x.
    terms: of the bound, in nats, each a cost: they sum to -values.
    """

    errors: Tensor
    evaluations: int
    terms: Terms | None = None

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.4f}"
        draws = "" if self.kind == EXACT else f", {self.samples} samples"
        return f"{self.mean:.4f}{spread} nats ({self.kind}{draws}, {len(self.values)} of data)"


@dataclass(frozen=True)
class DiffusionBits(BitsPerDim):
    """-log2 of a sample's probability, divided by its number of dimensions: float64 [n], on the CPU.

    kind: "exact" and "Hutchinson": of a density of continuous x, as for ``LogProb``.
        "bound": of levels; the variational bound, or one by dequantisation of the probability flow's density with the
            whole trace. Its expectation is an upper bound.
        "Hutchinson bound": the same with an estimated trace: its expectation is that bound.
    dequantisation: "uniform" or "decoder", what stands between levels and the density of the probability flow; None of
        continuous data and of the variational bound.
    errors, evaluations, terms: see ``LogProb``; terms in bits per dimension.
    """

    dequantisation: str | None = None
    errors: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64, device="cpu"))
    evaluations: int = 0
    terms: Terms | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its mean and what it is, as JSON types."""
        return {**super().to_dict(), "dequantisation": self.dequantisation, "evaluations": self.evaluations}

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.4f}"
        noise = "" if self.dequantisation is None else f", {self.dequantisation} dequantisation"
        draws = "" if self.kind == EXACT else f", {self.samples} samples"
        return f"{self.mean:.4f}{spread} bits/dim ({self.kind}{noise}{draws}, {len(self.values)} samples of data)"
