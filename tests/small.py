"""Small networks and checkpoints that tests share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fastgen.checkpoint import Part, Spec, save
from fastgen.config import to_dict
from fastgen.models.unet import UNet, UNetConfig

SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


class TinyNet(nn.Module):
    """A few lines that depend on x, t and label, pixel by pixel, so that no library picks an algorithm by batch."""

    def __init__(self, channels: int = 1, out_channels: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        mix = torch.randn(out_channels or channels, channels, generator=generator) / channels**0.5
        self.mix = nn.Parameter(mix, requires_grad=False)
        self.tags = nn.Parameter(torch.linspace(-0.3, 0.3, 12), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        shift = (t / 1000).to(x.dtype)[:, None, None, None]
        if label is not None:
            shift = shift + self.tags[label][:, None, None, None]
        mixed = sum(self.mix[:, c].view(1, -1, 1, 1) * x[:, c : c + 1] for c in range(x.shape[1]))
        return torch.tanh(0.7 * mixed + shift) * 0.9


def unet_config(**changes: object) -> UNetConfig:
    """A U-Net of some 20,000 parameters with two levels and 4 classes (the last the null class)."""
    values: dict = {
        "sample_size": (8, 8),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 16),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "num_class_embeds": 4,
    }
    return UNetConfig(**{**values, **changes})


def spec(config: UNetConfig, **settings: object) -> Spec:
    """A checkpoint's spec around `config`, with 3 classes where it embeds 4."""
    classes = None if config.num_class_embeds is None else config.num_class_embeds - 1
    values = {"schedule": SCHEDULE, "num_classes": classes, "null_class": classes, "steps": 5}
    return Spec("diffusion", {"unet": Part("unet", to_dict(config))}, {**values, **settings})


def network(config: UNetConfig, seed: int = 0) -> UNet:
    """A U-Net with random weights."""
    torch.manual_seed(seed)
    return UNet(config).eval().requires_grad_(False)


def checkpoint(folder: Path, **settings: object) -> Path:
    """A small model folder with random weights."""
    config = unet_config()
    tensors = {f"unet.{name}": tensor for name, tensor in network(config).state_dict().items()}
    save(folder, spec(config, **settings), tensors)
    return folder
