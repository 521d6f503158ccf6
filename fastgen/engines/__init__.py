"""What users call: one engine per generative family."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffusion.engine import DiffusionEngine
    from .flow.engine import FlowEngine
    from .style.engine import StyleEngine
    from .translate.engine import TranslateEngine
    from .upscale.engine import UpscaleEngine
    from .vae.engine import VAEEngine

__all__ = ["DiffusionEngine", "FlowEngine", "StyleEngine", "TranslateEngine", "UpscaleEngine", "VAEEngine"]


def __getattr__(name: str) -> Any:
    """Engines when first used: `arguments`, which ``fastgen.onnx_runtime`` shares, needs no PyTorch."""
    from .style.engine import StyleEngine
    from .translate.engine import TranslateEngine
    from .upscale.engine import UpscaleEngine
    from .vae.engine import VAEEngine


__all__ = ["DiffusionEngine", "FlowEngine", "StyleEngine", "TranslateEngine", "UpscaleEngine", "VAEEngine"]
