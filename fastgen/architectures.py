"""Every network fastgen can build: a name in a checkpoint -> its configuration, its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from .checkpoint import Part, Spec
from .config import from_dict
from .errors import ConfigError
from .exports import DENOISER, FLOW, ExportForm
from .models.flow.glow import Glow, GlowConfig
from .models.flow.nice import NICE, NICEConfig
from .models.flow.realnvp import RealNVP, RealNVPConfig
from .models.flow.vector import VectorFlow, VectorFlowConfig
from .models.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Architecture:
    """How to build a network: a config dataclass and a class that takes an instance of it.

    exports: its functions that can be written as ONNX files. no_export: why there are none.
    """

    config: type
    module: Callable[[Any], nn.Module]
    exports: tuple[ExportForm, ...] = ()
    no_export: str = ""


ARCHITECTURES: dict[str, Architecture] = {
    "glow": Architecture(GlowConfig, Glow, exports=FLOW),
    "nice": Architecture(NICEConfig, NICE, exports=FLOW),
    "realnvp": Architecture(RealNVPConfig, RealNVP, exports=FLOW),
    "unet": Architecture(UNetConfig, UNet, exports=(DENOISER,)),
    "vector_flow": Architecture(VectorFlowConfig, VectorFlow, exports=FLOW),
}


def part_config(part: Part, where: str) -> Any:
    """The checked config dataclass of a checkpoint's part."""
    if part.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"unknown architecture {part.architecture!r}; known: {', '.join(ARCHITECTURES)}", argument=where
        )
    return from_dict(ARCHITECTURES[part.architecture].config, part.config, f"{where}.config")


def builders(spec: Spec) -> dict[str, Callable[[], nn.Module]]:
    """A function for each part of `spec` that makes its untrained network. Configs are checked at once."""
    made: dict[str, Callable[[], nn.Module]] = {}
    for name, part in spec.parts.items():
        config = part_config(part, f"parts.{name}")
        made[name] = partial(ARCHITECTURES[part.architecture].module, config)
    return made
