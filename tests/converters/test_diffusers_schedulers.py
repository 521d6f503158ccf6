"""scheduler_config.json: every key is mapped, without effect, or refused by name."""

from __future__ import annotations

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
from fastgen.converters.diffusers.scheduler import CLASSES, RULES, from_settings, to_settings
from fastgen.diffusion import NoiseSchedule, run, solver_table
from fastgen.engines.settings import DiffusionSettings
from fastgen.errors import ConfigError
from fastgen.models.unet import UNet, UNetConfig
from tests.diffusion.diffusers_oracle import random_network

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
    assert any(
        "prediction_type=sample, because of the old predict_epsilon=False" in a for a in report.assumed
    )
    report = Report()
    settings = to_settings({**old, "predict_epsilon": None}, "x", report)
    assert NoiseSchedule(**settings["schedule"]).prediction_type == "epsilon"
    assert "prediction_type=epsilon" in report.assumed[0]
    settings = to_settings({"prediction_type": "v_prediction", **old}, "x", report)
    assert NoiseSchedule(**settings["schedule"]).prediction_type == "v_prediction"
    assert report.ignored[-1] == "predict_epsilon=False: prediction_type says it"


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
        ({"_class_name": "HeunDiscreteScheduler", "use_snr": True}, "use_snr: Heun.* has no such option"),
        ({"_class_name": ["DDPMScheduler"]}, r"_class_name: \['DDPMScheduler'\] is not supported"),
        ({"_class_name": "DDPMScheduler", "variance_type": ["learned"]}, "variance_type: expected str"),
        ({"_class_name": "DDPMScheduler", "variance_type": {"a": 1}}, "variance_type: expected str"),
        ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": []}, r"variance_type: \[\] is not"),
        (
            {"_class_name": "DDIMScheduler", "clip_sample_range": None},
            "clip_sample_range: null is not supported",
        ),
        ({"_class_name": "DDPMScheduler", "beta_end": None}, "beta_end: null is not supported for DDPM"),
        ({"_class_name": "DDPMScheduler", "variance_type": None}, "variance_type: null is not supported"),
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


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("DDPMScheduler", "clip_sample"),
        ("DDIMScheduler", "clip_sample"),
        ("DDIMScheduler", "set_alpha_to_one"),
        ("DPMSolverMultistepScheduler", "lower_order_final"),
        ("EulerDiscreteScheduler", "use_karras_sigmas"),
    ],
)
def test_null_is_false(name: str, key: str) -> None:
    report = Report()
    settings = to_settings({"_class_name": name, key: None}, "x", report)
    assert settings["solver_options"] == {key: False}
    assert f"{key}=null: false, as diffusers takes it" in report.assumed
    if not key.startswith("use_"):  # which diffusers adds up
        getattr(diffusers, name)(**{key: None}).set_timesteps(10)


def test_null_where_it_is_the_default() -> None:
    for name, key in (
        ("DDPMScheduler", "trained_betas"),
        ("EulerDiscreteScheduler", "sigma_min"),
        ("EulerDiscreteScheduler", "sigma_max"),
        ("DPMSolverMultistepScheduler", "variance_type"),
    ):
        settings = to_settings({"_class_name": name, key: None}, "x", Report())
        assert settings == to_settings({"_class_name": name}, "x", Report())
    schedule = to_settings({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": None}, "x", Report())
    assert schedule["schedule"] == {"rescale_betas_zero_snr": False}


@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("name", RULES)
def test_a_scheduler_made_from_another(name: str, base: str, tmp_path: Path) -> None:
    """`from_config` writes down what the new class never looks at."""
    old = getattr(diffusers, base)(beta_start=0.001)
    getattr(diffusers, name).from_config(old.config).save_config(tmp_path)
    report = Report()
    raw = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert to_settings(raw, "x", report)["solver"] == RULES[name].solver
    foreign = set(raw) - {*RULES[name].schedule, *RULES[name].options, *RULES[name].only}
    said = " ".join(report.ignored)
    assert all(f"{key}=" in said for key in foreign if not key.startswith("_"))


@pytest.mark.parametrize("name", RULES)
def test_names_of_other_schedulers_have_no_effect(name: str) -> None:
    report = Report()
    raw = {"_class_name": name, "skip_prk_steps": True, "timestep_values": None}
    assert to_settings(raw, "x", report) == to_settings({"_class_name": name}, "x", Report())
    assert report.ignored == [
        f"skip_prk_steps=True: no effect on {name}",
        f"timestep_values=None: no effect on {name}",
    ]


@pytest.mark.parametrize("name", RULES)
def test_missing_keys_are_assumed_aloud(name: str, tmp_path: Path) -> None:
    report = Report()
    to_settings({"_class_name": name}, "x", report)
    assumed = report.assumed[0]
    for key in (
        "prediction_type=epsilon",
        "timestep_spacing=",
        "num_train_timesteps=1000",
        "beta_schedule=linear",
    ):
        assert key in assumed
    start = {"HeunDiscreteScheduler": 0.00085}.get(name, 0.0001)
    assert f"beta_start={start}," in assumed
    assert ("variance_type=fixed_small" in assumed) == (name == "DDPMScheduler")
    assert ("clip_sample=True" in assumed) == (name in ("DDPMScheduler", "DDIMScheduler"))
    report = Report()
    settings_of(name, tmp_path, report)
    assert report.assumed == []


def test_the_pipeline_says_how_many_steps() -> None:
    def steps(name: str, pipeline: str | None, **options: Any) -> int:
        return to_settings({"_class_name": name, **options}, "x", Report(), pipeline)["steps"]

    assert steps("DDIMScheduler", "DDPMPipeline") == 1000
    assert steps("DDIMScheduler", "DDPMPipeline", num_train_timesteps=100) == 100
    assert steps("DDIMScheduler", None) == 50
    assert steps("DDPMScheduler", "DDIMPipeline") == 50
    assert steps("DPMSolverMultistepScheduler", "DDPMPipeline") == 20  # 1000 are NaN


OURS: list[dict[str, Any]] = [
    {"solver": "ddim", "solver_options": {"timestep_spacing": "linspace"}},
    {"solver": "ddim", "solver_options": {"timestep_spacing": "trailing", "constant_stride": False}},
    {"solver": "ddim", "solver_options": {"timestep_spacing": "trailing", "constant_stride": True}},
    {"solver": "ddim", "solver_options": {"eta": 0.7, "use_clipped_model_output": True}},
    {"solver": "dpm++2m", "solver_options": {"clip_sample": True}},
    {"solver": "euler", "solver_options": {"clip_sample": True}},
    {},
    *({"solver": name, "variance": "learned_range"} for name in CLASSES),
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
    pictures = [engine.sample(1, seed=0, steps=4) for engine in engines]
    torch.testing.assert_close(*pictures, rtol=1e-3, atol=1e-3)  # weights lie elsewhere in memory
    tables = [
        engine.request(1, seed=0, steps=4).table(engine.settings.noise_schedule).a for engine in engines
    ]
    np.testing.assert_array_equal(*tables)
    silent = not ours or ours.get("solver_options", {}).get("constant_stride")
    learned = ours.get("variance") and ours["solver"] in ("ddpm", "dpm++2m")
    assert bool(report.ignored) != bool(silent or (learned and "solver_options" not in ours))
    if first.solver == "dpm++2m":
        assert any("call it with num_inference_steps=20" in line for line in report.assumed)
