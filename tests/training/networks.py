"""Two small networks that are trained together, and a family of them, as a test adds it at run time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.checkpoint import Part, Spec
from fastgen.config import bounded
from fastgen.families import Flag
from fastgen.families.family import given
from fastgen.families.recipe import PAIRS, Recipe
from fastgen.training.batch import Dataset
from fastgen.training.objective import Group, Step
from fastgen.training.run import Run
from fastgen.training.settings import RunConfig

CRITIC_STEPS = 3
RUN = RunConfig(steps=5, batch_size=4, save_every=2, preview_every=2, warmup=1, precision="fp32")


@dataclass(frozen=True)
class ToyConfig:
    """channels: of the one hidden layer."""

    channels: int = bounded(1, 64, default=4)


class ToyNet(nn.Module):
    """Images [B, C, H, W] -> [B, 1, H, W], with a batch norm (whose buffers change) and a dropout (which is random)."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, config.channels, 3, padding=1),
            nn.BatchNorm2d(config.channels),
            nn.LeakyReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(config.channels, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


@dataclass
class Critic:
    """A critic that is updated k times per step, then the generator (Gulrajani et al. 2017), without the penalty."""

    unit: str = "loss"
    order: list[str] = field(default_factory=list)  # of the updates so far
    seen: list[dict[str, Tensor]] = field(default_factory=list)  # all weights before each update

    def inputs(self, batch: Tensor) -> Tensor:
        return batch.float() / 127.5 - 1

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        pass

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        adam: dict[str, Any] = {"betas": (0.0, 0.9), "weight_decay": 0.0}
        return {
            "critic": Group([networks["critic"]], lr=2e-3, **adam),
            "generator": Group([networks["generator"]], **adam),
        }

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        generator, critic = networks["generator"], networks["critic"]
        target = step.x if step.target is None else step.target
        for _ in range(CRITIC_STEPS):
            noise = torch.randn(step.x.shape, generator=step.generator)
            fake = generator(
                step.x + noise.to(step.x.device)
            )  # not detached: the loop keeps its gradients off
            yield self._noted("critic", networks), critic(fake).mean() - critic(target).mean()
        noise = torch.randn(step.x.shape, generator=step.generator)
        yield self._noted("generator", networks), -critic(generator(step.x + noise.to(step.x.device))).mean()
        self._noted("end", networks)

    def _noted(self, name: str, networks: nn.ModuleDict) -> str:
        self.order.append(name)
        self.seen.append({n: p.detach().clone() for n, p in networks.named_parameters()})
        return name


class ToyRecipe(Recipe):
    """A generator, which is the model, and a critic, which is not."""

    parts = 2
    flags = (Flag("--toy-channels", {"type": int, "help": "of both networks"}), *PAIRS)
    refused = ("--label-dropout",)
    run_defaults = MappingProxyType({"grad_clip": 0.0})
    previews = False

    def new_spec(
        self, args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
    ) -> Spec:
        return Spec("toy", {"generator": self._part(args)}, {}, provenance)

    def auxiliary(self, args: argparse.Namespace, dataset: Dataset, config: RunConfig) -> dict[str, Part]:
        return {"critic": self._part(args)}

    def objective(self, networks: nn.ModuleDict, run: Run, dataset: Dataset) -> Critic:
        return Critic()

    def _part(self, args: argparse.Namespace) -> Part:
        return Part("toy_net", {"channels": given(args, self.flags).get("toy_channels", 4)})
