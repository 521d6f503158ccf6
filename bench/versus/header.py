"""What a comparison ran on, as its results say."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

import torch

import fastgen
from fastgen.runtime.device import cpu_features


def header(clock: str, *packages: str, **more: Any) -> dict[str, Any]:
    """The machine, its threads, and the versions of what is compared, printed as a line of JSON and returned.

    clock: see ``fastgen.bench.timing``. packages: the rivals whose versions are told. more: what else is to be said.
    """
    found = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "cpu_features": [name for name, present in cpu_features().items() if present],
        "torch": torch.__version__,
        **{name: version(name) for name in packages},
        "fastgen": fastgen.__version__,
        "clock": clock,
        **more,
    }
    print(json.dumps(found))
    return found
