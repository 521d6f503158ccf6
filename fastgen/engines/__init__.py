"""What users call: one engine per generative family."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffusion.engine import DiffusionEngine
    from .flow.engine import FlowEngine
    from .translate.engine import TranslateEngine

__all__ = ["DiffusionEngine", "FlowEngine", "TranslateEngine"]


def __getattr__(name: str) -> Any:
    """Engines when first used: `arguments`, which ``fastgen.onnx_runtime`` shares, needs no PyTorch."""
    if name == "DiffusionEngine":
        from .diffusion.engine import DiffusionEngine

        return DiffusionEngine
    if name == "FlowEngine":
        from .flow.engine import FlowEngine

        return FlowEngine
    if name == "TranslateEngine":
        from .translate.engine import TranslateEngine

        return TranslateEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
