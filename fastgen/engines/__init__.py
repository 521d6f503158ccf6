"""What users call: one engine per generative family, imported when it is used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffusion.engine import DiffusionEngine
    from .flow.engine import FlowEngine

__all__ = ["DiffusionEngine", "FlowEngine"]

_PLACES = {"DiffusionEngine": ".diffusion.engine", "FlowEngine": ".flow.engine"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name], __name__), name)
