"""What stands for each generative family, and how its verbs become contests.

An engine declares its work here, in one entry of FAMILIES; a test holds it to that. An architecture that no entry
names is listed by the families suite as without a workload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..architectures import ARCHITECTURES, builders
from ..checkpoint import Part, Spec, save
from ..errors import ConfigError
from . import diffusion, flow
from .contest import Contest


@dataclass(frozen=True)
class Family:
    """How an engine's verbs are timed.

    models: a model for each architecture, as `fastgen.load` or BUILT names it; the first one stands for the family in
    the tour. contests(engine, suite=, name=, batches=, steps=, against=): the engine's verbs as contests, judged by the
    reference network in plain PyTorch. baselines: names that its contests know. fresh(engine, folder, batch, steps,
    against): what `child.py` is told to make a user's first result, the same as the first contest's. large: models that
    keep a CPU busy for minutes, and are measured on a GPU.
    """

    models: Mapping[str, str]
    contests: Callable[..., Iterator[Contest]]
    baselines: Iterable[str]
    fresh: Callable[..., dict[str, dict[str, Any]]]
    large: Sequence[str] = ()


FAMILIES: dict[str, Family] = {
    "diffusion": Family(
        models={"unet": "zoo:ddpm-mnist"},
        contests=diffusion.contests,
        baselines=diffusion.BASELINES,
        fresh=diffusion.fresh,
        large=("random:cifar10",),
    ),
    "flow": Family(
        models={
            "glow": "zoo:glow-mnist",
            "realnvp": "random:realnvp",
            "nice": "random:nice",
            "vector_flow": "random:vector_flow",
        },
        contests=flow.contests,
        baselines=flow.BASELINES,
        fresh=flow.fresh,
    ),
}

# Models of random weights, for shapes that the zoo does not have: name -> its spec.
BUILT: dict[str, Spec] = {
    # The U-Net of google/ddpm-cifar10-32 (Ho et al. 2020), 35.7 M parameters.
    "random:cifar10": Spec(
        "diffusion",
        {
            "unet": Part(
                "unet",
                {
                    "sample_size": [32, 32],
                    "in_channels": 3,
                    "out_channels": 3,
                    "layers_per_block": 2,
                    "block_out_channels": [128, 256, 256, 256],
                    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
                    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
                    "attention_head_dim": None,
                    "downsample_padding": 0,
                    "flip_sin_to_cos": False,
                    "freq_shift": 1,
                    "norm_eps": 1e-6,
                },
            )
        },
        {"schedule": {}, "solver": "ddim"},
    ),
    # Shapes of their papers' smallest pictures.
    "random:realnvp": Spec(
        "flow", {"flow": Part("realnvp", {"sample_size": [32, 32], "in_channels": 3})}, {}
    ),
    "random:nice": Spec("flow", {"flow": Part("nice", {"sample_size": [28, 28]})}, {}),
    "random:vector_flow": Spec("flow", {"flow": Part("vector_flow", {"features": 6})}, {}),
}


def on_disk(name: str, folder: Path) -> str:
    """What `fastgen.load` takes for a model: a name in BUILT is written into `folder`, others are as they are."""
    if name not in BUILT:
        if name.startswith("random:"):
            raise ConfigError(
                f"expected one of {', '.join(BUILT)}, or what fastgen.load takes, got {name!r}",
                argument="model",
            )
        return name
    spec = BUILT[name]
    torch.manual_seed(0)
    tensors = {
        f"{part}.{key}": value
        for part, build in builders(spec).items()
        for key, value in build().state_dict().items()
    }
    place = folder / name.replace(":", "-")
    save(place, spec, tensors)
    return str(place)


def family_of(engine: Any, name: str) -> Family:
    """The family that an engine belongs to."""
    kind = engine.describe()["engine"]
    if kind not in FAMILIES:
        raise ConfigError(
            f"the benchmark has no workload for the engine {kind}; it has {', '.join(FAMILIES)}",
            argument=name,
        )
    return FAMILIES[kind]


def without_workload() -> list[str]:
    """Architectures that no family has a model for."""
    known = {architecture for family in FAMILIES.values() for architecture in family.models}
    return [name for name in ARCHITECTURES if name not in known]


def models(device_type: str) -> Sequence[str]:
    """One model for every architecture that has a workload; on "cuda" the large ones, too."""
    return [
        model
        for family in FAMILIES.values()
        for model in (*family.models.values(), *(family.large if device_type == "cuda" else ()))
    ]
