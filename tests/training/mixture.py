"""Eight Gaussians on a circle: what each adversarial objective learns of them, and what collapse looks like.

    python -m tests.training.mixture

trains each for a few minutes in all, prints modes and gauge, and draws ``docs/images/gan-mixture.png``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.families.gan_recipe import mean_distance
from fastgen.training.loop import _generator

from . import adversaries

PAGE = Path(__file__).resolve().parents[2] / "docs" / "images" / "gan-mixture.png"
MODES, RADIUS, SPREAD = 8, 1.0, 0.05
BATCH, LATENT, WIDTH, STEPS = 256, 8, 64, 3000
# A mode is covered where at least a quarter of its share of samples lies within 4 standard deviations of it.
LEAST, NEAR = 0.25, 4.0
# GANConfig's fields, learning rate. R1 as Mescheder et al. 2018 have it; without it these losses circle around.
OBJECTIVES: dict[str, tuple[dict[str, Any], float]] = {
    "minimax, R1": ({"gan_loss": "minimax", "penalty": "r1", "penalty_weight": 0.2}, 1e-3),
    "non-saturating, R1": ({"gan_loss": "non-saturating", "penalty": "r1", "penalty_weight": 0.2}, 1e-3),
    "least squares, R1": ({"gan_loss": "lsgan", "penalty": "r1", "penalty_weight": 0.2}, 1e-3),
    "hinge, R1": ({"gan_loss": "hinge", "penalty": "r1", "penalty_weight": 0.2}, 1e-3),
    "WGAN-GP": (
        {"gan_loss": "wasserstein", "penalty": "gradient", "penalty_weight": 1.0, "updates": 3},
        1e-3,
    ),
    "WGAN, clipping": ({"gan_loss": "wasserstein", "clip": 0.1, "updates": 3}, 1e-3),
}
# Without a penalty, and with a discriminator that learns slower than the generator, it runs to one place.
COLLAPSE = ({"gan_loss": "hinge", "d_lr": 0.3, "beta1": 0.5}, 2e-3)


class MLP(nn.Sequential):
    """Two hidden layers; `latent` is what training asks a generator for."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self_layers = [
            nn.Linear(inputs, WIDTH),
            nn.LeakyReLU(0.2),
            nn.Linear(WIDTH, WIDTH),
            nn.LeakyReLU(0.2),
        ]
        super().__init__(*self_layers, nn.Linear(WIDTH, outputs))
        self.config = SimpleNamespace(latent=inputs, num_classes=None)
        self.logits = outputs == 1

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y: Tensor = super().forward(x)
        return y.flatten(0) if self.logits else y


def centres() -> Tensor:
    """[8, 2]."""
    angles = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def drawn(count: int, generator: torch.Generator) -> Tensor:
    """Samples of the mixture, [count, 2]."""
    which = torch.randint(MODES, (count,), generator=generator)
    return centres()[which] + SPREAD * torch.randn(count, 2, generator=generator)


def train(config: dict[str, Any], lr: float, steps: int, seed: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Yields (step, 2,000 samples of the averaged generator, always of the same latents) ten times."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        networks = nn.ModuleDict({"generator": MLP(LATENT, 2), "discriminator": MLP(2, 1)})
    config = {"beta1": 0.0, "beta2": 0.9, **config}
    count = BATCH * config.get("updates", 1)
    fixed = torch.randn(2000, LATENT, generator=_generator(seed, 0, salt=5))

    def draw(random: torch.Generator) -> tuple[Tensor, None]:
        return drawn(count, random), None

    decay = 1 - 5 / steps  # a mean over the last fifth of the run
    for number, average in adversaries.train(networks, config, lr, steps, draw, decay=decay, seed=seed):
        yield number, average(fixed)


def covered(x: Tensor) -> tuple[int, float]:
    """How many modes are covered; the share of samples that lie near any mode."""
    distance, which = torch.cdist(x, centres()).min(dim=1)
    near = distance < NEAR * SPREAD
    counts = torch.bincount(which[near], minlength=MODES)
    return int((counts >= LEAST * len(x) / MODES).sum()), float(near.float().mean())


def main() -> None:
    """Train all, print, draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    torch.set_num_threads(1)
    every = {**OBJECTIVES, "collapse provoked": COLLAPSE}
    figure, axes = pyplot.subplots(2, 4, figsize=(10, 5.2), dpi=90)
    real = drawn(2000, _generator(0, 0, salt=9))
    gauges = {}
    for axis, (name, (config, lr)) in zip(axes.flat, every.items(), strict=False):
        found = [(step, x, mean_distance(x[:64])) for step, x in train(config, lr, STEPS)]
        x = found[-1][1]
        modes, near = covered(x)
        gauges[name] = [(step, gauge) for step, _, gauge in found]
        print(
            f"{name}: {modes} of {MODES} modes, {near:.0%} of samples near one, gauge {found[-1][2]:.3f}",
            flush=True,
        )
        axis.scatter(*real.T, s=1, color="0.8", rasterized=True)
        axis.scatter(*x.T, s=1, rasterized=True)
        axis.set(
            title=f"{name}\n{modes} of {MODES} modes", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal"
        )
        axis.set_xticks([])
        axis.set_yticks([])
    last = axes.flat[-1]
    for name, points in gauges.items():
        last.plot(*zip(*points, strict=True), lw=1, ls="--" if "collapse" in name else "-", label=name)
    last.axhline(mean_distance(real[:64]), color="k", lw=0.6)
    last.set(title="gauge, and the data's", xlabel="step", ylim=(0, 1.5))
    figure.tight_layout()
    PAGE.parent.mkdir(exist_ok=True)
    figure.savefig(PAGE, metadata={"Software": None})


if __name__ == "__main__":
    main()
