"""Our DDPM, DDIM, sigma and DPM solvers against the installed diffusers: with which options, and what it cannot do."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from fastgen.diffusion import SOLVERS, NoiseSchedule
from fastgen.diffusion.lambdas import lambda_points
from fastgen.diffusion.sigmas import sigma_points

from .golden import Golden, Measured, Options, measure, product

FORMULAS: list[Options] = [
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
LU: list[Options] = [{"use_lu_lambdas": True}]
NO_SAMPLE = ("epsilon", "v_prediction")  # diffusers' classes that raise NotImplementedError for the third


def widest_step(name: str) -> Callable[..., float]:
    """How far a step reaches in sigma / sigma', and clipped times sigma: what diffusers' state y = x / alpha loses.

    Its slope after the step, (y - x_0) / sigma', and its ancestral sigma_down, the root of sigma'^2 - sigma_up^2, are
    differences of near numbers; ours are not.
    """

    def lost(schedule: NoiseSchedule, steps: int, options: Options) -> float:
        chosen = SOLVERS[name].check(options)
        sigmas = sigma_points(schedule, steps, chosen).levels[:-1]
        if steps == 1:
            return 0.0
        ratio = sigmas[:-1] / sigmas[1:]
        return float((ratio * sigmas[:-1] / chosen.clip_sample_range if chosen.clip_sample else ratio).max())

    return lost


def middle_of_step(name: str) -> Callable[..., float]:
    """sigma^2 / sigma_m of the widest step: the same for a slope at sigma_m between sigma and sigma'.

    diffusers' y is as large as sigma before it is divided by sigma_m, and the slope is then taken times sigma.
    """

    def lost(schedule: NoiseSchedule, steps: int, options: Options) -> float:
        chosen = SOLVERS[name].check(options)
        sigmas = sigma_points(schedule, steps, chosen).levels[:-1]
        if steps == 1:
            return 0.0
        middle = sigmas[1:] if name == "dpm2_a" else np.sqrt(sigmas[:-1] * sigmas[1:])
        bound = chosen.clip_sample_range if chosen.clip_sample else np.maximum(1.0, sigmas[1:])
        return float((sigmas[:-1] ** 2 / middle / bound).max())

    return lost


def dpm_lost(default_order: int) -> Callable[..., float]:
    """What diffusers' DPM-Solver formulas lose, third order and noise prediction; ours lose less of the first.

    Third order: (e^-h - 1 + h) / h^2 - 1 / 2, so written, loses 1 / h^2; h is the shortest step but one of no length.
    Noise prediction: alpha' / alpha x and sigma' (e^h - 1) epsilon, the larger the noisier, cancel where epsilon is
    found from x; at most the growth of alpha over the run.
    """

    def lost(schedule: NoiseSchedule, steps: int, options: Options) -> float:
        known = SOLVERS["dpm++3m"].check({k: v for k, v in options.items() if k in _POINT_OPTIONS})
        points = lambda_points(schedule, steps, known)
        found = 0.0
        if options.get("algorithm_type", "").endswith("dpmsolver"):
            found = points.end.alpha / points.starts[0].alpha
        if steps >= 3 and options.get("solver_order", default_order) == 3:
            h = np.diff(points.log_snrs)
            found = max(found, float((1.0 / h[h > 1e-9] ** 2).max()))
        return found

    return lost


_POINT_OPTIONS = (
    "timestep_spacing",
    "steps_offset",
    "final_sigmas_type",
    *(name for o in FORMULAS + LU for name in o),
)
MULTISTEP = product(final_sigmas_type=("zero", "sigma_min"), lower_order_final=(True, False))

GOLDEN: dict[str, Golden] = {
    # fixed_large_log has no oracle: diffusers takes the root of a negative logarithm there.
    "ddpm": Golden(
        product(variance_type=("fixed_small", "fixed_small_log", "fixed_large"), clip_sample=(False,)),
        product(variance_type=("fixed_small", "fixed_large", "learned", "learned_range")),
    ),
    "ddim": Golden(
        product(
            eta=(0.0, 0.5, 1.0),
            set_alpha_to_one=(True, False),
            use_clipped_model_output=(False, True),
            clip_sample=(False,),
            constant_stride=(True,),
        ),
        product(eta=(0.0, 1.0), use_clipped_model_output=(False, True), constant_stride=(True,)),
    ),
    "euler": Golden(
        [
            *product(final_sigmas_type=("zero", "sigma_min"), interpolation_type=("linear", "log_linear")),
            {"use_karras_sigmas": True},
            {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
            {"use_beta_sigmas": True},
            {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 10.0},
            {"use_beta_sigmas": True, "interpolation_type": "log_linear"},
        ],
        [{}, {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}],
    ),
    "heun": Golden(
        [{}, *FORMULAS], [{}, {"use_karras_sigmas": True}], rescales=False, lost=widest_step("heun")
    ),
    "euler_a": Golden([{}], [{}], NO_SAMPLE, lost=widest_step("euler_a")),
    "dpm2": Golden(
        [{}, *FORMULAS],
        [{}, {"use_karras_sigmas": True}],
        NO_SAMPLE,
        rescales=False,
        lost=middle_of_step("dpm2"),
    ),
    "dpm2_a": Golden(
        [{}, *FORMULAS],
        [{}, {"use_karras_sigmas": True}],
        NO_SAMPLE,
        rescales=False,
        lost=middle_of_step("dpm2_a"),
    ),
    "dpm++sde": Golden(
        [{}, *FORMULAS],
        [{}, {"use_karras_sigmas": True}],
        NO_SAMPLE,
        rescales=False,
        lost=widest_step("dpm++sde"),
    ),
    "lms": Golden(
        [{}, {"solver_order": 1}, {"solver_order": 2}, {"solver_order": 3}, *FORMULAS],
        [{}, {"use_karras_sigmas": True}],
        rescales=False,
        lost=widest_step("lms"),
    ),
    "dpm++2m": Golden(
        [
            *product(
                solver_type=("midpoint", "heun"),
                final_sigmas_type=("zero", "sigma_min"),
                lower_order_final=(True, False),
                euler_at_final=(False, True),
            ),
            *FORMULAS,
            *LU,
        ],
        [{}, {"solver_type": "heun", "final_sigmas_type": "sigma_min"}],
    ),
    "dpm++3m": Golden(
        [*MULTISTEP, *FORMULAS, *LU], [{}, {"final_sigmas_type": "sigma_min"}], lost=dpm_lost(3)
    ),
    "dpm++2m_sde": Golden(
        [*product(solver_type=("midpoint", "heun"), lower_order_final=(True, False)), *FORMULAS, *LU],
        [{}, {"solver_type": "heun"}],
    ),
    "dpm++3m_sde": Golden(
        [{}, {"lower_order_final": False}, *FORMULAS, *LU],
        [{}, {"use_karras_sigmas": True}],
        lost=dpm_lost(3),
    ),
    "dpm_multistep": Golden(
        [
            *product(
                algorithm_type=("dpmsolver", "sde-dpmsolver"),
                solver_order=(1, 2),
                solver_type=("midpoint", "heun"),
                final_sigmas_type=("sigma_min",),
            ),
            *product(algorithm_type=("dpmsolver",), solver_order=(3,), final_sigmas_type=("sigma_min",)),
            *product(algorithm_type=("dpmsolver++", "sde-dpmsolver++"), solver_order=(1, 3)),
            {"algorithm_type": "dpmsolver", "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        ],
        [
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
            *product(algorithm_type=("dpmsolver",), solver_order=(1, 2, 3), final_sigmas_type=("sigma_min",)),
        ],
        lost=dpm_lost(2),
    ),
    "dpm_singlestep": Golden(
        [
            *product(
                algorithm_type=("dpmsolver", "dpmsolver++"),
                solver_order=(2, 3),
                solver_type=("midpoint", "heun"),
                lower_order_final=(False, True),
                final_sigmas_type=("sigma_min",),
            ),
            *product(algorithm_type=("sde-dpmsolver++",), solver_type=("midpoint", "heun")),
            {"solver_order": 1},
            *FORMULAS,
        ],
        [
            {"algorithm_type": "sde-dpmsolver++"},
            *product(algorithm_type=("dpmsolver",), solver_order=(1, 2, 3), final_sigmas_type=("sigma_min",)),
        ],
        spacings=(),
        rescales=False,
        lost=dpm_lost(2),
    ),
    "dpm++2s": Golden(
        [*product(solver_type=("midpoint", "heun"), final_sigmas_type=("zero", "sigma_min")), *FORMULAS],
        [{}, {"solver_type": "heun", "final_sigmas_type": "sigma_min"}],
        spacings=(),
        rescales=False,
    ),
    "dpm++3s": Golden(
        [*product(solver_type=("midpoint", "heun"), final_sigmas_type=("zero", "sigma_min")), *FORMULAS],
        [{}, {"solver_type": "heun", "final_sigmas_type": "sigma_min"}],
        spacings=(),
        rescales=False,
        lost=dpm_lost(3),
    ),
}
MEASURES: dict[str, Callable[[], Measured]] = {
    # diffusers finds the weights of LMS by quadrature, a second for 50 steps.
    name: functools.partial(measure, name, golden, steps=(1, 2, 7, 10, 20 if name == "lms" else 50))
    for name, golden in GOLDEN.items()
}
