"""The engine of variational autoencoders."""

from .engine import VAEEngine

__all__ = ["VAEEngine"]
