"""Training a denoiser: uniform times, mean squared error on the network's own target (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from .batch import Dataset
from .objective import OneNetwork, Step


@dataclass(frozen=True)
class Denoising(OneNetwork):
    """The objective of a network F(x, t, label), x [B, C, H, W] in [-1, 1].

    null_class: the label that stands for "no label"; the run's `label_dropout` of the labels become it.
    """

    schedule: NoiseSchedule
    null_class: int | None
    unit: str = "loss"

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [-1, 1]."""
        return batch.float() / 127.5 - 1

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Nothing about a denoiser is decided by the data."""

    def loss(self, module: nn.Module, step: Step) -> Tensor:
        """The mean squared error of the network's output at times and noise drawn for this step."""
        x, label, schedule = step.x, step.label, self.schedule
        t = step.integers(0, schedule.num_train_timesteps)
        noise = step.normal(*x.shape[1:])
        if label is not None and self.null_class is not None:
            label = torch.where(step.uniform() < step.config.label_dropout, self.null_class, label)
        t, label = t.to(x.device), None if label is None or self.null_class is None else label.to(x.device)

        noisy = schedule.add_noise(x, noise, t).to(memory_format=torch.channels_last)
        with step.autocast():
            output = module(noisy, t, label)
        return nn.functional.mse_loss(output.float(), schedule.target(x, noise, t))
