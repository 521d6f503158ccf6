"""The order of every solver, measured where the exact answer is known.

    python -m tests.diffusion.convergence                      print the orders
    python -m tests.diffusion.convergence --plot docs/images/convergence.png

Deterministic solvers: a mixture of three Gaussians in the plane, whose score is known in closed form, and the flow of
which a Runge-Kutta method of order 8 (scipy's DOP853, tolerance 1e-13) integrates. Solvers with noise: Gaussian data,
for which every step is affine, so that the mean and variance at the end are exact numbers, without sampling; their
error is the weak error. What is compared is the state when it reaches t = 0.

log(alpha / sigma) falls evenly with t from 3.5 to -7. Even timesteps are then even steps; and at the noisy end, where
multistep solvers start at first order, estimates hardly move yet, as they do where real runs start.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from fastgen.diffusion import SOLVERS, VPSDE, NoiseSchedule, Table, run

T = 9601  # 9600 = 2^7 * 75: timesteps are whole for the numbers of steps used here
LOG_SNR = (3.5, -7.0)  # at t = 0 and t = T - 1
MEANS = np.array([[1.0, 0.4], [-0.6, 0.9], [-0.2, -0.8]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
SPREADS = np.array([0.35, 0.25, 0.45])  # standard deviations
MU, S = 0.4, 0.6  # of the Gaussian data
Function = Callable[[np.ndarray, float, float], np.ndarray]
Times = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Expected:
    """What a solver should show: its order, with these options, over these numbers of steps.

    counts: by default those whose timesteps are whole. solver: its name, where the line is one of several about it.
    """

    order: float
    options: dict[str, Any] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    solver: str = ""


SIGMA_MIN = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
THIRDS = (24, 48, 96, 192)  # whole steps of three evaluations
EXPECTED: dict[str, Expected] = {
    "ddpm": Expected(1),
    "ddim": Expected(1),
    "euler": Expected(1),
    "heun": Expected(2),
    "euler_a": Expected(1),
    "dpm2": Expected(2),
    "dpm2_a": Expected(2),
    "lms": Expected(4),
    "lms, order 2": Expected(2, {"solver_order": 2}, solver="lms"),
    "dpm++2m": Expected(2, SIGMA_MIN),
    # Not 3: as published, its polynomial takes half of the second divided difference.
    "dpm++3m": Expected(2, SIGMA_MIN),
    "dpm++2m_sde": Expected(2, SIGMA_MIN),
    "dpm++3m_sde": Expected(2, SIGMA_MIN),
    "dpm_multistep": Expected(2, {"algorithm_type": "dpmsolver", **SIGMA_MIN}),
    "dpm_multistep, order 1": Expected(1, {"solver_order": 1, **SIGMA_MIN}, solver="dpm_multistep"),
    "dpm_singlestep": Expected(2, {"algorithm_type": "dpmsolver", **SIGMA_MIN}),
    "dpm_singlestep, order 3": Expected(
        3, {"algorithm_type": "dpmsolver", "solver_order": 3, **SIGMA_MIN}, THIRDS, "dpm_singlestep"
    ),
    # The two noises of a step are independent, where those of dpm++sde are parts of one path.
    "dpm_singlestep, sde": Expected(
        1, {"algorithm_type": "sde-dpmsolver++", **SIGMA_MIN}, solver="dpm_singlestep"
    ),
    "dpm++2s": Expected(2, SIGMA_MIN),
    "dpm++3s": Expected(3, SIGMA_MIN, THIRDS),
    "dpm++2s_a": Expected(2),
    "dpm++sde": Expected(2),
    "midpoint": Expected(2),
    "rk4": Expected(4),
    # The corrector adds one to the predictor's order.
    "unipc": Expected(3, SIGMA_MIN),
    "unipc, order 3": Expected(4, {"solver_order": 3, **SIGMA_MIN}, solver="unipc"),
    "unipc, order 4": Expected(5, {"solver_order": 4, **SIGMA_MIN}, solver="unipc"),
    "deis": Expected(2, SIGMA_MIN),
    "deis, order 3": Expected(3, {"solver_order": 3, **SIGMA_MIN}, solver="deis"),
    # Fourth-order weights for even steps, between points joined by DDIM's rule: second order, as PNDM's paper proves.
    "plms": Expected(2),
    "pndm": Expected(2),
    "ipndm": Expected(2),
    "sa": Expected(2, SIGMA_MIN),
    "euler_maruyama": Expected(1, {"noise_removal": False}, (40, 80, 160, 320, 640)),
}
WITHOUT_ORDER = {
    "lcm": "made for networks that were distilled for it",
    "tcd": "made for networks that were distilled for it",
    "consistency": "made for networks that were distilled for it",
    "predictor_corrector": "its corrector's step size is a norm, and its limit the distribution, not a path",
}


@functools.cache
def schedule() -> NoiseSchedule:
    """The process described above."""
    bars = 1.0 / (1.0 + np.exp(-2.0 * np.linspace(*LOG_SNR, T)))
    betas = 1.0 - bars / np.append(1.0, bars[:-1])
    return NoiseSchedule(num_train_timesteps=T, trained_betas=tuple(betas), prediction_type="epsilon")


def alpha_sigma(t: float) -> tuple[float, float]:
    """alpha and sigma at any t from 0 to T - 1."""
    log_snr = LOG_SNR[0] + (LOG_SNR[1] - LOG_SNR[0]) * t / (T - 1)
    return 1.0 / math.sqrt(1.0 + math.exp(-2.0 * log_snr)), 1.0 / math.sqrt(1.0 + math.exp(2.0 * log_snr))


def mixture_x0(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x_0 | x] for the mixture. x: [N, 2]."""
    variances = alpha**2 * SPREADS**2 + sigma**2
    away = x[:, None] - alpha * MEANS
    logs = np.log(WEIGHTS) - np.log(variances) - (away**2).sum(-1) / (2.0 * variances)
    share = np.exp(logs - logs.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    each = MEANS + (alpha * SPREADS**2 / variances)[:, None] * away
    return (share[..., None] * each).sum(1)


def gaussian_x0(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x_0 | x] for N(MU, S^2)."""
    return MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)


SONG = VPSDE(sampling_eps=0.02, time="unit")  # for euler_maruyama, which solves the SDE in its own time


def alpha_sigma_of_song(t: float) -> tuple[float, float]:
    """alpha and sigma of `SONG` at t from 0 to 1."""
    point = SONG.at(t)
    return point.alpha, point.sigma


def end_state(
    table: Table, x0: Function, x: np.ndarray, noise: np.ndarray, at: Times = alpha_sigma
) -> np.ndarray:
    """The state when the run reaches t = 0, whether or not it goes on from there to the clean sample."""
    reached: list[np.ndarray] = []

    def network(state: np.ndarray, t: float) -> np.ndarray:
        if t == 0.0 and not reached:
            reached.append(state)
        alpha, sigma = at(t)
        return (state - alpha * x0(state, alpha, sigma)) / sigma

    end = run(table, network, x, noise)
    return reached[0] if reached else end


@functools.cache
def exact_end_state(t: float) -> tuple[np.ndarray, np.ndarray]:
    """Points at time t, [N, 2], and where the probability flow takes them by t = 0."""
    start = np.random.default_rng(0).normal(size=(12, 2))

    def slope(
        log_snr: float, z: np.ndarray
    ) -> np.ndarray:  # of z = x / alpha over lambda: -sigma / alpha epsilon
        alpha, sigma = alpha_sigma((log_snr - LOG_SNR[0]) / (LOG_SNR[1] - LOG_SNR[0]) * (T - 1))
        z = z.reshape(-1, 2)
        return (mixture_x0(alpha * z, alpha, sigma) - z).ravel()

    log_snr = LOG_SNR[0] + (LOG_SNR[1] - LOG_SNR[0]) * t / (T - 1)
    solved = solve_ivp(
        slope, (log_snr, LOG_SNR[0]), (start / alpha_sigma(t)[0]).ravel(), "DOP853", rtol=1e-13, atol=1e-13
    )
    return start, alpha_sigma(0.0)[0] * solved.y[:, -1].reshape(-1, 2)


def path_error(table: Table) -> float:
    """Largest distance of a point's end from the exact one, of a solver without noise."""
    start, exact = exact_end_state(float(table.time[0]))
    found = end_state(table, mixture_x0, start, np.zeros((len(table), 1)))
    return float(np.abs(found - exact).max())


def weak_error(table: Table, at: Times = alpha_sigma, end: float = 0.0) -> float:
    """Error of the mean or of the standard deviation at the end, whichever is larger, of a solver with noise."""
    alpha, sigma = at(float(table.time[0]))
    units = np.eye(len(table) + 1)
    mean = end_state(table, gaussian_x0, np.full(len(units), alpha * MU), np.zeros_like(units), at)
    start = alpha * MU + math.hypot(alpha * S, sigma) * units[0]
    spread = math.sqrt(float(((end_state(table, gaussian_x0, start, units[1:], at) - mean) ** 2).sum()))
    alpha, sigma = at(end)
    return max(abs(float(mean[0]) - alpha * MU), abs(spread - math.hypot(alpha * S, sigma)))


@dataclass(frozen=True)
class Measured:
    """Errors of one solver. evaluations, errors: [counts]."""

    name: str
    stochastic: bool
    evaluations: np.ndarray
    errors: np.ndarray

    @property
    def order(self) -> float:
        """Slope of log(error) over log(evaluations), least squares over the last three."""
        return -float(np.polyfit(np.log(self.evaluations[-3:]), np.log(self.errors[-3:]), 1)[0])


def measure(name: str) -> Measured:
    """The errors of line `name` of `EXPECTED`."""
    expected = EXPECTED[name]
    solver = SOLVERS[expected.solver or name]
    known = {option.name for option in solver.options}
    options = {"clip_sample": False} if "clip_sample" in known else {}
    if "timestep_spacing" in known:
        options["timestep_spacing"] = "linspace"
    options |= {key: value for key, value in expected.options.items() if key in known}
    # n steps between n + 1 step points, or n evaluations at n of them: either way timesteps are whole.
    counts_points = options.get("final_sigmas_type") == "sigma_min"
    counts = expected.counts or tuple(n if counts_points else n + 1 for n in (20, 40, 80, 160, 320))
    song = solver.name == "euler_maruyama"
    tables = [solver(SONG if song else schedule(), count, **options) for count in counts]
    stochastic = any(table.stochastic for table in tables)
    if song:
        errors = [weak_error(table, alpha_sigma_of_song, SONG.end) for table in tables]
    else:
        errors = [(weak_error if stochastic else path_error)(table) for table in tables]
    return Measured(name, stochastic, np.array([len(table) for table in tables]), np.array(errors))


def measurements() -> Iterator[Measured]:
    """All lines of `EXPECTED`."""
    return (measure(name) for name in EXPECTED)


def plot(path: Path) -> None:
    """Errors over network evaluations, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[str, Callable[[Measured], bool]] = {
        "without noise, order 1 and 2": lambda m: not m.stochastic and EXPECTED[m.name].order <= 2,
        "without noise, order 3 and more": lambda m: not m.stochastic and EXPECTED[m.name].order > 2,
        "with noise (weak error)": lambda m: m.stochastic,
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 8), sharey=True, layout="constrained")
    found = list(measurements())
    for axis, (title, belongs) in zip(axes, panels.items(), strict=True):
        shown = sorted((m for m in found if belongs(m)), key=lambda m: -m.errors[-1])
        colours = pyplot.get_cmap("turbo")(np.linspace(0.05, 0.95, len(shown)))
        for m, colour, marker in zip(shown, colours, itertools.cycle("osD^v<>Pp*hX"), strict=False):
            label = f"{m.name}  ({m.order:.1f})"
            axis.loglog(m.evaluations, m.errors, marker=marker, markersize=5, color=colour, label=label)
        ticks = [20, 40, 80, 160, 320, 640, 1280]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(xlabel="network evaluations", title=title, xlim=(17, 1500))
        axis.grid(color="0.9")
        axis.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    axes[0].set_ylabel("error at t = 0")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the order of every solver.")
    parser.add_argument("--plot", type=Path, help="write an image here")
    path = parser.parse_args().plot
    if path:
        plot(path)
        return
    for m in measurements():
        kind = "weak" if m.stochastic else "path"
        errors = " ".join(f"{error:.1e}" for error in m.errors)
        print(f"{m.name:24} {kind}  order {m.order:5.2f}, expected {EXPECTED[m.name].order}  {errors}")


if __name__ == "__main__":
    main()
