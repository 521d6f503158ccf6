"""``scheduler_config.json`` of diffusers' schedulers to our process, solver and options.

Every key is mapped, has no effect (and is reported), or is refused by name; `rules.py` says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastgen.config import shown
from fastgen.diffusion import SOLVERS, NoiseSchedule
from fastgen.diffusion.lambdas import LambdaOptions
from fastgen.diffusion.processes import PROCESSES, AnyProcess, process_from_config
from fastgen.engines.diffusion.settings import LEARNED
from fastgen.errors import ConfigError

from ..base import Report
from .rules import FIXED_VARIANCES, KNOWN, OLD, RULES, SPREADS, THRESHOLDS, Rule, rule_of

# What a pipeline takes where nothing is said, whatever its scheduler.
PIPELINE_STEPS = {"DDPMPipeline": 1000, "DDIMPipeline": 50}
# A DDIMPipeline makes a DDIMScheduler of whatever it finds; these two agree in every default.
DDIM_PIPELINE = ("DDIMScheduler", "DDPMScheduler")
TRUNCATED = ("use_exponential_sigmas", "use_beta_sigmas")
NULL = ("trained_betas", "sigma_min", "sigma_max", "shift_terminal")  # null is diffusers' default
STRIDE = "diffusers steps by T // steps, not to the next timestep"
WAYS = ("constant_stride", "sum_outputs")  # options of ours for what diffusers has no name for
OUTPUTS = "diffusers sums the network's outputs, not the noises"


def to_settings(
    raw: Mapping[str, Any], where: str, report: Report, pipeline: str | None = None
) -> dict[str, Any]:
    """Our settings (schedule, solver, solver_options, steps, variance) from a ``scheduler_config.json``.

    pipeline: the class that runs it; a DDIMPipeline samples with DDIM whatever the file says. Raises ConfigError that
    names the key.
    """
    name = _class(raw, where, report, pipeline)
    rule = rule_of(name, flow=raw.get("use_flow_sigmas") is True)
    solver = _solver(rule, name, raw, where)
    schedule, options = _mapped(rule, name, solver, raw, where, report)
    if raw.get("predict_epsilon") is not None:  # before prediction_type
        if "prediction_type" in raw:
            report.ignored.append(f"predict_epsilon={raw['predict_epsilon']}: prediction_type says it")
        else:
            schedule["prediction_type"] = "epsilon" if raw["predict_epsilon"] else "sample"
            report.assumed.append(
                f"prediction_type={schedule['prediction_type']}, because of the old "
                f"predict_epsilon={raw['predict_epsilon']}, which diffusers no longer reads"
            )
    process = _check_schedule(rule, name, schedule, where)
    given = ", ".join(
        f"{k}={v}"
        for k, v in {**schedule, **options}.items()
        if _theirs(rule, k) in raw and k != "trained_betas"
    )
    report.mapped.append(f"{name} -> solver {solver}" + (f": {given}" if given else ""))
    if filled := _filled(rule, solver, raw, schedule, options):
        report.assumed.append(f"{name}: {filled}, diffusers' defaults")
    if solver in rule.differs:
        report.assumed.append(f"solver {solver}: in diffusers {rule.differs[solver]}")
    report.assumed.extend(_differences(rule, solver, process, options))
    settings: dict[str, Any] = {"schedule": schedule, "solver": solver}
    variance = options.get("variance_type")
    if isinstance(variance, str) and variance in LEARNED:
        settings["variance"] = options.pop("variance_type")
    elif solver != "ddpm" and "variance_type" in options:
        raise ConfigError(
            f"variance_type: {options['variance_type']!r} is not supported for {name}; supported: "
            f"{', '.join(LEARNED)}",
            argument=where,
        )
    _drop_what_has_no_effect(solver, options, schedule, report)
    if rule.process is None:  # the words of the file, and of diffusers where it says nothing
        options = {**_theirs_unsaid(solver), **options}
    if rule.process == "edm" and options.get("final_sigmas_type") == "sigma_min":
        options["as_diffusers"] = True
        report.assumed.append(
            "final_sigmas_type=sigma_min: the last step, from sigma_min to sigma_min, does nothing"
        )
    for key, why in as_diffusers(solver, process, options).items():
        options[key] = True
        report.assumed.append(f"{key}=True: {why}")
    settings["solver_options"] = options or None
    try:
        checked = SOLVERS[solver].check(options)
    except ConfigError as error:
        raise ConfigError(f"{error}", argument=where) from error
    steps = PIPELINE_STEPS.get(pipeline or "", rule.steps)
    if steps != rule.steps and solver not in ("ddpm", "ddim"):
        report.assumed.append(
            f"steps={rule.steps}: the {steps} of {pipeline} are not for {name}, which it cannot run as it should"
        )
        steps = rule.steps
    settings["steps"] = min(steps, process.steps_limit, getattr(checked, "original_inference_steps", steps))
    return settings


def _theirs_unsaid(solver: str) -> dict[str, Any]:
    """diffusers' defaults where ours are others; `as_diffusers` says those that it has no name for."""
    return {k: v for k, v in SOLVERS[solver].diffusers.items() if k not in WAYS}


def as_diffusers(solver: str, process: AnyProcess, options: Mapping[str, Any]) -> dict[str, str]:
    """Options of ours that have to be True for the images of diffusers, which knows no other way, and why."""
    found = {}
    if solver in ("ddim", "plms", "pndm"):
        # Runge-Kutta's midpoints depend on it even where the timesteps do not.
        if solver == "pndm" or options.get("timestep_spacing", "leading") != "leading":
            found["constant_stride"] = STRIDE
        if solver != "ddim" and process.prediction_type != "epsilon":
            found["sum_outputs"] = OUTPUTS
    return found


def _differences(rule: Rule, solver: str, process: AnyProcess, options: Mapping[str, Any]) -> list[str]:
    """What diffusers does otherwise with these values."""
    said = []
    cut = issubclass(SOLVERS[solver].options_type, LambdaOptions) and rule.process is None
    if cut and any(options.get(key) for key in TRUNCATED):
        said.append(
            "timesteps are cut off to whole ones: diffusers does so after rounding in float32, and may tell the "
            "network 998 where it is told 999 here"
        )
    if solver == "sa" and process.steps_limit != 1000:
        said.append(
            "tau: in diffusers there is noise between timesteps 200 and 800 whatever num_train_timesteps; here "
            "between 0.2 and 0.8 of it"
        )
    return said


def _class(raw: Mapping[str, Any], where: str, report: Report, pipeline: str | None) -> str:
    """The scheduler's class, as `pipeline` runs it."""
    name = raw.get("_class_name")
    if not isinstance(name, str) or name not in RULES:
        raise ConfigError(
            f"_class_name: {name!r} is not supported; supported: {', '.join(RULES)}", argument=where
        )
    if pipeline != "DDIMPipeline" or name == "DDIMScheduler":
        return name
    if name not in DDIM_PIPELINE:
        raise ConfigError(
            f"_class_name: {name!r} in a DDIMPipeline is not supported; supported: {', '.join(DDIM_PIPELINE)}",
            argument=where,
        )
    report.assumed.append(f"DDIMPipeline: samples with DDIM although its scheduler is a {name}")
    return "DDIMScheduler"


def _solver(rule: Rule, name: str, raw: Mapping[str, Any], where: str) -> str:
    """Ours, by the values of the keys that choose it."""
    found = {key: _value(rule, key, raw.get(key, rule.defaults.get(key))) for key in rule.choosing}
    for solver, wanted in rule.solvers.items():
        if all(type(found[key]) is type(value) and found[key] == value for key, value in wanted.items()):
            return solver
    key = rule.choosing[0]
    supported = ", ".join(str(wanted[key]) for wanted in rule.solvers.values())
    raise ConfigError(
        f"{key}: {shown(raw[key])} is not supported for {name}; supported: {supported}", argument=where
    )


def _value(rule: Rule, key: str, value: Any) -> Any:
    """Our name for a value of `key`."""
    return rule.values.get(key, {}).get(value, value) if isinstance(value, str) else value


def _theirs(rule: Rule, key: str) -> str:
    """diffusers' name of our option."""
    return next((theirs for theirs, ours in rule.renamed.items() if ours == key), key)


def _mapped(
    rule: Rule, name: str, solver: str, raw: Mapping[str, Any], where: str, report: Report
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of the process, options of the solver), from defaults and from the file."""
    schedule = {key: _value(rule, key, value) for key, value in rule.defaults.items() if key in rule.schedule}
    if rule.process is not None:
        schedule = {"process": rule.process, **schedule, **rule.fixed}
    options: dict[str, Any] = {}
    for key, value in raw.items():
        if key.startswith("_") or key == "predict_epsilon" or key in rule.solvers[solver]:
            continue
        if key == "variance_type" and solver != "ddpm" and value in FIXED_VARIANCES:
            report.ignored.append(f"{key}={value}: {name} looks only for {' or '.join(LEARNED)}")
        elif key in (*rule.schedule, *rule.options):
            if value is None:
                value = _null(solver, name, rule.renamed.get(key, key), where, report)
            elif (ours := _value(rule, key, value)) != value:
                if key in rule.options:  # a field of the process is only named otherwise
                    report.assumed.append(f"{key}={value}: taken for {ours}, as by diffusers")
                value = ours
            if value is not None:
                (schedule if key in rule.schedule else options)[rule.renamed.get(key, key)] = value
        elif key in rule.only:
            if value not in rule.only[key]:
                supported = ", ".join(str(v) for v in rule.only[key] if v is not None)
                which = f"{name} with use_flow_sigmas" if rule.flow else name
                raise ConfigError(
                    f"{key}: {value!r} is not supported for {which}; supported: {supported or 'null'}",
                    argument=where,
                )
        elif key in (idle := {**OLD, **rule.idle}):
            report.ignored.append(f"{key}={value}: {idle[key]}")
        elif key in KNOWN:
            report.ignored.append(f"{key}={value}: no effect on {name}")
        else:
            raise ConfigError(
                f"{key}: {name} has no such option; diffusers ignores it, remove it from the file. "
                f"Known: {', '.join(rule.keys)}",
                argument=where,
            )
    return schedule, options


def _null(solver: str, name: str, key: str, where: str, report: Report) -> Any:
    """What diffusers takes null for: false where it asks for truth, nothing where that is the default."""
    if key in NULL or (key == "variance_type" and solver != "ddpm"):
        return None
    if key == "variance_type":
        report.assumed.append(f"{key}=null: fixed_small, as diffusers takes it")
        return "fixed_small"
    flags = {o.name for o in SOLVERS[solver].options if o.type == "bool"} | {"rescale_betas_zero_snr"}
    if key not in flags:
        raise ConfigError(
            f"{key}: null is not supported for {name}; supported: a value, or no such key for diffusers' "
            "default",
            argument=where,
        )
    report.assumed.append(f"{key}=null: false, as diffusers takes it")
    return False


def _filled(
    rule: Rule, solver: str, raw: Mapping[str, Any], schedule: Mapping[str, Any], options: Mapping[str, Any]
) -> str:
    """The defaults that stand for missing keys and have an effect on the image, in words."""
    process = NoiseSchedule if rule.process is None else PROCESSES[rule.process]
    values = {o.name: o.default for o in SOLVERS[solver].options} | _theirs_unsaid(solver) | dict(options)
    values |= {f.name: f.default for f in dataclasses.fields(process) if f.name in rule.schedule}
    values |= {**rule.defaults, **schedule}
    silent = {"trained_betas"} | (
        {"beta_start", "beta_end", "beta_schedule"} if values.get("trained_betas") else set()
    )
    silent |= set() if values.get("clip_sample") else {"clip_sample_range"}
    silent |= set() if values.get("thresholding") else {"thresholding", *THRESHOLDS}
    silent |= set(rule.solvers[solver])  # the solver's name says it
    return ", ".join(
        f"{key}={values[rule.renamed.get(key, key)]}"
        for key in dict.fromkeys((*rule.schedule, *rule.options))
        if key not in raw
        and key not in silent
        and values.get(rule.renamed.get(key, key)) is not None
        and not (key == "prediction_type" and key in schedule and "predict_epsilon" in raw)
    )


def _check_schedule(rule: Rule, name: str, schedule: dict[str, Any], where: str) -> AnyProcess:
    if rule.process is None and schedule.get("beta_schedule", "linear") not in rule.beta_schedules:
        raise ConfigError(
            f"beta_schedule: {schedule['beta_schedule']!r} is not supported for {name}; supported: "
            f"{', '.join(rule.beta_schedules)}",
            argument=where,
        )
    try:
        return process_from_config(schedule)
    except ConfigError as error:
        raise ConfigError(f"{error}", argument=where) from error


def _drop_what_has_no_effect(
    solver: str, options: dict[str, Any], schedule: Mapping[str, Any], report: Report
) -> None:
    """Options that diffusers accepts and does not look at; our solvers would refuse them, or look."""

    def drop(key: str, why: str) -> None:
        if key in options:
            report.ignored.append(f"{key}={options.pop(key)}: {why}")

    if options.get("disable_corrector") == []:  # the default
        del options["disable_corrector"]
    if options.get("thresholding") and solver == "unipc" and options.get("predict_x0") is False:
        drop("thresholding", "no effect on an estimate of the noise (predict_x0=False)")
    if not options.get("thresholding"):
        options.pop("thresholding", None)  # false is the default
        for key in THRESHOLDS:
            drop(key, "no effect without thresholding")
    if not any(options.get(name) for name in SPREADS):
        for key in ("sigma_min", "sigma_max"):
            drop(key, f"no effect without one of {', '.join(SPREADS)}")
    if options.get("timestep_type") == "continuous" and schedule.get("prediction_type") != "v_prediction":
        drop("timestep_type", "no effect without prediction_type v_prediction")
