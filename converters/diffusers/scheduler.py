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
# Options of schedulers that are not in RULES, or of older diffusers. A scheduler made from another's config
# (`from_config`) writes them down and never looks at them.
ELSEWHERE = (
    "skip_prk_steps",
    "timestep_values",
    "predict_x0",
    "solver_p",
    "disable_corrector",
    "original_inference_steps",
    "timestep_scaling",
)


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
KNOWN = {
    *ELSEWHERE,
    *(key for rule in RULES.values() for key in (*rule.schedule, *rule.options, *rule.only, *rule.idle)),
}
# What a pipeline takes where nothing is said, whatever its scheduler.
PIPELINE_STEPS = {"DDPMPipeline": 1000, "DDIMPipeline": 50}
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
    if not isinstance(name, str) or name not in RULES:
        raise ConfigError(f"{where}: _class_name: {name!r} is not supported; supported: {', '.join(RULES)}")
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
        if key.startswith("_") or key == "predict_epsilon":
            continue
        if key in (*rule.schedule, *rule.options):
            if value is None:
                value = _null(rule, name, key, where, report)
            if value is not None:
                (schedule if key in rule.schedule else options)[key] = value
        elif key in rule.only:
            if value not in rule.only[key]:
                supported = ", ".join(str(v) for v in rule.only[key] if v is not None)
                raise ConfigError(
                    f"{where}: {key}: {value!r} is not supported for {name}; supported: {supported}"
                )
        elif key in (idle := {**OLD, **rule.idle}):
            report.ignored.append(f"{key}={value}: {idle[key]}")
        elif key in KNOWN:
            report.ignored.append(f"{key}={value}: no effect on {name}")
        else:
            known = ", ".join((*rule.schedule, *rule.options, *rule.only, *rule.idle))
            raise ConfigError(
                f"{where}: {key}: {name} has no such option; diffusers ignores it, remove it from the file. "
                f"Known: {known}"
            )
    if raw.get("predict_epsilon") is not None:  # before prediction_type
        if "prediction_type" in schedule:
            report.ignored.append(f"predict_epsilon={raw['predict_epsilon']}: prediction_type says it")
        else:
            schedule["prediction_type"] = "epsilon" if raw["predict_epsilon"] else "sample"
            report.assumed.append(
                f"prediction_type={schedule['prediction_type']}, because of the old "
                f"predict_epsilon={raw['predict_epsilon']}, which diffusers no longer reads"
            )
    _check_schedule(rule, name, schedule, where)
    given = ", ".join(
        f"{k}={v}" for k, v in {**schedule, **options}.items() if k in raw and k != "trained_betas"
    )
    report.mapped.append(f"{name} -> solver {rule.solver}" + (f": {given}" if given else ""))
    if filled := _filled(rule, raw, schedule, options):
        report.assumed.append(f"{name}: {filled}, diffusers' defaults")
    settings: dict[str, Any] = {"schedule": schedule, "solver": rule.solver}
    variance = options.get("variance_type")
    if isinstance(variance, str) and variance in LEARNED:
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
    steps = PIPELINE_STEPS.get(pipeline or "", rule.steps)
    if steps != rule.steps and rule.solver not in ("ddpm", "ddim"):
        report.assumed.append(
            f"steps={rule.steps}: the {steps} of {pipeline} are not for {name}, which it cannot run as it should"
        )
        steps = rule.steps
    _check_options(rule, settings, where)
    settings["steps"] = min(steps, schedule.get("num_train_timesteps", 1000))
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
    given = settings.solver_options or {}
    lost = {key: value for key, value in given.items() if key not in rule.options}
    if settings.variance is not None and "variance_type" in rule.options:
        config["variance_type"] = settings.variance
        if given.get("variance_type", settings.variance) != settings.variance:
            lost["variance_type"] = given["variance_type"]
            report.ignored.append(
                f"variance_type={given['variance_type']}: diffusers' {name} gives a network that predicts variances "
                "no other noise"
            )
    elif settings.variance is not None:
        report.ignored.append(
            f"variance={settings.variance}: diffusers' {name} cannot run a network that also predicts variances"
        )
    for key, value in lost.items():
        if key not in ("constant_stride", "variance_type"):
            report.ignored.append(f"{key}={value}: {name} has no such option")
    spacing = options["timestep_spacing"]
    if settings.solver == "ddim" and spacing != "leading":
        lost["constant_stride"] = options[
            "constant_stride"
        ]  # reading takes diffusers' way if nothing is said
        if not options["constant_stride"]:
            report.ignored.append(
                f"constant_stride=False: diffusers' DDIM always steps by T // steps; with {spacing} its pictures differ"
            )
    return config, lost


def _null(rule: Rule, name: str, key: str, where: str, report: Report) -> Any:
    """What diffusers takes null for: false where it asks for truth, nothing where that is the default."""
    if key in ("trained_betas", "sigma_min", "sigma_max") or (name, key) == (
        CLASSES["dpm++2m"],
        "variance_type",
    ):
        return None
    flags = {o.name for o in SOLVERS[rule.solver].options if o.type == "bool"} | {"rescale_betas_zero_snr"}
    if key not in flags:
        raise ConfigError(
            f"{where}: {key}: null is not supported for {name}; supported: a value, or no such key for diffusers' "
            "default"
        )
    report.assumed.append(f"{key}=null: false, as diffusers takes it")
    return False


def _filled(
    rule: Rule, raw: Mapping[str, Any], schedule: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """The defaults that stand for missing keys and have an effect on the picture, in words."""
    defaults = {f.name: f.default for f in dataclasses.fields(NoiseSchedule)}
    defaults |= {o.name: o.default for o in SOLVERS[rule.solver].options}
    values = {**defaults, **rule.defaults, **schedule, **options}
    silent = {"trained_betas"} | (
        {"beta_start", "beta_end", "beta_schedule"} if values["trained_betas"] else set()
    )
    silent |= set() if values["clip_sample"] else {"clip_sample_range"}
    return ", ".join(
        f"{key}={values[key]}"
        for key in (*rule.schedule, *rule.options)
        if key not in raw
        and key not in silent
        and values.get(key) is not None
        and not (key == "prediction_type" and key in schedule)
    )


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
