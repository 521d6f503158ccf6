"""Verbs that change an image: edit (image to image), inpaint, colourise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...config import shown
from ...diffusion.jumps import cut, looks_back, with_jumps
from ...diffusion.levels import state_levels
from ...diffusion.schedule import NoiseSchedule
from ...diffusion.table import Table
from ...errors import ConfigError
from ...images import Range, to_output
from ..arguments import as_index
from .given import (
    Given,
    check_draws_images,
    check_floats,
    check_images,
    check_mask,
    check_range,
    check_strengths,
    per_sample,
)
from .guidance import WORDS as GUIDANCE
from .queue import Known
from .request import Request

if TYPE_CHECKING:
    from .plan import Plan
    from .settings import DiffusionSettings

METHODS = ("replace", "repaint")
COUNTS = ("steps", "num_inference_steps", "timesteps", "sigmas")  # what says the number of steps
JUMPS, RESAMPLES = 5, 5  # of a RePaint run: a jump is a fifth of it
REPAINT_STEPS = 25
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601, as Pillow and OpenCV have it
MOST = 10_000  # of a jump's length, and of times
EPSILON = 1e-9  # of a step, by which a product of two floats may fall short of a whole number


class Editing:
    """What a ``DiffusionEngine`` does with images that it is given.

    images: float [n, C, H, W], or [C, H, W] for one, in the model's value range, [-1, 1]; of its own size. One image
    may become several: give `n`, seeds or labels.
    **arguments: those of ``sample`` that say how: n, seed, seeds, labels, solver, steps, guidance and options. A result
    depends on its own image and seed, not on what is made beside it.
    """

    if TYPE_CHECKING:
        shape: tuple[int, ...]
        settings: DiffusionSettings
        device: torch.device

        @property
        def value_range(self) -> Range | None: ...

        def resolved(self, /, n: int | None = None, **arguments: Any) -> Request: ...

        draw: Callable[..., Any]

    def edit(
        self,
        images: Tensor,
        strength: float | Sequence[float] = 0.5,
        *,
        noise: Tensor | None = None,
        callback: Callable[[int, int, Tensor], Any] | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **arguments: Any,
    ) -> Tensor | np.ndarray | list:
        """Images like `images`, which are made noisy and drawn from there (Meng et al. 2022, arXiv:2108.01073).

        strength: above 0, up to 1, one or one per image: the share of the steps that are done, as in diffusers. 1
            begins with the first step, whose noise leaves next to nothing of the image.
        noise: float [1 or n, C, H, W], standard normal, instead of the seeds' own.
        Other arguments and results: see the class, and ``sample``.

        Every solver on every process begins at the noise level of its step, a multistep method with what it has there.
        Raises ConfigError that names the argument.
        """
        to_output(None, output_type)
        checked = check_images("images", images, self.shape, self.value_range)
        request = self._begun(strength, counted(checked, arguments))
        count = len(request.seeds)
        drawn: Sequence[Tensor | None] = [None] * count
        if noise is not None:
            made = per_sample(check_floats("noise", noise, self.shape), count, "noise")
            drawn = list(made.to(self.device))
        process = self.settings.noise_schedule
        given = tuple(
            Given(initial=z, image=image, level=tuple(state_levels(plan.table, process)[0].tolist()))
            for z, image, plan in zip(
                drawn, spread(checked.to(self.device), count), request.plans, strict=True
            )
        )
        request = dataclasses.replace(request, given=given)
        return self.draw(request, callback=callback, progress=progress, output_type=output_type)

    def inpaint(
        self,
        images: Tensor,
        mask: Tensor,
        *,
        method: str = "repaint",
        jump_length: int | None = None,
        resamples: int | None = None,
        callback: Callable[[int, int, Tensor], Any] | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **arguments: Any,
    ) -> Tensor | np.ndarray | list:
        """Fill in a part of `images`. What the mask leaves is in the result bit for bit.

        mask: bool or float, True or 1 where pixels are to be filled in, [H, W], [1 or C, H, W] or [1 or n, 1 or C, H,
            W]. Between 0 and 1 the result is that share of what is drawn, at every step.
        method: both put the known pixels, as noisy as the state is, into it after every step (Song et al. 2021,
            arXiv:2011.13456, appendix I.2). "repaint" also goes back and does every `jump_length` steps `resamples`
            times, so that what is filled in fits what is there (Lugmayr et al. 2022, arXiv:2201.09865), for about that
            many times the network evaluations. It takes a solver that does not look back at earlier steps: by default
            ddim with eta=1, euler_a where there are no timesteps, with 25 steps. "replace" does each step once, and
            takes any solver, by default the model's own.
        jump_length: by default a fifth of the steps. resamples: 5 by default. Both only with "repaint".
        Other arguments and results: see the class, and ``sample``.

        Raises ConfigError that names the argument.
        """
        to_output(None, output_type)
        checked = check_images("images", images, self.shape, self.value_range)
        if method not in METHODS:
            raise ConfigError(f"expected one of {', '.join(METHODS)}, got {shown(method)}", argument="method")
        arguments = _without_begin(counted(checked, arguments), "inpainting begins with the first step")
        if method == "replace":
            for name, value in (("jump_length", jump_length), ("resamples", resamples)):
                if value is not None:
                    raise ConfigError("has an effect only with method=repaint", argument=name)
            request = self.resolved(**arguments)
        else:
            request = self._repainted(jump_length, resamples, arguments)
        count = len(request.seeds)
        request = self._held(request, spread(checked, count), 1.0 - check_mask(mask, count, self.shape), None)
        return self.draw(request, callback=callback, progress=progress, output_type=output_type)

    def colourise(
        self,
        grey: Tensor,
        weights: Sequence[float] | None = None,
        *,
        callback: Callable[[int, int, Tensor], Any] | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **arguments: Any,
    ) -> Tensor | np.ndarray | list:
        """Colours for grey images: results whose channels, weighted and added up, are `grey` to float rounding.

        grey: float [n, 1, H, W], or [1, H, W] for one, in the model's value range.
        weights: of the C channels, positive, with the sum 1; by default 0.299, 0.587, 0.114 (ITU-R BT.601) of three,
            equal ones of another number.
        Other arguments and results: see the class, and ``sample``.

        With A the weighted sum, x' = x + A^+ (A x_known - A x) after every step, x_known as noisy as the state: what A
        sees is replaced, its null space, the colours, is drawn (Song et al. 2021, arXiv:2011.13456, appendix I.2; Wang
        et al. 2022, DDNM, arXiv:2212.00490). A colour that leaves the value range is made paler, not clipped, which
        would change the grey. Raises ConfigError that names the argument.
        """
        to_output(None, output_type)
        check_draws_images("grey", self.shape)
        channels, height, width = self.shape
        if channels < 2:
            raise ConfigError(f"this model's images have {channels} channel: no colours", argument="grey")
        checked = check_floats("grey", grey, (1, height, width))
        check_range("grey", checked, self.value_range)
        direction = self._direction(weights)
        arguments = _without_begin(counted(checked, arguments), "colours are drawn from the first step on")
        request = self.resolved(**arguments)
        count = len(request.seeds)
        # Of all images with this grey the grey one: A of it is `grey`, since the weights add up to 1.
        known = spread(checked, count).expand(count, *self.shape)
        unit = (direction / direction.norm()).float()
        request = self._held(request, known, torch.ones_like(known), unit)
        drawn = self.draw(request, callback=callback, progress=progress)
        return to_output(
            _in_gamut(drawn, spread(checked.to(drawn), count), direction.to(drawn.device), self.value_range),
            output_type,
            self.value_range,
        )

    def _direction(self, weights: Any) -> Tensor:
        """The weights of the channels in grey, float64 [C], checked. Raises ConfigError."""
        channels = self.shape[0]
        if weights is None:
            weights = LUMA if channels == 3 else [1.0 / channels] * channels
        try:
            found = torch.tensor([float(w) for w in weights], dtype=torch.float64, device="cpu")
        except (TypeError, ValueError):
            found = torch.zeros(0, dtype=torch.float64, device="cpu")
        total = float(found.sum())
        if len(found) != channels or not bool((found > 0).all()) or not abs(total - 1.0) < 1e-3:
            raise ConfigError(
                f"expected {channels} positive numbers with the sum 1, got {shown(weights)}",
                argument="weights",
            )
        return found / total

    def _begun(self, strength: Any, arguments: dict[str, Any]) -> Request:
        """The request whose runs begin where `strength` says."""
        arguments = _without_begin(arguments, "is what strength says")
        whole = self.resolved(**arguments)
        strengths = check_strengths(strength, len(whole.seeds))
        begins = [_first_step(value, plan) for value, plan in zip(strengths, whole.plans, strict=True)]
        again = {**arguments, "n": len(begins)}
        if all(isinstance(plan.solver, Table) for plan in whole.plans):
            again["solver"] = [cut(plan.table, k) for k, plan in zip(begins, whole.plans, strict=True)]
            return self.resolved(**_without_steps(again))
        if any(isinstance(plan.solver, Table) for plan in whole.plans):
            raise ConfigError("expected names or tables, not both in one call", argument="solver")
        again["begin_index"] = begins if len(set(begins)) > 1 else begins[0]
        return self.resolved(**again)

    def _repainted(
        self, jump_length: int | None, resamples: int | None, arguments: dict[str, Any]
    ) -> Request:
        """The request whose runs go back and forth."""
        length = None if jump_length is None else _whole("jump_length", jump_length)
        times = _whole("resamples", RESAMPLES if resamples is None else resamples)
        process = self.settings.noise_schedule
        if arguments.get("solver") is None:
            solver = "ddim" if isinstance(process, NoiseSchedule) else "euler_a"
            arguments = {"eta": 1.0, **arguments, "solver": solver}
            if all(arguments.get(name) is None for name in COUNTS):
                arguments["steps"] = REPAINT_STEPS
        plain = self.resolved(**arguments)
        tables = [
            # One step alone has nowhere to go back to.
            plan.table
            if length is None and plan.steps == 1
            else with_jumps(
                plan.table,
                process,
                length or max(1, plan.steps // JUMPS),
                times,
                looks_back=_looks_back(plan),
            )
            for plan in plain.plans
        ]
        rest = {name: value for name, value in arguments.items() if name in ("labels", *GUIDANCE)}
        return self.resolved(len(tables), **rest, seeds=plain.seeds, solver=tables)

    def _held(self, request: Request, images: Tensor, keep: Tensor, direction: Tensor | None) -> Request:
        """`request` with its samples held to `images` where `keep` says."""
        process = self.settings.noise_schedule
        images, keep = images.to(self.device), keep.to(self.device)
        given = tuple(
            Given(
                known=Known(image, share, state_levels(plan.table, process), direction, plan.table.stochastic)
            )
            for image, share, plan in zip(images, keep, request.plans, strict=True)
        )
        return dataclasses.replace(request, given=given)


def counted(images: Tensor, arguments: dict[str, Any]) -> dict[str, Any]:
    """`arguments` of ``sample`` with as many samples as images, where there are several. Raises ConfigError."""
    if len(images) == 1:
        return arguments
    n = arguments.get("n")
    if n is not None and as_index(n) != len(images):
        raise ConfigError(f"expected {len(images)}, as many as images, got {shown(n)}", argument="n")
    return {**arguments, "n": len(images)}


def spread(images: Tensor, count: int) -> Tensor:
    """`images` [1 or count, ...] for `count` samples."""
    return images.expand(count, *images.shape[1:])


def _looks_back(plan: Plan) -> bool:
    """Whether a plan's solver is a multistep method."""
    if isinstance(plan.solver, Table):
        return False
    options = {k: v for k, v in plan.options.items() if k not in ("timesteps", "sigmas", "begin_index")}
    return looks_back(lambda steps: dataclasses.replace(plan, steps=steps, options=options).table, plan.steps)


def _without_begin(arguments: dict[str, Any], why: str) -> dict[str, Any]:
    if arguments.get("begin_index") is not None:
        raise ConfigError(f"{why}; leave it out", argument="begin_index")
    return arguments


def _without_steps(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of tables, which have them."""
    return {name: value for name, value in arguments.items() if name not in ("steps", "num_inference_steps")}


def _first_step(strength: float, plan: Plan) -> int:
    """The first step that is taken, of a table its first row."""
    taken = int(plan.steps * strength + EPSILON)
    if taken < 1:
        raise ConfigError(
            f"{strength:g} of {plan.steps} steps leaves none to do; expected at least {1 / plan.steps:.4g}",
            argument="strength",
        )
    return plan.steps - taken


def _whole(name: str, value: Any) -> int:
    count = as_index(value)
    if type(count) is not int or not 1 <= count <= MOST:
        raise ConfigError(f"expected an int from 1 to {MOST}, got {shown(value)}", argument=name)
    return count


def _in_gamut(images: Tensor, grey: Tensor, weights: Tensor, value_range: Range | None) -> Tensor:
    """Colour images with exactly this grey [n, 1, H, W], as much of their colour as the range has room for."""
    wide, target = images.double(), grey.double()
    # What floats and the clamp to the range have moved: along the weights, back to the grey.
    own = (weights.view(1, -1, 1, 1) * wide).sum(1, keepdim=True)
    colour = wide - own
    if value_range is None:
        return (target + colour).to(images)
    low, high = value_range
    room = torch.where(colour > 0, high - target, target - low) / colour.abs().clamp(min=1e-30)
    share = room.amin(1, keepdim=True).clamp(0.0, 1.0)
    return (target + share * colour).to(images).clamp(low, high)
