"""What to say about tensors of no model that is known, and about modules in wrappers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

# Names of the time's embedding, under any prefix: of networks of diffusion models, and of nothing else that has images.
TIME = re.compile(r"(^|\.)(time_|time\.|timestep|temb|t_embed|sigma_embed|map_noise)")
OWN_DENOISER = (
    "for the network of a diffusion model, build it with its own code, load_state_dict these weights, and give it to "
    "fastgen.DiffusionEngine.from_module(net, schedule, prediction_type, shape); a UNet2DModel of diffusers and a "
    "model of fastgen's own are loaded from their folder, with config.json beside the weights"
)
WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}


def advice(shapes: Mapping[str, tuple[int, ...]], flows: str) -> str:
    """What to do with tensors of these names and shapes. flows: the kinds of flows that are known, in words."""
    if like_denoiser(shapes):
        return f"By their names they are a denoising network's: {OWN_DENOISER}"
    return (
        f"Models that are known: {flows}. For a flow of fastgen's own layers: FlowEngine.from_module. "
        f"Not a flow: {OWN_DENOISER}"
    )


def like_denoiser(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these are the tensors of a network of images and a time, as far as names tell."""
    return any(len(shape) == 4 for shape in shapes.values()) and any(map(TIME.search, shapes))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within torch's own wrappers."""
    while (name := WRAPPERS.get(type(module).__name__)) and isinstance(
        getattr(module, name, None), nn.Module
    ):
        module = getattr(module, name)
    return module
