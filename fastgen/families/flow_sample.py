"""``fastgen sample`` of a flow: its flag, and what the command line cannot draw."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .family import Flag
from .sampling import Sampling

FLAGS = (
    Flag("--temperature", {"type": float, "help": "below 1 samples are closer to the mode (default 1)"}),
)


def _labels(engine: Any) -> list[int] | None:
    """A flow that knows classes draws nothing without a label: each class in turn."""
    classes = engine.describe()["classes"]
    return list(range(classes)) if classes else None


def _check(engine: Any, request: Any, form: str) -> None:
    if context := engine.describe()["context"]:
        raise ConfigError(
            f"this flow needs a context of {context} numbers per sample, which FlowEngine.sample takes",
            argument=engine.source,
        )
    if form in ("sheet", "images") and not engine.discrete:
        raise ConfigError(
            "this flow's data has units of its own and is no image; write it as numbers: -o name.npz or name.npy",
            argument=engine.source,
        )


SAMPLING = Sampling(
    kept=("seeds", "labels", "temperature"),
    labels=_labels,
    class_names=lambda engine: engine.settings.class_names,
    check=_check,
)
