"""Gaussian mixtures, of which everything is known: density at any noise level, and the best network of any process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen.diffusion import EDM, VESDE, VPSDE, FlowMatching, NoiseSchedule, process_from_config
from fastgen.diffusion.points import Point
from fastgen.diffusion.processes import AnyProcess

PROCESSES: list[dict[str, Any]] = [
    {"beta_schedule": "linear", "prediction_type": "epsilon"},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True, "prediction_type": "sample"},
    {"process": "vp_sde", "prediction_type": "epsilon"},
    {"process": "subvp", "prediction_type": "score"},
    {"process": "ve", "prediction_type": "score"},
    {"process": "edm", "prediction_type": "edm"},
    {"process": "edm", "prediction_type": "sample"},
    {"process": "flow", "prediction_type": "velocity"},
    {"process": "flow", "prediction_type": "velocity", "invert_sigmas": True, "time": "unit"},
]


def name(values: dict[str, Any]) -> str:
    return "-".join(str(value) for value in values.values())


class Mixture:
    """Components N(mean, deviation^2 I) in D dimensions, standardised to zero mean and unit variance in all."""

    def __init__(self, dimensions: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(3, dimensions, generator=generator, dtype=torch.float64)
        self.weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        means = means - self.weights @ means
        deviations = torch.tensor([0.5, 0.7, 0.6], dtype=torch.float64)
        variance = self.weights @ (means.square().mean(1) + deviations.square())
        self.means, self.deviations = means / variance.sqrt(), deviations / variance.sqrt()

    def sample(self, count: int, seed: int = 1) -> Tensor:
        """float64 [count, D]."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.deviations[which, None] * noise

    def log_prob(self, x: Tensor, noise: float = 0.0) -> Tensor:
        """log p of x = x_0 + noise epsilon, float64 [n]."""
        variance = self.deviations.square() + noise**2
        squares = (x[:, None] - self.means).square().sum(2) / variance
        norm = 0.5 * x.shape[1] * torch.log(2 * math.pi * variance)
        return torch.logsumexp(self.weights.log() - 0.5 * squares - norm, 1)

    def clean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x = alpha x_0 + sigma epsilon]. x: float64 [n, D]; alpha, sigma: [n]."""
        alpha, sigma = alpha[:, None], sigma[:, None]
        variance = alpha.square() * self.deviations.square() + sigma.square()  # [n, components]
        off = x[:, None] - alpha[:, :, None] * self.means
        logs = self.weights.log() - 0.5 * off.square().sum(2) / variance - 0.5 * x.shape[1] * variance.log()
        gain = alpha * self.deviations.square() / variance
        return (logs.softmax(1)[:, :, None] * (self.means + gain[:, :, None] * off)).sum(1)


class BestNetwork(nn.Module):
    """F(x, t) whose estimate of x_0 is the mixture's, computed in float64 from what the process tells it."""

    def __init__(self, mixture: Mixture, process: AnyProcess) -> None:
        super().__init__()
        self.mixture, self.process = mixture, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times, places = t.double().unique(return_inverse=True)
        points = [point_of(self.process, float(time)) for time in times]
        values = [(p.alpha, p.sigma, p.input_scale, *p.x0) for p in points]
        alpha, sigma, scale, p, q = torch.tensor(values, dtype=torch.float64)[places].T
        state = x.double().flatten(1) / scale[:, None]
        clean = self.mixture.clean(state, alpha, sigma)
        return ((clean - p[:, None] * state) / q[:, None]).view(x.shape).to(x.dtype)


def point_of(process: AnyProcess, time: float) -> Point:
    """The point whose network is told `time`: the inverse of what each process says; of 0, some point nearby."""
    if isinstance(process, NoiseSchedule):
        low = min(max(math.floor(time), 0), process.num_train_timesteps - 2)
        logs, part = np.log(process.levels), time - low
        return process.point(float(np.exp((1 - part) * logs[low] + part * logs[low + 1])), time)
    if isinstance(process, EDM):
        return process.point(max(time, 1e-9) if process.prediction_type == "sample" else math.exp(4 * time))
    if isinstance(process, VESDE):
        return process.point(max(time, 1e-9))
    if isinstance(process, VPSDE):
        return process.at(max(time, 1e-9) / (process.num_train_timesteps - 1))
    assert isinstance(process, FlowMatching)
    sigma = time / process.num_train_timesteps if process.time == "timesteps" else time
    return process.point(min(1.0, max(1e-9, 1.0 - sigma if process.invert_sigmas else sigma)))


def best(dimensions: int, values: dict[str, Any]) -> tuple[Mixture, AnyProcess, BestNetwork]:
    mixture, process = Mixture(dimensions), process_from_config(values)
    return mixture, process, BestNetwork(mixture, process)
