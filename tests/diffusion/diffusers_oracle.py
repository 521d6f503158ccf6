"""diffusers' schedulers as an oracle, brought to float64.

Their tables are float32. For a comparison at 1e-12 the names `torch` and `np` inside one scheduler's module
are replaced by stand-ins whose float32 is float64; torch itself is never patched, so nothing leaks into other
tests.

A scheduler's step is linear in the state, the network's output and the noise. Driven with unit vectors in
place of
pictures, its whole run becomes an exact matrix, which a table must reproduce: see `basis_run`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, Table, run

Network = Callable[[Tensor, float], Tensor]

SCHEDULERS = {
    "ddpm": ("diffusers.schedulers.scheduling_ddpm", "DDPMScheduler"),
    "ddim": ("diffusers.schedulers.scheduling_ddim", "DDIMScheduler"),
    "dpm++2m": ("diffusers.schedulers.scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "euler": ("diffusers.schedulers.scheduling_euler_discrete", "EulerDiscreteScheduler"),
    "heun": ("diffusers.schedulers.scheduling_heun_discrete", "HeunDiscreteScheduler"),
}
STEP_ARGUMENTS = ("eta", "use_clipped_model_output")  # of step() and not of the constructor
OURS_ONLY = ("constant_stride",)


class StandIn:
    """A module, some of whose names are replaced."""

    def __init__(self, module: ModuleType, **replaced: Any) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def in_float64(module: ModuleType, noise: Callable[..., Tensor] | None = None) -> Iterator[None]:
    """Within the block `module` computes in float64, and takes its normal noise from `noise`."""
    kept = {name: getattr(module, name) for name in ("torch", "np", "randn_tensor") if hasattr(module, name)}
    linspace = functools.partial(torch.linspace, dtype=torch.float64)  # called once without a dtype
    stand_ins = {
        "torch": StandIn(torch, float32=torch.float64, linspace=linspace),
        "np": StandIn(np, float32=np.float64),
        "randn_tensor": noise or kept.get("randn_tensor"),
    }
    for name in kept:
        setattr(module, name, stand_ins[name])
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def scheduler(name: str, schedule: NoiseSchedule, **options: Any) -> tuple[Any, ModuleType, dict[str, Any]]:
    """diffusers' scheduler for our solver `name` and options, its module, and the arguments of its step()."""
    module = importlib.import_module(SCHEDULERS[name][0])
    step_arguments = {k: options.pop(k) for k in STEP_ARGUMENTS if k in options}
    for key in OURS_ONLY:
        options.pop(key, None)
    cls = getattr(module, SCHEDULERS[name][1])
    if name == "dpm++2m" and "clip_sample" in options:  # diffusers has no clipping here
        clip, bound = options.pop("clip_sample"), options.pop("clip_sample_range", 1.0)
        cls = clipping(cls, bound) if clip else cls
    if name == "euler" and "clip_sample" in options:
        clip, bound = options.pop("clip_sample"), options.pop("clip_sample_range", 1.0)
        cls = clipping_euler(cls, bound) if clip else cls
    config = schedule.to_config()
    if name == "heun":  # has no such option
        assert not config.pop("rescale_betas_zero_snr")
        later = {k: options.pop(k) for k in list(options) if k.startswith("use_")}
    with in_float64(module):
        oracle = cls(**config, **options)
        if name == "heun":  # its constructor computes all training steps, slowly with some of these
            oracle.register_to_config(**later)
        return oracle, module, step_arguments


def clipping(base: type, bound: float) -> type:
    """A multistep scheduler that clips its estimate of x_0."""

    def convert_model_output(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return base.convert_model_output(self, *args, **kwargs).clamp(-bound, bound)  # type: ignore[attr-defined]

    return type(base.__name__, (base,), {"convert_model_output": convert_model_output})


def clipping_euler(base: type, bound: float) -> type:
    """Euler's scheduler that clips its estimate of x_0 before it steps."""

    def step(self: Any, output: Tensor, t: Any, x: Tensor) -> Any:
        result = base.step(self, output, t, x)  # type: ignore[attr-defined]
        sigma, after = self.sigmas[self.step_index - 1 : self.step_index + 1]
        x0 = result.pred_original_sample.clamp(-bound, bound)
        result.prev_sample = x + (after - sigma) * (x - x0) / sigma
        return result

    return type(base.__name__, (base,), {"step": step})


def evaluations(name: str, steps: int) -> int:
    """Network evaluations of `steps` steps."""
    return 2 * steps - 1 if name == "heun" else steps


def diffusers_run(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    network: Network,
    x: Tensor,
    noise: Sequence[Tensor],
    **options: Any,
) -> Tensor:
    """The final state of diffusers' own loop, noise[i] being the normal noise of step i. All float64.

    x: the first network input; schedulers whose own state is larger get it scaled up.
    """
    oracle, module, step_arguments = scheduler(name, schedule, **options)
    current: list[Tensor] = []
    with in_float64(module, noise=lambda *args, **kwargs: current[-1]):
        oracle.set_timesteps(steps)
        if name in ("euler", "heun"):
            x = x * (oracle.sigmas[0] ** 2 + 1) ** 0.5
        for i, t in enumerate(oracle.timesteps):
            current.append(noise[i])
            scaled = oracle.scale_model_input(x, t)
            x = oracle.step(network(scaled, float(t)), t, x, **step_arguments).prev_sample
    return x


def basis_run(run: Callable[[Network, Tensor, Sequence[Tensor]], Tensor], steps: int) -> np.ndarray:
    """Drive a run with unit vectors: [steps + 1, 1 + 2 * steps], float64.

    run(network, x, noise) -> final state. Row i of the result is the network's input at evaluation i, the
    last row the final state, as coefficients of [x_T, F_0 .., z_0 ..]. z of the last evaluation is 0:
    diffusers adds noise to finished samples where its last timestep is above 0, and we do not.
    """
    units = torch.eye(1 + 2 * steps, dtype=torch.float64).view(1 + 2 * steps, 1, -1, 1, 1)
    inputs: list[Tensor] = []

    def network(x: Tensor, t: float) -> Tensor:
        inputs.append(x)
        return units[len(inputs)]

    noise = [*units[1 + steps : -1], torch.zeros_like(units[0])]
    final = run(network, units[0], noise)
    return torch.stack([*inputs, final]).flatten(1).numpy()


def deviation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of two [states, ...] relative to the same state's largest entry; nan if any is."""
    ours, theirs = (a.reshape(len(a), -1) for a in (ours, theirs))
    return float((np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)).max())


def random_network(seed: int, channels: int, learned: str | None = None) -> Network:
    """A non-linear function of (x, t), float64. learned: also returns a variance, or V beyond [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)

    def network(x: Tensor, t: float) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", mix, x)
        out = 1.5 * torch.tanh(0.7 * mixed + 0.001 * t) + 0.1 * x
        if learned == "learned":
            return torch.cat([out, 0.02 * torch.sigmoid(mixed)], 1)
        if learned == "learned_range":
            return torch.cat([out, 1.3 * torch.sin(mixed + t)], 1)
        return out

    return network


def table_matrix(table: Table) -> np.ndarray:
    """What `basis_run` gives for our interpreter."""
    return basis_run(lambda network, x, noise: run(table, network, x, noise), len(table))


def diffusers_matrix(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> np.ndarray:
    """What `basis_run` gives for diffusers. Clipping has to be off in `options`."""
    return basis_run(
        lambda network, x, noise: diffusers_run(name, schedule, steps, network, x, noise, **options),
        evaluations(name, steps),
    )
