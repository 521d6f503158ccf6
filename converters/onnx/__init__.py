"""Models as ONNX files: every export form of a network, a step, a whole sampler."""

from .exporter import OPSET, export_form, export_module

__all__ = ["OPSET", "export_form", "export_module"]
