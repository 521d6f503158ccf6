"""What the recipes of denoisers share: which process, prediction and loss ``fastgen train`` is asked for.

Importing it needs no PyTorch.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import from_dict, shown, to_dict
from ..errors import ConfigError
from .family import Flag, given

if TYPE_CHECKING:
    from ..training.batch import Dataset
    from ..training.diffusion import Denoising, DenoisingConfig
    from ..training.run import Run

# The names that --process takes -> those of ``fastgen.diffusion.processes``; ddpm is a NoiseSchedule.
PROCESSES = {"ddpm": None, "vp": "vp_sde", "subvp": "subvp", "ve": "ve", "edm": "edm", "flow": "flow"}
PREDICTIONS = {  # where --prediction-type is not given
    "ddpm": "v_prediction",
    "vp": "epsilon",
    "subvp": "epsilon",
    "ve": "score",
    "edm": "edm",
    "flow": "velocity",
}
EDM_MEAN, EDM_DATA = -1.2, 0.5  # P_mean of Karras et al. 2022 belongs to data with this deviation
# An epsilon says x_0 only up to its own error over alpha, which at the end of the cosine schedule is 5e-5: solvers that
# do not clip x_0 run away from there. It keeps the schedule of Ho et al. 2020, where alpha ends at 6e-3.
BETA_SCHEDULES = {"epsilon": "linear"}
BETA_SCHEDULE = "squaredcos_cap_v2"
LOSS_WEIGHTING = Flag(
    "--loss-weighting",
    {
        "help": "how much a noise level counts: simple, snr, truncated-snr, min-snr or edm (default simple; of the "
        "process edm edm); with --teacher truncated-snr (default) or snr-plus-one"
    },
)
FLAGS = (
    Flag(
        "--process",
        {
            "choices": tuple(PROCESSES),
            "help": "ddpm (discrete timesteps), vp, subvp, ve (Song et al. 2021), edm (Karras et al. 2022) or flow "
            "(rectified flow) (default ddpm)",
        },
    ),
    Flag(
        "--prediction-type",
        {
            "help": "what the network predicts: ddpm epsilon, sample, v_prediction (default); vp epsilon (default), "
            "score, sample, v_prediction; subvp epsilon (default), score, sample; ve score (default), epsilon, sample; "
            "edm edm (default), v_prediction; flow velocity (default), sample"
        },
    ),
    Flag(
        "--beta-schedule",
        {"help": "the noise schedule of ddpm (default squaredcos_cap_v2; of epsilon linear)"},
    ),
    LOSS_WEIGHTING,
    Flag("--min-snr-gamma", {"type": float, "help": "the largest SNR that min-snr counts (default 5)"}),
    Flag(
        "--learn-sigma",
        {
            "action": "store_true",
            "help": "the network says the variance as well, trained by the variational bound (ddpm)",
        },
    ),
)


@dataclass(frozen=True)
class Chosen:
    """process: a key of `PROCESSES`. schedule: of the settings. loss: of the objective. variance: of the settings."""

    process: str
    schedule: dict[str, Any]
    loss: DenoisingConfig
    variance: str | None

    @property
    def tells_sigma(self) -> bool:
        """Whether the network is told sigma itself."""
        return self.schedule.get("time") == "sigma"


def chosen(args: argparse.Namespace, dataset: Dataset, standard: tuple[Any, Any] | None, name: str) -> Chosen:
    """What `args` ask for. standard: (shift, scale) of rows. name: the run's data.

    Raises ConfigError, which names the flag, for what does not go together; DataError.
    """
    from ..training.diffusion import DenoisingConfig

    flags = given(args, FLAGS)
    process = flags.get("process", "ddpm")
    schedule: dict[str, Any] = {"prediction_type": flags.get("prediction_type", PREDICTIONS[process])}
    _check(flags, process, schedule["prediction_type"])
    loss: dict[str, Any] = {"weighting": flags.get("loss_weighting", "edm" if process == "edm" else "simple")}
    if "min_snr_gamma" in flags:
        loss["gamma"] = flags["min_snr_gamma"]
    if process == "ddpm":
        schedule["beta_schedule"] = flags.get(
            "beta_schedule", BETA_SCHEDULES.get(schedule["prediction_type"], BETA_SCHEDULE)
        )
    else:
        schedule["process"] = PROCESSES[process]
    if process in ("edm", "ve") or loss["weighting"] == "edm":
        from ..training.spread import measured as measure

        measured = measure(dataset, standard, name)
        loss["sigma_data"] = measured.deviation
        if process == "edm":
            schedule["sigma_data"] = measured.deviation
            loss["log_sigma_mean"] = EDM_MEAN + math.log(measured.deviation / EDM_DATA)
        if process == "ve":
            # Song & Ermon 2020, technique 1: as large as the largest distance between two samples of the data.
            schedule["sigma_max"] = max(measured.distance, 1.0)
            schedule["time"] = "sigma" if schedule["prediction_type"] == "score" else "log_sigma"
    return Chosen(
        process,
        schedule,
        from_dict(DenoisingConfig, loss, "train"),
        "learned_range" if flags.get("learn_sigma") else None,
    )


def objective(run: Run) -> Denoising:
    """The objective of a run, by what its spec says."""
    from ..engines.diffusion import DiffusionEngine
    from ..training.diffusion import Denoising, DenoisingConfig

    settings = DiffusionEngine.settings_of(run.spec)
    stated = run.spec.provenance.get("objective", {})  # runs of earlier versions do not say it
    return Denoising(
        settings.noise_schedule,
        settings.null_class,
        config=from_dict(DenoisingConfig, stated, "provenance.objective"),
        learned=settings.variance is not None,
        shift=settings.shift,
        scale=settings.scale,
    )


def of_provenance(provenance: dict[str, Any], loss: DenoisingConfig) -> dict[str, Any]:
    """`provenance` with the objective, by which the run goes on."""
    return {**provenance, "objective": to_dict(loss)}


def _check(flags: dict[str, Any], process: str, prediction: str) -> None:
    """Whether the flags go together. Raises ConfigError."""
    from ..diffusion.processes import PROCESSES as CONTINUOUS
    from ..diffusion.schedule import PREDICTION_TYPES
    from ..training.weighting import WEIGHTINGS

    if process == "ddpm":
        possible: tuple[str, ...] = PREDICTION_TYPES
    else:
        kind: Any = CONTINUOUS[PROCESSES[process] or ""]
        possible = kind().prediction_types
    if process == "edm":
        # D itself would be told sigma, and given x, unscaled: what the preconditioning is there to spare a network.
        possible = tuple(name for name in possible if name != "sample")
    if prediction not in possible:
        raise ConfigError(
            f"with --process {process} expected one of {', '.join(possible)}, got {shown(prediction)}",
            argument="--prediction-type",
        )
    weighting = flags.get("loss_weighting")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise ConfigError(
            f"expected one of {', '.join(WEIGHTINGS)}, got {shown(weighting)}", argument="--loss-weighting"
        )
    if "min_snr_gamma" in flags and weighting != "min-snr":
        raise ConfigError("belongs to --loss-weighting min-snr", argument="--min-snr-gamma")
    if process == "ddpm":
        return
    for name in ("beta_schedule", "learn_sigma"):
        if name in flags:
            raise ConfigError(
                f"belongs to the timesteps of --process ddpm; {process} has none",
                argument="--" + name.replace("_", "-"),
            )
