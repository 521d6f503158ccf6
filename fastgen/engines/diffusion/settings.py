"""What a diffusion checkpoint says beside its network: noise schedule, classes, and defaults for sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...config import at_most, bounded, one_of
from ...diffusion.continuous import ContinuousProcess
from ...diffusion.processes import AnyProcess, process_from_config
from ...diffusion.table import LEARNED_NONE, LEARNED_RANGE, LEARNED_VARIANCE
from ...errors import ConfigError
from ...images import PICTURES, Range

LEARNED = {"learned_range": LEARNED_RANGE, "learned": LEARNED_VARIANCE}


@dataclass(frozen=True)
class DiffusionSettings:
    """Settings of ``Spec(engine="diffusion")``.

    schedule: the arguments of :class:`NoiseSchedule` that differ from its defaults, or those of another process and its
    name (``fastgen.diffusion.processes``). num_classes: labels run from 0 to num_classes - 1. null_class: the label the
    network learnt as "no label", which guidance needs. solver, steps, guidance_scale, solver_options: what ``sample``
    uses where the caller says nothing. variance: how the second half of the network's output channels says the variance
    of a DDPM step; None where there is no such half. value_range: lowest and highest value of the images that the model
    draws, to which samples are clamped; null where it draws no images (latents, rows), whose values are left alone.
    shift, scale: of rows, one number per column: a sample of the network is multiplied by scale, then shift is added;
    null leaves it alone.
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
    value_range: tuple[float, ...] | None = bounded(-1e6, 1e6, default=PICTURES, max_items=2)
    shift: tuple[float, ...] | None = bounded(-1e18, 1e18, default=None, max_items=4096)
    scale: tuple[float, ...] | None = bounded(1e-30, 1e18, default=None, max_items=4096)

    def checked(self) -> DiffusionSettings:
        """Itself, if its values fit one another. Raises ConfigError."""
        _ = self.noise_schedule
        if self.null_class is None and self.guidance_scale != 1:
            raise ConfigError(
                "other than 1 needs a null_class to be guided away from", argument="settings: guidance_scale"
            )
        if self.null_class is not None and self.num_classes is None:
            raise ConfigError(
                f"is {self.null_class}, but there are no classes (num_classes)",
                argument="settings: null_class",
            )
        span = self.value_range
        if span is not None and (len(span) != 2 or span[0] >= span[1]):
            raise ConfigError(
                f"expected [lowest, highest], or null, got {list(span)}", argument="settings: value_range"
            )
        names = self.class_names
        if names is not None and len(names) != self.num_classes:
            raise ConfigError(
                f"{len(names)} for {self.num_classes or 'no'} classes", argument="settings: class_names"
            )
        return self

    def check_network(self, config: Any) -> None:
        """Compare with a denoiser's config (in_channels, out_channels, num_class_embeds). Raises ConfigError."""
        if config.class_embed_type is not None:
            raise ConfigError(
                f"the engine gives networks class numbers (num_class_embeds), not what "
                f"{config.class_embed_type} takes",
                argument="class_embed_type",
            )
        process = self.noise_schedule
        tells_sigma = isinstance(process, ContinuousProcess) and process.tells_sigma
        if config.time_embedding_type == "fourier" and not tells_sigma:
            raise ConfigError(
                "a fourier network takes sigma for a time; supported with it: the processes ve "
                "(with time sigma) and edm (with prediction_type sample)",
                argument="time_embedding_type",
            )
        if config.time_embedding_type == "learned":
            if isinstance(process, ContinuousProcess):
                raise ConfigError(
                    f"a learned table has whole timesteps only, and the process {process.name} "
                    "none; supported: positional",
                    argument="time_embedding_type",
                )
            table, timesteps = config.num_train_timesteps, process.num_train_timesteps
            if table < timesteps:
                raise ConfigError(
                    f"the network learnt {table} timesteps, the noise schedule has {timesteps}",
                    argument="num_train_timesteps",
                )
        self.check_times(config, self.solver_options or {})
        embedded = config.num_class_embeds
        if (self.num_classes is None) != (embedded is None):
            raise ConfigError(
                f"is {self.num_classes}, the network embeds {embedded} classes",
                argument="settings: num_classes",
            )
        if self.num_classes is not None:
            highest = max(self.num_classes - 1, self.null_class or 0)
            if highest >= embedded:
                raise ConfigError(
                    f"class {highest} is not one of the {embedded} that the network embeds",
                    argument=f"settings: {'num_classes' if highest < self.num_classes else 'null_class'}",
                )
        for name in ("shift", "scale"):
            values = getattr(self, name)
            if values is not None and (config.sample_size != () or len(values) != config.in_channels):
                rows = f"rows of {config.in_channels}" if config.sample_size == () else "images"
                raise ConfigError(
                    f"has {len(values)} numbers, one for each column, and the network denoises {rows}",
                    argument=f"settings: {name}",
                )
        wanted = config.in_channels * (1 if self.variance is None else 2)
        if config.out_channels != wanted:
            raise ConfigError(
                f"with variance {self.variance} and {config.in_channels} input channels the network must "
                f"have {wanted} output channels, it has {config.out_channels}",
                argument="settings: variance",
            )

    @staticmethod
    def check_times(config: Any, options: Mapping[str, Any]) -> None:
        """Whether the times of a solver with `options` are what a denoiser's config takes. Raises ConfigError."""
        if (
            getattr(config, "time_embedding_type", None) == "learned"
            and options.get("timestep_type") == "continuous"
        ):
            raise ConfigError(
                "continuous hands on log(sigma) / 4 for a time, and this network has a learned table of "
                "timesteps; supported: discrete",
                argument="timestep_type",
            )

    @cached_property
    def noise_schedule(self) -> AnyProcess:
        """The process that the network was trained for."""
        return process_from_config(self.schedule)

    @property
    def clamped(self) -> Range | None:
        """`value_range` as a pair."""
        return None if self.value_range is None else (self.value_range[0], self.value_range[1])

    @property
    def learned(self) -> int:
        """`variance` as the reverse step's `learned` argument."""
        return LEARNED_NONE if self.variance is None else LEARNED[self.variance]
