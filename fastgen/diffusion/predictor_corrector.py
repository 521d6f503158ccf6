"""Solvers of the reverse SDE, as in Song et al. 2021 (arXiv:2011.13456) and the authors' code, score_sde.

    dx = (f(t) x - g(t)^2 score) dt + g(t) dw,   backwards from t = 1        (eq. 6; score = -epsilon / sigma)

`euler_maruyama` discretises it as it stands. `predictor_corrector` takes the paper's discrete steps (algorithms 1 to
5), each preceded by Langevin steps at its noise level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..config import bounded, one_of
from ..errors import ConfigError
from .given import Begin
from .points import Point
from .sde import SDE, VESDE, VPSDE, SubVPSDE
from .table import LANGEVIN_BATCH, LANGEVIN_SAMPLE, X0, Table, TableBuilder, X, Z

PREDICTORS = ("reverse_diffusion", "ancestral", "euler_maruyama", "none")


@dataclass(frozen=True)
class EulerMaruyamaOptions(Begin):
    """Options of `euler_maruyama`: that of `Begin`, and

    probability_flow: the deterministic equation with the same distributions, dx = (f x - g^2 score / 2) dt (eq. 13)
    noise_removal: no noise in the last step
    """

    probability_flow: bool = False
    noise_removal: bool = True


@dataclass(frozen=True)
class PredictorCorrectorOptions(Begin):
    """Options of `predictor_corrector`, named as in score_sde: that of `Begin`, and

    predictor: reverse_diffusion, eq. 46; ancestral, eq. 47 and DDPM's; euler_maruyama; or none
    corrector: langevin, algorithms 4 and 5, or none
    snr: signal-to-noise ratio r of the Langevin step's length; 0.16 is for CIFAR-10 and VE
    n_steps: Langevin steps before each predictor step: network evaluations of their own
    step_size: sample, the length comes from each sample's own norms; batch, from means over the batch as in the
        authors' code: a sample then depends on its neighbours
    noise_removal: no noise in the last step
    """

    predictor: str = one_of(*PREDICTORS, default="reverse_diffusion")
    corrector: str = one_of("langevin", "none", default="langevin")
    snr: float = bounded(1e-6, 10.0, default=0.16)
    n_steps: int = bounded(1, 100, default=1)
    step_size: str = one_of("sample", "batch", default="sample")
    noise_removal: bool = True


def euler_maruyama(sde: SDE, steps: int, options: EulerMaruyamaOptions) -> Table:
    """x' = x - (f x - g^2 score) h + g sqrt(h) z, h = (1 - sampling_eps) / steps: one network evaluation per step."""
    times = np.linspace(1.0, sde.end, steps + 1)[options.begin_index :]
    last = len(times) - 2
    rows = TableBuilder("euler_maruyama")
    for i, t in enumerate(times[:-1]):
        point, h, noisy = sde.at(float(t)), float(t - times[i + 1]), not options.probability_flow
        f, g = sde.drift(float(t)), sde.diffusion(float(t))
        x = X - h * (f * X - (1.0 if noisy else 0.5) * g**2 * _score(point))
        if noisy and not (options.noise_removal and i == last):
            x = x + g * math.sqrt(h) * Z
        rows.evaluate(point, x)
    return rows.table(initial_scale=sde.at(1.0).sigma)


def predictor_corrector(sde: SDE, steps: int, options: PredictorCorrectorOptions) -> Table:
    """Algorithm 1: at each of `steps` noise levels n_steps Langevin steps, then a step to the next level.

    (n_steps + 1) * steps network evaluations. No noise in the very last (noise_removal).
    """
    corrections = options.n_steps if options.corrector == "langevin" else 0
    step = _PREDICTORS.get(options.predictor)
    if step is None and not corrections:
        raise ConfigError("none leaves nothing to do without a corrector", argument="predictor")
    rows = TableBuilder("predictor_corrector")
    for i in range(options.begin_index, steps):
        point = _point(sde, i, steps)
        last = options.noise_removal and i == steps - 1
        for k in range(corrections):
            finished = last and step is None and k == corrections - 1
            # step = 2 a (r |z| / |score|)^2, score = -epsilon / sigma; the norms' quotient enters when they are known.
            a = 1.0 if isinstance(sde, VESDE) else 1.0 - _beta(sde, i, steps)
            drift = X - 2.0 * a * options.snr**2 * point.sigma * X0
            noise = 0.0 if finished else 2.0 * math.sqrt(a) * options.snr * point.sigma
            mode = LANGEVIN_SAMPLE if options.step_size == "sample" else LANGEVIN_BATCH
            rows.evaluate(point, drift + noise * Z, langevin=mode)
        if step is not None:
            mean, std = step(sde, point, i, steps)
            rows.evaluate(point, mean if last else mean + std * Z)
    return rows.table(initial_scale=sde.at(1.0).sigma)


def _score(point: Point) -> np.ndarray:
    return -point.epsilon() / point.sigma


def _point(sde: SDE, i: int, steps: int) -> Point:
    """Of step i: VE's levels are even in log(sigma), the others' times even from 1 to sampling_eps."""
    if isinstance(sde, VESDE):
        return sde.point(_sigma(sde, i, steps))
    return sde.at(float(_times(sde, steps)[i]))


def _sigma(sde: VESDE, i: int, steps: int) -> float:
    """sigma_i of the paper's appendix C; after the last step 0."""
    return 0.0 if i == steps else float(_levels(sde, steps)[i])


@lru_cache(maxsize=8)
def _levels(sde: VESDE, steps: int) -> np.ndarray:
    return sde.natural(steps)


@lru_cache(maxsize=8)
def _times(sde: SDE, steps: int) -> np.ndarray:
    """Even from 1 to sampling_eps."""
    return np.linspace(1.0, sde.end, steps)


@lru_cache(maxsize=8)
def _betas(sde: VPSDE, steps: int) -> np.ndarray:
    return np.linspace(sde.beta_max, sde.beta_min, steps) / steps


def _beta(sde: SDE, i: int, steps: int) -> float:
    """beta_i of the discrete chain of `steps` steps (appendix C: beta-bar_i / N, even from beta_min to beta_max)."""
    assert isinstance(sde, VPSDE)
    if sde.beta_max >= steps:
        raise ConfigError(
            f"the paper's discrete steps need beta_max / steps below 1, got {sde.beta_max:g} / {steps}; take "
            "more steps, or euler_maruyama",
            argument="steps",
        )
    return float(_betas(sde, steps)[i])


def _reverse_diffusion(sde: SDE, point: Point, i: int, steps: int) -> tuple[np.ndarray, float]:
    """Equation 46: the forward discretisation x_i+1 = x_i + f_i + G_i z, turned round."""
    if isinstance(sde, VESDE):
        variance = _sigma(sde, i, steps) ** 2 - _sigma(sde, i + 1, steps) ** 2
        return X + variance * _score(point), math.sqrt(variance)
    if isinstance(sde, SubVPSDE):  # has no discrete chain of its own
        return _euler_maruyama(sde, point, i, steps)
    beta = _beta(sde, i, steps)
    return (2.0 - math.sqrt(1.0 - beta)) * X + beta * _score(point), math.sqrt(beta)


def _ancestral(sde: SDE, point: Point, i: int, steps: int) -> tuple[np.ndarray, float]:
    """Equation 47 for VE, Ho et al.'s chain for VP."""
    if isinstance(sde, VESDE):
        now, after = _sigma(sde, i, steps), _sigma(sde, i + 1, steps)
        variance = now**2 - after**2
        return X + variance * _score(point), after * math.sqrt(variance) / now
    if isinstance(sde, SubVPSDE):
        raise ConfigError(
            "ancestral is not defined for the process subvp; take reverse_diffusion", argument="predictor"
        )
    beta = _beta(sde, i, steps)
    return (X + beta * _score(point)) / math.sqrt(1.0 - beta), math.sqrt(beta)


def _euler_maruyama(sde: SDE, point: Point, i: int, steps: int) -> tuple[np.ndarray, float]:
    """The reverse SDE over a time of 1 / steps."""
    t = sde.time_of(point.sigma) if isinstance(sde, VESDE) else float(_times(sde, steps)[i])
    f, g = sde.drift(t), sde.diffusion(t)
    return X - (f * X - g**2 * _score(point)) / steps, g / math.sqrt(steps)


_PREDICTORS = {
    "reverse_diffusion": _reverse_diffusion,
    "ancestral": _ancestral,
    "euler_maruyama": _euler_maruyama,
}
