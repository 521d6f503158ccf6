"""diffusers' multistep and distilled schedulers in float64, for our UniPC, DEIS, PNDM, SA-Solver and the like."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, run, solver_table
from fastgen.diffusion.processes import AnyProcess

from .diffusers_oracle import Network, basis_run, deviation, in_float64, random_network


@dataclass(frozen=True)
class Oracle:
    """A scheduler of diffusers: its module and class, the fields of a NoiseSchedule it lacks, what makes it our solver,
    our options that it has no name for, and those that it takes in step()."""

    module: str
    cls: str
    lacks: tuple[str, ...] = ()
    fixed: tuple[tuple[str, Any], ...] = ()
    ours: tuple[str, ...] = ()
    in_step: tuple[str, ...] = ()


ORACLES = {
    "unipc": Oracle("unipc_multistep", "UniPCMultistepScheduler"),
    "deis": Oracle("deis_multistep", "DEISMultistepScheduler", ("rescale_betas_zero_snr",)),
    "plms": Oracle(
        "pndm",
        "PNDMScheduler",
        ("rescale_betas_zero_snr",),
        (("skip_prk_steps", True),),
        ("as_diffusers",),
    ),
    "pndm": Oracle("pndm", "PNDMScheduler", ("rescale_betas_zero_snr",), ours=("as_diffusers",)),
    "sa": Oracle("sasolver", "SASolverScheduler", ("rescale_betas_zero_snr",)),
    "lcm": Oracle("lcm", "LCMScheduler"),
    "tcd": Oracle("tcd", "TCDScheduler", in_step=("eta",)),
    "consistency": Oracle("consistency_models", "CMStochasticIterativeScheduler", ours=("clip_sample",)),
}


def theirs(
    name: str,
    process: AnyProcess,
    steps: int,
    network: Network,
    x: Tensor,
    noise: Sequence[Tensor],
    clip: float | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """The final state of diffusers' own loop, float64, and the scheduler. noise[i] is what evaluation i may use.

    x: the state in units of its first standard deviation. clip: clamp the estimate of x_0 where diffusers does not.
    """
    oracle = ORACLES[name]
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{oracle.module}")
    cls = getattr(module, oracle.cls)
    if clip is not None:
        cls = clamped(cls, clip)
    in_step = {key: options.pop(key) for key in oracle.in_step if key in options}
    if name == "consistency":
        options["clip_denoised"] = options.get("clip_sample", True)
    options = {key: value for key, value in options.items() if key not in oracle.ours} | dict(oracle.fixed)
    config = process.to_config()
    for key in ("process", *oracle.lacks):
        config.pop(key, None)
    if not isinstance(process, NoiseSchedule):
        config.pop("prediction_type")
    given = {"timesteps": list(options.pop("timesteps"))} if "timesteps" in options else {}
    current: list[Tensor] = []
    with in_float64(module, noise=lambda *args, **kwargs: current[-1]):
        scheduler = cls(**config, **options)
        scheduler.set_timesteps(**(given or {"num_inference_steps": steps}))
        if hasattr(scheduler, "set_begin_index"):
            # Two sigmas may be told one timestep; a run looked up by its first timestep begins at the second of them.
            scheduler.set_begin_index(0)
        x = x * scheduler.init_noise_sigma
        for i, t in enumerate(scheduler.timesteps):
            current.append(noise[i])
            out = network(scheduler.scale_model_input(x, t), float(t))
            if name == "lcm":  # a tensor of an integer times a number is float32
                t = int(t)
            x = scheduler.step(out, t, x, **in_step).prev_sample
    return x, scheduler


def clamped(base: type, bound: float) -> type:
    """A multistep scheduler that clips its estimate of x_0 where its own thresholding would."""

    def threshold(self: Any, sample: Tensor) -> Tensor:
        return sample.clamp(-bound, bound)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)  # type: ignore[misc]
        self.register_to_config(thresholding=True)

    return type(base.__name__, (base,), {"_threshold_sample": threshold, "__init__": init})


def matrices(name: str, process: AnyProcess, steps: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(ours, theirs) of `basis_run`: the network's inputs and the last state, of [x_T, F_0 .., z_0 ..]."""
    table = solver_table(name, process, steps, **options)
    scheduler: list[Any] = []

    def ours(network: Network, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return run(table, network, table.initial_scale * x, noise)

    def diffusers(network: Network, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        final, last = theirs(name, process, steps, network, x, noise, **options)
        scheduler.append(last)
        return final

    found = basis_run(ours, len(table)), basis_run(diffusers, len(table))
    np.testing.assert_allclose(table.time, np.asarray(scheduler[0].timesteps), rtol=1e-12, atol=1e-9)
    return found


def trajectories(
    name: str, process: AnyProcess, steps: int, clip: float | None = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(ours, theirs): final images through a random non-linear network, with the same noise."""
    own = {} if clip is None else {"clip_sample": True, "clip_sample_range": clip}
    table = solver_table(name, process, steps, **options, **own)
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(table), 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise[-1] = 0
    network = random_network(1, 3)
    ours = run(table, network, table.initial_scale * x, noise)
    return ours.numpy(), theirs(name, process, steps, network, x, list(noise), clip, **options)[0].numpy()


def matrix_deviation(name: str, process: AnyProcess, steps: int, **options: Any) -> float:
    return deviation(*matrices(name, process, steps, **options))
