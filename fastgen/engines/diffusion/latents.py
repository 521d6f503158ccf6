"""Verbs between images and the noise they are drawn from: encode, decode, round_trip, interpolate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastgen_kernels import normals, signed_seeds

from ...config import shown
from ...diffusion.inversion import encoder
from ...diffusion.schedule import NoiseSchedule
from ...diffusion.solvers import SOLVERS
from ...diffusion.table import Table
from ...errors import ArgumentError, ConfigError
from ...images import Range, to_output
from ..arguments import as_index
from ..great_circles import joined
from .editing import counted, spread
from .given import Given, check_draws_images, check_floats, check_images, per_sample
from .guidance import WORDS as GUIDANCE
from .plan import check_names
from .request import Request

if TYPE_CHECKING:
    from .settings import DiffusionSettings

STEPS = 50  # of an encoding
ITERATIONS = 2  # of each of its steps
MOST_ITERATIONS = 100
MAX_FRAMES = 10_000
SAMPLE = ("n", "seed", "seeds", "labels", *GUIDANCE)  # arguments that are no options of the solver


@dataclass(frozen=True)
class RoundTrip:
    """Images encoded and decoded again.

    latents, images: float32 [n, C, H, W]. rms, largest: float32 [n], the root of the mean square of what each image
    comes back off by, and the largest of its values: images go from -1 to 1.
    """

    latents: Tensor
    images: Tensor
    rms: Tensor
    largest: Tensor


class Latents:
    """What a ``DiffusionEngine`` does with the noise that images are drawn from.

    Latents are what ``sample(noise=...)`` takes: float32 [n, C, H, W], about standard normal. An encoding and its
    decoding must be told the same solver, steps, labels and guidance.
    """

    if TYPE_CHECKING:
        shape: tuple[int, ...]
        settings: DiffusionSettings
        device: torch.device

        @property
        def value_range(self) -> Range | None: ...

        def resolved(self, /, n: int | None = None, **arguments: Any) -> Request: ...

        draw: Callable[..., Any]

        sample: Callable[..., Any]

    def encode(
        self,
        images: Tensor,
        *,
        solver: str | None = None,
        steps: int | None = None,
        iterations: int = ITERATIONS,
        progress: bool = False,
        **arguments: Any,
    ) -> Tensor:
        """The noise that `decode` draws these images from: float32 [n, C, H, W] on the engine's device.

        images: float [n, C, H, W], or [C, H, W] for one, in the model's value range.
        solver: "ddim" (the default where there are timesteps) or "euler" (elsewhere; both are the same probability
            flow) are undone row by row, see `iterations`; "heun" integrates the probability flow upwards, by a method
            of second order, two evaluations a step. steps: 50 by default.
        iterations: how often each row is solved for the state it came from, an evaluation each: 1 is DDIM inversion as
            diffusers has it, more come closer.
        **arguments: labels and guidance as for ``sample`` (guidance_scale is 1 by default: amplified, a run is hard to
            undo), and options of the solver (timesteps, sigmas, timestep_spacing, ...).

        Raises ConfigError, also for a solver or options that cannot be undone: noise, history, a clip.
        """
        checked = check_images("images", images, self.shape, self.value_range)
        up, down, rest = self._coding(solver, steps, iterations, arguments)
        request = self.resolved(**counted(checked, rest), solver=up)
        start = spread(checked.to(self.device), len(request.seeds))
        given = tuple(Given(image=image, level=(1.0, 0.0)) for image in start)
        request = dataclasses.replace(request, given=given)
        state: Tensor = self.draw(request, progress=progress, clamped=False)
        return state / (down.initial_scale or 1.0)

    def decode(
        self,
        latents: Tensor,
        *,
        solver: str | None = None,
        steps: int | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **arguments: Any,
    ) -> Tensor | np.ndarray | list:
        """The images that `latents` float [n, C, H, W] of `encode` stand for. Arguments: those of `encode`."""
        to_output(None, output_type)
        check_draws_images("latents", self.shape)
        checked = check_floats("latents", latents, self.shape)
        down, rest = self._coding(solver, steps, 1, arguments)[1:]
        request = self.resolved(**counted(checked, rest), solver=down)
        noise = per_sample(checked.to(self.device), len(request.seeds), "latents")
        request = dataclasses.replace(request, given=tuple(Given(initial=z) for z in noise))
        return self.draw(request, progress=progress, output_type=output_type)

    def round_trip(
        self,
        images: Tensor,
        *,
        solver: str | None = None,
        steps: int | None = None,
        iterations: int = ITERATIONS,
        **arguments: Any,
    ) -> RoundTrip:
        """`images` encoded and decoded again, and by how much they come back changed. Arguments: see `encode`."""
        checked = check_images("images", images, self.shape, self.value_range).to(self.device)
        latents = self.encode(checked, solver=solver, steps=steps, iterations=iterations, **arguments)
        again: Any = self.decode(latents, solver=solver, steps=steps, **arguments)
        error = (again - spread(checked, len(again))).flatten(1)
        return RoundTrip(latents, again, error.square().mean(1).sqrt(), error.abs().amax(1))

    def interpolate(
        self,
        seeds: Sequence[int] | None = None,
        frames: int = 16,
        *,
        images: Tensor | None = None,
        labels: Any = None,
        solver: str | None = None,
        steps: int | None = None,
        iterations: int | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **arguments: Any,
    ) -> Tensor | np.ndarray | list:
        """From the sample of each seed, or from each image, to the next: [(k - 1) * frames + 1, C, H, W] of k of them.

        Their noises are joined along great circles (slerp): normals of many dimensions lie close to a sphere. The
        samples of the seeds are those of ``sample``; images are encoded, and come back as `round_trip` says.
        seeds or images: at least 2; images float [k, C, H, W]. Between two of them are `frames` - 1 others.
        labels: one for all, or one per seed or image, which holds until the next.
        solver, steps, **arguments: of seeds those of ``sample``, of images those of `encode`. A solver that adds noise
            adds the first seed's (0 for images) to every frame. Raises ConfigError that names the argument.
        """
        to_output(None, output_type)
        frames = as_index(frames)
        if type(frames) is not int or not 1 <= frames <= MAX_FRAMES:
            raise ConfigError(
                f"expected an int from 1 to {MAX_FRAMES}, got {shown(frames)}", argument="frames"
            )
        if (seeds is None) == (images is None):
            raise ArgumentError("give one of them", argument="seeds, images")
        if images is None and iterations is not None:
            raise ConfigError("is of images, which are encoded; seeds are not", argument="iterations")
        how = {**arguments, "solver": solver, "steps": steps}
        if images is None:
            keys = self.resolved(seeds=seeds, labels=labels)
            ends = normals(signed_seeds(keys.seeds).to(self.device), 0, "initial", self.shape)
            first = keys.seeds[0]
        else:
            checked = check_images("images", images, self.shape, self.value_range)
            keys = self.resolved(len(checked), seed=0, labels=labels)
            first = 0
            ends = checked
        if len(ends) < 2:
            raise ConfigError("expected at least 2", argument="seeds" if images is None else "images")
        if images is not None:
            rounds = ITERATIONS if iterations is None else iterations
            ends = self.encode(ends, labels=list(keys.labels), iterations=rounds, progress=progress, **how)
        between = joined(ends, frames).to(self.device)
        chosen = [label for label in keys.labels[:-1] for _ in range(frames)] + [keys.labels[-1]]
        if images is not None:
            return self.decode(between, labels=chosen, progress=progress, output_type=output_type, **how)
        return self.sample(
            noise=between,
            seeds=[first] * len(between),
            labels=chosen,
            progress=progress,
            output_type=output_type,
            **how,
        )

    def _coding(
        self, solver: Any, steps: Any, iterations: Any, arguments: dict[str, Any]
    ) -> tuple[Table, Table, dict[str, Any]]:
        """(the table that encodes, the one that decodes, arguments that are no options of them)."""
        if "num_inference_steps" in arguments:
            if steps is not None:
                raise ArgumentError("are the same argument: give one", argument="steps, num_inference_steps")
            arguments = dict(arguments)
            steps = arguments.pop("num_inference_steps")
        for name in ("seed", "seeds"):
            if arguments.get(name) is not None:
                raise ConfigError("nothing random is drawn here; leave it out", argument=name)
        process = self.settings.noise_schedule
        if solver is None:
            solver = "ddim" if isinstance(process, NoiseSchedule) else "euler"
        if not isinstance(solver, str) or solver not in SOLVERS:
            raise ConfigError(f"expected ddim, euler or heun, got {shown(solver)}", argument="solver")
        check_names(solver, [k for k, v in arguments.items() if k not in SAMPLE and v is not None])
        count = as_index(iterations)
        if type(count) is not int or not 1 <= count <= MOST_ITERATIONS:
            raise ConfigError(
                f"expected an int from 1 to {MOST_ITERATIONS}, got {shown(iterations)}", argument="iterations"
            )
        options = {k: v for k, v in arguments.items() if k not in SAMPLE and v is not None}
        options = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in options.items()}
        if options.get("begin_index"):
            raise ConfigError("an encoding goes all the way; leave it out", argument="begin_index")
        given = SOLVERS[solver].count(options) if {"timesteps", "sigmas"} & options.keys() else None
        wanted = as_index(steps) if steps is not None else (given or STEPS)
        if type(wanted) is not int:
            raise ConfigError(f"expected an int, got {shown(steps)}", argument="steps")
        up, down = encoder(solver, process, wanted, count, tuple(sorted(options.items())))
        rest = {name: value for name, value in arguments.items() if name in SAMPLE}
        if rest.get("guidance_scale") is None:
            rest["guidance_scale"] = 1.0
        return up, down, rest
