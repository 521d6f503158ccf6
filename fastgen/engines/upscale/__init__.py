"""The engine of super-resolution networks."""

from .engine import UpscaleEngine

__all__ = ["UpscaleEngine"]
