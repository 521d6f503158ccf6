"""The engine of normalising flows."""

from .engine import FlowEngine

__all__ = ["FlowEngine"]
