"""DPM-Solver++, Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling" (arXiv:2211.01095)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..config import bounded, one_of
from .prediction import x0_coefficients
from .schedule import NoiseSchedule
from .table import X0, H, Table, TableBuilder, X
from .timesteps import SPACINGS, timesteps

FEW_STEPS = 15  # below this many steps a first-order last step is the more stable
TERMINAL_ALPHA_BAR = 2.0**-24  # stands for alphas_cumprod = 0, so that the first log-SNR is finite


@dataclass(frozen=True)
class DPMSolverOptions:
    """Options of `dpmpp_2m`; names and defaults are diffusers', but for the clipping, which it lacks here.

    solver_type: how the difference of the last two estimates enters, midpoint or heun
    lower_order_final: take the last step at first order if there are fewer than 15
    euler_at_final: take the last step at first order however many there are
    final_sigmas_type: zero ends at the clean sample (always by a first-order step), sigma_min at t = 0
    clip_sample, clip_sample_range: clip the estimate of x_0 to +- the range
    timestep_spacing, steps_offset: see `fastgen.diffusion.timesteps`
    """

    timestep_spacing: str = one_of(*SPACINGS, default="linspace")
    steps_offset: int = bounded(0, 1000, default=0)
    clip_sample: bool = False
    clip_sample_range: float = bounded(1e-6, 1e6, default=1.0)
    solver_type: str = one_of("midpoint", "heun", default="midpoint")
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: str = one_of("zero", "sigma_min", default="zero")


def dpmpp_2m(schedule: NoiseSchedule, steps: int, options: DPMSolverOptions) -> Table:
    """Multistep second order in the data prediction (algorithm 2): one slot, the previous estimate of x_0.

    lambda = log(alpha / sigma), h its growth over the step, r = h_previous / h:
        x' = sigma' / sigma x + alpha' (1 - e^-h) x_0 + alpha' w (x_0 - x_0_previous) / r
    with w = (1 - e^-h) / 2 (midpoint) or 1 - (1 - e^-h) / h (heun).

    Where alphas_cumprod is 0 (zero terminal SNR) 2^-24 stands for it, as in diffusers, and less where steps
    are so many that the next visited value is smaller still (diffusers goes backwards there). Where the last
    step has no length (sigma_min after a visit to t = 0) it is the identity; diffusers' heun returns NaN
    there.
    """
    visited = timesteps(
        schedule.num_train_timesteps, steps, options.timestep_spacing, options.steps_offset, skip_end=True
    )
    alphas_cumprod = schedule.alphas_cumprod
    to_zero = options.final_sigmas_type == "zero"
    knots = np.append(alphas_cumprod[visited], 1.0 if to_zero else alphas_cumprod[0])
    if knots[0] == 0.0:  # the stand-in must stay below the next knot, or the first step would go backwards
        knots[0] = min(TERMINAL_ALPHA_BAR, knots[1] / 2)
    alpha, sigma = np.sqrt(knots), np.sqrt(1.0 - knots)
    with np.errstate(divide="ignore"):  # the clean end is lambda = +inf
        h = np.diff(np.log(alpha) - np.log(sigma))

    first_order = np.zeros(steps + 1, dtype=bool)
    first_order[0] = True  # nothing to look back at
    few = options.lower_order_final and steps < FEW_STEPS
    first_order[steps - 1] |= to_zero or options.euler_at_final or few
    first_order[steps] = True  # no row reads the history after the last

    rows = TableBuilder("dpm++2m", clip=options.clip_sample_range if options.clip_sample else math.inf)
    for i, t in enumerate(visited):
        gain = -math.expm1(-h[i])
        x = sigma[i + 1] / sigma[i] * X + alpha[i + 1] * gain * X0
        if not first_order[i] and h[i] > 0:
            weight = gain / 2 if options.solver_type == "midpoint" else 1.0 - gain / h[i]
            x = x + alpha[i + 1] * weight * (h[i] / h[i - 1]) * (X0 - H[0])
        slot, history = (-1, None) if first_order[i + 1] else (0, X0)
        x0 = x0_coefficients(schedule, t, (float(alpha[i]), float(sigma[i])))
        rows.add(t, x0, x, slot=slot, history=history)
    return rows.table()
