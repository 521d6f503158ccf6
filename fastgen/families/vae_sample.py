"""``fastgen sample`` of a VAE: its flag, and what the command line cannot draw."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .flow_sample import FLAGS
from .sampling import Sampling


def _labels(engine: Any) -> list[int] | None:
    """A VAE that knows classes draws nothing without a label: each class in turn."""
    classes = engine.describe()["classes"]
    return list(range(classes)) if classes else None


def _check(engine: Any, request: Any, form: str) -> None:
    if form in ("sheet", "images") and not engine.images:
        raise ConfigError(
            "this VAE's data has units of its own and is no image; write it as numbers: -o name.npz or name.npy",
            argument=engine.source,
        )


SAMPLING = Sampling(
    kept=("seeds", "labels", "temperature"),
    labels=_labels,
    class_names=lambda engine: engine.settings.class_names,
    check=_check,
)

__all__ = ["FLAGS", "SAMPLING"]
