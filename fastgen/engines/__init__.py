"""What users call: one engine per generative family."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .diffusion.engine import DiffusionEngine
    from .flow.engine import FlowEngine
    from .gan.engine import GANEngine
    from .style.engine import StyleEngine
    from .translate.engine import TranslateEngine
    from .upscale.engine import UpscaleEngine
    from .vae.engine import VAEEngine

__all__ = [
    "DiffusionEngine",
    "FlowEngine",
    "GANEngine",
    "StyleEngine",
    "TranslateEngine",
    "UpscaleEngine",
    "VAEEngine",
]


def __getattr__(name: str) -> Any:
    """Engines when first used: `arguments`, which ``fastgen.onnx_runtime`` shares, needs no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{name.removesuffix('Engine').lower()}.engine", __name__), name)
