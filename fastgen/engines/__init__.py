"""Sets of verbs: one engine a generative family."""

from .diffusion import DiffusionEngine

ENGINES = {"diffusion": DiffusionEngine}

__all__ = ["ENGINES", "DiffusionEngine"]
