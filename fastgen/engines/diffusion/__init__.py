"""The diffusion engine: verbs, requests, the sampling loop and what only it uses."""

from .engine import DiffusionEngine

__all__ = ["DiffusionEngine"]
