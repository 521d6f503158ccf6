"""``fastgen sample`` of a GAN: its flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .family import Flag
from .sampling import Sampling

FLAGS = (
    Flag(
        "--truncation",
        {
            "metavar": "T",
            "help": "below 1: likelier images, less variety; none: whole normals (default: the model's)",
        },
    ),
    Flag(
        "--truncation-law",
        {
            "choices": ("rescale", "clip"),
            "help": "rescale: T times normals within [-2, 2]; clip: normals within [-T, T] (default: the model's)",
        },
    ),
)


def _arguments(given: Mapping[str, Any], count: int) -> dict[str, Any]:
    found = dict(given)
    if "truncation" in found:
        text = found["truncation"]
        try:
            found["truncation"] = None if text == "none" else float(text)
        except ValueError:
            raise ConfigError(f"expected a number or none, got {text!r}", argument="--truncation") from None
    return found


def _labels(engine: Any) -> list[int] | None:
    """A class-conditional GAN draws nothing without a label: each class in turn."""
    classes = engine.describe()["classes"]
    return list(range(classes)) if classes else None


SAMPLING = Sampling(
    arguments=_arguments,
    kept=("seeds", "labels", "truncation", "truncation_law"),
    labels=_labels,
    class_names=lambda engine: engine.settings.class_names,
)
