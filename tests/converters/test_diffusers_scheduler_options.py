"""scheduler_config.json: every key is mapped, without effect, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastgen.converters import Report
from fastgen.converters.diffusers.rules import CLASSES, RULES, THRESHOLDING
from fastgen.converters.diffusers.scheduler import to_settings
from fastgen.converters.diffusers.scheduler_write import class_name, from_settings
from fastgen.diffusion import SOLVERS, NoiseSchedule, solver_table
from fastgen.diffusion.processes import process_from_config
from fastgen.engines.diffusion.settings import DiffusionSettings
from fastgen.errors import ConfigError
from tests.converters.test_diffusers_schedulers import scheduler_class, settings_of
from tests.refusals import refused

DISCRETE = [name for name, rule in RULES.items() if rule.process is None]


@pytest.mark.parametrize("name", RULES)
def test_every_key_that_diffusers_writes_is_known(name: str, tmp_path: Path) -> None:
    settings_of(name, tmp_path)
    rule = RULES[name]
    written = {
        k for k in json.loads((tmp_path / "scheduler_config.json").read_text()) if not k.startswith("_")
    }
    assert written == set(rule.keys)
    assert {CLASSES[rule.process, solver] for solver in rule.solvers} == {name}


def test_learned_variances() -> None:
    for name, solver in (("DDPMScheduler", "ddpm"), ("DPMSolverMultistepScheduler", "dpm++2m")):
        settings = to_settings({"_class_name": name, "variance_type": "learned_range"}, "x", Report())
        assert (settings["variance"], settings["solver"], settings["solver_options"]) == (
            "learned_range",
            solver,
            dict(SOLVERS[solver].diffusers) or None,  # diffusers' defaults where ours are others
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
    assert settings["solver_options"] == {
        "variance_type": "fixed_large",
        "clip_sample": True,
        "timestep_spacing": "leading",
    }
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
            {"_class_name": "IPNDMScheduler"},
            "IPNDMScheduler' is not supported; supported: DDPMScheduler, DDIMScheduler",
        ),
        ({}, "_class_name: None is not supported"),
        ({"_class_name": "DDIMScheduler", "thresholding": "yes"}, "thresholding: expected bool"),
        (
            {"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 0.0},
            "sample_max_value: expected 1e-06 to",
        ),
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
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "euler"},
            "algorithm_type: expected one of dpmsolver",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4},
            "solver_order: expected 1 to 3",
        ),
        (
            {"_class_name": "DEISMultistepScheduler", "use_flow_sigmas": True},
            "use_flow_sigmas: True is not supported .* supported: False",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
            "prediction_type: expected one of velocity, sample, got str 'epsilon'",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "use_karras_sigmas": True},
            "use_karras_sigmas: True is not supported",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": []},
            "algorithm_type: expected str",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "disable_corrector": 3},
            "disable_corrector: expected a list",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_p": {}}, "solver_p: .* supported: null"),
        (
            {"_class_name": "UniPCMultistepScheduler", "shift_terminal": 0.1},
            "shift_terminal: 0.1 is not supported",
        ),
        (
            {"_class_name": "PNDMScheduler", "skip_prk_steps": 1},
            "skip_prk_steps: int 1 is not .* False, True",
        ),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": None}, "skip_prk_steps: NoneType None is not"),
        ({"_class_name": "SASolverScheduler", "tau_func": "f"}, "tau_func: 'f' is not supported"),
        ({"_class_name": "SASolverScheduler", "corrector_order": 5}, "corrector_order: expected 0 to 4"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}, "sigma_min: 90.0 must be below sigma_max"),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "flow"},
            "prediction_type: expected one of edm",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "final_sigmas_type": "least"},
            "final_sigmas_type: expected one of zero, sigma_min",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "use_dynamic_shifting: True is not supported",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
            "stochastic_sampling: True is not supported",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "beta_startt": 1},
            "beta_startt: .* no such option",
        ),
        (
            {"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 1},
            "num_train_timesteps: expected 2 to",
        ),
        (
            {"_class_name": "LCMScheduler", "original_inference_steps": 0},
            "original_inference_steps: expected 1",
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
        ({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "sigmoid"}, "beta_schedule: 'sigmoid'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": 3}, "timestep_spacing: expected str"),
    ],
)
def test_refusals_name_the_key_and_what_is_supported(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"folder/scheduler_config.json: .*{message}"):
        to_settings(raw, "folder/scheduler_config.json", Report())


def test_other_solvers_names_are_taken_as_by_diffusers() -> None:
    """It takes another solver's solver_type or algorithm_type for its own, silently."""
    for name, key, value, solver, options in (
        ("UniPCMultistepScheduler", "solver_type", "midpoint", "unipc", {"solver_type": "bh2"}),
        ("DPMSolverMultistepScheduler", "solver_type", "bh2", "dpm++2m", {"solver_type": "midpoint"}),
        (
            "DPMSolverMultistepScheduler",
            "algorithm_type",
            "deis",
            "dpm++2m",
            {"final_sigmas_type": "sigma_min"},
        ),
        ("DEISMultistepScheduler", "algorithm_type", "dpmsolver++", "deis", None),
    ):
        raw = {key: value} | ({"final_sigmas_type": "sigma_min"} if value == "deis" else {})
        scheduler_class(name)(**raw)  # is no error there
        settings = to_settings({"_class_name": name, **raw}, "x", Report())
        assert (settings["solver"], settings["solver_options"]) == (solver, options)


def test_what_differs_is_said() -> None:
    report = Report()
    raw = {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 3,
    }
    assert to_settings(raw, "x", report)["solver"] == "dpm++3m_sde"
    assert any("a sign of its third-order SDE is wrong" in line for line in report.assumed)
    report = Report()
    raw = {"_class_name": "UniPCMultistepScheduler", "thresholding": True, "predict_x0": False}
    assert to_settings(raw, "x", report)["solver_options"] == {"predict_x0": False}
    assert "thresholding=True: no effect on an estimate of the noise (predict_x0=False)" in report.ignored


def test_classes_are_chosen_by_process_and_solver() -> None:
    schedule = {"process": "edm"}
    assert class_name(DiffusionSettings(schedule=schedule, solver="euler")) == "EDMEulerScheduler"
    assert class_name(DiffusionSettings(schedule={}, solver="euler")) == "EulerDiscreteScheduler"
    with refused(ConfigError, "solver"):
        class_name(DiffusionSettings(schedule=schedule, solver="heun"))


def test_what_diffusers_cannot_hold_is_said() -> None:
    report = Report()
    ours = DiffusionSettings(schedule={}, solver="euler", solver_options={"clip_sample": True})
    assert from_settings(ours, report)[1] == {"clip_sample": True}
    assert report.ignored == ["clip_sample=True: EulerDiscreteScheduler has no such option"]
    for schedule, solver, argument in (
        ({"beta_schedule": "sigmoid"}, "ddim", "beta_schedule"),
        (
            {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
            "heun",
            "rescale_betas_zero_snr",
        ),
    ):
        with refused(ConfigError, argument):
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
    theirs = {k: v for k, v in SOLVERS[settings["solver"]].diffusers.items() if k != "constant_stride"}
    assert settings["solver_options"] == {**theirs, key: False}
    assert f"{key}=null: false, as diffusers takes it" in report.assumed
    if not key.startswith("use_"):  # which diffusers adds up
        scheduler_class(name)(**{key: None}).set_timesteps(10)


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


def test_the_variance_of_ddpm_null() -> None:
    """diffusers then takes the variance as it is: fixed_small."""
    report = Report()
    settings = to_settings({"_class_name": "DDPMScheduler", "variance_type": None}, "x", report)
    assert settings["solver_options"] == {"timestep_spacing": "leading", "variance_type": "fixed_small"}
    assert "variance_type=null: fixed_small, as diffusers takes it" in report.assumed
    theirs = scheduler_class("DDPMScheduler")
    for t in (1, 500, 999):
        null, small = (theirs(variance_type=kind)._get_variance(t) for kind in (None, "fixed_small"))
        assert null == small


@pytest.mark.parametrize("old", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    "new", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"]
)
@pytest.mark.parametrize("kind", [None, "fixed_small", "fixed_large_log"])
def test_a_variance_of_another_scheduler(kind: str | None, new: str, old: str, tmp_path: Path) -> None:
    """Through files, as on the hub: from_config writes down variance_type as it finds it."""
    scheduler_class(old)().save_config(tmp_path)
    config = dict(scheduler_class(old).from_pretrained(tmp_path).config) | {"variance_type": kind}
    scheduler_class(new).from_config(config).save_config(tmp_path)
    raw = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert raw["variance_type"] == kind
    report = Report()
    settings = to_settings(raw, "x", report)
    said = f"variance_type={kind}: {new} looks only for learned_range or learned"
    assert (said in report.ignored) == (kind is not None)
    assert "variance" not in settings
    solver_table(
        settings["solver"],
        process_from_config(settings["schedule"]),
        10,
        **(settings["solver_options"] or {}),
    )


def test_what_is_told_and_where_runs_start() -> None:
    """Differences of diffusers that depend on values, or that every run of a class has."""
    for raw, said in (
        ({"_class_name": "EDMEulerScheduler"}, r"N(0, sigma_max^2 + 1)"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, r"N(0, sigma_max^2 + 1)"),
        ({"_class_name": "UniPCMultistepScheduler", "use_beta_sigmas": True}, "998 where it is told 999"),
        ({"_class_name": "SASolverScheduler", "num_train_timesteps": 500}, "between 0.2 and 0.8 of it"),
    ):
        report = Report()
        to_settings(raw, "x", report)
        assert sum(said in line for line in report.assumed) == 1
        to_settings(
            {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}, "x", report := Report()
        )
        assert not any(said in line for line in report.assumed)


def test_refusals_under_use_flow_sigmas_say_so() -> None:
    raw = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "use_karras_sigmas": True}
    with refused(ConfigError, "x", "DPMSolverMultistepScheduler", "use_flow_sigmas"):
        to_settings({**raw, "prediction_type": "flow_prediction"}, "x", Report())


@pytest.mark.parametrize("name", DISCRETE)
def test_a_scheduler_made_from_another(name: str, tmp_path: Path) -> None:
    """`from_config` writes down what the new class never looks at."""
    place = DISCRETE.index(name)
    for base in (DISCRETE[(place + apart) % len(DISCRETE)] for apart in (0, 1, 4, 9)):
        old = scheduler_class(base)(beta_start=0.001)
        scheduler_class(name).from_config(old.config).save_config(tmp_path)
        report = Report()
        raw = json.loads((tmp_path / "scheduler_config.json").read_text())
        assert to_settings(raw, "x", report)["solver"] in RULES[name].solvers
        foreign = set(raw) - {
            *RULES[name].schedule,
            *RULES[name].options,
            *RULES[name].only,
            *RULES[name].choosing,
        }
        said = " ".join(report.ignored)
        assert all(f"{key}=" in said for key in foreign if not key.startswith("_"))


@pytest.mark.parametrize("name", RULES)
def test_names_of_other_schedulers_have_no_effect(name: str) -> None:
    report = Report()
    raw = {"_class_name": name, "snr_shift_scale": 3.0, "timestep_values": None}
    assert to_settings(raw, "x", report) == to_settings({"_class_name": name}, "x", Report())
    assert report.ignored == [
        f"snr_shift_scale=3.0: no effect on {name}",
        f"timestep_values=None: no effect on {name}",
    ]


@pytest.mark.parametrize("name", RULES)
def test_missing_keys_are_assumed_aloud(name: str, tmp_path: Path) -> None:
    """With the values that diffusers writes down."""
    report, again = Report(), Report()
    settings = to_settings({"_class_name": name}, "x", report)
    written = settings_of(name, tmp_path, again)
    raw = json.loads((tmp_path / "scheduler_config.json").read_text())
    rule, assumed = RULES[name], report.assumed[0]
    for key in (*rule.schedule, *rule.options):
        silent = raw[key] is None or key in ("clip_sample_range", *THRESHOLDING) or key in rule.choosing
        assert silent or f"{key}={rule.values.get(key, {}).get(str(raw[key]), raw[key])}" in assumed.replace(
            "()", "[]"
        )
    assert ("clip_sample=True" in assumed) == (name in ("DDPMScheduler", "DDIMScheduler"))
    assert {k: settings[k] for k in ("solver", "steps")} == {k: written[k] for k in ("solver", "steps")}
    processes = [process_from_config(s["schedule"]) for s in (settings, written)]
    assert processes[0] == processes[1]
    checked = [SOLVERS[s["solver"]].check(s["solver_options"] or {}) for s in (settings, written)]
    assert checked[0] == checked[1]
    allowed = ("as by diffusers", "=True: diffusers", "in diffusers")
    assert [line for line in again.assumed if not any(words in line for words in allowed)] == []


def test_the_pipeline_says_how_many_steps() -> None:
    def steps(name: str, pipeline: str | None, **options: Any) -> int:
        return to_settings({"_class_name": name, **options}, "x", Report(), pipeline)["steps"]

    assert steps("DDIMScheduler", "DDPMPipeline") == 1000
    assert steps("DDIMScheduler", "DDPMPipeline", num_train_timesteps=100) == 100
    assert steps("DDIMScheduler", None) == 50
    assert steps("DDPMScheduler", "DDIMPipeline") == 50
    assert steps("DPMSolverMultistepScheduler", "DDPMPipeline") == 20  # 1000 are NaN
