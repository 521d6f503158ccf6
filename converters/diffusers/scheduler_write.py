"""Our process, solver and options as a ``scheduler_config.json`` of diffusers."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastgen.diffusion import SOLVERS, NoiseSchedule
from fastgen.diffusion.timesteps import STABLE
from fastgen.engines.diffusion.settings import DiffusionSettings
from fastgen.errors import ConfigError

from ..base import Report
from .rules import CLASSES, Rule, rule_of
from .scheduler import WAYS, as_diffusers

MISSING = object()


def class_name(settings: DiffusionSettings) -> str:
    """The class of diffusers that does what our solver does. ConfigError if there is none."""
    process = settings.noise_schedule
    name = None if isinstance(process, NoiseSchedule) else process.name
    if (name, settings.solver) not in CLASSES:
        what = "a noise schedule" if name is None else f"the process {name}"
        known = ", ".join(solver for other, solver in CLASSES if other == name)
        raise ConfigError(
            f"diffusers has no scheduler for {settings.solver} on {what}; it has them for {known or 'none'}",
            argument="solver",
        )
    return CLASSES[name, settings.solver]


def from_settings(settings: DiffusionSettings, report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """(scheduler_config.json, the options of ours that it has no place for). Raises ConfigError."""
    name = class_name(settings)
    rule = rule_of(name, flow=not isinstance(settings.noise_schedule, NoiseSchedule))
    given = settings.solver_options or {}
    options = dataclasses.asdict(SOLVERS[settings.solver].check(given))
    renamed = {ours: theirs for theirs, ours in rule.renamed.items()}
    config = {"_class_name": name, **_schedule(rule, name, settings), **rule.solvers[settings.solver]}
    if "use_flow_sigmas" in rule.only:
        config["use_flow_sigmas"] = rule.only["use_flow_sigmas"][0]
    for key in rule.options:
        if rule.renamed.get(key, key) in options and key not in config:
            value = options[rule.renamed.get(key, key)]
            config[key] = list(value) if isinstance(value, tuple) else value
    theirs = SOLVERS[settings.solver].diffusers if rule.process is None else {}
    lost = {
        key: value
        for key, value in given.items()
        if renamed.get(key, key) not in rule.options and theirs.get(key, MISSING) != value
    }
    lost.pop("as_diffusers", None)  # what follows from it is written down
    if rule.process == "edm" and options["final_sigmas_type"] == "sigma_min" and not options["as_diffusers"]:
        config["final_sigmas_type"], lost["final_sigmas_type"] = "zero", "sigma_min"
    for key, value in theirs.items():
        if key not in (*rule.options, *WAYS) and options[key] != value:
            lost[key] = options[key]
    if theirs and options["timestep_spacing"] == STABLE:
        lost["timestep_spacing"] = STABLE
        config.pop("timestep_spacing", None)
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
    for key, why in as_diffusers(settings.solver, settings.noise_schedule, options).items():
        lost[key] = options[key]  # reading takes diffusers' way if nothing is said
        if not options[key]:
            report.ignored.append(f"{key}=False: {why}; its images differ")
    for key, value in lost.items():
        if key not in (*WAYS, "variance_type"):
            report.ignored.append(f"{key}={value}: {name} has no such option")
    return config, lost


def _schedule(rule: Rule, name: str, settings: DiffusionSettings) -> dict[str, Any]:
    """The fields of the process under diffusers' names. ConfigError for one that it lacks."""
    process = settings.noise_schedule
    values = process.to_config()
    values.pop("process", None)
    by_formula = isinstance(process, NoiseSchedule) and process.trained_betas is None
    if by_formula and values["beta_schedule"] not in rule.beta_schedules:
        raise ConfigError(
            f"diffusers' {name} has no {values['beta_schedule']}; it has {', '.join(rule.beta_schedules)}",
            argument="beta_schedule",
        )
    renamed = {ours: theirs for theirs, ours in rule.renamed.items()}
    values = {renamed.get(key, key): value for key, value in values.items()}
    expected = {f.name: f.default for f in dataclasses.fields(process)} | dict(rule.fixed)
    for key in set(values) - set(rule.schedule):
        if values.pop(key) != expected[key]:
            raise ConfigError(f"diffusers' {name} has no such option", argument=key)
    for key, names in rule.values.items():
        if key in values:
            values[key] = next((theirs for theirs, ours in names.items() if ours == values[key]), values[key])
    return values
