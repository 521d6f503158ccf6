"""Scheduler objects of other projects as tables: a scheduler is run with unit vectors, and its steps become rows."""

from .compile import CompiledTable, compile_scheduler

__all__ = ["CompiledTable", "compile_scheduler"]
