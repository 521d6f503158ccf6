"""Noise levels that a denoiser is trained at: drawn for every sample of a batch, by the rule of its process.

    NoiseSchedule    timesteps, each as often            Ho et al. 2020, algorithm 1
    VP, sub-VP, VE   t uniform from 1e-5 to 1            Song et al. 2021, eq. 7 and appendix C
    EDM              log(sigma) normal                   Karras et al. 2022, table 1
    flow             sigma uniform in (0, 1]             Lipman et al. 2023, eq. 9; Liu et al. 2023, eq. 1

What belongs to a level (alpha, sigma, what the network is told, what its output means) is said by the process itself,
as for sampling, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..diffusion.edm import EDM
from ..diffusion.flow_matching import FlowMatching
from ..diffusion.points import Point, estimates
from ..diffusion.processes import AnyProcess
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.sde import SDE
from ..errors import ConfigError

EARLIEST = 1e-5  # time of an SDE below which nothing is trained: the score grows without bound


@dataclass(frozen=True)
class Levels:
    """The noise level of each of B samples: x = alpha x_0 + sigma epsilon.

    alpha, sigma: float64 [B]. time: what the network is told, int64 [B] of a NoiseSchedule, else float32 [B].
    input_scale: float64 [B], the network is given input_scale * x. skip, out: float64 [B], p and q in the estimate
    x_0 = p x + q F that its output F means. All on the CPU.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor
    input_scale: Tensor
    skip: Tensor
    out: Tensor

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2, float64 [B]."""
        return (self.alpha / self.sigma) ** 2

    def noisy(self, x: Tensor, noise: Tensor) -> Tensor:
        """alpha x_0 + sigma epsilon, of the shape and type of `x`."""
        return spread(self.alpha, x) * x + spread(self.sigma, x) * noise

    def target(self, x: Tensor, noise: Tensor) -> Tensor:
        """The output by which the network would mean the true x_0.

        F = ((1 - p alpha) x_0 - p sigma epsilon) / q, whose factors are made in float64: in float32 the difference
        (x_0 - p x) / q would lose all digits where q is small.
        """
        of_x = (1.0 - self.skip * self.alpha) / self.out
        of_noise = -self.skip * self.sigma / self.out
        return spread(of_x, x) * x + spread(of_noise, x) * noise


def spread(values: Tensor, like: Tensor) -> Tensor:
    """`values` [B] as [B, 1, ...] for a product with `like`, on its device and in its type."""
    return values.to(like).reshape(-1, *[1] * (like.dim() - 1))


def of_timesteps(schedule: NoiseSchedule, t: Tensor) -> Levels:
    """The levels of timesteps `t`, int64 [B] on the CPU."""
    bars = torch.from_numpy(np.array(schedule.alphas_cumprod))[t]
    alpha, sigma = bars.sqrt(), (1.0 - bars).sqrt()
    # Arithmetic alone, which tensors do as numbers do.
    (p, q), _ = estimates(schedule.prediction_type, alpha, sigma)  # type: ignore[arg-type]
    skip, out = (torch.as_tensor(v, dtype=torch.float64, device="cpu").expand_as(alpha) for v in (p, q))
    return Levels(alpha, sigma, t, torch.ones_like(alpha), skip, out)


def of_points(points: Sequence[Point]) -> Levels:
    """The levels that are `points` of a process."""
    rows = [(p.alpha, p.sigma, p.input_scale, *p.x0) for p in points]
    alpha, sigma, scale, skip, out = torch.tensor(rows, dtype=torch.float64, device="cpu").T
    time = torch.tensor([p.time for p in points], dtype=torch.float32, device="cpu")
    return Levels(alpha, sigma, time, scale, skip, out)


def drawn(
    process: AnyProcess, count: int, generator: torch.Generator, log_sigma: tuple[float, float] = (-1.2, 1.2)
) -> Levels:
    """`count` levels of `process`, by its rule (see the module): `at` random `places`."""
    return at(process, places(process, count, generator, log_sigma))


def places(
    process: AnyProcess, count: int, generator: torch.Generator, log_sigma: tuple[float, float] = (-1.2, 1.2)
) -> Tensor:
    """Where `count` levels of `process` lie, by its rule: timesteps, int64 [count]; t or sigma, float64 [count].

    generator: of the CPU. log_sigma: mean and deviation, of EDM. Raises ConfigError for a process that has no rule.
    """
    check_process(process)
    if isinstance(process, NoiseSchedule):
        return torch.randint(process.num_train_timesteps, (count,), generator=generator, device="cpu")
    if isinstance(process, EDM):
        mean, deviation = log_sigma
        normal = torch.randn(count, generator=generator, dtype=torch.float64, device="cpu")
        return (mean + deviation * normal).exp()
    share = 1.0 - torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")  # in (0, 1]
    return EARLIEST + (1.0 - EARLIEST) * share if isinstance(process, SDE) else share


def at(process: AnyProcess, where: Tensor) -> Levels:
    """The levels of `process` at `places`."""
    if isinstance(process, NoiseSchedule):
        return of_timesteps(process, where)
    point = process.at if isinstance(process, SDE) else process.point
    return of_points([point(place) for place in where.tolist()])


def check_process(process: AnyProcess) -> None:
    """Whether a denoiser can be trained on `process`. Raises ConfigError."""
    if not isinstance(process, NoiseSchedule | SDE | EDM | FlowMatching):
        raise ConfigError(
            f"a network of the process {process.name} is not trained as a denoiser; take a NoiseSchedule, "
            "vp_sde, subvp, ve, edm or flow",
            argument="schedule",
        )
