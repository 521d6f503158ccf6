"""How good images are, as numbers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distances import Estimate, Moments, frechet_distance, inception_score, kernel_distance, manifold
    from .features import FeatureNetwork, open_features
    from .pairs import cropped, l1, luma, over_white, psnr
    from .sets import Described, compare, describe, images

METRICS = ("frechet", "kernel", "score", "manifold")  # what two sets of images are compared by

__all__ = [
    "METRICS",
    "Described",
    "Estimate",
    "FeatureNetwork",
    "Moments",
    "compare",
    "cropped",
    "describe",
    "frechet_distance",
    "images",
    "inception_score",
    "kernel_distance",
    "l1",
    "luma",
    "manifold",
    "open_features",
    "over_white",
    "psnr",
]
_MODULES = {
    "distances": (
        *("Estimate", "Moments", "frechet_distance", "inception_score", "kernel_distance", "manifold"),
    ),
    "features": ("FeatureNetwork", "open_features"),
    "pairs": ("cropped", "l1", "luma", "over_white", "psnr"),
    "sets": ("Described", "compare", "describe", "images"),
}


def __getattr__(name: str) -> Any:
    """Names when first used: METRICS, which the command line knows, needs no PyTorch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
