"""fastgen: fast sampling from the classic generative families.

>>> engine = fastgen.load("zoo:ddpm-mnist")
>>> images = engine.sample(16, solver="dpm++2m", steps=20, seed=0)  # float32 [16, C, H, W] in [-1, 1]
>>> fastgen.save_grid(images, "grid.png")
"""

__version__ = "0.1.0"

from .api import ENGINES, DiffusionEngine, convert, load
from .errors import CaptureError, CheckpointError, ConfigError, DataError, FastgenError
from .images import save_gif, save_grid, save_image

__all__ = [
    "ENGINES",
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiffusionEngine",
    "FastgenError",
    "convert",
    "load",
    "save_gif",
    "save_grid",
    "save_image",
]
