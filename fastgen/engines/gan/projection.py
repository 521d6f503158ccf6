"""Styles for a given image: gradient descent in w, through the reference network.

Karras et al. 2020, appendix D, in short: Adam on w, whose learning rate rises at the start and falls to 0 by a cosine
at the end, with normal noise on w that fades out, from w's mean. Differences: the descent begins at the best of
`CANDIDATES` drawn w's and the mean, since the nearest minimum of an image that looks like few others is often a wrong
one; the distance is of pixels at several resolutions, with no network of features; noise images stay as they are.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels import normals

from ...config import shown
from ...errors import ConfigError
from ...images import PICTURES, within
from ..arguments import as_index, sample_seeds
from .style_verbs import fixed_noise
from .verbs import seed_tensor

if TYPE_CHECKING:
    from .style import StyleGANEngine

CANDIDATES = 256  # w's among which the descent begins
TOGETHER = 32  # of them at a time in memory
RISE, FALL = 0.05, 0.25  # shares of the steps in which the learning rate rises, and falls
NOISE, NOISY = (
    0.05,
    0.75,
)  # normal noise on w, in deviations of w, and the share of the steps in which it fades
ROUNDING = 1e-3  # how far images may reach beyond [-1, 1]
COARSEST = 4  # pixels of the smallest side that is compared
MAX_STEPS = 100_000
SPACES = ("w", "w+")


@dataclass(frozen=True)
class Projection:
    """What ``project`` found for images x [n, C, H, W].

    ws: float32 [n, num_ws, w_dim], for ``synthesis``. images: float32 [n, C, H, W] in [-1, 1], of them. losses: float32
    [steps + 1, n] on the CPU, before each step and after the last one, see `distance`; while noise is on w, with it.
    loss: float32 [n], of `images`. seeds: the best candidates', where the descent began; None at the mean of w.
    """

    ws: Tensor
    images: Tensor
    losses: Tensor
    loss: Tensor
    seeds: tuple[int | None, ...]

    @property
    def w(self) -> Tensor:
        """[n, w_dim], the style of the first layer: that of all layers in space "w"."""
        return self.ws[:, 0]


@dataclass(frozen=True)
class ProjectionOptions:
    """Arguments of ``project``, see there."""

    steps: int = 400
    space: str = "w"
    seed: int = 0
    learning_rate: float = 0.1
    noise_mode: str = "const"

    def check(self) -> None:
        """Raises ConfigError."""
        steps = as_index(self.steps)
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
            raise ConfigError(
                f"expected an int from 1 to {MAX_STEPS}, got {shown(self.steps)}", argument="steps"
            )
        if self.space not in SPACES:
            raise ConfigError(
                f"expected one of {', '.join(SPACES)}, got {shown(self.space)}", argument="space"
            )
        rate = self.learning_rate
        if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate <= 100:
            raise ConfigError(
                f"expected a number above 0, at most 100, got {shown(rate)}", argument="learning_rate"
            )
        if self.noise_mode == "random":
            raise ConfigError("expected const or none: what changes cannot be fitted", argument="noise_mode")
        sample_seeds(1, self.seed, None)


def distance(x: Tensor, target: Tensor) -> Tensor:
    """[n]: the mean over resolutions, each half of the one before, of mean squared differences of pixels.

    x, target: [n, C, H, W]. Where the target is black or white, x may lie outside of [-1, 1]: it would be clamped.
    """
    off = x - target
    off = torch.where(target >= 1, off.clamp(max=0), torch.where(target <= -1, off.clamp(min=0), off))
    terms = [off.square().flatten(1).mean(1)]
    while min(off.shape[2:]) >= 2 * COARSEST:
        off = F.avg_pool2d(off, 2)
        terms.append(off.square().flatten(1).mean(1))
    return torch.stack(terms).mean(0)


def projected(
    engine: StyleGANEngine,
    x: Tensor,
    labels: Tensor | None,
    options: ProjectionOptions,
    progress: Callable[[int, Tensor], None] | None,
) -> Projection:
    """As ``StyleGANEngine.project``, for which the engine works already. x: float32 [n, C, H, W], labels: int64 [n] or
    None, on its device.
    """
    with torch.inference_mode(False):
        generator: Any = copy.deepcopy(engine.generator).float().requires_grad_(False)
        x = x.clone()  # of inference mode it could not be looked at by autograd
        noise = fixed_noise(generator, options.noise_mode)
        most = engine.batches.micro_batch
        descents = [
            _Descent(generator, noise, part, None if labels is None else labels[i * most :][:most], options)
            for i, part in enumerate(x.split(most))
        ]
        for step in range(options.steps + 1):
            for descent in descents:
                descent.look(step)
            if step == options.steps:
                break
            if progress is not None:
                progress(step, torch.cat([descent.losses[-1] for descent in descents]))
            for descent in descents:
                descent.move(step)
        parts = [descent.found() for descent in descents]
    found = Projection(
        torch.cat([part.ws for part in parts]),
        torch.cat([part.images for part in parts]),
        torch.cat([part.losses for part in parts], dim=1),
        torch.cat([part.loss for part in parts]),
        tuple(seed for part in parts for seed in part.seeds),
    )
    _check_finite(found, options)
    return found


def check_pictures(x: Tensor) -> None:
    """Raises ConfigError for images [n, C, H, W] with values that are not finite or not in [-1, 1] but for rounding."""
    bad = ~(x.abs() <= 1 + ROUNDING).flatten(1).all(1)  # NaN compares as False
    if bool(bad.any()):
        raise ConfigError(
            f"expected finite values in [-1, 1], image {int(bad.long().argmax())} has others", argument="x"
        )


def _check_finite(found: Projection, options: ProjectionOptions) -> None:
    """Raise ConfigError where no image of a descent was finite; warn where its last one was not."""
    if bool((lost := ~found.loss.isfinite()).any()):
        raise ConfigError(
            f"nothing that the network draws near image {int(lost.long().argmax())} is finite (NaN or infinite); "
            "engine.verify() looks at the network",
            argument="x",
        )
    broken = (~found.losses[-1].isfinite()).nonzero().flatten().tolist()
    if broken:
        warnings.warn(
            f"the descent became NaN or infinite for images {', '.join(map(str, broken))}; what came closest before is "
            f"given. A lower learning_rate than {options.learning_rate:g} may help",
            stacklevel=5,
        )


class _Descent:
    """Of one part of the images, all of which it draws at once.

    losses: a tensor [n] on the CPU for each `look`.
    """

    def __init__(
        self,
        generator: Any,
        noise: list[Tensor] | None,
        x: Tensor,
        labels: Tensor | None,
        options: ProjectionOptions,
    ) -> None:
        self.generator, self.noise, self.x, self.options = generator, noise, x, options
        start, self.seeds, deviation = _begin(generator, noise, x, labels, options.seed)
        self.deviation = deviation[:, None, None]
        copies = generator.num_ws if options.space == "w+" else 1
        self.w = start[:, None].repeat(1, copies, 1).requires_grad_(True)
        self.adam = torch.optim.Adam([self.w], lr=options.learning_rate)
        self.rng = seed_tensor((options.seed,), x.device)  # one noise for all images, wherever they stand
        self.losses: list[Tensor] = []
        self.best = torch.full((len(x),), math.inf, device=x.device)
        self.best_ws = self.w.detach().clone()

    def look(self, step: int) -> None:
        """Draw the images of w, with the step's noise on it; keep the losses, their slope and the best w's."""
        fade = max(0.0, 1 - step / self.options.steps / NOISY) ** 2
        with torch.enable_grad():
            drawn = normals(self.rng, step, "step", self.w.shape[1:])
            tried = self.w + (NOISE * fade * self.deviation) * drawn if fade > 0 else self.w
            each = distance(self._drawn(tried), self.x)
            (self.w.grad,) = torch.autograd.grad(each.sum(), self.w)
        each = each.detach()
        self.losses.append(each.cpu())
        better = each < self.best
        self.best = torch.where(better, each, self.best)
        self.best_ws = torch.where(better[:, None, None], tried.detach(), self.best_ws)

    def move(self, step: int) -> None:
        """A step of Adam along the slope of the last look."""
        steps = self.options.steps
        share = step / steps
        rate = min(1.0, share / RISE + 1 / steps) * (
            0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / FALL))
        )
        self.adam.param_groups[0]["lr"] = self.options.learning_rate * rate
        self.adam.step()

    @torch.no_grad()
    def found(self) -> Projection:
        """The best so far."""
        ws = self.best_ws.expand(-1, self.generator.num_ws, -1).contiguous()
        images = self._drawn(ws)
        return Projection(
            ws, within(images, PICTURES), torch.stack(self.losses), distance(images, self.x), self.seeds
        )

    def _drawn(self, ws: Tensor) -> Tensor:
        images: Tensor = self.generator.synthesis(ws.expand(-1, self.generator.num_ws, -1), self.noise)
        return images


@torch.no_grad()
def _begin(
    generator: Any, noise: list[Tensor] | None, x: Tensor, labels: Tensor | None, seed: int
) -> tuple[Tensor, tuple[int | None, ...], Tensor]:
    """For each of x the w [n, w_dim] of the least distance, the seed that it is of (None: the mean), and the deviation
    of w [n] among its candidates.
    """
    numbers = tuple((seed + i) % (1 << 64) for i in range(CANDIDATES))
    z = normals(seed_tensor(numbers, x.device), 0, "initial", (generator.config.latent,))
    classes, starts, seeds, deviations = generator.config.num_classes, [], [], []
    for i in range(len(x)):
        if i == 0 or labels is not None:
            of = None if classes is None else torch.arange(CANDIDATES, device=x.device) % classes
            of = of if labels is None else labels[i].expand(CANDIDATES)
            w = generator.mapping(z, of)
            deviation = w.std(dim=0, correction=0).square().mean().sqrt()
            middle = generator.w_mean[None] if labels is None else w.mean(0, keepdim=True)
            w = torch.cat([middle, w])
            parts = [
                generator.synthesis(part[:, None].expand(-1, generator.num_ws, -1), noise)
                for part in w.split(TOGETHER)
            ]
        far = torch.cat([distance(part, x[i : i + 1].expand_as(part)) for part in parts])
        chosen = int(far.nan_to_num(nan=math.inf).argmin())
        starts.append(w[chosen])
        deviations.append(deviation)
        seeds.append(None if chosen == 0 else numbers[chosen - 1])
    return torch.stack(starts), tuple(seeds), torch.stack(deviations)
