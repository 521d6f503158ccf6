"""What users call: one engine per generative family."""

from .diffusion.engine import DiffusionEngine
from .flow.engine import FlowEngine

__all__ = ["DiffusionEngine", "FlowEngine"]
