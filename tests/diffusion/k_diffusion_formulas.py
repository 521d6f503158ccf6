"""Stochastic solvers as plain loops in sigma = noise / signal, each from its paper: another way than through tables.

No code of another project is used. Everything is float64; a network is asked with y / sqrt(sigma^2 + 1), y = x / alpha.
The ancestral step is Song et al. 2021, eq. 16 with sigma^2 for 1 / alpha_bar - 1; 2S is Lu et al. 2022
(arXiv:2211.01095), algorithm 1 with r = 1 / 2; 2M and 3M of the stochastic kind are its appendix, with Newton's form of
the interpolating polynomial as k-diffusion has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastgen.diffusion import NoiseSchedule

Network = Callable[[Tensor, float], Tensor]


class Denoiser:
    """x_0 at (y, sigma), the times read off log(sigma) by interpolation."""

    def __init__(self, schedule: NoiseSchedule, network: Network, clip: float, whole: bool) -> None:
        bars = np.cumprod(1.0 - schedule.betas)
        self.levels = np.sqrt((1.0 - bars) / bars)
        self.kind, self.network, self.clip, self.whole = schedule.prediction_type, network, clip, whole
        self.visited: dict[float, float] = {}  # the times of levels interpolated between timesteps

    def __call__(self, y: Tensor, sigma: float, step_point: bool = True) -> Tensor:
        t = float(np.interp(math.log(sigma), np.log(self.levels), np.arange(len(self.levels))))
        if step_point:
            t = self.visited.get(sigma, float(round(t)) if self.whole else t)
        root = math.sqrt(sigma**2 + 1.0)
        out = self.network(y / root, t)
        x0 = {
            "epsilon": lambda: y - sigma * out,
            "sample": lambda: out,
            "v_prediction": lambda: y / root**2 - sigma / root * out,
        }[self.kind]()
        return x0.clamp(-self.clip, self.clip)


def ancestral(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up)."""
    up = min(after, eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
    return math.sqrt(after**2 - up**2), up


def levels_of(denoise: Denoiser, steps: int, options: dict[str, Any]) -> list[float]:
    """The sigmas visited, and 0; their times are told to `denoise` where they come first. steps: at least 2."""
    levels, count = denoise.levels, len(denoise.levels)
    ends = math.log(levels[-1]), math.log(levels[0])
    ramp = [1.0 - i / (steps - 1) for i in range(steps)]
    if options.get("use_polyexponential_sigmas"):
        rho = options.get("rho", 1.0)
        return [math.exp(ends[1] + r**rho * (ends[0] - ends[1])) for r in ramp] + [0.0]
    if options.get("use_karras_sigmas"):
        rho = options.get("rho", 7.0)
        high, low = levels[-1] ** (1 / rho), levels[0] ** (1 / rho)
        return [(low + r * (high - low)) ** rho for r in ramp] + [0.0]
    for t in [(count - 1) * r for r in ramp]:
        denoise.visited[float(np.interp(t, np.arange(count), levels))] = t
    return [*denoise.visited, 0.0]


def k_diffusion_run(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    network: Network,
    x: Tensor,
    noise: Sequence[Tensor],
    **options: Any,
) -> Tensor:
    """The final state, noise[i] being the fresh noise of evaluation i. x: the first network input."""
    clip = options.get("clip_sample_range", 1.0) if options.get("clip_sample") else math.inf
    whole = name == "dpm2_a" and bool(options.get("use_karras_sigmas"))
    denoise = Denoiser(schedule, network, clip, whole)
    sigmas = levels_of(denoise, steps, options)
    drawn = iter(noise)
    loop = LOOPS[name]
    scaled = options.get("s_noise", 1.0), options.get("eta", 1.0)
    return loop(denoise, x * math.sqrt(sigmas[0] ** 2 + 1), sigmas, lambda: next(drawn), *scaled, options)


def euler_a(denoise: Any, y: Tensor, sigmas: Any, draw: Any, s_noise: float, eta: float, _: Any) -> Tensor:
    for sigma, after in itertools.pairwise(sigmas):
        x0, z = denoise(y, sigma), draw()
        down, up = ancestral(sigma, after, eta)
        y = x0 + down * ((y - x0) / sigma) + s_noise * up * z
    return y


def dpm2_a(denoise: Any, y: Tensor, sigmas: Any, draw: Any, s_noise: float, eta: float, _: Any) -> Tensor:
    for sigma, after in itertools.pairwise(sigmas):
        slope, z = (y - denoise(y, sigma)) / sigma, draw()
        down, up = ancestral(sigma, after, eta)
        if down == 0.0:
            y = y - sigma * slope + s_noise * up * z
            continue
        middle = math.sqrt(sigma * down)
        between = y + (middle - sigma) * slope
        slope = (between - denoise(between, middle, step_point=False)) / middle
        y = y + (down - sigma) * slope + s_noise * up * draw()
    return y


def dpmpp_2s_a(denoise: Any, y: Tensor, sigmas: Any, draw: Any, s_noise: float, eta: float, _: Any) -> Tensor:
    for sigma, after in itertools.pairwise(sigmas):
        x0, z = denoise(y, sigma), draw()
        down, up = ancestral(sigma, after, eta)
        if down == 0.0:
            y = x0 + s_noise * up * z
            continue
        h = math.log(sigma / down)
        middle = sigma * math.exp(-h / 2)
        between = middle / sigma * y + (1.0 - math.exp(-h / 2)) * x0
        y = (
            down / sigma * y
            + (1.0 - math.exp(-h)) * denoise(between, middle, step_point=False)
            + s_noise * up * draw()
        )
    return y


def dpmpp_sde(denoise: Any, y: Tensor, sigmas: Any, draw: Any, s_noise: float, eta: float, _: Any) -> Tensor:
    for sigma, after in itertools.pairwise(sigmas):
        x0, z = denoise(y, sigma), draw()
        if after == 0.0:
            return x0
        middle = math.sqrt(sigma * after)
        down, up = ancestral(sigma, middle, eta)
        between = down / sigma * y + (1.0 - down / sigma) * x0 + s_noise * up * z
        down, up = ancestral(sigma, after, eta)
        x0 = denoise(between, middle, step_point=False)
        path = (math.sqrt(sigma - middle) * z + math.sqrt(middle - after) * draw()) / math.sqrt(sigma - after)
        y = down / sigma * y + (1.0 - down / sigma) * x0 + s_noise * up * path
    return y


LOOPS = {"euler_a": euler_a, "dpm2_a": dpm2_a, "dpm++2s_a": dpmpp_2s_a, "dpm++sde": dpmpp_sde}


def sde_multistep_run(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    network: Network,
    x: Tensor,
    noise: Sequence[Tensor],
    **options: Any,
) -> Tensor:
    """2M-SDE and 3M-SDE with any eta, on whole linspace timesteps, in lambda = -log(sigma)."""
    clip = options.get("clip_sample_range", 1.0) if options.get("clip_sample") else math.inf
    denoise = Denoiser(schedule, network, clip, True)
    eta, kind = options.get("eta", 1.0), options.get("solver_type", "midpoint")
    times = np.linspace(0, len(denoise.levels) - 1, steps + 1).round().astype(int)[::-1][:-1]
    lambdas = [-math.log(denoise.levels[t]) for t in times]
    y = x * math.sqrt(math.exp(-2 * lambdas[0]) + 1)
    kept: list[Tensor] = []
    for i, now in enumerate(lambdas):
        kept.insert(0, denoise(y, math.exp(-now)))
        if i == steps - 1:
            return kept[0]
        h = lambdas[i + 1] - now
        g = h * (1.0 + eta)
        order = min(i + 1, 3 if name == "dpm++3m_sde" else 2)
        if steps < 15 and i == steps - 2:
            order = min(order, 2)
        # [x_0] and divided differences times h; phi_2(-g) g and phi_3(-g) g
        two = 1.0 + math.expm1(-g) / g
        x0 = -math.expm1(-g) * kept[0]
        if order >= 2:
            first = (kept[0] - kept[1]) * h / (now - lambdas[i - 1])
        if order == 2:
            x0 = x0 + (two if kind == "heun" else -math.expm1(-g) / 2) * first
        if order == 3:
            second = (kept[1] - kept[2]) * h / (lambdas[i - 1] - lambdas[i - 2])
            bend = (first - second) * h / (now - lambdas[i - 2])
            first = first + bend * (now - lambdas[i - 1]) / h
            x0 = x0 + two * first - (two / g - 0.5) * bend
        up = math.exp(-lambdas[i + 1]) * math.sqrt(-math.expm1(-2.0 * eta * h))
        y = math.exp(-g) * y + x0 + up * noise[i]
    raise AssertionError("not reached")
