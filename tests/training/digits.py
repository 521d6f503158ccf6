"""What each adversarial objective learns of MNIST's digits in at most three minutes of one core.

    FASTGEN_REAL_DATA=... python -m tests.training.digits [NAME ...]

trains a small class-conditional network by every objective, or by those that are named, and writes their rows of
``docs/gans.md``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.pages import write_between
from fastgen.models.gan.dcgan import DCGAN, DCGANConfig, DCGANDiscriminator, DCGANDiscriminatorConfig
from tests.zoo.judge import predict
from tests.zoo.quality import COUNT, HELD_OUT, TRAINING, spread

from .adversaries import train

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gans.md"
MARKS = ("<!-- digits: python -m tests.training.digits -->\n", "<!-- end of digits -->")
HEAD = "| objective | steps | CPU time | label agreement | variety |\n|---|---|---|---|---|\n"
BATCH, LATENT, DECAY = 32, 32, 0.998


@dataclass(frozen=True)
class Objective:
    """config: fields of GANConfig. judge: of the discriminator's config, on top of `networks`."""

    steps: int
    config: dict[str, Any]
    lr: float = 5e-4
    judge: dict[str, Any] = field(default_factory=lambda: {"norm": "none", "spectral_norm": True})


NO_NORM = {"norm": "none"}
R1 = {"penalty": "r1", "penalty_weight": 0.1, "beta1": 0.0, "beta2": 0.99}
CRITIC = {"gan_loss": "wasserstein", "updates": 2, "beta1": 0.0, "beta2": 0.9}
OBJECTIVES = {
    # With equal learning rates the generator's loss has a small gradient for longer: it learns later (docs/gans.md).
    "minimax, spectral norm": Objective(2500, {"gan_loss": "minimax", "d_lr": 0.4}, lr=1e-3),
    "non-saturating, spectral norm": Objective(2500, {"gan_loss": "non-saturating"}),
    "least squares, spectral norm": Objective(1500, {"gan_loss": "lsgan"}),
    "hinge, spectral norm": Objective(2500, {"gan_loss": "hinge"}),
    "non-saturating, R1": Objective(2500, {"gan_loss": "non-saturating", **R1}, lr=1e-3, judge=NO_NORM),
    "WGAN-GP": Objective(1500, {**CRITIC, "penalty": "gradient"}, lr=1e-3, judge=NO_NORM),
    "WGAN, clipping": Objective(4000, {**CRITIC, "clip": 0.3}, lr=1e-3, judge=NO_NORM),
}


def networks(objective: Objective, seed: int = 0) -> nn.ModuleDict:
    """28x28 pixels, ten classes; a projection of the label in the discriminator."""
    generator = DCGANConfig(
        latent=LATENT,
        out_channels=1,
        widths=(64, 32),
        kernels=(7, 4, 4),
        strides=(1, 2, 2),
        paddings=(0, 1, 1),
        num_classes=10,
        embedding=10,
    )
    discriminator = DCGANDiscriminatorConfig(
        in_channels=1,
        size=28,
        widths=(32, 64, 128),
        kernels=(4, 4, 3),
        strides=(2, 2, 2),
        paddings=(1, 1, 1),
        bias=True,
        head="pool",
        num_classes=10,
        conditioning="projection",
        **objective.judge,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {"generator": DCGAN(generator), "discriminator": DCGANDiscriminator(discriminator)}
        )


def learn(
    objective: Objective, images: np.ndarray, labels: np.ndarray, steps: int | None = None
) -> nn.Module:
    """The generator of averaged weights. images: uint8 [N, 28, 28]; labels: int64 [N]."""
    x, y = torch.tensor(images)[:, None].float() / 127.5 - 1, torch.tensor(labels)
    batch = BATCH * objective.config.get("updates", 1)

    def draw(random: torch.Generator) -> tuple[Tensor, Tensor]:
        which = torch.randint(len(x), (batch,), generator=random)
        return x[which], y[which]

    *_, (_, made) = train(
        networks(objective), objective.config, objective.lr, steps or objective.steps, draw, decay=DECAY
    )
    return made


def judged(generator: nn.Module, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(how often the judge sees the label asked for, mean distance of two digits of a label over that of `images`)."""
    asked = np.arange(COUNT) % 10
    z = torch.randn(COUNT, LATENT, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        drawn = (generator(z, torch.from_numpy(asked))[:, 0].double().numpy() + 1) / 2
    of_real, of_drawn = spread(images / 255.0, labels), spread(drawn, asked)
    return float((predict(drawn) == asked).mean()), sum(of_drawn.values()) / sum(of_real.values())


def main() -> None:
    """Train, print, and write the page; rows that are not measured now stay."""
    from tests import real

    torch.set_num_threads(1)
    images, labels = real.mnist()
    found = {}
    for name in sys.argv[1:] or OBJECTIVES:
        start = time.process_time()
        made = learn(OBJECTIVES[name], images[TRAINING], labels[TRAINING])
        took = time.process_time() - start
        agreement, variety = judged(made, images[HELD_OUT], labels[HELD_OUT])
        found[name] = (
            f"| {name} | {OBJECTIVES[name].steps:,} | {took:.0f} s | {agreement:.1%} | {variety:.2f} |"
        )
        print(found[name], flush=True)
    known = PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0].splitlines()
    rows = {**{line.split("|")[1].strip(): line for line in known if line.startswith("|")}, **found}
    write_between(PAGE, MARKS, HEAD + "".join(f"{rows[name]}\n" for name in OBJECTIVES if name in rows))


if __name__ == "__main__":
    main()
