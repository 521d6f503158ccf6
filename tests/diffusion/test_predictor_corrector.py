"""Solvers of the reverse SDE against the paper's loops, and against diffusers' ScoreSdeVeScheduler."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.diffusion import EDM, SOLVERS, VESDE, VPSDE, NoiseSchedule, SubVPSDE, run
from fastgen.errors import ConfigError
from tests.refusals import refused

from .diffusers_oracle import in_float64
from .process_oracles import PC_OPTIONS, SDES, SHAPE, deviation, network

EM_OPTIONS: list[dict[str, Any]] = [{}, {"probability_flow": True}, {"noise_removal": False}]


@pytest.mark.parametrize("options", EM_OPTIONS, ids=str)
@pytest.mark.parametrize("process", SDES, ids=lambda p: p.name)
def test_euler_maruyama(process: Any, options: dict[str, Any]) -> None:
    for steps in (1, 2, 25):
        assert deviation("euler_maruyama", process, steps, **options) <= 1e-12


@pytest.mark.parametrize("options", PC_OPTIONS, ids=str)
@pytest.mark.parametrize("process", SDES, ids=lambda p: p.name)
def test_predictor_corrector(process: Any, options: dict[str, Any]) -> None:
    for steps in (21, 40):
        assert deviation("predictor_corrector", process, steps, **options) <= 1e-12


@pytest.mark.parametrize("process", [VPSDE(), VESDE()], ids=lambda p: p.name)
def test_ancestral_predictor(process: Any) -> None:
    assert deviation("predictor_corrector", process, 30, predictor="ancestral") <= 1e-12


def test_step_size_by_sample_leaves_neighbours_alone_and_by_batch_does_not() -> None:
    rng = np.random.default_rng(0)
    for step_size, alone in (("sample", True), ("batch", False)):
        table = SOLVERS["predictor_corrector"](VESDE(), 5, step_size=step_size)
        x = table.initial_scale * rng.normal(size=SHAPE)
        noise = rng.normal(size=(len(table), *SHAPE))
        both = run(table, network, x, list(noise))
        one = run(table, network, x[:1], list(noise[:, :1]))
        assert np.allclose(both[:1], one, rtol=0, atol=1e-12) == alone


@pytest.mark.parametrize("correct_steps", [1, 2])
def test_equals_diffusers_with_batch_means(correct_steps: int) -> None:
    """ScoreSdeVeScheduler: step_correct, then step_pred; its network is told sigma."""
    from diffusers.schedulers import scheduling_sde_ve as module

    steps, current = 20, []
    table = SOLVERS["predictor_corrector"](
        VESDE(sigma_max=1348.0), steps, snr=0.15, n_steps=correct_steps, step_size="batch"
    )
    generator = torch.Generator().manual_seed(0)
    x = 1348.0 * torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(table), *SHAPE, generator=generator, dtype=torch.float64)

    def net(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.from_numpy(network(x.numpy(), sigma)) / sigma  # of the size of a score

    with in_float64(module, noise=lambda *args, **kwargs: current.pop(0)):
        # sampling_eps so small that its times are the discrete chain's: the networks are then told the same sigmas.
        scheduler = module.ScoreSdeVeScheduler(correct_steps=correct_steps, sampling_eps=1e-13)
        scheduler.set_timesteps(steps)
        scheduler.set_sigmas(steps)
        module.torch.ones = functools.partial(
            torch.ones, dtype=torch.float64
        )  # which would round the step sizes
        theirs = x
        rows = iter(noise)
        for i, t in enumerate(scheduler.timesteps):
            sigma = float(scheduler.discrete_sigmas[steps - 1 - i])
            for _ in range(correct_steps):
                current.append(next(rows))
                theirs = scheduler.step_correct(net(theirs, sigma), theirs).prev_sample
            current.append(next(rows))
            output = scheduler.step_pred(net(theirs, sigma), t, theirs)
            theirs = output.prev_sample
        theirs = output.prev_sample_mean
    ours = run(table, net, x, list(noise))
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-12


def test_refusals() -> None:
    for process in (EDM(), NoiseSchedule()):
        with refused(ConfigError, "solver"):
            SOLVERS["predictor_corrector"](process, 10)
    with refused(ConfigError, "steps", "beta_max"):
        SOLVERS["predictor_corrector"](VPSDE(), 20)
    with refused(ConfigError, "predictor"):
        SOLVERS["predictor_corrector"](SubVPSDE(), 30, predictor="ancestral")
    with refused(ConfigError, "predictor"):
        SOLVERS["predictor_corrector"](VESDE(), 10, predictor="none", corrector="none")
