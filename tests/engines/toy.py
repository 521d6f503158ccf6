"""All that a new family writes: two networks, an engine with two verbs, a trainer with two optimisers, a flag."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.architectures import Architecture
from fastgen.checkpoint import Part, Spec
from fastgen.config import bounded
from fastgen.engines.arguments import SeededRequest, sample_count, sample_labels, sample_seeds
from fastgen.engines.streams import Streams
from fastgen.engines.verb import Tensors, Verb
from fastgen.families import Family, Flag, Sampling
from fastgen.families.recipe import Recipe
from fastgen.training.objective import Group, Step
from fastgen_kernels import normals, signed_seeds


@dataclass(frozen=True)
class MLPConfig:
    inputs: int = bounded(1, 64, default=2)
    outputs: int = bounded(1, 64, default=2)


class MLP(nn.Sequential):
    def __init__(self, config: MLPConfig) -> None:
        super().__init__(nn.Linear(config.inputs, 16), nn.SiLU(), nn.Linear(16, config.outputs))


@dataclass(frozen=True)
class ToyRequest(SeededRequest):
    gain: float = 1.0


class ToyEngine(Streams):
    kind = "toy"
    shape: tuple[int, ...] = (2,)
    classes: int | None = None

    def verbs(self) -> dict[str, Verb]:
        def noise(seeds: Tensor, gain: Tensor) -> Tensor:
            return normals(seeds, torch.zeros_like(seeds), "initial", self.shape)

        def sample(networks: nn.ModuleDict, seeds: Tensor, gain: Tensor, *, noise: Tensor) -> Tensors:
            return (networks["generator"]((gain[:, None] * noise).to(_dtype(networks, noise))),)

        def score(networks: nn.ModuleDict, x: Tensor) -> Tensors:
            return (networks["critic"](x.to(_dtype(networks, x))),)

        def fast_sample(seeds: Tensor, gain: Tensor) -> Tensors:
            return sample(self.networks, seeds, gain, noise=noise(seeds, gain))

        def seeds(batch: int, generator: torch.Generator) -> Tensors:
            return torch.arange(batch, device=self.device), torch.ones(batch, device=self.device)

        return {
            "sample": Verb("sample", ("seeds", "gain"), ("x",), fast_sample, sample, seeds, noise),
            "score": Verb(
                *("score", ("x",), ("score",), lambda x: score(self.networks, x), score),
                trial=lambda batch, generator: (torch.randn(batch, 2, generator=generator).to(self.device),),
            ),
        }

    def request(
        self,
        n: int | None = None,
        *,
        seed: Any = None,
        seeds: Any = None,
        labels: Any = None,
        gain: Any = 1.0,
    ) -> ToyRequest:
        count = sample_count(n, seeds, labels)
        return ToyRequest(
            sample_seeds(count, seed, seeds),
            sample_labels(count, labels, self.classes, None, True),
            float(gain),
        )

    def draw(self, request: ToyRequest) -> Tensor:
        seeds = signed_seeds(request.seeds).to(self.device)
        return self.call("sample", seeds, torch.full((len(seeds),), request.gain, device=self.device))[
            0
        ].float()


def _dtype(networks: nn.ModuleDict, x: Tensor) -> torch.dtype:
    return next(networks.parameters()).dtype


class Adversarial:
    """Two updates of the critic, then one of the generator, in every step."""

    unit = "loss"

    def inputs(self, batch: Tensor) -> Tensor:
        return batch

    def start(self, networks: nn.ModuleDict, dataset: Any, step: Step) -> None:
        """Nothing is decided by the data."""

    def groups(self, networks: nn.ModuleDict) -> dict[str, Group]:
        return {name: Group([network], betas=(0.5, 0.9)) for name, network in networks.items()}

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        generator, critic = networks["generator"], networks["critic"]
        for _ in range(2):
            fake = generator(torch.randn(step.x.shape, generator=step.generator)).detach()
            yield (
                "critic",
                nn.functional.softplus(critic(fake)).mean() + nn.functional.softplus(-critic(step.x)).mean(),
            )
        fake = generator(torch.randn(step.x.shape, generator=step.generator))
        yield "generator", nn.functional.softplus(-critic(fake)).mean()


class ToyRecipe(Recipe):
    parts = 2
    previews = False

    def new_spec(self, args: Any, dataset: Any, config: Any, provenance: dict[str, Any]) -> Spec:
        parts = {"generator": Part("toy_mlp", {}), "critic": Part("toy_mlp", {"outputs": 1})}
        return Spec("toy", parts, {}, provenance)

    def objective(self, networks: nn.ModuleDict, run: Any, dataset: Any) -> Adversarial:
        return Adversarial()


GAIN = Flag("--gain", {"type": float, "help": "factor of the noise"})
ARCHITECTURE = {"toy_mlp": Architecture(MLPConfig, MLP)}
FAMILY = Family(
    name="toy",
    engine="tests.engines.toy:ToyEngine",
    flags={"sample": (GAIN,)},
    sampling=Sampling(kept=("seeds", "labels", "gain")),
    recipes={"toy_mlp": ToyRecipe()},
)
