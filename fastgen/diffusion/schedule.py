"""The forward (noising) process of a discrete-time diffusion model, and what a network predicts about it.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I),   alpha_t^2 = alphas_cumprod[t],   alpha_t^2 + sigma_t^2 = 1

(Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 4). Names and values are those of diffusers'
schedulers; everything here is float64, where diffusers computes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import bounded, check_flags, from_dict, one_of, to_dict
from ..errors import ConfigError
from .points import Point, estimates

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
MAX_TIMESTEPS = 100_000
MIN_ALPHA_BAR = 1e-60  # below it nothing of x_0 is left, and quotients soon leave the range of floats
STAND_IN = 2.0**-24  # for alphas_cumprod = 0, where a finite noise level is needed
MAX_BETA = 0.999  # cap of the cosine schedule, whose last beta would be 1


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule and the meaning of the network's output F at (x_t, t).

    num_train_timesteps: T; timesteps run over 0 .. T - 1
    beta_start, beta_end: first and last beta of the linear, scaled_linear and sigmoid schedules, in (0, 1)
    beta_schedule: linear (Ho et al. 2020), scaled_linear (linear in sqrt(beta), latent diffusion),
        squaredcos_cap_v2 (Nichol & Dhariwal 2021, eq. 17), sigmoid (GeoDiff)
    trained_betas: T betas used instead of a formula, or None
    rescale_betas_zero_snr: make alphas_cumprod[T - 1] exactly 0 (Lin et al. 2023, algorithm 1)
    prediction_type: F is the noise (epsilon), x_0 (sample), or v = alpha_t noise - sigma_t x_0 (v_prediction;
        Salimans & Ho 2022)

    Raises ConfigError (a ValueError) that names the field.
    """

    num_train_timesteps: int = bounded(1, MAX_TIMESTEPS, default=1000)
    beta_start: float = bounded(0.0, 1.0, default=0.0001)
    beta_end: float = bounded(0.0, 1.0, default=0.02)
    beta_schedule: str = one_of(*BETA_SCHEDULES, default="linear")
    trained_betas: tuple[float, ...] | None = bounded(0.0, 1.0, default=None, max_items=MAX_TIMESTEPS)
    rescale_betas_zero_snr: bool = False
    prediction_type: str = one_of(*PREDICTION_TYPES, default="epsilon")

    def __post_init__(self) -> None:
        steps = self.num_train_timesteps
        if type(steps) is not int or not 1 <= steps <= MAX_TIMESTEPS:
            raise ConfigError(
                f"expected an int from 1 to {MAX_TIMESTEPS}, got {steps!r}", argument="num_train_timesteps"
            )
        if self.beta_schedule not in BETA_SCHEDULES:
            known = ", ".join(BETA_SCHEDULES)
            raise ConfigError(
                f"expected one of {known}, got {self.beta_schedule!r}", argument="beta_schedule"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            known = ", ".join(PREDICTION_TYPES)
            raise ConfigError(
                f"expected one of {known}, got {self.prediction_type!r}", argument="prediction_type"
            )
        for name in ("beta_start", "beta_end"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(
                    f"expected a number between 0 and 1, got {getattr(self, name)!r}", argument=name
                )
        check_flags(rescale_betas_zero_snr=self.rescale_betas_zero_snr)
        if self.rescale_betas_zero_snr and steps < 2:
            raise ConfigError(
                "needs num_train_timesteps of at least 2, got 1", argument="rescale_betas_zero_snr"
            )
        if self.trained_betas is not None:
            object.__setattr__(self, "trained_betas", tuple(float(beta) for beta in self.trained_betas))
            if len(self.trained_betas) != steps:
                raise ConfigError(
                    f"expected num_train_timesteps = {steps} numbers, got {len(self.trained_betas)}",
                    argument="trained_betas",
                )
        given = self._given_betas()
        # 1 - beta < 1: a beta that vanishes in float64 leaves no noise at t = 0 and the solvers divide by it.
        if not np.all((given < 1.0) & (1.0 - given < 1.0)):
            name = "beta_start" if self.trained_betas is None else "trained_betas"
            raise ConfigError(
                f"every beta must lie strictly between 0 and 1 (in float64), "
                f"got betas from {given.min()} to {given.max()}",
                argument=name,
            )
        if np.any(self.alphas_cumprod[: -1 if self.rescale_betas_zero_snr else None] < MIN_ALPHA_BAR):
            name = "beta_end" if self.trained_betas is None else "trained_betas"
            raise ConfigError(
                f"alphas_cumprod falls below {MIN_ALPHA_BAR} after "
                f"{int(np.argmax(self.alphas_cumprod < MIN_ALPHA_BAR))} of {steps} steps; use smaller betas",
                argument=name,
            )

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> NoiseSchedule:
        """Build from untrusted JSON; unknown, mistyped or absurd values raise ConfigError naming the key."""
        return from_dict(cls, values, "schedule")

    def to_config(self) -> dict[str, Any]:
        """All fields as JSON types; ``from_config(s.to_config()) == s``."""
        return to_dict(self)

    @cached_property
    def betas(self) -> np.ndarray:
        """float64 [T], read-only: the variance added at each step, in (0, 1], 1 only at zero terminal SNR."""
        betas = self._given_betas()
        if self.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        return _frozen(betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """float64 [T], read-only: alpha_t^2, the fraction of x_0's variance left at t; falls towards 0."""
        return _frozen(np.cumprod(1.0 - self.betas))

    def alpha_bar(self, t: int) -> float:
        """alphas_cumprod[t] for t in 0 .. T - 1; t = -1 is the clean end, 1."""
        return 1.0 if t == -1 else float(self.alphas_cumprod[t])

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """(alpha_t, sigma_t) for t in -1 .. T - 1: how much of x_0 and of the noise x_t holds."""
        return math.sqrt(self.alpha_bar(t)), math.sqrt(1.0 - self.alpha_bar(t))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t noise (Ho et al. 2020, eq. 4).

        x0, noise: [B, ...], floating point, same shape and device; t: int64 [B] in 0 .. T - 1, same device.
        Returns x0's shape and dtype; computed in float32 at least. ConfigError for shapes, dtypes or t that do not fit.
        """
        alpha, sigma = self._coefficients(x0, noise, t)
        return (alpha * x0 + sigma * noise).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to return at x_t: noise, x_0 or v. Arguments as for `add_noise`."""
        alpha, sigma = self._coefficients(x0, noise, t)
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        return (alpha * noise - sigma * x0).to(x0.dtype)

    def x0_from(self, F: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's estimate of x_0 from its output F at (x, t). F, x: [B, ...]; t: int64 [B].

        ConfigError if the prediction is epsilon and the terminal SNR is zero: nothing of x_0 is left there.
        """
        if self.prediction_type == "epsilon" and self.alphas_cumprod[-1] == 0.0:
            raise zero_snr_error(self.num_train_timesteps - 1)
        alpha, sigma = self._coefficients(x, F, t, "x, F")
        if self.prediction_type == "epsilon":
            return ((x - sigma * F) / alpha).to(x.dtype)
        if self.prediction_type == "sample":
            return F
        return (alpha * x - sigma * F).to(x.dtype)

    def _given_betas(self) -> np.ndarray:
        steps, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.trained_betas is not None:
            return np.array(self.trained_betas, dtype=np.float64)
        if self.beta_schedule == "linear":
            return np.linspace(start, end, steps)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(start**0.5, end**0.5, steps) ** 2
        if self.beta_schedule == "squaredcos_cap_v2":
            alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
            return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)
        return (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps))) + start

    @property
    def steps_limit(self) -> int:
        """Most steps of a solver: T."""
        return self.num_train_timesteps

    @property
    def prediction_types(self) -> tuple[str, ...]:
        """What a network of this process may predict."""
        return PREDICTION_TYPES

    @cached_property
    def levels(self) -> np.ndarray:
        """float64 [T], read-only: sigma_t / alpha_t, the noise level w of solvers that count in it (Karras' sigma).

        Where alphas_cumprod is 0 a stand-in takes its place, so that the largest level is finite.
        """
        kept = np.where(self.alphas_cumprod == 0.0, STAND_IN, self.alphas_cumprod)
        return _frozen(np.sqrt((1.0 - kept) / kept))

    def times(self, levels: np.ndarray) -> np.ndarray:
        """Timesteps with these noise levels, linear in log(level) between whole ones, within 0 .. T - 1."""
        if self.num_train_timesteps == 1:
            return np.zeros_like(levels)
        logs = np.log(self.levels)
        found = np.log(np.maximum(levels, 1e-10))
        # The last entry that is not larger: not a binary search, a stand-in for infinity may be out of order.
        low = np.array([np.flatnonzero(value >= logs)[-1:].sum() for value in found]).clip(max=len(logs) - 2)
        weight = ((logs[low] - found) / (logs[low] - logs[low + 1])).clip(0.0, 1.0)
        return (1.0 - weight) * low + weight * (low + 1)

    def point(self, level: float, time: float | None = None) -> Point:
        """The point at noise level `level` > 0, whole timestep or not.

        time: the timestep that the network is told, by default `times` of the level. ConfigError for an epsilon
        prediction at alphas_cumprod = 0, where x_t holds nothing of x_0.
        """
        alpha = 1.0 / math.sqrt(1.0 + level**2)
        told = float(self.times(np.array([level]))[0]) if time is None else float(time)
        return self.point_at(told, alpha, level * alpha)

    def point_at(self, time: float, alpha: float, sigma: float) -> Point:
        """The point with this alpha and sigma, of which the network is told `time`. ConfigError as for `point`."""
        whole = min(max(math.ceil(time), 0), self.num_train_timesteps - 1)
        if self.prediction_type == "epsilon" and self.alphas_cumprod[whole] == 0.0:
            raise zero_snr_error(whole)
        x0, noise = estimates(self.prediction_type, alpha, sigma)
        return Point(alpha, sigma, scale=alpha, time=time, x0=x0, noise=noise)

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    def _coefficients(
        self, x: Tensor, other: Tensor, t: Tensor, names: str = "x0, noise"
    ) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t as [B, 1, ...] in x's dtype, float32 at least."""
        if x.shape != other.shape or not x.is_floating_point():
            raise ConfigError(
                f"expected two floating-point tensors of one shape, got {x.dtype} {list(x.shape)} "
                f"and {other.dtype} {list(other.shape)}",
                argument=names,
            )
        if t.dtype != torch.int64 or t.shape != x.shape[:1]:
            raise ConfigError(f"expected int64 [{x.shape[0]}], got {t.dtype} {list(t.shape)}", argument="t")
        # On a GPU the check would wait for the device; there an index out of range is a device assertion.
        last = self.num_train_timesteps - 1
        if t.device.type == "cpu" and bool(((t < 0) | (t > last)).any()):
            raise ConfigError(f"expected values from 0 to {last}, got {t.tolist()}", argument="t")
        if t.device not in self._tables:
            both = np.sqrt(np.stack([self.alphas_cumprod, 1.0 - self.alphas_cumprod]))
            self._tables[t.device] = torch.from_numpy(both).to(t.device)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        gathered = self._tables[t.device][:, t].to(dtype).reshape(2, -1, *[1] * (x.dim() - 1))
        return gathered[0], gathered[1]


def zero_snr_error(t: int) -> ConfigError:
    """Why an epsilon prediction cannot be used at timestep `t`, where alphas_cumprod is 0, and what to do."""
    return ConfigError(
        f"epsilon cannot be used at t = {t}, where alphas_cumprod is 0 (zero terminal SNR): "
        "x_0 = (x - noise) / 0; use a v_prediction or sample model, or rescale_betas_zero_snr=False",
        argument="prediction_type",
    )


def _zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alphas_cumprod) to keep its first value and end at 0 (Lin et al. 2023)."""
    root = np.sqrt(np.cumprod(1.0 - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1.0 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
