"""Sets of verbs: one engine a generative family."""

from .diffusion.engine import DiffusionEngine
from .flow.engine import FlowEngine

ENGINES: dict[str, type[DiffusionEngine] | type[FlowEngine]] = {
    "diffusion": DiffusionEngine,
    "flow": FlowEngine,
}

__all__ = ["ENGINES", "DiffusionEngine", "FlowEngine"]
