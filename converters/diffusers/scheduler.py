"""``scheduler_config.json`` of diffusers' schedulers to our schedule, solver and options, and back.

Every key is mapped, has no effect (and is reported), or is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastgen.diffusion import SOLVERS, NoiseSchedule
from fastgen.engines.settings import LEARNED, DiffusionSettings
from fastgen.errors import ConfigError

from ..base import Report

SCHEDULE = tuple(f.name for f in dataclasses.fields(NoiseSchedule))
SPACING = ("timestep_spacing", "steps_offset")
CLIPPING = ("clip_sample", "clip_sample_range")
SPREADS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
OFF = (False, None)
THRESHOLDING: dict[str, tuple[Any, ...]] = {"thresholding": OFF}
NO_THRESHOLD = "no effect without thresholding"
IDLE_THRESHOLDS = {"dynamic_thresholding_ratio": NO_THRESHOLD, "sample_max_value": NO_THRESHOLD}
# Of old files, for every class.
OLD = {"tensor_format": "tensors are PyTorch's"}


@dataclass(frozen=True)
class Rule:
    """How a scheduler class maps.

    solver: ours. options: keys that are options of ours under the same name. only: keys of which only these values are
    supported. idle: keys without effect, and why. defaults: of diffusers, for missing keys, where ours differ. steps:
    what its pipeline takes where nothing is said.
    """

    solver: str
    options: tuple[str, ...]
    steps: int
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    schedule: tuple[str, ...] = SCHEDULE
    beta_schedules: tuple[str, ...] = ("linear", "scaled_linear", "squaredcos_cap_v2")


RULES: dict[str, Rule] = {
    "DDPMScheduler": Rule(
        "ddpm",
        (*SPACING, *CLIPPING, "variance_type"),
        1000,
        only=THRESHOLDING,
        idle=IDLE_THRESHOLDS,
        beta_schedules=("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    ),
    "DDIMScheduler": Rule(
        "ddim", (*SPACING, *CLIPPING, "set_alpha_to_one"), 50, only=THRESHOLDING, idle=IDLE_THRESHOLDS
    ),
    "DPMSolverMultistepScheduler": Rule(
        "dpm++2m",
        (
            *SPACING,
            "solver_type",
            "lower_order_final",
            "euler_at_final",
            "final_sigmas_type",
            "variance_type",
        ),
        20,
        only={
            **THRESHOLDING,
            "solver_order": (2,),
            "algorithm_type": ("dpmsolver++",),
            "lambda_min_clipped": (float("-inf"), None),
            "use_lu_lambdas": OFF,
            "use_flow_sigmas": OFF,
            "use_dynamic_shifting": OFF,
            **dict.fromkeys(SPREADS, OFF),
        },
        idle={
            **IDLE_THRESHOLDS,
            "flow_shift": "no effect without use_flow_sigmas",
            "time_shift_type": "no effect without use_dynamic_shifting",
        },
    ),
    "EulerDiscreteScheduler": Rule(
        "euler",
        (
            *SPACING,
            *SPREADS,
            "sigma_min",
            "sigma_max",
            "interpolation_type",
            "final_sigmas_type",
            "timestep_type",
        ),
        50,
    ),
    "HeunDiscreteScheduler": Rule(
        "heun",
        (*SPACING, *CLIPPING, *SPREADS),
        25,
        defaults={"beta_start": 0.00085, "beta_end": 0.012},
        schedule=tuple(name for name in SCHEDULE if name != "rescale_betas_zero_snr"),
    ),
}
CLASSES = {rule.solver: name for name, rule in RULES.items()}
# A DDIMPipeline makes a DDIMScheduler of whatever it finds; these two agree in every default.
DDIM_PIPELINE = ("DDIMScheduler", "DDPMScheduler")


def to_settings(
    raw: Mapping[str, Any], where: str, report: Report, pipeline: str | None = None
) -> dict[str, Any]:
    """Our settings (schedule, solver, solver_options, steps, variance) from a ``scheduler_config.json``.

    pipeline: the class that runs it; a DDIMPipeline samples with DDIM whatever the file says. Raises ConfigError that
    names the key.
    """
    name = raw.get("_class_name")
    if name not in RULES:
        raise ConfigError(f"{where}: _class_name: {name!r} is not supported; supported: {', '.join(RULES)}")
    written = RULES[name]
    if pipeline == "DDIMPipeline" and name != "DDIMScheduler":
        if name not in DDIM_PIPELINE:
            raise ConfigError(
                f"{where}: _class_name: {name!r} in a DDIMPipeline is not supported; supported: "
                f"{', '.join(DDIM_PIPELINE)}"
            )
        report.assumed.append(f"DDIMPipeline: samples with DDIM although its scheduler is a {name}")
        name = "DDIMScheduler"
    rule = RULES[name]
    schedule: dict[str, Any] = dict(rule.defaults)
    options: dict[str, Any] = {}
    for key, value in raw.items():
        if key.startswith("_"):
            continue
        if key in rule.schedule:
            if value is not None:
                schedule[key] = value
        elif key in rule.options:
            if value is not None:
                options[key] = value
        elif key in rule.only:
            if value not in rule.only[key]:
                supported = ", ".join(str(v) for v in rule.only[key] if v is not None)
                raise ConfigError(
                    f"{where}: {key}: {value!r} is not supported for {name}; supported: {supported}"
                )
        elif key == "predict_epsilon":  # before prediction_type
            schedule.setdefault("prediction_type", "epsilon" if value else "sample")
        elif key in (idle := {**OLD, **rule.idle}):
            report.ignored.append(f"{key}={value}: {idle[key]}")
        elif key in (*written.options, *written.only, *written.idle):
            report.ignored.append(f"{key}={value}: no effect on {name}")
        else:
            known = ", ".join((*rule.schedule, *rule.options, *rule.only, *rule.idle))
            raise ConfigError(
                f"{where}: {key}: {name} has no such option; diffusers ignores it, remove it from the file. "
                f"Known: {known}"
            )
    _check_schedule(rule, name, schedule, where)
    given = ", ".join(
        f"{k}={v}" for k, v in {**schedule, **options}.items() if k in raw and k != "trained_betas"
    )
    report.mapped.append(f"{name} -> solver {rule.solver}" + (f": {given}" if given else ""))
    settings: dict[str, Any] = {"schedule": schedule, "solver": rule.solver}
    if options.get("variance_type") in LEARNED:
        settings["variance"] = options.pop("variance_type")
    elif rule.solver == "dpm++2m" and "variance_type" in options:
        raise ConfigError(
            f"{where}: variance_type: {options['variance_type']!r} is not supported for {name}; supported: "
            f"{', '.join(LEARNED)}"
        )
    _drop_what_has_no_effect(options, settings, report)
    if rule.solver == "ddim" and options.get("timestep_spacing", "leading") != "leading":
        options["constant_stride"] = True
        report.assumed.append("constant_stride=True: diffusers' DDIM steps by T // steps with this spacing")
    settings["solver_options"] = options or None
    settings["steps"] = min(rule.steps, schedule.get("num_train_timesteps", 1000))
    _check_options(rule, settings, where)
    return settings


def from_settings(settings: DiffusionSettings, report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """(scheduler_config.json, the options of ours that it has no place for). Raises ConfigError."""
    name = CLASSES[settings.solver]
    rule = RULES[name]
    options = {o.name: o.default for o in SOLVERS[settings.solver].options} | (settings.solver_options or {})
    values = settings.noise_schedule.to_config()
    if values["beta_schedule"] not in rule.beta_schedules and values["trained_betas"] is None:
        raise ConfigError(
            f"beta_schedule: diffusers' {name} has no {values['beta_schedule']}; "
            f"it has {', '.join(rule.beta_schedules)}"
        )
    for key in set(values) - set(rule.schedule):
        if values.pop(key) != getattr(NoiseSchedule, key):
            raise ConfigError(f"{key}: diffusers' {name} has no such option")
    config = {"_class_name": name, **values}
    config |= {key: options[key] for key in rule.options if key in options}
    if settings.variance is not None and "variance_type" in rule.options:
        config["variance_type"] = settings.variance
    lost = {key: value for key, value in (settings.solver_options or {}).items() if key not in rule.options}
    for key, value in lost.items():
        report.ignored.append(f"{key}={value}: {name} has no such option")
    spacing = options["timestep_spacing"]
    if settings.solver == "ddim" and spacing != "leading" and not options["constant_stride"]:
        report.ignored.append(
            f"constant_stride=False: diffusers' DDIM always steps by T // steps; with {spacing} its pictures differ"
        )
    return config, lost


def _check_schedule(rule: Rule, name: str, schedule: dict[str, Any], where: str) -> None:
    if schedule.get("beta_schedule", "linear") not in rule.beta_schedules:
        raise ConfigError(
            f"{where}: beta_schedule: {schedule['beta_schedule']!r} is not supported for {name}; supported: "
            f"{', '.join(rule.beta_schedules)}"
        )
    try:
        NoiseSchedule.from_config(schedule)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _drop_what_has_no_effect(options: dict[str, Any], settings: dict[str, Any], report: Report) -> None:
    """Options that diffusers accepts and does not look at; our solvers would refuse them."""
    if not any(options.get(name) for name in SPREADS):
        for key in ("sigma_min", "sigma_max"):
            if key in options:
                report.ignored.append(
                    f"{key}={options.pop(key)}: no effect without one of {', '.join(SPREADS)}"
                )
    continuous = options.get("timestep_type") == "continuous"
    if continuous and settings["schedule"].get("prediction_type") != "v_prediction":
        report.ignored.append(
            f"timestep_type={options.pop('timestep_type')}: no effect without prediction_type v_prediction"
        )


def _check_options(rule: Rule, settings: dict[str, Any], where: str) -> None:
    try:
        SOLVERS[rule.solver].check(settings["solver_options"] or {})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
