"""``fastgen sample`` of a GAN, style-based or not: its flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .family import Flag
from .sampling import Sampling
from .values import in_turn, number

FLAGS = (
    Flag(
        "--truncation",
        {
            "metavar": "T",
            "help": "below 1: likelier images, less variety; none: no truncation; of a style-based model psi, "
            "also several in turn: 0,0.5,1 (default: the model's)",
        },
    ),
    Flag(
        "--truncation-law",
        {
            "choices": ("rescale", "clip"),
            "help": "rescale: T times normals within [-2, 2]; clip: normals within [-T, T] (default: the model's); "
            "not of a style-based model",
        },
    ),
    Flag(
        "--truncation-cutoff",
        {
            "metavar": "K",
            "help": "of a style-based model: truncate the first K styles; none: all (default: the model's)",
        },
    ),
    Flag(
        "--noise-mode",
        {
            "choices": ("const", "random", "none"),
            "help": "of a style-based model: noise images that are the model's own, the seed's, or none (default: the "
            "model's)",
        },
    ),
)
STYLE_ONLY = {"truncation_cutoff": "--truncation-cutoff", "noise_mode": "--noise-mode"}


def _arguments(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    for name, flag in STYLE_ONLY.items():
        if name in given:
            raise ConfigError("is for style-based models, and this is none", argument=flag)
    found = dict(given)
    if "truncation" in found:
        found["truncation"] = number_or_none("--truncation", found["truncation"])
    return found


def _style_arguments(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    if "truncation_law" in given:
        raise ConfigError(
            "is not for style-based models; take --truncation alone", argument="--truncation-law"
        )
    return style_options(given, count)


def style_options(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Keyword arguments of a style-based engine from flags' values: truncation, truncation_cutoff, noise_mode.

    Raises ConfigError.
    """
    found: dict[str, Any] = {}
    if given.get("truncation") is not None:
        text = given["truncation"]
        found["truncation_psi"] = (
            None if text == "none" else in_turn(text, count, number("--truncation"), "--truncation")
        )
    if given.get("truncation_cutoff") is not None:
        cutoff = number_or_none("--truncation-cutoff", given["truncation_cutoff"])
        if cutoff is not None and not cutoff.is_integer():
            raise ConfigError(
                f"expected a whole number or none, got {cutoff:g}", argument="--truncation-cutoff"
            )
        found["truncation_cutoff"] = None if cutoff is None else int(cutoff)
    if given.get("noise_mode") is not None:
        found["noise_mode"] = given["noise_mode"]
    return found


def number_or_none(flag: str, text: str) -> float | None:
    """Raises ConfigError about `flag`."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"expected a number or none, got {text!r}", argument=flag) from None


def _labels(engine: Any) -> list[int] | None:
    """A class-conditional GAN draws nothing without a label: each class in turn."""
    classes = engine.describe()["classes"]
    return list(range(classes)) if classes else None


STYLE_SAMPLING = Sampling(
    arguments=_style_arguments,
    kept=("seeds", "labels", "truncation_psi", "truncation_cutoff", "noise_mode"),
    labels=_labels,
    class_names=lambda engine: engine.settings.class_names,
)
SAMPLING = Sampling(
    arguments=_arguments,
    kept=("seeds", "labels", "truncation", "truncation_law"),
    labels=_labels,
    class_names=lambda engine: engine.settings.class_names,
    variant=lambda engine: STYLE_SAMPLING if engine.style_based else None,
)
