"""fastgen: fast sampling from the classic generative families.

>>> engine = fastgen.load("zoo:ddpm-mnist")
>>> images = engine.sample(16, solver="dpm++2m", steps=20, seed=0)  # float32 [16, C, H, W] in [-1, 1]
>>> fastgen.save_grid(images, "grid.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import CaptureError, CheckpointError, ConfigError, DataError, FastgenError

if TYPE_CHECKING:
    from .api import ENGINES, convert, export, load
    from .engines import DiffusionEngine, FlowEngine, VAEEngine
    from .images import save_gif, save_grid, save_image

__version__ = "0.1.0"

__all__ = [
    "ENGINES",
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiffusionEngine",
    "FastgenError",
    "FlowEngine",
    "VAEEngine",
    "convert",
    "export",
    "load",
    "save_gif",
    "save_grid",
    "save_image",
]

# Loaded when first used: PyTorch takes seconds, and `fastgen --help` needs none of it.
_LATER = {
    "api": ("ENGINES", "convert", "export", "load"),
    "engines": ("DiffusionEngine", "FlowEngine", "VAEEngine"),
    "images": ("save_gif", "save_grid", "save_image"),
}


def __getattr__(name: str) -> Any:
    if name == "onnx_runtime":
        return importlib.import_module(".onnx_runtime", __name__)
    for module, names in _LATER.items():
        if name in names:
            value = getattr(importlib.import_module(f".{module}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
