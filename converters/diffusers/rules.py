"""How every scheduler class of diffusers maps to a process and a solver of ours: a table of rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastgen.diffusion import NoiseSchedule
from fastgen.diffusion.processes import PROCESSES

SCHEDULE = tuple(f.name for f in dataclasses.fields(NoiseSchedule))
NO_RESCALING = tuple(name for name in SCHEDULE if name != "rescale_betas_zero_snr")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SPACING = ("timestep_spacing", "steps_offset")
CLIPPING = ("clip_sample", "clip_sample_range")
THRESHOLDS = ("dynamic_thresholding_ratio", "sample_max_value")
THRESHOLDING = ("thresholding", *THRESHOLDS)
SPREADS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
OFF = (False, None)
# Flow matching in a scheduler of a noise schedule: see FLOW.
NO_FLOW: dict[str, tuple[Any, ...]] = {"use_flow_sigmas": OFF}
NO_SHIFTING: dict[str, tuple[Any, ...]] = {"use_dynamic_shifting": OFF}
NO_CLIPPED_LAMBDA: dict[str, tuple[Any, ...]] = {"lambda_min_clipped": (float("-inf"), None)}
IDLE_FLOW = {"flow_shift": "no effect without use_flow_sigmas"}
IDLE_SHIFT = {"time_shift_type": "no effect without use_dynamic_shifting"}
# Of old files, for every class.
OLD = {"tensor_format": "tensors are PyTorch's"}
# Options of schedulers that are not in RULES, or of older diffusers. A scheduler made from another's config
# (`from_config`) writes them down and never looks at them.
ELSEWHERE = ("timestep_values", "solver_p", "snr_shift_scale")


@dataclass(frozen=True)
class Rule:
    """How a scheduler class maps.

    solvers: ours, each with the values of the keys that choose it; the first that fits is taken. steps: what its
    pipeline takes where nothing is said. options: keys that are options of ours. process: ours; None is a
    NoiseSchedule. schedule: keys that are fields of the process. defaults: of diffusers, for missing keys, where ours
    differ, and of the keys that choose. renamed: {key: ours} where the names differ. values: {key: {theirs: ours}}
    where the values do; the first of several is written back. only: keys of which only these values are supported.
    idle: keys without effect, and why. fixed: fields of the process that the class means and does not name. differs:
    {solver: what diffusers does otherwise}.
    """

    solvers: Mapping[str, Mapping[str, Any]]
    steps: int
    options: tuple[str, ...]
    process: str | None = None
    schedule: tuple[str, ...] = SCHEDULE
    beta_schedules: tuple[str, ...] = BETA_SCHEDULES
    defaults: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def choosing(self) -> tuple[str, ...]:
        """The keys whose values choose the solver."""
        return tuple(dict.fromkeys(key for values in self.solvers.values() for key in values))

    @property
    def flow(self) -> bool:
        """Whether this is a class of a noise schedule with use_flow_sigmas."""
        return self.only.get("use_flow_sigmas") == (True,)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that diffusers writes for this class."""
        return tuple(dict.fromkeys((*self.schedule, *self.options, *self.choosing, *self.only, *self.idle)))


def _fields(process: str, *without: str) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(PROCESSES[process]) if f.name not in without)


MULTISTEP: dict[str, Mapping[str, Any]] = {
    "dpm++2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
    "dpm++3m": {"algorithm_type": "dpmsolver++", "solver_order": 3},
    "dpm++2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    "dpm++3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    "dpm_multistep": {},
}
DPM_DEFAULTS = {"algorithm_type": "dpmsolver++", "solver_order": 2}
# variance_type of networks that predict no variance: DDPM's business alone.
FIXED_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
# diffusers takes other solvers' names for its own.
DPM_NAMES = {
    "solver_type": {"midpoint": "midpoint", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    "algorithm_type": {"dpmsolver++": "dpmsolver++", "deis": "dpmsolver++"},
}
SIGN = {"dpm++3m_sde": "a sign of its third-order SDE is wrong, and its images differ; see docs/solvers.md"}

EDM_START = "a run starts from N(0, sigma_max^2 + 1); here from N(0, sigma_max^2), as in the paper"

RULES: dict[str, Rule] = {
    "DDPMScheduler": Rule(
        {"ddpm": {}},
        1000,
        (*SPACING, *CLIPPING, *THRESHOLDING, "variance_type"),
        beta_schedules=(*BETA_SCHEDULES, "sigmoid"),
    ),
    "DDIMScheduler": Rule({"ddim": {}}, 50, (*SPACING, *CLIPPING, *THRESHOLDING, "set_alpha_to_one")),
    "DPMSolverMultistepScheduler": Rule(
        MULTISTEP,
        20,
        (
            *SPACING,
            "solver_type",
            "lower_order_final",
            "euler_at_final",
            "final_sigmas_type",
            "variance_type",
            *SPREADS,
            "use_lu_lambdas",
            *THRESHOLDING,
            "algorithm_type",
            "solver_order",
        ),
        defaults=DPM_DEFAULTS,
        values=DPM_NAMES,
        only={**NO_CLIPPED_LAMBDA, **NO_FLOW, **NO_SHIFTING},
        idle={**IDLE_FLOW, **IDLE_SHIFT},
        differs=SIGN,
    ),
    "DPMSolverSinglestepScheduler": Rule(
        {
            "dpm++2s": {"algorithm_type": "dpmsolver++", "solver_order": 2},
            "dpm++3s": {"algorithm_type": "dpmsolver++", "solver_order": 3},
            "dpm_singlestep": {},
        },
        20,
        (
            "solver_type",
            "lower_order_final",
            "final_sigmas_type",
            "variance_type",
            *SPREADS,
            *THRESHOLDING,
            "algorithm_type",
            "solver_order",
        ),
        schedule=NO_RESCALING,
        defaults=DPM_DEFAULTS,
        values=DPM_NAMES,
        only={**NO_CLIPPED_LAMBDA, **NO_FLOW, **NO_SHIFTING},
        idle={**IDLE_FLOW, **IDLE_SHIFT},
    ),
    "DPMSolverSDEScheduler": Rule(
        {"dpm++sde": {}},
        25,
        (*SPACING, *SPREADS),
        schedule=NO_RESCALING,
        defaults=LATENT_BETAS,
        idle={"noise_sampler_seed": "a sample's noise comes from its own seed"},
    ),
    "EulerDiscreteScheduler": Rule(
        {"euler": {}},
        50,
        (
            *SPACING,
            *SPREADS,
            "sigma_min",
            "sigma_max",
            "interpolation_type",
            "final_sigmas_type",
            "timestep_type",
        ),
    ),
    "EulerAncestralDiscreteScheduler": Rule({"euler_a": {}}, 50, SPACING),
    "HeunDiscreteScheduler": Rule(
        {"heun": {}}, 25, (*SPACING, *CLIPPING, *SPREADS), schedule=NO_RESCALING, defaults=LATENT_BETAS
    ),
    "KDPM2DiscreteScheduler": Rule(
        {"dpm2": {}}, 25, (*SPACING, *SPREADS), schedule=NO_RESCALING, defaults=LATENT_BETAS
    ),
    "KDPM2AncestralDiscreteScheduler": Rule(
        {"dpm2_a": {}}, 25, (*SPACING, *SPREADS), schedule=NO_RESCALING, defaults=LATENT_BETAS
    ),
    "LMSDiscreteScheduler": Rule({"lms": {}}, 50, (*SPACING, *SPREADS), schedule=NO_RESCALING),
    "UniPCMultistepScheduler": Rule(
        {"unipc": {}},
        20,
        (
            *SPACING,
            "solver_order",
            "solver_type",
            "predict_x0",
            "lower_order_final",
            "disable_corrector",
            "final_sigmas_type",
            *SPREADS,
            "sigma_min",
            "sigma_max",
            *THRESHOLDING,
        ),
        values={"solver_type": {"bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}},
        only={**NO_FLOW, **NO_SHIFTING, "solver_p": (None,), "shift_terminal": (None,)},
        idle={**IDLE_FLOW, **IDLE_SHIFT},
    ),
    "DEISMultistepScheduler": Rule(
        {"deis": {}},
        20,
        (*SPACING, "solver_order", "lower_order_final", *SPREADS, *THRESHOLDING),
        schedule=NO_RESCALING,
        only={
            **NO_FLOW,
            **NO_SHIFTING,
            "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
            "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
        },
        idle={**IDLE_FLOW, **IDLE_SHIFT},
    ),
    "PNDMScheduler": Rule(
        {"pndm": {"skip_prk_steps": False}, "plms": {"skip_prk_steps": True}},
        50,
        (*SPACING, "set_alpha_to_one"),
        schedule=NO_RESCALING,
        defaults={"skip_prk_steps": False},
    ),
    "SASolverScheduler": Rule(
        {"sa": {}},
        20,
        (
            *SPACING,
            "predictor_order",
            "corrector_order",
            "algorithm_type",
            "lower_order_final",
            "variance_type",
            *SPREADS,
            *THRESHOLDING,
        ),
        schedule=NO_RESCALING,
        only={**NO_CLIPPED_LAMBDA, **NO_FLOW, "tau_func": (None,)},
        idle=IDLE_FLOW,
    ),
    "LCMScheduler": Rule(
        {"lcm": {}},
        4,
        ("original_inference_steps", "timestep_scaling", *CLIPPING, *THRESHOLDING),
        defaults={**LATENT_BETAS, "beta_schedule": "scaled_linear"},
        idle=dict.fromkeys((*SPACING, "set_alpha_to_one"), "diffusers' LCM does not look at it"),
    ),
    "TCDScheduler": Rule(
        {"tcd": {}},
        4,
        ("original_inference_steps",),
        defaults={**LATENT_BETAS, "beta_schedule": "scaled_linear"},
        idle=dict.fromkeys(
            (*SPACING, "set_alpha_to_one", "timestep_scaling", *CLIPPING, *THRESHOLDING),
            "diffusers' TCD does not look at it",
        ),
    ),
    "CMStochasticIterativeScheduler": Rule(
        {"consistency": {}},
        1,
        ("s_noise", "clip_denoised"),
        process="consistency",
        schedule=_fields("consistency", "prediction_type"),
        renamed={"clip_denoised": "clip_sample"},
    ),
    "EDMEulerScheduler": Rule(
        {"euler": {}},
        50,
        ("final_sigmas_type",),
        process="edm",
        schedule=_fields("edm"),
        values={"prediction_type": {"epsilon": "edm"}},
        idle={"num_train_timesteps": "levels are those of the steps taken"},
        differs={"euler": EDM_START},
    ),
    "EDMDPMSolverMultistepScheduler": Rule(
        MULTISTEP,
        20,
        (
            "solver_type",
            "lower_order_final",
            "euler_at_final",
            "final_sigmas_type",
            *THRESHOLDING,
            "algorithm_type",
            "solver_order",
        ),
        process="edm",
        schedule=_fields("edm"),
        defaults=DPM_DEFAULTS,
        values={**DPM_NAMES, "prediction_type": {"epsilon": "edm"}},
        idle={"num_train_timesteps": "levels are those of the steps taken"},
        differs={**dict.fromkeys(MULTISTEP, EDM_START), **{k: f"{EDM_START}; {v}" for k, v in SIGN.items()}},
    ),
    "FlowMatchEulerDiscreteScheduler": Rule(
        {"euler": {}},
        28,
        SPREADS,
        process="flow",
        schedule=("num_train_timesteps", "shift", "invert_sigmas", "shift_terminal"),
        only={"stochastic_sampling": OFF, **NO_SHIFTING},
        idle=dict.fromkeys(
            ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
            "no effect without use_dynamic_shifting",
        ),
    ),
    "FlowMatchHeunDiscreteScheduler": Rule(
        {"heun": {}}, 28, (), process="flow", schedule=("num_train_timesteps", "shift")
    ),
}
TOLD = "the network is told a whole timestep, cut off; here the exact one"
UNSEEN = dict.fromkeys(
    (
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "timestep_spacing",
        "steps_offset",
        "variance_type",
    ),
    "no effect with use_flow_sigmas",
)


def _flow(name: str, lambda_levels: str, *gone: str) -> Rule:
    """The rule of class `name` where use_flow_sigmas is true: its own, on the process flow."""
    rule = RULES[name]
    dropped = {*UNSEEN, *SPREADS, "use_lu_lambdas", "final_sigmas_type", "sigma_min", "sigma_max", *gone}
    return dataclasses.replace(
        rule,
        options=tuple(key for key in rule.options if key not in dropped),
        process="flow",
        schedule=("num_train_timesteps", "prediction_type", "flow_shift"),
        defaults={**rule.defaults, "prediction_type": "epsilon"},
        renamed={"flow_shift": "shift"},
        values={**rule.values, "prediction_type": {"flow_prediction": "velocity"}},
        only={
            **{key: values for key, values in rule.only.items() if key != "use_flow_sigmas"},
            **{key: OFF for key in (*SPREADS, "use_lu_lambdas") if key in rule.options},
            "use_flow_sigmas": (True,),
            "final_sigmas_type": ("zero",),
        },
        idle={
            **{key: why for key, why in UNSEEN.items() if key in rule.keys},
            **IDLE_SHIFT,
            **dict.fromkeys((key for key in gone if key in rule.keys), UNSEEN["beta_start"]),
        },
        fixed={"lambda_levels": lambda_levels},
        differs={
            **dict.fromkeys(rule.solvers, TOLD),
            **{k: f"{TOLD}; {v}" for k, v in rule.differs.items()},
        },
    )


# Classes of a noise schedule that run flow matching where use_flow_sigmas is true. DEIS and SA-Solver, too, but they
# leave the noise of the lowest level in the images.
FLOW: dict[str, Rule] = {
    "DPMSolverMultistepScheduler": _flow("DPMSolverMultistepScheduler", "below_one"),
    "DPMSolverSinglestepScheduler": _flow("DPMSolverSinglestepScheduler", "below_one"),
    "UniPCMultistepScheduler": _flow("UniPCMultistepScheduler", "nearly_one", "sigma_min", "sigma_max"),
}


def rule_of(name: str, flow: bool) -> Rule:
    """The rule of class `name`. flow: for a model of flow matching."""
    return FLOW[name] if flow and name in FLOW else RULES[name]


KNOWN = {*ELSEWHERE, *(key for rule in RULES.values() for key in rule.keys)}
# (process, solver) -> the class that is written for it.
CLASSES: dict[tuple[str | None, str], str] = {}
for _name, _rule in (*RULES.items(), *FLOW.items()):
    for _solver in _rule.solvers:
        CLASSES.setdefault((_rule.process, _solver), _name)
