"""Scheduler objects as tables: diffusers' and some never seen before; and what is refused, with the reason."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.diffusion import compile_scheduler, pack, run
from fastgen.errors import ConfigError

from .compiled import CASES, Case, compiled, difference

TOLERANCE = 1e-12
# Their set_timesteps integrates numerically, or computes a thousand steps.
SLOW = ("lms", "dpm2", "dpm2 ancestral")
# Another setting of a class that is tried.
ALIKE = ("ddim, eta 1", "euler, karras", "dpm++ 2m sde", "dpm++ 2s", "unipc", "unipc 4", "deis", "plms")
LATER = (*SLOW, *ALIKE, "sa-solver", "ddim inverse", "dpm inverse")


def test_there_are_enough() -> None:
    assert len({case.cls for name, case in CASES.items() if name not in LATER}) >= 20


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LATER else n for n in CASES]
)
def test_diffusers(name: str) -> None:
    """The object as users make it, and wholly in float64 against a pipeline's loop over the same."""
    case = CASES[name]
    assert compiled(case).deviation <= TOLERANCE
    table = compiled(case, stand_in=True)
    assert table.deviation <= TOLERANCE
    if not case.brownian:
        assert difference(case, table, torch.float64, stand_in=True) <= TOLERANCE


# PNDM's start needs four steps.
FEW = [(name, n) for name in CASES if name not in (*SLOW, "pndm") for n in (1, 2)]
REMEMBERING = (
    "heun",
    "dpm++ 3m",
    "dpm++ 3s",
    "unipc 4",
    "deis 3",
    "pndm",
    "plms",
    "ipndm",
    "sa-solver",
    "edm dpm",
)
MANY = [(name, 50) for name in ("ddpm", "lcm", *REMEMBERING)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), FEW + MANY)
def test_diffusers_with_other_steps(name: str, steps: int) -> None:
    assert compiled(CASES[name], steps).deviation <= TOLERANCE


@pytest.mark.slow
def test_a_thousand_steps() -> None:
    table = compiled(CASES["flow euler"], 1000)
    assert (len(table), table.slots) == (1000, 0)
    assert table.deviation <= TOLERANCE


@pytest.mark.parametrize("name", ["ddim", "dpm++ 3m", "unipc 3", "flow euler"])
def test_the_object_as_it_runs_in_float32(name: str) -> None:
    """Its tables are ours; what is left is the rounding of 12 steps, some ten operations of 2^-24 each."""
    case = CASES[name]
    found = difference(case, compiled(case), torch.float32, stand_in=False)
    assert 0.0 < found <= 12 * 10 * 2.0**-24


def test_table_fits_the_kernel() -> None:
    rows, times = pack(compiled(CASES["unipc 3"]), offset=1)
    assert rows.shape == (12, 32)
    assert times.shape == (12,)
    assert bool(torch.isfinite(torch.cat([rows[:, :3], rows[:, 8:26]], 1)).all())


class Theirs:
    """The least a scheduler can be: Euler on sigma in equal steps."""

    def __init__(self, steps: int = 6) -> None:
        self.timesteps = np.linspace(1.0, 1.0 / steps, steps)

    def step(self, model_output: Tensor, t: float, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output / len(self.timesteps),)


def test_least_object() -> None:
    scheduler = Theirs()
    table = compile_scheduler(scheduler)
    assert (len(table), table.slots, table.initial_scale, table.name) == (6, 0, 1.0, "Theirs")
    np.testing.assert_allclose(table.time, scheduler.timesteps)
    np.testing.assert_allclose(table.a[:, [0, 2]], np.tile([1.0, -1.0 / 6], (6, 1)), rtol=1e-12)
    assert not table.stochastic


class Remembering(Theirs):
    """Adams-Bashforth of second order, noise of its own, a scaled input: nothing that another scheduler has."""

    def set_timesteps(self, steps: int) -> None:
        self.timesteps = torch.linspace(1, 0.1, steps)
        self.old: Tensor | None = None

    def scale_model_input(self, sample: Tensor, t: Any) -> Tensor:
        return sample * (1.0 + t)

    def step(self, model_output: Tensor, t: Any, sample: Tensor, strength: float = 0.0) -> tuple[Tensor]:
        slope = model_output if self.old is None else 1.5 * model_output - 0.5 * self.old
        self.old = model_output
        return (sample - 0.1 * slope + strength * torch.randn_like(sample),)


def test_an_object_never_seen() -> None:
    scheduler = Remembering()
    before = torch.get_rng_state()
    kept = copy.deepcopy(scheduler.__dict__)
    table = compile_scheduler(scheduler, 10, step_options={"strength": 0.3}, initial_scale=2.0)
    assert torch.equal(torch.get_rng_state(), before)  # its noise came from us
    assert scheduler.__dict__.keys() == kept.keys()
    assert len(scheduler.timesteps) == 6
    assert (table.slots, table.initial_scale) == (1, 2.0)
    assert table.needs_noise == [True] * 10
    np.testing.assert_allclose(table.input_scale, 1.0 + np.linspace(1, 0.1, 10), rtol=1e-6)

    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 1, 3, 3)), rng.normal(size=(10, 2, 1, 3, 3))
    want, old = x, None
    for t, z in zip(torch.linspace(1, 0.1, 10).double().numpy(), noise, strict=True):
        out = np.tanh((1.0 + t) * want)
        want, old = want - 0.1 * (out if old is None else 1.5 * out - 0.5 * old) + 0.3 * z, out
    # 1 + t is float32's sum in the scheduler, where t is.
    np.testing.assert_allclose(run(table, lambda v, t: np.tanh(v), x, list(noise)), want, rtol=0, atol=1e-6)
    assert table.deviation <= TOLERANCE


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


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (Adaptive(), "Adaptive: step [0-9]+ is not linear.*adaptive step sizes"),
        (Rescheduling(), "changes its timesteps"),
        (TwoNoises(), "more than one noise"),
        (Uniform(), "other noise than normal: aten::rand_like"),
        (OneNoiseForAll(), r"noise of shape \[1\]"),
        (LongMemory(), "more than four"),
        (Blurring(), "more than add multiples of whole states"),
        (Constant(), "step 0 is not linear"),
        (Shrinking(), "step 0 returned no state"),
        (Unscaled(), "scale_model_input at step 0 is not linear"),
        (Infinite(), "step 0"),
        (object(), "expected an object with timesteps and a step"),
        (None, "expected an object"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_refusals(scheduler: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_scheduler(scheduler)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("ddim", "DDIMScheduler"), "step 0 is not linear.*configured with clip_sample=True"),
        (
            Case("dpmsolver_multistep", "DPMSolverMultistepScheduler", {"thresholding": True}),
            "thresholding=True",
        ),
        (Case("consistency_models", "CMStochasticIterativeScheduler"), "is not linear.*clipping"),
    ],
    ids=lambda value: getattr(value, "cls", ""),
)
def test_diffusers_refused(case: Case, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compiled(case)


def test_norms_over_the_batch_are_refused() -> None:
    """ScoreSdeVeScheduler's corrector, called as a step."""
    from diffusers import ScoreSdeVeScheduler

    class Corrector(Theirs):
        inner = ScoreSdeVeScheduler()

        def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
            self.inner.set_timesteps(5)
            return (self.inner.step_correct(model_output, sample).prev_sample,)

    with pytest.raises(ConfigError, match=r"is not linear.*norms over a sample or batch"):
        compile_scheduler(Corrector())


def test_steps_must_be_known() -> None:
    with pytest.raises(ConfigError, match="no timesteps yet"):
        compile_scheduler(CASES["ddim"].make())
    scheduler = CASES["ddim"].make()
    scheduler.set_timesteps(7)
    assert len(compile_scheduler(scheduler)) == 7
    for steps in (0, 1.5, True, 10**6):
        with pytest.raises(ConfigError, match="steps: expected an int from 1 to 1000"):
            compile_scheduler(scheduler, steps)
    with pytest.raises(ConfigError, match="initial_scale"):
        compile_scheduler(scheduler, 3, initial_scale=0.0)
