"""Models as ONNX files: every export form of a network, a step, a whole sampler."""

from .export import WHAT, check_arguments, export_engine
from .exporter import OPSET, PRECISIONS, export_form, export_module
from .folder import Written

__all__ = [
    "OPSET",
    "PRECISIONS",
    "WHAT",
    "Written",
    "check_arguments",
    "export_engine",
    "export_form",
    "export_module",
]
