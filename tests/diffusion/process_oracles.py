"""Solvers of continuous processes as their papers write them: straight loops in float64, independent of our tables.

Every loop takes (process, steps, network, x, noise, **options) and returns the final state. network(x, t) is asked with
what the paper asks; noise is an iterator over normal arrays in the order in which a table's rows bring them: what is
added before an evaluation comes with the row before it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.optimize import brentq

from fastgen.diffusion import EDM, SOLVERS, VESDE, VPSDE, FlowMatching, SubVPSDE, run

from .golden import Measured

Array = np.ndarray
Network = Callable[[Array, float], Array]
SHAPE = (2, 3, 4, 4)


def network(x: Array, t: float) -> Array:
    """Some non-linear function of both; smooth in t, which reaches 1000 and carries its rounding."""
    mixed = np.einsum("oc,bchw->bohw", np.random.default_rng(5).normal(size=(3, 3)), x)
    return 1.2 * np.tanh(0.5 * mixed + math.sin(0.01 * t)) + 0.1 * np.tanh(x)


def runs(name: str, process: Any, steps: int, **options: Any) -> tuple[Array, Array]:
    """(our table's final state, the loop's) from the same start and noise."""
    own = {"as_diffusers": True} if SOLVERS[name].diffusers else {}  # levels of the process
    table = SOLVERS[name](process, steps, **own, **options)
    rng = np.random.default_rng(steps)
    x = table.initial_scale * rng.normal(size=SHAPE)
    noise = rng.normal(size=(len(table), *SHAPE))
    theirs = LOOPS[name](process, steps, network, x, iter(noise), **options)
    return run(table, network, x, list(noise)), theirs


def deviation(name: str, process: Any, steps: int, **options: Any) -> float:
    """Largest difference of the two final states, relative to the largest value."""
    ours, theirs = runs(name, process, steps, **options)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def tolerance(process: Any, steps: int) -> float:
    """1e-12, or what (z - x_0) / w at the end of a step down to w' loses of z, as large as w: w / w' roundings."""
    w = np.array(levels(process, steps)[:-1])
    lost = float((w[:-1] / w[1:]).max()) if steps > 1 else 0.0
    return max(1e-12, 2 * np.finfo(float).eps * lost)


# The processes, again


def integral(process: VPSDE, t: float) -> float:
    """B(t) of Song et al. 2021, eq. 33: the integral of beta."""
    return 0.5 * t**2 * (process.beta_max - process.beta_min) + t * process.beta_min


def marginal(process: Any, t: float) -> tuple[float, float]:
    """alpha and sigma of x_t given x_0 (Song et al. 2021, eq. 29)."""
    if isinstance(process, VESDE):
        return 1.0, process.sigma_min * (process.sigma_max / process.sigma_min) ** t
    alpha = math.exp(-0.5 * integral(process, t))
    variance = -math.expm1(-integral(process, t))  # 1 - alpha^2, of which near t = 0 little is left
    return alpha, variance if isinstance(process, SubVPSDE) else math.sqrt(variance)


def levels(process: Any, steps: int) -> list[float]:
    """sigma / alpha (flow matching: sigma) at the evaluations, and the end, 0."""
    ramp = np.linspace(0, 1, steps)
    if isinstance(process, EDM):
        rho = process.rho
        first, last = process.sigma_max ** (1 / rho), process.sigma_min ** (1 / rho)
        found = (first + ramp * (last - first)) ** rho
    elif isinstance(process, FlowMatching):
        found = np.linspace(1.0, 1.0 / process.num_train_timesteps, steps)
    elif isinstance(process, VESDE):
        found = process.sigma_max * (process.sigma_min / process.sigma_max) ** ramp
    else:
        pairs = [marginal(process, t) for t in 1.0 + ramp * (process.sampling_eps - 1.0)]
        found = np.array([sigma / alpha for alpha, sigma in pairs])
    return [*found, 0.0]


def denoiser(process: Any, network: Network) -> Callable[[Array, float], Array]:
    """x_0 from z = x / alpha (flow matching: x) at a level."""

    def edm(z: Array, sigma: float) -> Array:
        data = process.sigma_data
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / math.sqrt(sigma**2 + data**2)
        c_in = 1.0 / math.sqrt(sigma**2 + data**2)
        return c_skip * z + c_out * network(c_in * z, math.log(sigma) / 4)

    def flow(z: Array, sigma: float) -> Array:
        return z - sigma * network(z, process.num_train_timesteps * sigma)

    def ve(z: Array, sigma: float) -> Array:
        return z + sigma**2 * network(z, sigma)

    def vp(z: Array, level: float) -> Array:
        def excess(t: float) -> float:
            alpha, sigma = marginal(process, t)
            return math.log(sigma / alpha / level)

        t = brentq(excess, 1e-9, 2.0, xtol=1e-16, rtol=1e-15)
        alpha, _ = marginal(process, t)
        return z - level * network(alpha * z, 999.0 * t)

    kinds = {EDM: edm, FlowMatching: flow, VESDE: ve, VPSDE: vp, SubVPSDE: vp}
    return kinds[type(process)]


def into_z(process: Any, x: Array, level: float) -> Array:
    if isinstance(process, (EDM, FlowMatching, VESDE)):
        return x
    if isinstance(process, SubVPSDE):  # (1 - a^2) / a = level
        return x * (math.sqrt(level**2 + 4.0) + level) / 2.0
    return x * math.sqrt(1.0 + level**2)


# The solvers


def midpoint(process: Any, steps: int, network: Network, x: Array, noise: Iterator[Array]) -> Array:
    w = levels(process, steps)
    x0 = denoiser(process, network)
    z = into_z(process, x, w[0])
    for now, after in itertools.pairwise(w):
        if after == 0.0:
            return x0(z, now)
        middle = (now + after) / 2
        half = z + (middle - now) * (z - x0(z, now)) / now
        z = z + (after - now) * (half - x0(half, middle)) / middle
    raise AssertionError


def rk4(process: Any, steps: int, network: Network, x: Array, noise: Iterator[Array]) -> Array:
    w = levels(process, steps)
    x0 = denoiser(process, network)

    def d(z: Array, level: float) -> Array:
        return (z - x0(z, level)) / level

    z = into_z(process, x, w[0])
    for now, after in itertools.pairwise(w):
        h = after - now
        if after == 0.0:
            return z + h * d(z, now)
        k1 = d(z, now)
        k2 = d(z + h / 2 * k1, now + h / 2)
        k3 = d(z + h / 2 * k2, now + h / 2)
        k4 = d(z + h * k3, after)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    raise AssertionError


def karras(
    process: Any,
    steps: int,
    network: Network,
    x: Array,
    noise: Iterator[Array],
    *,
    second_order: bool = True,
    S_churn: float = 0.0,
    S_tmin: float = 0.0,
    S_tmax: float = math.inf,
    S_noise: float = 1.0,
) -> Array:
    """Algorithm 2 of Karras et al. 2022; with second_order=False without lines 6 to 8, k-diffusion's Euler."""
    t = levels(process, steps)
    x0 = denoiser(process, network)
    for i in range(steps):
        gamma = min(S_churn / steps, math.sqrt(2) - 1) if S_tmin <= t[i] <= S_tmax else 0.0
        t_hat = t[i] + gamma * t[i]
        if i > 0:  # the first is part of the initial state
            epsilon = S_noise * next(noise)
            x = x + math.sqrt(t_hat**2 - t[i] ** 2) * epsilon
        d = (x - x0(x, t_hat)) / t_hat
        following = x + (t[i + 1] - t_hat) * d
        if second_order and t[i + 1] != 0.0:
            next(noise)  # the row of the first slope brings none
            d_after = (following - x0(following, t[i + 1])) / t[i + 1]
            following = x + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * d_after)
        x = following
    return x


def drift_diffusion(process: Any, t: float) -> tuple[float, float]:
    """f and g^2 of dx = f x dt + g dw (Song et al. 2021, appendix B)."""
    if isinstance(process, VESDE):
        _, sigma = marginal(process, t)
        return 0.0, sigma**2 * 2.0 * math.log(process.sigma_max / process.sigma_min)
    beta = process.beta_min + t * (process.beta_max - process.beta_min)
    if isinstance(process, SubVPSDE):
        return -0.5 * beta, beta * (1.0 - math.exp(-2.0 * integral(process, t)))
    return -0.5 * beta, beta


def score(process: Any, network: Network, x: Array, t: float) -> Array:
    """As score_sde has it: networks of VP and sub-VP predict noise and are told 999 t, VE's the score, told sigma."""
    _, sigma = marginal(process, t)
    return network(x, sigma) if isinstance(process, VESDE) else -network(x, 999.0 * t) / sigma


def euler_maruyama(
    process: Any,
    steps: int,
    network: Network,
    x: Array,
    noise: Iterator[Array],
    *,
    probability_flow: bool = False,
    noise_removal: bool = True,
) -> Array:
    h = (1.0 - process.sampling_eps) / steps
    for i in range(steps):
        t = 1.0 - i * h
        f, g2 = drift_diffusion(process, t)
        share = 0.5 if probability_flow else 1.0
        mean = x + (share * g2 * score(process, network, x, t) - f * x) * h
        z = next(noise)
        x = mean if probability_flow else mean + math.sqrt(g2 * h) * z
    return mean if noise_removal else x


def predictor_corrector(
    process: Any,
    steps: int,
    network: Network,
    x: Array,
    noise: Iterator[Array],
    *,
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    snr: float = 0.16,
    n_steps: int = 1,
    step_size: str = "sample",
    noise_removal: bool = True,
) -> Array:
    """Algorithms 1 to 5 of Song et al. 2021, appendix G, the discrete chains of appendix C with N = steps."""
    if isinstance(process, VESDE):
        ramp = np.arange(steps) / max(steps - 1, 1)
        sigmas = [*(process.sigma_max * (process.sigma_min / process.sigma_max) ** ramp), 0.0]
    for i in range(steps):
        if isinstance(process, VESDE):
            t = math.log(sigmas[i] / process.sigma_min) / math.log(process.sigma_max / process.sigma_min)
            beta = 0.0
        else:
            t = 1.0 - i * (1.0 - process.sampling_eps) / max(steps - 1, 1)
            share = i / max(steps - 1, 1)
            beta = (process.beta_max + share * (process.beta_min - process.beta_max)) / steps
        if corrector == "langevin":
            for _ in range(n_steps):
                gradient, z = score(process, network, x, t), next(noise)
                norm = [np.sqrt((v.reshape(len(v), -1) ** 2).sum(1)) for v in (z, gradient)]
                if step_size == "batch":
                    norm = [v.mean() for v in norm]
                epsilon = np.reshape(2.0 * (1.0 - beta) * (snr * norm[0] / norm[1]) ** 2, (-1, 1, 1, 1))
                mean = x + epsilon * gradient
                x = mean + np.sqrt(2.0 * epsilon) * z
        if predictor != "none":
            gradient, z = score(process, network, x, t), next(noise)
            f, g2 = drift_diffusion(process, t)
            if isinstance(process, VESDE) and predictor != "euler_maruyama":
                variance = sigmas[i] ** 2 - sigmas[i + 1] ** 2
                mean = x + variance * gradient
                kept = 1.0 if predictor == "reverse_diffusion" else sigmas[i + 1] / sigmas[i]
                x = mean + kept * math.sqrt(variance) * z
            elif predictor == "euler_maruyama" or isinstance(process, SubVPSDE):
                mean = x + (g2 * gradient - f * x) / steps
                x = mean + math.sqrt(g2 / steps) * z
            elif predictor == "reverse_diffusion":
                mean = (2.0 - math.sqrt(1.0 - beta)) * x + beta * gradient
                x = mean + math.sqrt(beta) * z
            else:
                mean = (x + beta * gradient) / math.sqrt(1.0 - beta)
                x = mean + math.sqrt(beta) * z
    return mean if noise_removal else x


LOOPS: dict[str, Callable[..., Array]] = {
    "midpoint": midpoint,
    "rk4": rk4,
    "heun": karras,
    "euler": lambda *given, **options: karras(*given, second_order=False, **options),
    "euler_maruyama": euler_maruyama,
    "predictor_corrector": predictor_corrector,
}
PROCESSES = (EDM(), FlowMatching(), VPSDE(), SubVPSDE(), VESDE())
SDES = (VPSDE(), SubVPSDE(), VESDE())


def measured(
    name: str, processes: tuple[Any, ...], counts: tuple[int, ...], options: list[dict[str, Any]]
) -> Measured:
    cases = [
        (p, n)
        for p in processes
        for n in counts
        if name not in ("midpoint", "rk4") or tolerance(p, n) == 1e-12
    ]
    found = [deviation(name, p, steps, **o) for p, steps in cases for o in options]
    return Measured([], found, "tests/diffusion/process_oracles.py")


PC_OPTIONS: list[dict[str, Any]] = [
    {},
    {"step_size": "batch", "n_steps": 2},
    {"predictor": "euler_maruyama", "snr": 0.05},
    {"predictor": "none", "noise_removal": False},
    {"corrector": "none"},
]
MEASURES: dict[str, Callable[[], Measured]] = {
    "midpoint": lambda: measured("midpoint", PROCESSES, (1, 2, 7, 10, 50), [{}]),
    "rk4": lambda: measured("rk4", PROCESSES, (1, 2, 7, 10, 50), [{}]),
    "euler_maruyama": lambda: measured(
        "euler_maruyama", SDES, (1, 2, 7, 10, 50), [{}, {"probability_flow": True}]
    ),
    "predictor_corrector": lambda: measured("predictor_corrector", SDES, (25, 50), PC_OPTIONS),
}
