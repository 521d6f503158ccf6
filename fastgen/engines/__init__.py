"""What users call: one engine per generative family."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffusion.engine import DiffusionEngine
    from .flow.engine import FlowEngine
    from .vae.engine import VAEEngine

__all__ = ["DiffusionEngine", "FlowEngine", "VAEEngine"]


def __getattr__(name: str) -> Any:
    """Engines when first used: `arguments`, which ``fastgen.onnx_runtime`` shares, needs no PyTorch."""
    if name == "DiffusionEngine":
        from .diffusion.engine import DiffusionEngine

        return DiffusionEngine
    if name == "FlowEngine":
        from .flow.engine import FlowEngine

        return FlowEngine
    if name == "VAEEngine":
        from .vae.engine import VAEEngine

        return VAEEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
