"""The diffusion processes, by the names that configurations give them.

process_from_config({"process": "flow", "shift": 3.0})
process_from_config({"beta_schedule": "linear"})        without a name: a NoiseSchedule in discrete time
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import shown
from ..errors import ConfigError
from .consistency_model import ConsistencyModel
from .continuous import ContinuousProcess
from .edm import EDM
from .flow_matching import FlowMatching
from .schedule import NoiseSchedule
from .sde import VESDE, VPSDE, SubVPSDE

AnyProcess = NoiseSchedule | ContinuousProcess

PROCESSES: dict[str, type[ContinuousProcess]] = {
    process.name: process for process in (EDM, FlowMatching, VPSDE, SubVPSDE, VESDE, ConsistencyModel)
}


def process_from_config(values: Mapping[str, Any]) -> AnyProcess:
    """The process that untrusted JSON describes: the class named by its key `process`, else a `NoiseSchedule`.

    ConfigError for an unknown name, key or value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"expected an object, got {shown(values)}", argument="schedule")
    if "process" not in values:
        return NoiseSchedule.from_config(values)
    name = values["process"]
    if not isinstance(name, str) or name not in PROCESSES:
        raise ConfigError(
            f"expected one of {', '.join(PROCESSES)}, or no such key, got {shown(name)}", argument="process"
        )
    return PROCESSES[name].from_config(values)
