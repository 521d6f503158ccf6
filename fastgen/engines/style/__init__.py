"""The engine that gives pictures the style of others: its verbs, styles kept for later, tiles, colours."""

from .engine import StyleEngine
from .styles import Style

__all__ = ["Style", "StyleEngine"]
