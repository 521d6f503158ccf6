"""What a diffusion checkpoint says beside its network: noise schedule, classes, and defaults for sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..checkpoint import Spec
from ..config import at_most, bounded, from_dict, one_of
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.table import LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE
from ..errors import ConfigError

LEARNED = {"learned_range": LEARNED_RANGE, "learned": LEARNED_VARIANCE}


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of ``Spec(engine="diffusion")``.

    schedule: the arguments of :class:`NoiseSchedule` that differ from its defaults. num_classes: labels run from 0
    to num_classes - 1. null_class: the label the network learnt as "no label", which guidance needs. solver, steps,
    guidance_scale, solver_options: what ``sample`` uses where the caller says nothing. variance: how the second half
    of the network's output channels says the variance of a DDPM step; None where there is no such half.
    """

    schedule: dict
    num_classes: int | None = bounded(1, 1_000_000, default=None)
    null_class: int | None = bounded(0, 1_000_000, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)
    solver: str = "dpm++2m"
    steps: int = bounded(1, 100_000, default=20)
    guidance_scale: float = bounded(0.0, 100.0, default=1.0)
    solver_options: dict[str, Any] | None = None
    variance: str | None = one_of(*LEARNED, default=None)

    @classmethod
    def from_spec(cls, spec: Spec) -> DiffusionSettings:
        """Check a checkpoint's settings. Raises ConfigError."""
        if spec.engine != "diffusion":
            raise ConfigError(f"engine: expected diffusion, got {spec.engine!r}")
        settings = from_dict(cls, spec.settings, "settings")
        _ = settings.noise_schedule
        names = settings.class_names
        if names is not None and len(names) != settings.num_classes:
            raise ConfigError(f"settings: {len(names)} class_names for {settings.num_classes} classes")
        return settings

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_config(self.schedule)

    @property
    def learned(self) -> int:
        """`variance` as the reverse step's `learned` argument."""
        return LEARNED_NONE if self.variance is None else LEARNED[self.variance]
