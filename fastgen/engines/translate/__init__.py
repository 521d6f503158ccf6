"""The engine of networks from images to images."""

from .engine import Best, TranslateEngine
from .settings import TranslateSettings

__all__ = ["Best", "TranslateEngine", "TranslateSettings"]
