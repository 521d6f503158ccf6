"""``fastgen sample`` of a diffusion model: its flags, and the request that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import shown
from ..errors import ConfigError
from .family import Flag
from .sampling import GIF, Sampling
from .values import in_turn, named_values, number, numbers, whole_number

GUIDANCE = (
    "guidance_scale",
    "guidance_interval",
    "guidance_sigmas",
    "guidance_times",
    "guidance_rescale",
)

FLAGS = (
    Flag("--solver", {"help": "see `fastgen info --solvers`; ddim,euler: in turn, repeated like labels"}),
    Flag("--steps", {"help": "network evaluations; 10,20: in turn"}),
    Flag("--guidance-scale", {"help": "classifier-free guidance, 1 = none; 1,3: in turn"}),
    Flag(
        "--guidance-interval",
        {"metavar": "A,B", "help": "guided only from A to B, fractions of the run: 0.2,0.8"},
    ),
    Flag(
        "--guidance-sigmas",
        {"metavar": "A,B", "help": "guided only at noise levels above A, up to B: 0.3,5 or 0.3,inf"},
    ),
    Flag(
        "--guidance-times",
        {
            "metavar": "A,B",
            "help": "guided only at times from A to B, as the network is told them: 200,800, or 0.2,0.8",
        },
    ),
    Flag(
        "--guidance-rescale",
        {"type": float, "help": "how far the output's spread is brought back, 0 to 1, 0 = none"},
    ),
    Flag("--eta", {"help": "DDIM's noise, 0 to 1; 0,0.5: in turn"}),
    Flag(
        "--option",
        {"action": "append", "metavar": "NAME=VALUE", "help": "an option of the solver; repeatable"},
    ),
    GIF,
)


def _arguments(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    arguments = {
        "solver": in_turn(given.get("solver"), count, str, "--solver"),
        "steps": in_turn(given.get("steps"), count, whole_number("--steps"), "--steps"),
        "guidance_scale": in_turn(
            given.get("guidance_scale"), count, number("--guidance-scale"), "--guidance-scale"
        ),
        "guidance_interval": numbers("--guidance-interval", given.get("guidance_interval")),
        "guidance_sigmas": numbers("--guidance-sigmas", given.get("guidance_sigmas")),
        "guidance_times": numbers("--guidance-times", given.get("guidance_times")),
        "guidance_rescale": given.get("guidance_rescale"),
        "eta": in_turn(given.get("eta"), count, number("--eta"), "--eta"),
    }
    options = named_values(given.get("option", ()), "--option")
    if unknown := [name for name in options if name in arguments or name not in _solver_options()]:
        raise ConfigError(
            f"{shown(unknown[0])} is not an option of a solver; see `fastgen info --solvers` and "
            "`fastgen sample --help`",
            argument="--option",
        )
    return {**arguments, **options}


def _solver_options() -> set[str]:
    """The name of every option that some solver has."""
    from ..diffusion.solvers import SOLVERS

    return {option.name for solver in SOLVERS.values() for option in solver.options}


def _check(engine: Any, request: Any, form: str) -> None:
    if form == "images" and request.coupled and len(request.seeds) > 1:
        raise ConfigError(
            "step_size=batch makes each image depend on those drawn with it, so that a file of its own could not "
            "repeat it; write a sheet (.png), or take step_size=sample",
            argument="--out",
        )


SAMPLING = Sampling(
    arguments=_arguments,
    kept=("seeds", "labels", "solver", "steps"),
    may_keep=lambda: {"classifier_scale", *GUIDANCE, *_solver_options()},
    class_names=lambda engine: engine.settings.class_names,
    check=_check,
)
