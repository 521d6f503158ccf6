"""diffusers' schedulers as an oracle, brought to float64.

Their tables are float32. For a comparison at 1e-12 the names `torch` and `np` inside one scheduler's module
are replaced by stand-ins whose float32 is float64; torch itself is never patched, so nothing leaks into other
tests.

A scheduler's step is linear in the state, the network's output and the noise. Driven with unit vectors in
place of
images, its whole run becomes an exact matrix, which a table must reproduce: see `basis_run`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from fastgen.diffusion import NoiseSchedule, Table, run

Network = Callable[[Tensor, float], Tensor]

STEP_ARGUMENTS = ("eta", "use_clipped_model_output")  # of step() and not of the constructor
OURS_ONLY = ("constant_stride", "as_diffusers")
GIVEN = ("timesteps", "sigmas")  # of set_timesteps()
MODULES = "diffusers.schedulers.scheduling_"


def twice_less_one(steps: int) -> int:
    """Evaluations of solvers with two a step, but for the last."""
    return 2 * steps - 1


@dataclass(frozen=True)
class Scheduler:
    """diffusers' class for one of our solvers.

    module, name: where it is. fixed: constructor arguments that our solver's name stands for. renamed: our names of
    step() arguments, and theirs. scaled: its state is x / alpha. slow: its constructor computes all training steps,
    which we then skip. rescales: it knows rescale_betas_zero_snr. evaluations: of n steps. clip: (class, range) -> the
    class with a clipped x_0, where it has no such option. repair: class -> the class without an error of its own.
    """

    module: str
    name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    scaled: bool = False
    slow: bool = False
    rescales: bool = True
    evaluations: Callable[[int], int] = int
    clip: Callable[[type, float], type] | None = None
    repair: Callable[[type], type] | None = None


def clipping(base: type, bound: float) -> type:
    """A DPM-Solver scheduler that clips its estimate of x_0."""

    def convert_model_output(self: Any, output: Tensor, sample: Tensor) -> Tensor:
        estimate = base.convert_model_output(self, output, sample=sample)  # type: ignore[attr-defined]
        if self.config.get("algorithm_type", "dpmsolver++").endswith("++"):
            return estimate.clamp(-bound, bound)
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index])
        x0 = ((sample - sigma * estimate) / alpha).clamp(-bound, bound)
        return (sample - alpha * x0) / sigma

    return type(base.__name__, (base,), {"convert_model_output": convert_model_output})


def clipping_at(level: Callable[[Any], Tensor]) -> Callable[[type, float], type]:
    """For schedulers that count in sigma, level(self) being the one at which the network was asked.

    The output given to step() is the one whose x_0 is clipped.
    """

    def clip(base: type, bound: float) -> type:
        def step(self: Any, output: Tensor, t: Any, x: Tensor, **arguments: Any) -> Any:
            sigma, kind = level(self), self.config.prediction_type
            if kind == "epsilon":
                output = (x - (x - sigma * output).clamp(-bound, bound)) / sigma
            elif kind == "v_prediction":
                root = (sigma**2 + 1) ** 0.5
                x0 = (x / root - sigma * output) / root
                output = (x / root - x0.clamp(-bound, bound) * root) / sigma
            else:
                output = output.clamp(-bound, bound)
            return base.step(self, output, t, x, **arguments)  # type: ignore[attr-defined]

        return type(base.__name__, (base,), {"step": step})

    return clip


def first_or_middle(self: Any) -> Tensor:
    """The sigma of the evaluation that comes now, of solvers with one in the middle of a step."""
    if self.state_in_first_order:
        return self.sigmas[self.step_index]
    if hasattr(self, "mid_point_sigma"):
        return self.mid_point_sigma
    ancestral = hasattr(self, "sigmas_up")
    return self.sigmas_interpol[self.step_index - 1 if ancestral else self.step_index]


def with_right_sign(base: type) -> type:
    """Third-order SDE-DPM-Solver++ with the coefficient of D2 that follows from its derivation: diffusers has
    (1 - e^-2h - 2h) / (2h)^2 - 1/2 instead of the negative of (e^-2h - 1 + 2h) / (2h)^2 - 1/2."""

    def third(self: Any, outputs: list[Tensor], *, sample: Tensor, noise: Tensor) -> Tensor:
        x = base.multistep_dpm_solver_third_order_update(  # type: ignore[attr-defined]
            self, outputs, sample=sample, noise=noise
        )
        if self.config.algorithm_type != "sde-dpmsolver++":
            return x
        i = self.step_index
        alphas, sigmas = np.transpose(
            [self._sigma_to_alpha_sigma_t(self.sigmas[k]) for k in range(i + 1, i - 3, -1)]
        )
        end, now, before, oldest = np.log(alphas) - np.log(sigmas)
        h = end - now
        first = h / (now - before) * (outputs[-1] - outputs[-2])
        second = h / (before - oldest) * (outputs[-2] - outputs[-3])
        return x + alphas[0] * h / (now - oldest) * (first - second)

    return type(base.__name__, (base,), {"multistep_dpm_solver_third_order_update": third})


def _multistep(**fixed: Any) -> Scheduler:
    return Scheduler("dpmsolver_multistep", "DPMSolverMultistepScheduler", fixed, clip=clipping)


def _singlestep(**fixed: Any) -> Scheduler:
    return Scheduler(
        "dpmsolver_singlestep", "DPMSolverSinglestepScheduler", fixed, clip=clipping, rescales=False
    )


def _two_rows(module: str, name: str, **arguments: Any) -> Scheduler:
    arguments = {"clip": clipping_at(first_or_middle)} | arguments
    return Scheduler(
        module, name, scaled=True, slow=True, rescales=False, evaluations=twice_less_one, **arguments
    )


_clip_sigma = clipping_at(lambda self: self.sigmas[self.step_index])
SCHEDULERS: dict[str, Scheduler] = {
    "ddpm": Scheduler("ddpm", "DDPMScheduler"),
    "ddim": Scheduler("ddim", "DDIMScheduler"),
    "euler": Scheduler("euler_discrete", "EulerDiscreteScheduler", scaled=True, clip=_clip_sigma),
    "heun": _two_rows("heun_discrete", "HeunDiscreteScheduler", clip=None),
    "euler_a": Scheduler(
        "euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", scaled=True, clip=_clip_sigma
    ),
    "lms": Scheduler(
        "lms_discrete",
        "LMSDiscreteScheduler",
        renamed={"solver_order": "order"},
        scaled=True,
        slow=True,
        rescales=False,
        clip=_clip_sigma,
    ),
    "dpm2": _two_rows("k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
    "dpm2_a": _two_rows("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
    "dpm++sde": _two_rows("dpmsolver_sde", "DPMSolverSDEScheduler"),
    "dpm_multistep": replace(_multistep(), repair=with_right_sign),
    "dpm++2m": _multistep(),
    "dpm++3m": _multistep(solver_order=3),
    "dpm++2m_sde": _multistep(algorithm_type="sde-dpmsolver++"),
    "dpm++3m_sde": replace(
        _multistep(algorithm_type="sde-dpmsolver++", solver_order=3), repair=with_right_sign
    ),
    "dpm_singlestep": _singlestep(),
    "dpm++2s": _singlestep(),
    "dpm++3s": _singlestep(solver_order=3),
}


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


class Brownian:
    """Stands for the tree of DPMSolverSDEScheduler: one path in sigma, its increments made of the given noise."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._first: tuple[float, Tensor] | None = None

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        start, end = float(start), float(end)
        if self._first is None:  # to the middle of a step
            self._first = (end, self._draw())
            return self._first[1]
        (middle, before), self._first = self._first, None  # all of the step, of which `before` is a part
        after = self._draw()
        return ((start - middle) ** 0.5 * before + (middle - end) ** 0.5 * after) / (start - end) ** 0.5


def imported(module: str) -> ModuleType:
    """A scheduler's module, also where torchsde, which one of them imports for its tree, is not installed."""
    importlib.import_module("diffusers.utils.logging").set_verbosity_error()
    with contextlib.ExitStack() as stack:
        if module == "dpmsolver_sde" and importlib.util.find_spec("torchsde") is None:
            sys.modules["torchsde"] = types.ModuleType("torchsde")
            stack.callback(sys.modules.pop, "torchsde")
        return importlib.import_module(MODULES + module)


def scheduler(name: str, schedule: NoiseSchedule, **options: Any) -> tuple[Any, ModuleType, dict[str, Any]]:
    """diffusers' scheduler for our solver `name` and options, its module, and the arguments of its step()."""
    known = SCHEDULERS[name]
    module = imported(known.module)
    step_arguments = {k: options.pop(k) for k in STEP_ARGUMENTS if k in options}
    step_arguments |= {theirs: options.pop(ours) for ours, theirs in known.renamed.items() if ours in options}
    for key in OURS_ONLY:
        options.pop(key, None)
    cls = getattr(module, known.name)
    if known.repair:
        cls = known.repair(cls)
    if known.clip is not None and "clip_sample" in options:
        clip, bound = options.pop("clip_sample"), options.pop("clip_sample_range", 1.0)
        cls = known.clip(cls, bound) if clip else cls
    config = schedule.to_config()
    if not known.rescales:
        assert not config.pop("rescale_betas_zero_snr")
    with in_float64(module), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # algorithms that some later version will not have
        if known.slow:
            with mock.patch.object(cls, "set_timesteps", _set_nothing):
                return cls(**config, **known.fixed, **options), module, step_arguments
        return cls(**config, **known.fixed, **options), module, step_arguments


def _set_nothing(self: Any, *args: Any) -> None:
    self.sigmas = torch.zeros(1)


def evaluations(name: str, steps: int) -> int:
    """Network evaluations of `steps` steps."""
    return SCHEDULERS[name].evaluations(steps) if name in SCHEDULERS else steps


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
    given = {key: list(options.pop(key)) for key in GIVEN if key in options}
    oracle, module, step_arguments = scheduler(name, schedule, **options)
    current: list[Tensor] = []
    with in_float64(module, noise=lambda *args, **kwargs: current[-1]):
        oracle.set_timesteps(**(given or {"num_inference_steps": steps}))
        if hasattr(oracle, "noise_sampler"):
            oracle.noise_sampler = Brownian(lambda: current[-1])
        if hasattr(oracle, "set_begin_index"):
            # Two levels may be told one timestep; a run looked up by its first timestep begins at the second of them.
            oracle.set_begin_index(0)
        if SCHEDULERS[name].scaled:
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


def continuous_run(module_name: str, class_name: str, steps: int, **config: Any) -> tuple[Any, np.ndarray]:
    """A scheduler of a continuous process after a run of `steps`, and the run's matrix as of `basis_run`.

    mu, sigmas: for its set_timesteps.
    """
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{module_name}")
    given = {key: config.pop(key) for key in ("mu", "sigmas") if key in config}
    current: list[Tensor] = []
    with in_float64(module, noise=lambda *args, **kwargs: current[-1]):
        scheduler = getattr(module, class_name)(**config)
        scheduler.set_timesteps(steps, **given)

        def run(network: Network, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
            for t, z in zip(scheduler.timesteps, noise, strict=True):
                current.append(z)
                scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
                x = scheduler.step(network(scaled, float(t)), t, x).prev_sample
            return x

        return scheduler, basis_run(run, len(scheduler.timesteps))
