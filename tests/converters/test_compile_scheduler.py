"""Scheduler objects as tables: diffusers' and some never seen before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgen.diffusion
from fastgen.converters import compile_scheduler
from fastgen.diffusion import pack, run
from fastgen.errors import ConfigError
from tests.refusals import refused

from .compiled import CASES, STEPS, AdamsBashforth, Case, Theirs, compiled, difference

TOLERANCE = 1e-12
# Their set_timesteps integrates numerically, or computes a thousand steps.
SLOW = ("lms", "dpm2", "dpm2 ancestral")
# Another setting of a class that is tried.
ALIKE = (
    "ddim, eta 1",
    "euler, karras",
    "euler, leading",
    "heun, leading",
    "dpm++ 2m",
    "dpm++ 2m sde",
    "dpm++ 2s",
    "unipc",
    "unipc 4",
    "deis",
    "plms",
)
LATER = (*SLOW, *ALIKE, "sa-solver", "ddim inverse", "dpm inverse", "ddpm parallel", "flow heun")


def test_there_are_enough() -> None:
    assert len({case.cls for name, case in CASES.items() if name not in LATER}) >= 18


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LATER else n for n in CASES]
)
def test_diffusers(name: str) -> None:
    """The object as users make it, and wholly in float64 against a pipeline's loop over the same."""
    case = CASES[name]
    table = compiled(case)
    assert table.deviation <= TOLERANCE
    assert table.initial_scale == fresh_scale(case, STEPS)
    assert table.prediction_type == getattr(case.make().config, "prediction_type", None)
    table = compiled(case, stand_in=True)
    assert table.deviation <= TOLERANCE
    if not case.brownian:
        assert difference(case, table, torch.float64, stand_in=True) <= TOLERANCE


def fresh_scale(case: Case, steps: int) -> float:
    scheduler = case.make()
    scheduler.set_timesteps(steps)
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


@pytest.mark.parametrize("name", ["euler, leading", "heun, leading", "euler", "ddim", "edm euler"])
def test_initial_scale_is_that_of_the_object_after_set_timesteps(name: str) -> None:
    """Some schedulers' depends on the number of steps: 25.8 instead of 157.4 for Euler with leading spacing."""
    case = CASES[name]
    assert compiled(case, 5).initial_scale == fresh_scale(case, 5)
    if "leading" in name:
        assert compiled(case, 5).initial_scale < 0.5 * float(case.make().init_noise_sigma)


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


def euler(sample: Tensor, change: Tensor) -> tuple[Tensor]:
    return (sample - 0.1 * change,)


class OwnBuffer(Theirs):
    """Writes each state over the one before and hands out that one tensor."""

    buffer: Tensor | None = None

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        if self.buffer is None:
            self.buffer = sample.clone()
        self.buffer.sub_(0.1 * model_output)
        return (self.buffer,)


class NewBuffer(Theirs):
    """Puts outputs into a tensor of the default type."""

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
        kept = torch.zeros(3, *sample.shape)
        kept[1] = model_output
        return euler(sample, kept.sum(0))


class Learned(torch.nn.Module):
    """Its coefficients are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps = torch.linspace(1, 0.1, 6)
        self.c = torch.nn.Parameter(torch.full((6,), 0.1, dtype=torch.float64))

    def step(self, model_output: Tensor, t: Any, sample: Tensor) -> Tensor:
        return sample - self.c[0] * model_output


@pytest.mark.parametrize("scheduler", [OwnBuffer(), NewBuffer(), Learned()], ids=lambda s: type(s).__name__)
def test_objects_that_keep_tensors_of_their_own(scheduler: Any) -> None:
    table = compile_scheduler(scheduler)
    np.testing.assert_allclose(table.a[:, [0, 2]], np.tile([1.0, -0.1], (6, 1)), rtol=1e-12)
    assert (table.slots, table.deviation <= TOLERANCE) == (0, True)


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda x: torch.normal(0.0, 0.1, size=tuple(x.shape), dtype=x.dtype),
    "mean": lambda x: torch.normal(torch.zeros_like(x), 0.1),
    "std": lambda x: torch.normal(0.0, torch.full_like(x, 0.1)),
    "both": lambda x: torch.normal(torch.zeros_like(x), torch.full_like(x, 0.1)),
    "out": lambda x: torch.normal(torch.zeros_like(x), torch.full_like(x, 0.1), out=torch.empty_like(x)),
    "in place": lambda x: torch.empty(x.shape).normal_(std=0.1),
    "distribution": lambda x: torch.distributions.Normal(torch.zeros_like(x), 0.1).sample(),
    "generator": lambda x: 0.1 * torch.randn(x.shape, generator=torch.Generator(), dtype=x.dtype),
}


@pytest.mark.parametrize("way", DRAWN)
def test_ways_to_draw_normal_noise(way: str) -> None:
    class Noisy(Theirs):
        def step(self, model_output: Tensor, t: Any, sample: Tensor) -> tuple[Tensor]:
            return (sample - 0.1 * model_output + DRAWN[way](sample),)

    table = compile_scheduler(Noisy())
    np.testing.assert_allclose(table.a[:, [0, 2, 3]], np.tile([1.0, -0.1, 0.1], (6, 1)), rtol=1e-12)


@pytest.mark.parametrize(("high", "low"), [(80.0, 0.002), (1e4, 1e-4)])
def test_levels_far_apart(high: float, low: float) -> None:
    """Later levels' outputs are small beside the state, so that what is remembered is known less exactly."""
    table = compile_scheduler(AdamsBashforth(high, low), initial_scale=high)
    assert (table.slots, table.deviation <= 1e-10) == (1, True)


@pytest.mark.slow
def test_long_runs_with_memory() -> None:
    """Rounding adds up over what is remembered: what counts as rounding must not be one number for all."""
    table = compiled(CASES["pndm"], 500)
    assert (len(table), table.slots) == (509, 4)
    assert table.deviation <= 1e-10


def test_prediction_types_are_compared() -> None:
    epsilon, velocity = compiled(CASES["ddim"], 2), compiled(CASES["flow euler"], 2)
    assert (epsilon.prediction_type, velocity.prediction_type) == ("epsilon", None)
    for predicted in ("epsilon", "edm"):
        epsilon.check_prediction(predicted)
    for predicted in ("velocity", "v_prediction"):
        with refused(ConfigError, "solver", predicted):
            epsilon.check_prediction(predicted)
    velocity.check_prediction("velocity")
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    flow = compiled(Case("unipc_multistep", "UniPCMultistepScheduler", config), 3)
    flow.check_prediction("velocity")
    with refused(ConfigError, "solver", "epsilon"):
        flow.check_prediction("epsilon")


def test_the_old_name_goes_on_to_work() -> None:
    assert fastgen.diffusion.compile_scheduler is compile_scheduler
    assert not hasattr(fastgen.diffusion, "compile_schedulers")
