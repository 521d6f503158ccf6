"""Progressive distillation, Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models"
(arXiv:2202.00512): a student learns to do in one DDIM step what its teacher does in two; then it is the teacher of the
next halving. The guidance of the first teacher may be learned with it (Meng et al. 2023, arXiv:2210.03142, at one
weight).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..config import bounded, one_of
from ..diffusion.schedule import NoiseSchedule
from ..diffusion.timesteps import timesteps
from ..errors import ConfigError
from .batch import Dataset
from .objective import Group, Step

STUDENT, TEACHER = "unet", "teacher"  # names of the networks
WEIGHTINGS = ("truncated-snr", "snr-plus-one")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What a student learns.

    teacher_steps: DDIM steps of the given teacher; student_steps: those of the last student, teacher_steps / 2^k.
    teacher_guidance: weight w of the given teacher's guidance, F_u + w (F_c - F_u); the student needs none. weighting:
    of the squared error of x_0, max(SNR, 1) or SNR + 1, SNR = alpha_t^2 / sigma_t^2 (section 4 of the paper).

    Raises ConfigError where the number of teacher steps cannot be halved to that of the student's.
    """

    teacher_steps: int = bounded(2, 1024, default=16)
    student_steps: int = bounded(1, 512, default=4)
    teacher_guidance: float = bounded(0.0, 1000.0, default=1.0)
    weighting: str = one_of(*WEIGHTINGS, default="truncated-snr")

    def __post_init__(self) -> None:
        if self.halvings < 1 or self.student_steps << self.halvings != self.teacher_steps:
            raise ConfigError(
                f"expected {self.teacher_steps} (the teacher's) halved once or several times, "
                f"got {self.student_steps}",
                argument="student_steps",
            )

    @property
    def halvings(self) -> int:
        """How many students are trained, one after the other."""
        return (self.teacher_steps // self.student_steps).bit_length() - 1

    def steps_of(self, halving: int) -> int:
        """DDIM steps of the student of halving 0, 1, ..."""
        return self.teacher_steps >> (halving + 1)


@dataclass(frozen=True)
class Distillation:
    """The objective of a student and its teacher, networks F(x, t, label) of one architecture, x [B, C, H, W] in
    [-1, 1], that predict v or x_0.

    teacher(): the weights of the given teacher, by name, for a new run. null_class: the label that stands for "no
    label"; the run's `label_dropout` of the labels become it, and there the student learns of an unguided teacher.
    clip: whether estimates of x_0 are clipped to [-1, 1], as `ddim` does by default. Of H halvings, each takes 1 / H of
    the run's steps with a warm-up and decay of its own; at its end the student is copied over its teacher.
    """

    schedule: NoiseSchedule
    config: DistillationConfig
    null_class: int | None
    teacher: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    clip: bool = True
    unit: str = "loss"

    def __post_init__(self) -> None:
        if self.schedule.prediction_type == "epsilon":
            raise ConfigError(
                "epsilon says nothing about x_0 where a few steps begin, at pure noise (section 4 of the paper); "
                "a teacher that predicts v_prediction or sample is needed",
                argument="prediction_type",
            )

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [-1, 1]."""
        return batch.float() / 127.5 - 1

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Both networks get the given teacher's weights."""
        weights = self.teacher()
        for network in networks.values():
            network.load_state_dict(weights)

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``."""
        return {
            "loss": Group([networks[STUDENT]], cycles=self.config.halvings),
            TEACHER: Group([networks[TEACHER]], fixed=True),
        }

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The weighted squared error of the student's step from the teacher's two (algorithm 2 of the paper)."""
        student, teacher = networks[STUDENT], networks[TEACHER].eval()
        halving = self._halving(step.number, step)
        if step.number and self._halving(step.number - 1, step) != halving:
            teacher.load_state_dict(student.state_dict())
        x, label, config = step.x, step.label, self.config
        steps = config.steps_of(halving)
        drawn, noise = step.integers(0, steps), step.normal(*x.shape[1:])
        if label is not None and self.null_class is not None:
            dropped = step.uniform() < step.config.label_dropout
            label = torch.where(dropped, self.null_class, label).to(x.device)
        elif self.null_class is None:
            label = None

        # Falling times t, and behind the last of them the clean end, -1; the student's are every second one.
        times = torch.tensor(
            [*timesteps(self.schedule.num_train_timesteps, 2 * steps, "trailing"), -1], device="cpu"
        )
        t, middle, end = (times[2 * drawn + k] for k in range(3))
        noisy = self.schedule.add_noise(x, noise, t.to(x.device)).to(memory_format=torch.channels_last)
        guidance = config.teacher_guidance if halving == 0 else 1.0
        with torch.no_grad():
            z = noisy
            for now, after in ((t, middle), (middle, end)):
                F = self._guided(teacher, z, now.to(x.device), label, guidance, step)
                z = self._ddim(z, self._clean(F, z, now), now, after)
            wanted = self._clean_of_step(noisy, z, t, end)
        with step.autocast():
            output = student(noisy, t.to(x.device), label)
        found = self._estimate(output.float(), noisy, t)
        yield "loss", (self._weight(t, x) * (found - wanted) ** 2).mean()

    def _halving(self, number: int, step: Step) -> int:
        return number * self.config.halvings // step.config.steps

    def _guided(
        self, teacher: nn.Module, z: Tensor, t: Tensor, label: Tensor | None, scale: float, step: Step
    ) -> Tensor:
        """The teacher's output, float32, guided by `scale`."""
        with step.autocast():
            if scale == 1.0 or label is None or self.null_class is None:
                return teacher(z, t, label).float()
            nothing = torch.full_like(label, self.null_class)
            both = teacher(torch.cat([z, z]), torch.cat([t, t]), torch.cat([label, nothing])).float()
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def _estimate(self, F: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """x_0 as the network's output F says it."""
        return self.schedule.x0_from(F, z, t.to(z.device))

    def _clean(self, F: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """As `_estimate`, clipped where steps clip it."""
        estimate = self._estimate(F, z, t)
        return estimate.clamp(-1, 1) if self.clip else estimate

    def _ddim(self, z: Tensor, clean: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """From t to s: alpha_s x_0 + sigma_s (z - alpha_t x_0) / sigma_t."""
        (alpha, sigma), (alpha_s, sigma_s) = self._at(t, z), self._at(s, z)
        return alpha_s * clean + sigma_s / sigma * (z - alpha * clean)

    def _clean_of_step(self, z: Tensor, end: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The x_0 with which one DDIM step from z at t ends at `end` at s (appendix G of the paper)."""
        (alpha, sigma), (alpha_s, sigma_s) = self._at(t, z), self._at(s, z)
        return (end - sigma_s / sigma * z) / (alpha_s - sigma_s / sigma * alpha)

    def _weight(self, t: Tensor, like: Tensor) -> Tensor:
        alpha, sigma = self._at(t, like)
        snr = alpha**2 / sigma**2
        return snr.clamp(min=1.0) if self.config.weighting == "truncated-snr" else snr + 1.0

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t as [B, 1, ...], like `like`; t: int64 [B] on the CPU, -1 for the clean end."""
        bars = np.append(self.schedule.alphas_cumprod, 1.0)[t.numpy()]  # index -1 is the last
        both = torch.from_numpy(np.sqrt(np.stack([bars, 1.0 - bars])))
        alpha, sigma = both.to(like.device, like.dtype).reshape(2, -1, *[1] * (like.dim() - 1))
        return alpha, sigma
