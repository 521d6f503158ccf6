"""Scheduler objects that are no tables: each is refused, and the error says which step or option is the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.converters import compile_scheduler
from fastgen.errors import ConfigError
from tests.refusals import refused

from .compiled import CASES, AdamsBashforth, Case, Theirs, compiled


class Adaptive(Theirs):
    """The step is as long as the change of slope allows."""

    old: Tensor | None = None

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        error = 1.0 if self.old is None else float((model_output - self.old).abs().mean())
        self.old = model_output
        return (sample - 0.1 / max(error, 0.1) * model_output,)


class Rescheduling(Theirs):
    """Appends timesteps on the way."""

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        self.timesteps = np.append(self.timesteps, 0.01)
        return (sample - 0.1 * model_output,)


class TwoNoises(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output + torch.randn_like(sample) + 0.5 * torch.randn(sample.shape),)


class Uniform(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output + torch.rand_like(sample),)


class OneNoiseForAll(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output + torch.randn(1),)


class LongMemory(Theirs):
    """The mean of all outputs so far, each with a weight of its own."""

    def __init__(self) -> None:
        super().__init__(12)
        self.outputs: list[Tensor] = []

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        self.outputs.append(model_output)
        n = len(self.outputs)
        return (sample - sum(f * (k + 1.0) ** (n % 7) for k, f in enumerate(self.outputs)),)


class Blurring(Theirs):
    """Linear, but not in whole states."""

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - 0.1 * (model_output + model_output.roll(1, -1)),)


class Constant(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - 0.1 * model_output + 0.01,)


class Shrinking(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample[..., :-1],)


class Unscaled(Theirs):
    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        return sample + torch.ones_like(sample)


class Infinite(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample / (1.0 - t) - model_output,)


class NumPyNoise(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output + torch.from_numpy(np.random.default_rng().normal(size=sample.shape)),)


class OffCentre(Theirs):
    """Noise whose mean is not 0."""

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output + torch.empty_like(sample).normal_(0.2, 0.1),)


class Clipping(Theirs):
    """Clips far outside of what a run reaches."""

    def __init__(self, what: str, bound: float) -> None:
        super().__init__()
        self.what, self.bound = what, bound

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        if self.what == "sample":
            return ((sample - 0.1 * model_output).clamp(-self.bound, self.bound),)
        return (sample - 0.1 * model_output.clamp(-self.bound, self.bound),)


class Flooring(Theirs):
    """Drops what is small."""

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (sample - torch.where(model_output.abs() < 1e-5, 0.0, model_output),)


class Rounding(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        rounded = torch.from_numpy(model_output.numpy().astype(np.float32))
        return (sample - 0.1 * rounded,)


class Raising(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        raise IndexError("no such thing")


class Wordless(Theirs):
    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        raise AssertionError  # pytest rewrites `assert`


class Blank(Theirs):
    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        raise NotImplementedError(" ")


class Forgetting(Theirs):
    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        return sample

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        return (0.0 * sample,)


class NoNumber(Theirs):
    init_noise_sigma = torch.tensor([2.0, 2.0])


@pytest.mark.parametrize(
    ("scheduler", "about"),
    [
        (Adaptive(), ("Adaptive",)),
        (Rescheduling(), ("Rescheduling",)),
        (TwoNoises(), ("TwoNoises",)),
        (Uniform(), ("Uniform", "aten::rand_like")),
        (OneNoiseForAll(), ("OneNoiseForAll", "[1]")),
        (LongMemory(), ("LongMemory",)),
        (Blurring(), ("Blurring",)),
        (Constant(), ("Constant",)),
        (
            Shrinking(),
            ("Shrinking", "[2, 3, 4, 4]", "[2, 3, 4, 3]"),
        ),
        (NumPyNoise(), ("NumPyNoise", "PyTorch")),
        (OffCentre(), ("OffCentre",)),
        (Clipping("sample", 20.0), ("Clipping", "06")),
        (Clipping("output", 1e5), ("Clipping", "06")),
        (Flooring(), ("Flooring", "06")),
        (Rounding(), ("Rounding", "float32")),
        (Raising(), ("Raising", "IndexError")),
        (Wordless(), ("Wordless", "AssertionError", "test_compile_refusals.py", "raise AssertionError")),
        (Blank(), ("Blank", "NotImplementedError", "test_compile_refusals.py", "scale_model_input")),
        (Forgetting(), ("Forgetting",)),
        (NoNumber(), ("NoNumber: init_noise_sigma", "init_noise_sigma")),
        (
            type("NoTimes", (Theirs,), {"timesteps": 5, "__init__": lambda self: None})(),
            ("NoTimes",),
        ),
        (Unscaled(), ("Unscaled", "scale_model_input")),
        (Infinite(), ("Infinite",)),
        (object(), ("scheduler",)),
        (None, ("scheduler",)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_refusals(scheduler: Any, about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        compile_scheduler(scheduler)


def test_levels_too_far_apart() -> None:
    with refused(ConfigError, "AdamsBashforth", "float64"):
        compile_scheduler(AdamsBashforth(1e5, 1e-5), initial_scale=1e5)


@pytest.mark.parametrize("clip", [1.0, 1e3, 1e5])
def test_clips_however_wide(clip: float) -> None:
    case = Case("ddim", "DDIMScheduler", {"clip_sample_range": clip})
    with refused(ConfigError, "DDIMScheduler", "clip_sample=True"):
        compiled(case, 4)


@pytest.mark.parametrize(
    ("case", "about"),
    [
        (Case("ddim", "DDIMScheduler"), ("DDIMScheduler", "clip_sample=True")),
        (
            Case("dpmsolver_multistep", "DPMSolverMultistepScheduler", {"thresholding": True}),
            ("DPMSolverMultistepScheduler", "thresholding=True"),
        ),
        (Case("consistency_models", "CMStochasticIterativeScheduler"), ("CMStochasticIterativeScheduler",)),
    ],
    ids=lambda value: getattr(value, "cls", ""),
)
def test_diffusers_refused(case: Case, about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        compiled(case)


def test_part_of_a_run() -> None:
    """Shortened timesteps are a shorter run. diffusers' begin_index counts in the whole ones: UniPC fails with both."""
    scheduler = Case("unipc_multistep", "UniPCMultistepScheduler").make()
    scheduler.set_timesteps(10)
    scheduler.timesteps = scheduler.timesteps[3:]
    assert len(compile_scheduler(scheduler)) == 7
    scheduler.set_begin_index(7)
    about = (
        "UniPCMultistepScheduler",
        "step 0",
        "AssertionError",
        "scheduling_unipc_multistep.py",
        "this_order > 0",
    )
    with refused(ConfigError, *about):
        compile_scheduler(scheduler)


def test_norms_over_the_batch_are_refused() -> None:
    """ScoreSdeVeScheduler's corrector, called as a step."""
    from diffusers import ScoreSdeVeScheduler

    class Corrector(Theirs):
        inner = ScoreSdeVeScheduler()

        def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
            self.inner.set_timesteps(5)
            return (self.inner.step_correct(model_output, sample).prev_sample,)

    with refused(ConfigError, "Corrector"):
        compile_scheduler(Corrector())


def test_steps_must_be_known() -> None:
    with refused(ConfigError, "DDIMScheduler"):
        compile_scheduler(CASES["ddim"].make())
    scheduler = CASES["ddim"].make()
    scheduler.set_timesteps(7)
    assert len(compile_scheduler(scheduler)) == 7
    for steps in (0, 1.5, True, 10**6):
        with refused(ConfigError, "steps", "1000"):
            compile_scheduler(scheduler, steps)
    with refused(ConfigError, "Theirs", "set_timesteps"):
        compile_scheduler(Theirs(), 3)
    dynamic = Case(
        "flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}
    )
    with refused(ConfigError, "FlowMatchEulerDiscreteScheduler", "set_timesteps"):
        compiled(dynamic, 8)
    with refused(ConfigError, "initial_scale"):
        compile_scheduler(scheduler, 3, initial_scale=0.0)
