"""The engine of GANs."""

from .engine import GANEngine

__all__ = ["GANEngine"]
