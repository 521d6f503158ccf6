"""Folders as diffusers saves them, with tiny random networks, for tests."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgen_kernels import normals

TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": None,
}
# google/ddpm-cifar10-32 and google/ddpm-celebahq-256, but for their weights
CIFAR: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "dropout": 0.1,
}
CELEBA_HQ: dict[str, Any] = CIFAR | {
    "sample_size": 256,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "dropout": 0.0,
}


def pipeline(unet: dict[str, Any] = TINY, name: str = "DDPMPipeline", **options: Any) -> Any:
    """A DDPMPipeline or DDIMPipeline around a random network; options: of its scheduler."""
    import diffusers

    torch.manual_seed(0)
    scheduler = getattr(diffusers, name.replace("Pipeline", "Scheduler"))(**options)
    made = getattr(diffusers, name)(diffusers.UNet2DModel(**unet).eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


@contextlib.contextmanager
def our_noise(seed: int, shape: tuple[int, ...]) -> Iterator[None]:
    """Within the block diffusers' DDPM draws our engine's noise for `seed`: first the start, then the steps'."""
    drawn = 0

    def draw(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal drawn
        drawn += 1
        if drawn == 1:
            return normals([seed], 0, "initial", shape)
        return normals([seed], drawn - 2, "step", shape)

    modules = [
        sys.modules[f"diffusers.{name}"]
        for name in ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm")
    ]
    kept = [module.randn_tensor for module in modules]
    for module in modules:
        module.randn_tensor = draw
    try:
        yield
    finally:
        for module, value in zip(modules, kept, strict=True):
            module.randn_tensor = value


def saved(folder: Path, unet: dict[str, Any] = TINY, **options: Any) -> Path:
    """A folder of a tiny DDPMPipeline; options of `save_pretrained`."""
    pipeline(unet).save_pretrained(folder, **options)
    return folder
