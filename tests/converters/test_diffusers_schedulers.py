"""scheduler_config.json: what it becomes runs as diffusers does, and comes back the same."""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import Part, Spec, save
from fastgen.config import to_dict
from fastgen.converters import Report
from fastgen.converters.diffusers.rules import FLOW
from fastgen.converters.diffusers.scheduler import to_settings
from fastgen.converters.diffusers.scheduler_write import from_settings
from fastgen.diffusion import run, solver_table
from fastgen.diffusion.processes import process_from_config
from fastgen.engines.diffusion.settings import DiffusionSettings
from fastgen.models.unet import UNet, UNetConfig
from tests.diffusion.diffusers_oracle import imported, random_network

SMALL: dict[str, Any] = {
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": None,
}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {}),
    (
        "DDPMScheduler",
        {"variance_type": "fixed_large", "timestep_spacing": "trailing", "beta_schedule": "sigmoid"},
    ),
    ("DDPMScheduler", {"clip_sample": False, "trained_betas": [0.01] * 200, "num_train_timesteps": 200}),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, **SCALED}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "sample", "clip_sample_range": 2.0},
    ),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "final_sigmas_type": "sigma_min", **SCALED}),
    ("DPMSolverMultistepScheduler", {"lower_order_final": False, "euler_at_final": True}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    (
        "EulerDiscreteScheduler",
        {"interpolation_type": "log_linear", "steps_offset": 1, "timestep_spacing": "leading"},
    ),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"sigma_min": 0.05, "sigma_max": 9.0, "timestep_type": "continuous"}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_exponential_sigmas": True, "clip_sample": True}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.9}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 0.6}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True, "thresholding": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "solver_order": 1, "final_sigmas_type": "sigma_min"},
    ),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun", "use_beta_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("UniPCMultistepScheduler", {}),
    (
        "UniPCMultistepScheduler",
        {"solver_order": 3, "disable_corrector": [0], "rescale_betas_zero_snr": False},
    ),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "sigma_min": 0.1, "solver_type": "midpoint"}),
    (
        "UniPCMultistepScheduler",
        {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_type": "bh1"},
    ),
    ("DEISMultistepScheduler", {"solver_order": 3, "solver_type": "bh2", "thresholding": True}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **SCALED}),
    ("PNDMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("SASolverScheduler", {"predictor_order": 3, "corrector_order": 4}),
    ("SASolverScheduler", {"algorithm_type": "noise_prediction", "use_exponential_sigmas": True}),
    ("LCMScheduler", {"clip_sample": True, "timestep_scaling": 2.0}),
    ("TCDScheduler", {"original_inference_steps": 100}),
    ("CMStochasticIterativeScheduler", {"s_noise": 0.5, "sigma_data": 0.7}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "sigma_max": 50.0}),
    ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
    *(
        (name, {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0})
        for name in FLOW
    ),
]


def scheduler_class(name: str) -> Any:
    """diffusers' class; one of them it hides where torchsde is not installed."""
    return getattr(imported("dpmsolver_sde") if name == "DPMSolverSDEScheduler" else diffusers, name)


def settings_of(name: str, tmp_path: Path, report: Report | None = None, **options: Any) -> dict[str, Any]:
    """Our settings from the file that diffusers writes."""
    scheduler_class(name)(**options).save_config(tmp_path)
    raw = json.loads((tmp_path / "scheduler_config.json").read_text())
    return to_settings(raw, "scheduler_config.json", report or Report())


def their_run(theirs: Any, network: Any, x: torch.Tensor, steps: int) -> torch.Tensor:
    """The last state of a scheduler's own loop in float32 from x, standard normal; noise is 0."""
    theirs.set_timesteps(steps)
    theirs.noise_sampler = lambda *sigmas: torch.zeros_like(
        x
    )  # instead of a Brownian tree, which needs torchsde
    module = importlib.import_module(type(theirs).__module__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.zeros_like(x), raising=False)
        patch.setattr(module, "BrownianTreeNoiseSampler", lambda *args: theirs.noise_sampler, raising=False)
        state = x * getattr(theirs, "init_noise_sigma", 1.0)  # flow matching begins with noise alone
        for t in theirs.timesteps:
            scaled = theirs.scale_model_input(state, t) if hasattr(theirs, "scale_model_input") else state
            state = theirs.step(network(scaled.double(), float(t)).float(), t, state).prev_sample
    return state


@pytest.mark.parametrize(("name", "options"), CASES)
def test_runs_are_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """diffusers as users run it, in float32, against our table: noise where there is any is the same."""
    settings = settings_of(name, tmp_path, **options)
    process, steps = process_from_config(settings["schedule"]), 10
    table = solver_table(settings["solver"], process, steps, **(settings["solver_options"] or {}))
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    network = random_network(1, 2)
    scale = table.initial_scale
    if options.get("use_flow_sigmas"):
        # diffusers cuts the time off to a whole number, and begins with noise of variance 1, not of the first level's.
        network = functools.partial(lambda network, x, t: network(x, 0.0), network)
        scale = 1.0
    ours = run(table, network, scale * x.double(), torch.zeros(len(table), *x.shape).double())
    state = their_run(scheduler_class(name)(**options), network, x, steps)
    assert float((state - ours).abs().max() / ours.abs().max()) < 2e-4


@pytest.mark.parametrize(("name", "options"), CASES)
def test_there_and_back(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(name, tmp_path, **options)
    again, lost = from_settings(DiffusionSettings(**settings), Report())
    assert again["_class_name"] == name
    assert all(lost.values())
    assert lost.keys() <= {"constant_stride", "sum_outputs"}
    second = to_settings(again, "again", Report())
    assert second["solver"] == settings["solver"]
    processes = [process_from_config(s["schedule"]) for s in (settings, second)]
    assert processes[0] == processes[1]
    tables = [
        solver_table(s["solver"], processes[0], 10, **(s["solver_options"] or {})) for s in (settings, second)
    ]
    np.testing.assert_array_equal(tables[0].a, tables[1].a)
    assert scheduler_class(again.pop("_class_name"))(**again) is not None


OURS: list[dict[str, Any]] = [
    {"solver": "ddim", "solver_options": {"timestep_spacing": "linspace"}},
    {"solver": "ddim", "solver_options": {"timestep_spacing": "trailing", "constant_stride": False}},
    {
        "solver": "ddim",
        "solver_options": {
            "timestep_spacing": "trailing",
            "constant_stride": True,
            "use_clipped_model_output": False,
        },
    },
    {"solver": "ddim", "solver_options": {"as_diffusers": True}},
    {"solver": "heun"},
    {"solver": "plms"},
    {"solver": "pndm"},
    {"solver": "pndm", "solver_options": {"as_diffusers": True}},
    {"solver": "ddim", "solver_options": {"eta": 0.7, "use_clipped_model_output": True}},
    {"solver": "dpm++2m", "solver_options": {"clip_sample": True}},
    {"solver": "euler", "solver_options": {"clip_sample": True}},
    {},
    *(
        {"solver": name, "variance": "learned_range"}
        for name in ("ddpm", "ddim", "dpm++2m", "euler", "unipc")
    ),
    {"solver": "unipc", "solver_options": {"disable_corrector": [1], "clip_sample": True}},
    {"solver": "plms", "solver_options": {"constant_stride": False, "timestep_spacing": "trailing"}},
    {"solver": "deis", "solver_options": {"final_sigmas_type": "zero"}},
    {"solver": "sa", "solver_options": {"tau": 0.5}},
    {"solver": "tcd", "solver_options": {"eta": 0.8}},
    {"solver": "dpm++2m_sde", "solver_options": {"eta": 0.5}},
    {"solver": "ddpm", "variance": "learned_range", "solver_options": {"variance_type": "fixed_small"}},
]


@pytest.mark.parametrize("ours", OURS, ids=str)
def test_ours_through_a_folder_of_theirs(ours: dict[str, Any], tmp_path: Path) -> None:
    """Every setting comes back with the same effect; what diffusers does not do is in the report."""
    channels = 6 if "variance" in ours else 3
    network = UNet(UNetConfig(sample_size=(8, 8), out_channels=channels, **SMALL))
    spec = Spec("diffusion", {"unet": Part("unet", to_dict(network.config))}, {"schedule": {}, **ours})
    save(tmp_path / "a", spec, {f"unet.{name}": tensor for name, tensor in network.state_dict().items()})
    report = fastgen.convert(tmp_path / "a", tmp_path / "b", to="diffusers")
    engines = [fastgen.load(tmp_path / name, device="cpu") for name in "ab"]
    first, second = (engine.settings for engine in engines)
    for name in ("solver", "steps", "guidance_scale", "variance", "noise_schedule"):
        assert getattr(first, name) == getattr(second, name)
    images = [engine.sample(1, seed=0, steps=4) for engine in engines]
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)  # weights lie elsewhere in memory
    tables = [
        solver_table(s.solver, s.noise_schedule, 4, **(s.solver_options or {})).a for s in (first, second)
    ]
    np.testing.assert_array_equal(*tables)
    silent = not ours or {"constant_stride", "as_diffusers"} & {
        key for key, value in ours.get("solver_options", {}).items() if value
    }
    learned = ours.get("variance") and ours["solver"] in ("ddpm", "dpm++2m")
    assert bool(report.ignored) != bool(silent or (learned and "solver_options" not in ours))
    if first.solver == "dpm++2m":
        assert any("call it with num_inference_steps=20" in line for line in report.assumed)
