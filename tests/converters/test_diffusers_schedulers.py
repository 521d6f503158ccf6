"""scheduler_config.json: every key is mapped, without effect, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fastgen.converters import Report
from fastgen.converters.diffusers.scheduler import CLASSES, RULES, from_settings, to_settings
from fastgen.diffusion import NoiseSchedule, run, solver_table
from fastgen.engines.settings import DiffusionSettings
from fastgen.errors import ConfigError
from tests.diffusion.diffusers_oracle import random_network

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
]


def settings_of(name: str, tmp_path: Path, report: Report | None = None, **options: Any) -> dict[str, Any]:
    """Our settings from the file that diffusers writes."""
    getattr(diffusers, name)(**options).save_config(tmp_path)
    raw = json.loads((tmp_path / "scheduler_config.json").read_text())
    return to_settings(raw, "scheduler_config.json", report or Report())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_runs_are_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """diffusers as users run it, in float32, against our table: noise where there is any is the same."""
    settings = settings_of(name, tmp_path, **options)
    schedule, steps = NoiseSchedule(**settings["schedule"]), 10
    table = solver_table(settings["solver"], schedule, steps, **(settings["solver_options"] or {}))
    theirs = getattr(diffusers, name)(**options)
    theirs.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 4, generator=generator)
    network = random_network(1, 2)
    ours = run(table, network, table.initial_scale * x.double(), torch.zeros(len(table), *x.shape).double())
    module = __import__(type(theirs).__module__, fromlist=["x"])
    kept = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *args, **kwargs: torch.zeros_like(x)
    try:
        state = x * theirs.init_noise_sigma
        for t in theirs.timesteps:
            out = network(theirs.scale_model_input(state, t).double(), float(t)).float()
            state = theirs.step(out, t, state).prev_sample
    finally:
        module.randn_tensor = kept
    assert float((state - ours).abs().max() / ours.abs().max()) < 2e-4


@pytest.mark.parametrize(("name", "options"), CASES)
def test_there_and_back(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(name, tmp_path, **options)
    report = Report()
    again, lost = from_settings(DiffusionSettings(**settings), report)
    assert lost in ({}, {"constant_stride": True})
    second = to_settings(again, "again", Report())
    assert NoiseSchedule(**second["schedule"]) == NoiseSchedule(**settings["schedule"])
    tables = [
        solver_table(s["solver"], NoiseSchedule(**s["schedule"]), 10, **(s["solver_options"] or {}))
        for s in (settings, second)
    ]
    np.testing.assert_array_equal(tables[0].a, tables[1].a)
    assert getattr(diffusers, again.pop("_class_name"))(**again) is not None


@pytest.mark.parametrize("name", RULES)
def test_every_key_that_diffusers_writes_is_known(name: str, tmp_path: Path) -> None:
    settings_of(name, tmp_path)
    rule = RULES[name]
    written = {
        k for k in json.loads((tmp_path / "scheduler_config.json").read_text()) if not k.startswith("_")
    }
    assert written == {*rule.schedule, *rule.options, *rule.only, *rule.idle}
    assert CLASSES[rule.solver] == name


def test_learned_variances() -> None:
    for name, solver in (("DDPMScheduler", "ddpm"), ("DPMSolverMultistepScheduler", "dpm++2m")):
        settings = to_settings({"_class_name": name, "variance_type": "learned_range"}, "x", Report())
        assert (settings["variance"], settings["solver"], settings["solver_options"]) == (
            "learned_range",
            solver,
            None,
        )


def test_old_files() -> None:
    """google/ddpm-cifar10-32, and from before prediction_type."""
    report = Report()
    old = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_schedule": "linear",
        "clip_sample": True,
        "num_train_timesteps": 1000,
        "tensor_format": "pt",
        "trained_betas": None,
        "predict_epsilon": False,
        "variance_type": "fixed_large",
    }
    settings = to_settings(old, "x", report)
    assert NoiseSchedule(**settings["schedule"]).prediction_type == "sample"
    assert settings["solver_options"] == {"variance_type": "fixed_large", "clip_sample": True}
    assert report.ignored == ["tensor_format=pt: tensors are PyTorch's"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"_class_name": "PNDMScheduler"},
            "PNDMScheduler' is not supported; supported: DDPMScheduler, DDIMScheduler",
        ),
        ({}, "_class_name: None is not supported"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding: True is not supported"),
        (
            {"_class_name": "DDIMScheduler", "eta": 1},
            "eta: DDIMScheduler has no such option; .* Known: num_train",
        ),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "exp"}, "beta_schedule: 'exp' is not supported"),
        ({"_class_name": "DDPMScheduler", "beta_end": "2"}, "beta_end: expected float"),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "x"},
            "variance_type: expected one of fixed_small",
        ),
        (
            {"_class_name": "DDPMScheduler", "prediction_type": "flow"},
            "prediction_type: expected one of epsilon",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            r"algorithm_type: 'sde-dpmsolver\+\+' is not supported .* supported: dpmsolver\+\+",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
            "solver_order: 3 .* supported: 2",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "use_karras_sigmas: True is",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1},
            "lambda_min_clipped: -5.1",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "variance_type": "x"},
            "variance_type: 'x' is not supported",
        ),
        ({"_class_name": "HeunDiscreteScheduler", "rescale_betas_zero_snr": True}, "has no such option"),
        ({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "sigmoid"}, "beta_schedule: 'sigmoid'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": 3}, "timestep_spacing: expected str"),
    ],
)
def test_refusals_name_the_key_and_what_is_supported(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"folder/scheduler_config.json: .*{message}"):
        to_settings(raw, "folder/scheduler_config.json", Report())


def test_what_diffusers_cannot_hold_is_said() -> None:
    report = Report()
    ours = DiffusionSettings(schedule={}, solver="euler", solver_options={"clip_sample": True})
    assert from_settings(ours, report)[1] == {"clip_sample": True}
    assert report.ignored == ["clip_sample=True: EulerDiscreteScheduler has no such option"]
    for schedule, solver, message in (
        ({"beta_schedule": "sigmoid"}, "ddim", "beta_schedule: diffusers' DDIMScheduler has no sigmoid"),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
            "heun",
            "rescale_betas_zero_snr: diffusers'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            from_settings(DiffusionSettings(schedule=schedule, solver=solver), Report())
