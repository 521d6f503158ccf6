"""The variational bound of a diffusion model, term by term (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eq. 4-7).

    -log p(x) <= KL(q(x_T | x) | p(x_T)) + sum over t of KL(q(x_s | x_t, x) | p(x_s | x_t)) - log p(x | x_0)

x_0 is here the state at the lowest noise level, timestep 0, s the level below t. A model's step is Gaussian, of mean
c x_0(x_t) + d x_t with the network's estimate x_0(x_t) in place of x in the posterior q(x_s | x_t, x) = N(c x + d x_t,
v), so that d x_t cancels. With w = sigma / alpha and the step's noise b = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2:

    v = b sigma_s^2 / sigma_t^2        c = alpha_s b / sigma_t^2

(Kingma et al. 2021, "Variational Diffusion Models", appendix A), for any process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgen_kernels import normals

from ....diffusion.probability_flow import ProbabilityFlow
from ....diffusion.schedule import NoiseSchedule
from . import decoder
from .network import Denoiser

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


@dataclass(frozen=True)
class Chain:
    """The levels of a bound, T of them, the lowest first, and what belongs to each: float64 [T].

    alpha, sigma, time, scale: of x_t = alpha x + sigma epsilon; what the network is told, and the factor of its input.
    state, output: x_0 = state x_t + output F, the network's estimate.
    weight: c of the step from the level to the one below; at the lowest, 1: there the decoder is.
    small, large: log v and log b of that step. The decoder's own v is 0; it has sigma_0^2, and small on a NoiseSchedule
        the v of the step above it, as in the code of Ho et al. 2020.
    prior_scale: standard deviation of the normal that sampling starts from.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    time: np.ndarray
    scale: np.ndarray
    state: np.ndarray
    output: np.ndarray
    weight: np.ndarray
    small: np.ndarray
    large: np.ndarray
    prior_scale: float

    @classmethod
    def of(cls, flow: ProbabilityFlow, levels: int) -> Chain:
        """All timesteps of a NoiseSchedule; of a process in continuous time `levels` points, even in the flow's u."""
        process = flow.process
        if isinstance(process, NoiseSchedule):
            count = process.num_train_timesteps
            points = [process.point_at(t, *process.alpha_sigma(t)) for t in range(count)]
            prior = 1.0
        else:
            points = [flow.point(float(u)) for u in np.linspace(flow.start, flow.end, levels)]
            prior = points[-1].sigma
        columns = [(p.alpha, p.sigma, p.time, p.input_scale, *p.x0) for p in points]
        alpha, sigma, time, scale, state, output = np.array(columns).T
        ratio = sigma[:-1] * alpha[1:] / (alpha[:-1] * sigma[1:])  # w_s / w_t
        noise = sigma[1:] ** 2 * (1.0 - ratio) * (1.0 + ratio)
        posterior = noise * (sigma[:-1] / sigma[1:]) ** 2
        # Where steps are short, the v of the step above is far below the variance of x given x_0.
        first = posterior[:1] if isinstance(process, NoiseSchedule) and len(points) > 1 else sigma[:1] ** 2
        return cls(
            alpha,
            sigma,
            time,
            scale,
            state,
            output,
            weight=np.concatenate([[1.0], alpha[:-1] * noise / sigma[1:] ** 2]),
            small=np.log(np.concatenate([first, posterior])),
            large=np.log(np.concatenate([sigma[:1] ** 2, noise])),
            prior_scale=prior,
        )

    def __len__(self) -> int:
        return len(self.time)

    @property
    def fixed_large(self) -> np.ndarray:
        """`large`, but the decoder's as in the code of Ho et al. 2020 and Nichol & Dhariwal 2021: that of `small`."""
        return np.concatenate([self.small[:1], self.large[1:]])

    def prior(self, x: Tensor) -> Tensor:
        """KL(q(x_T | x) | p(x_T)) in nats, float64 [n], of x [n, ...] in the data's units."""
        spread = self.prior_scale
        ratio = float(self.sigma[-1] / spread) ** 2
        mean = float(self.alpha[-1] / spread) ** 2 * x.double().square()
        return 0.5 * (mean + (ratio - 1.0 - math.log(ratio))).flatten(1).sum(1)


@dataclass(frozen=True)
class Steps:
    """The bound's terms of a network at chosen levels of a chain.

    variance: of ``VARIANCES``. span: (lowest, highest) value of images, to which the estimate of x_0 is clipped as
    ``ddpm`` clips it; None: no images. levels: of x, whose probability the decoder gives; None: its density.
    """

    chain: Chain
    network: Denoiser
    variance: str
    span: tuple[float, float] | None
    levels: int | None

    def terms(self, x: Tensor, at: Tensor, seeds: Tensor, draws: Tensor, label: Tensor | None) -> Tensor:
        """The term of level `at` of each x, by one draw of x_t, in nats: float64 [P].

        x: [P, ...] in the data's units. at, seeds, draws: int64 [P], draws below 2^15. label: int64 [P] or None.
        """
        noise = normals(seeds, at + (draws << 17), "step", x.shape[1:])
        alpha, sigma = (_column(values, at, x) for values in (self.chain.alpha, self.chain.sigma))
        state = alpha * x.double() + sigma * noise.double()
        estimate, log_variance = self._estimate(state, at, label)
        first = (at == 0).view(-1, *[1] * (x.dim() - 1))
        return (
            torch.where(
                first, self.decode(x, estimate, log_variance), self._kl(x, estimate, log_variance, at)
            )
            .flatten(1)
            .sum(1)
        )

    def decoded(self, x: Tensor, state: Tensor, label: Tensor | None) -> Tensor:
        """-log p(x | x_0) in nats, float64 [n], of a state x_0 [n, ...] at the lowest level."""
        at = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.decode(x, *self._estimate(state, at, label)).flatten(1).sum(1)

    def decode(self, x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """-log p(x | x_0) of each element."""
        if self.levels is None or self.span is None:
            return -decoder.density(x, mean, log_variance)
        return -decoder.discretised(x, mean, log_variance, self.span, self.levels)

    def _estimate(self, state: Tensor, at: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The network's estimate of x_0, and the logarithm of the variance of its step, float64 each."""
        chain = self.chain
        time = torch.tensor(chain.time, dtype=torch.float32, device=at.device)[at]
        output = self.network.both(_column(chain.scale, at, state) * state, time, label).double()
        own, said = output[:, : state.shape[1]], output[:, state.shape[1] :]
        estimate = _column(chain.state, at, state) * state + _column(chain.output, at, state) * own
        if self.span is not None:
            estimate = estimate.clamp(*self.span)
        small = _column(self.chain.small, at, state)
        large = _column(self.chain.large, at, state)
        if self.variance == "fixed_small":
            log_variance = small.expand_as(estimate)
        elif self.variance == "fixed_large":
            log_variance = _column(self.chain.fixed_large, at, state).expand_as(estimate)
        else:
            share = 0.5 * (said + 1.0)
            log_variance = said.log() if self.variance == "learned" else small + share * (large - small)
        return estimate, log_variance

    def _kl(self, x: Tensor, estimate: Tensor, log_variance: Tensor, at: Tensor) -> Tensor:
        """KL(N(c x + ., v) | N(c estimate + ., variance)) of each element."""
        small = _column(self.chain.small, at, x)
        weight = _column(self.chain.weight, at, x)
        ratio = small - log_variance
        apart = (weight * (x.double() - estimate)).square() * torch.exp(-log_variance)
        return 0.5 * (torch.expm1(ratio) - ratio + apart)


def _column(values: np.ndarray, at: Tensor, like: Tensor) -> Tensor:
    """values[at] as float64 [P, 1, ...]."""
    return torch.tensor(values, dtype=torch.float64, device=at.device)[at].view(-1, *[1] * (like.dim() - 1))


def strata(count: int, chosen: int, even: bool = False) -> list[tuple[int, int]]:
    """[first, last) of `chosen` runs of the levels 0 .. count - 1: 0 alone, then ever longer ones, or `even` ones.

    One random level of a run stands for it. On discrete schedules a term is about inversely proportional to its
    timestep, so that runs which are even in its logarithm have like sums; the levels of a chain in continuous time are
    even in the logarithm of the noise already.
    """
    if chosen >= count:
        return [(t, t + 1) for t in range(count)]
    spread = np.linspace if even else np.geomspace
    edges = np.round(spread(1, count, chosen)).astype(int)
    edges = np.maximum(edges, np.arange(1, chosen + 1))  # each run has a level of its own
    return [(0, 1), *zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
