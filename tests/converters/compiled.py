"""diffusers' schedulers, compiled; and how far tables are from them: the table of docs/any-scheduler.md.

python -m tests.converters.compiled
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.converters import CompiledTable, compile_scheduler
from fastgen.diffusion import run
from tests.diffusion.diffusers_oracle import imported, in_float64

PAGE = Path(__file__).parents[2] / "docs" / "any-scheduler.md"
SHAPE = (2, 3, 4, 4)
STEPS = 12


class Theirs:
    """The least a scheduler can be: Euler on sigma in equal steps."""

    def __init__(self, steps: int = 6) -> None:
        self.timesteps = np.linspace(1.0, 1.0 / steps, steps)

    def step(self, model_output: Tensor, t: float, sample: Tensor) -> tuple[Tensor]:
        return (sample - model_output / len(self.timesteps),)


class AdamsBashforth(Theirs):
    """Order 2 on levels even in their logarithm."""

    def __init__(self, high: float, low: float) -> None:
        self.timesteps, self.i = np.geomspace(high, low, 20), 0
        self.old: Tensor | None = None

    def step(self, model_output: Tensor, t: float, sample: Tensor) -> tuple[Tensor]:
        after = self.timesteps[self.i + 1] if self.i < 19 else 0.0
        slope = model_output if self.old is None else 1.5 * model_output - 0.5 * self.old
        self.i, self.old = self.i + 1, model_output
        return (sample + (after - t) * slope,)


@dataclass(frozen=True)
class Case:
    """A scheduler class, how it is made and stepped. brownian: its noise comes from a Brownian motion of its own."""

    module: str
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    brownian: bool = False

    def make(self) -> Any:
        return getattr(imported(self.module), self.cls)(**self.config)


UNCLIPPED = {"clip_sample": False}
CASES = {
    "ddpm": Case("ddpm", "DDPMScheduler", UNCLIPPED),
    "ddim": Case("ddim", "DDIMScheduler", UNCLIPPED),
    "ddim, eta 1": Case("ddim", "DDIMScheduler", UNCLIPPED, {"eta": 1.0}),
    "ddim inverse": Case("ddim_inverse", "DDIMInverseScheduler", UNCLIPPED),
    "ddpm parallel": Case("ddpm_parallel", "DDPMParallelScheduler", UNCLIPPED),
    "euler": Case("euler_discrete", "EulerDiscreteScheduler"),
    "euler, karras": Case("euler_discrete", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler, leading": Case("euler_discrete", "EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "heun, leading": Case("heun_discrete", "HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    "euler ancestral": Case("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "heun": Case("heun_discrete", "HeunDiscreteScheduler"),
    "dpm2": Case("k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
    "dpm2 ancestral": Case("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
    "lms": Case("lms_discrete", "LMSDiscreteScheduler"),
    "dpm++ 2m": Case("dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "dpm++ 3m": Case("dpmsolver_multistep", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm++ 2m sde": Case(
        "dpmsolver_multistep", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    ),
    "dpm inverse": Case("dpmsolver_multistep_inverse", "DPMSolverMultistepInverseScheduler"),
    "dpm++ 2s": Case("dpmsolver_singlestep", "DPMSolverSinglestepScheduler"),
    "dpm++ 3s": Case("dpmsolver_singlestep", "DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "dpm++ sde": Case("dpmsolver_sde", "DPMSolverSDEScheduler", brownian=True),
    "unipc": Case("unipc_multistep", "UniPCMultistepScheduler"),
    "unipc 3": Case("unipc_multistep", "UniPCMultistepScheduler", {"solver_order": 3}),
    "unipc 4": Case("unipc_multistep", "UniPCMultistepScheduler", {"solver_order": 4}),
    "deis": Case("deis_multistep", "DEISMultistepScheduler"),
    "deis 3": Case("deis_multistep", "DEISMultistepScheduler", {"solver_order": 3}),
    "pndm": Case("pndm", "PNDMScheduler"),
    "plms": Case("pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    "ipndm": Case("ipndm", "IPNDMScheduler"),
    "sa-solver": Case("sasolver", "SASolverScheduler"),
    "lcm": Case("lcm", "LCMScheduler"),
    "tcd": Case("tcd", "TCDScheduler", step={"eta": 0.3}),
    "flow euler": Case("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow heun": Case("flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler"),
    "flow lcm": Case("flow_match_lcm", "FlowMatchLCMScheduler"),
    "ltx": Case("ltx_euler_ancestral_rf", "LTXEulerAncestralRFScheduler"),
    "edm euler": Case("edm_euler", "EDMEulerScheduler"),
    "edm dpm": Case("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler"),
}


def compiled(case: Case, steps: int = STEPS, stand_in: bool = False) -> CompiledTable:
    """The case's scheduler as a table. stand_in: with diffusers' module brought to float64 as a whole."""
    if not stand_in:
        return compile_scheduler(case.make(), steps, step_options=case.step)
    with in_float64(imported(case.module)):
        return compile_scheduler(case.make(), steps, step_options=case.step)


def difference(case: Case, table: CompiledTable, dtype: torch.dtype, stand_in: bool) -> float:
    """Between the ends of `table` (in float64) and of the scheduler's own loop with the same non-linear network.

    The loop is a pipeline's: nothing of the compiler. dtype: the loop's. stand_in: as for `compiled`.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(table), *SHAPE, generator=generator, dtype=torch.float64)
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)

    def network(x: Tensor, t: float) -> Tensor:
        return 1.5 * torch.tanh(torch.einsum("oc,bchw->bohw", mix, x) + 0.001 * t) + 0.1 * x

    ours = run(table, network, table.initial_scale * x, noise)
    module, current = imported(case.module), [0]

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        return noise[current[0]].to(dtype)

    with in_float64(module, noise=drawn) if stand_in else replaced(module, drawn):
        scheduler = case.make()
        scheduler.set_timesteps(STEPS)
        theirs = (table.initial_scale * x).to(dtype)
        for i, t in enumerate(scheduler.timesteps):
            current[0] = i
            scaled = (
                scheduler.scale_model_input(theirs, t) if hasattr(scheduler, "scale_model_input") else theirs
            )
            output = network(scaled.double(), float(t)).to(dtype)
            theirs = scheduler.step(output, t, theirs, **case.step).prev_sample
    return float((ours - theirs).abs().max() / theirs.abs().max())


class replaced:
    """Within the block the module's normal noise comes from `noise`."""

    def __init__(self, module: Any, noise: Callable[..., Tensor]) -> None:
        self.module, self.noise, self.kept = module, noise, getattr(module, "randn_tensor", None)

    def __enter__(self) -> None:
        if self.kept is not None:
            self.module.randn_tensor = self.noise

    def __exit__(self, *error: Any) -> None:
        if self.kept is not None:
            self.module.randn_tensor = self.kept


def page_table() -> str:
    """Every case: evaluations, slots, deviation in float64, and of the float32 object as pipelines run it."""
    lines = [
        "| scheduler | evaluations | slots | noise | float64 | as run in float32 |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        table = compiled(case)
        rounded = "" if case.brownian else f"{difference(case, table, torch.float32, stand_in=False):.0e}"
        noise = "yes" if table.stochastic else "no"
        lines.append(
            f"| {name} (`{case.cls}`) | {len(table)} | {table.slots} | {noise} | {table.deviation:.0e} | {rounded} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from .deviations import replace_block

    PAGE.write_text(replace_block(PAGE.read_text(), "compiled", page_table()))
