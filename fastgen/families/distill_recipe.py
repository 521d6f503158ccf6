"""How a diffusion model that needs few steps is distilled from another one (``fastgen train --teacher MODEL``)."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import CheckpointError, ConfigError, DataError
from .denoising import LOSS_WEIGHTING
from .family import Flag, given

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint import Part, Spec
    from ..engines.diffusion.settings import DiffusionSettings
    from ..training.batch import Dataset
    from ..training.distillation import Distillation
    from ..training.run import Run
    from ..training.settings import RunConfig

FLAGS = (
    Flag(
        "--teacher",
        {
            "metavar": "MODEL",
            "help": "distil this model, a folder or zoo:NAME, into one that needs few steps",
        },
    ),
    Flag("--student-steps", {"type": int, "help": "with --teacher: DDIM steps of the student (default 4)"}),
    Flag(
        "--teacher-steps",
        {
            "type": int,
            "help": "with --teacher: its DDIM steps, the student's times 2, 4, 8, ... (default 4 times)",
        },
    ),
    Flag(
        "--teacher-guidance",
        {
            "type": float,
            "help": "with --teacher: its guidance scale, which the student learns (default: that of its settings)",
        },
    ),
)
# A halving ends at a rate of 0, so that a short average is enough; the paper begins each with 1e-4 to 3e-4.
RUN_DEFAULTS: Mapping[str, Any] = {"lr": 3e-4, "warmup": 20, "ema_decay": 0.99, "weight_decay": 0.0}


def new_spec(
    args: argparse.Namespace,
    others: Sequence[Flag],
    dataset: Dataset,
    config: RunConfig,
    provenance: dict[str, Any],
) -> Spec:
    """The student: the teacher's network and settings, but for steps and guidance.

    others: flags that mean nothing to it.

    Raises CheckpointError, ConfigError or DataError.
    """
    from ..training.distillation import STUDENT, DistillationConfig

    if wrong := [flag.name for flag in others if flag.dest in given(args, others)]:
        raise ConfigError("the student is of the teacher's kind; leave it out", argument=", ".join(wrong))
    spec, settings = _teacher(config)
    (part,) = spec.parts.values()
    shape = (part.config["in_channels"], *part.config["sample_size"])
    if dataset.shape != shape or (settings.num_classes or dataset.num_classes) != dataset.num_classes:
        raise DataError(
            f"expected images {shape} of {settings.num_classes or 'any'} classes, as the teacher draws them, got "
            f"{dataset.shape} of {dataset.num_classes or 'no'} classes",
            argument=config.data,
        )
    names = settings.class_names
    if names and dataset.class_names and tuple(names) != tuple(dataset.class_names):
        raise DataError(
            f"its classes are {', '.join(dataset.class_names[:20])}, the teacher's {', '.join(names[:20])}: name the "
            "folders as the teacher's classes",
            argument=config.data,
        )
    chosen = given(args, (*FLAGS, LOSS_WEIGHTING))
    student_steps = chosen.get("student_steps", 4)
    values = {
        "student_steps": student_steps,
        "teacher_steps": chosen.get("teacher_steps", 4 * student_steps),
        "teacher_guidance": chosen.get("teacher_guidance", settings.guidance_scale),
        **({"weighting": chosen["loss_weighting"]} if "loss_weighting" in chosen else {}),
    }
    objective = from_dict(DistillationConfig, values, "train")
    if objective.teacher_guidance != 1.0 and settings.null_class is None:
        raise ConfigError(
            "the teacher has no null class to be guided away from", argument="--teacher-guidance"
        )
    if config.steps < objective.halvings:
        raise ConfigError(
            f"expected {objective.halvings} at least, one a halving, got {config.steps}", argument="--steps"
        )
    drawn = dataclasses.replace(
        settings, solver="ddim", steps=student_steps, guidance_scale=1.0, solver_options=None
    )
    assert config.teacher is not None
    name = config.teacher if config.teacher.startswith("zoo:") else Path(config.teacher).name
    teacher = {"name": name, "sha256": spec.provenance.get("sha256")}
    recorded = {**provenance, "objective": to_dict(objective), "teacher": teacher}
    return dataclasses.replace(
        spec, parts={STUDENT: part}, settings=to_dict(drawn.checked()), provenance=recorded
    )


def auxiliary(config: RunConfig) -> dict[str, Part]:
    """The teacher, which the run's state holds: after each halving it is the student of the one before."""
    from ..training.distillation import TEACHER

    (part,) = _teacher(config)[0].parts.values()
    return {TEACHER: part}


def objective(run: Run) -> Distillation:
    """What trains the student."""
    from ..diffusion.schedule import NoiseSchedule
    from ..engines.diffusion import DiffusionEngine
    from ..training.distillation import Distillation, DistillationConfig

    values = run.spec.provenance.get("objective", {})
    config = from_dict(DistillationConfig, values, "provenance.objective")
    settings = DiffusionEngine.settings_of(run.spec)
    schedule = settings.noise_schedule
    assert isinstance(schedule, NoiseSchedule)  # see `_teacher`

    def teacher() -> dict[str, Tensor]:
        from ..architectures import builders
        from ..checkpoint import load

        _, modules = load(_folder(run.config), builders)
        (network,) = modules.values()
        return network.state_dict()

    return Distillation(schedule, config, settings.null_class, teacher, clip=settings.clamped is not None)


def _folder(config: RunConfig) -> Path:
    """Where the teacher is. Raises CheckpointError."""
    from ..zoo import ZOO, folder

    assert config.teacher is not None
    if not config.teacher.startswith("zoo:"):
        return Path(config.teacher)
    try:
        return folder(config.teacher.removeprefix("zoo:"))
    except KeyError:
        raise CheckpointError(
            f"{config.teacher} is not in the zoo; there is {', '.join('zoo:' + z for z in ZOO)}",
            argument="--teacher",
        ) from None


def _teacher(config: RunConfig) -> tuple[Spec, DiffusionSettings]:
    """What the teacher is. Raises CheckpointError, or ConfigError where it cannot be distilled."""
    from ..checkpoint import load_spec
    from ..diffusion.schedule import NoiseSchedule
    from ..engines.diffusion import DiffusionEngine

    spec = load_spec(_folder(config))
    if spec.engine != "diffusion" or [part.architecture for part in spec.parts.values()] != ["unet"]:
        raise ConfigError(
            f"expected a diffusion model with a unet, got a {spec.engine} model", argument="--teacher"
        )
    settings = DiffusionEngine.settings_of(spec)
    schedule = settings.noise_schedule
    if not isinstance(schedule, NoiseSchedule) or settings.variance is not None:
        raise ConfigError(
            "expected a model in discrete time whose network says no variance", argument="--teacher"
        )
    if schedule.prediction_type == "epsilon":
        raise ConfigError(
            "predicts epsilon, which says nothing about x_0 at pure noise, where a few steps begin; "
            "a teacher that predicts v_prediction or sample is needed",
            argument="--teacher",
        )
    return spec, settings
