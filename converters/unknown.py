"""What to say about tensors of no model that is known, and about modules in wrappers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

# Names that networks of diffusion models begin with, under any prefix: the time's embedding, the way down and up.
TIME = re.compile(r"(^|\.)(time_|t_embed|temb|timestep|map_noise|map_layer|time\.|temb_proj|sigma_embed)")
DOWN = re.compile(
    r"(^|\.)(down|downs?_?blocks?|input_blocks|enc|encoder|conv_in|init_conv|head)\b|(^|\.)downs?\."
)
UP = re.compile(r"(^|\.)(up|ups?_?blocks?|output_blocks|dec|decoder|conv_out|final_conv|tail)\b|(^|\.)ups?\.")
OWN_DENOISER = (
    "for the network of a diffusion model, build it with its own code, load_state_dict these weights, and give it to "
    "fastgen.DiffusionEngine.from_module(net, schedule, prediction_type, shape); a UNet2DModel of diffusers is "
    "loaded from its folder, with config.json beside the weights"
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
        f"Flows that are known: {flows}. For a flow of fastgen's own layers: FlowEngine.from_module. "
        f"Not a flow: {OWN_DENOISER}"
    )


def like_denoiser(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these are the tensors of a U-Net or another network of images and a time, as far as names tell."""
    images = any(len(shape) == 4 for shape in shapes.values())
    marks = sum(any(mark.search(name) for name in shapes) for mark in (TIME, DOWN, UP))
    return images and (marks == 3 or (marks == 2 and any(TIME.search(name) for name in shapes)))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within torch's own wrappers."""
    while (name := WRAPPERS.get(type(module).__name__)) and isinstance(
        getattr(module, name, None), nn.Module
    ):
        module = getattr(module, name)
    return module
