"""What ``fastgen train --model glow | realnvp | nice | vector_flow`` makes: a normalising flow."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import from_dict, to_dict
from ..errors import ConfigError, DataError
from .arguments import assignments

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..training.data import Dataset
    from ..training.run import Run
    from ..training.settings import RunConfig

MODELS = ("glow", "realnvp", "nice", "vector_flow")
DEFAULTS: dict[str, Any] = {"widths": None, "option": ()}
# Decay would pull the scales of ActNorms and 1x1 convolutions towards 0, where they have no inverse.
RUN_DEFAULTS: dict[str, Any] = {"weight_decay": 0.0, "label_dropout": 0.0}
VECTOR_RUN_DEFAULTS = {**RUN_DEFAULTS, "precision": "fp32"}  # small perceptrons are slower in bf16
NOT_FOR = ("label_dropout",)
OF_THE_DATA = ("sample_size", "in_channels", "levels", "features", "num_classes", "context_features")
GREY_ALPHA = 1e-6
# What differs from the configurations' own defaults, which are the papers': what trains well in hours, not days.
GLOW = {"hidden_channels": (64,), "prior": "conv", "scale": "tanh", "rescale": True}
REALNVP = {"hidden_channels": (64,), "prior": "channel"}
VECTOR = {"layers": ("actnorm", "lu", "coupling"), "act_fn": "silu", "standardise": True}
OWN: dict[str, dict[str, Any]] = {"glow": GLOW, "realnvp": REALNVP, "nice": {}, "vector_flow": VECTOR}
PREVIEW_ROWS = 4  # of each class


def add_options(group: argparse._ArgumentGroup) -> None:
    """Declare the flags that only these models have."""
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the model's configuration, as steps_per_scale=8 or hidden_channels=64,96; repeatable",
    )


def run_defaults(model: str) -> dict[str, Any]:
    """Where they differ from RunConfig's."""
    return VECTOR_RUN_DEFAULTS if model == "vector_flow" else RUN_DEFAULTS


def new_spec(
    args: argparse.Namespace, dataset: Dataset, config: RunConfig, provenance: dict[str, Any]
) -> Spec:
    """The flow that `args` ask for, of the data's shape and classes. Raises ConfigError or DataError."""
    from ..architectures import ARCHITECTURES
    from ..checkpoint import Part, Spec
    from ..engines.flow.request import FlowSettings

    rows, vectors = len(dataset.shape) == 1, args.model == "vector_flow"
    if rows != vectors:
        takes, takers = ("rows of a table", "vector_flow") if rows else ("pictures", "glow, realnvp or nice")
        raise DataError(
            f"holds {takes}; --model {takers} is trained on them, not {args.model}", argument=config.data
        )
    if rows and args.preview_every:
        raise ConfigError(
            "--preview-every draws sheets of pictures; `fastgen density` shows a vector flow",
            argument="train",
        )
    kind = ARCHITECTURES[args.model].config
    given = assignments(args.option, kind, "--option")
    if decided := sorted(set(given) & set(OF_THE_DATA)):
        raise ConfigError(f"--option {decided[0]}: the data decides it; leave it out", argument="train")
    if args.widths is not None:
        name = "hidden_channels" if args.model in ("glow", "realnvp") else "hidden_features"
        if name in given:
            raise ConfigError(f"--widths and --option {name} are the same; give one", argument="train")
        given[name] = args.widths
    values = {**_of_the_data(dataset, kind), **OWN[args.model], **given}
    network = to_dict(from_dict(kind, {k: _plain(v) for k, v in values.items()}, "train"))
    if "coupling" not in network.get("layers", ["coupling"]):
        print(
            "train: warning: --option layers has no coupling: without one a flow is an affine map, and fits one normal "
            "distribution",
            file=sys.stderr,
        )
    classes = network.get("num_classes")  # a NICE takes no labels
    names = None if dataset.class_names is None or classes is None else tuple(dataset.class_names)
    settings = to_dict(FlowSettings(num_classes=classes, class_names=names))
    return Spec("flow", {"flow": Part(args.model, network)}, settings, provenance)


def train(network: nn.Module, run: Run, dataset: Dataset, folder: Path, **options: Any) -> None:
    """Train `network` into `folder`; options of ``training.loop.train``."""
    from ..models.flow.flow import Flow
    from ..training.flow import train

    assert isinstance(network, Flow)
    preview = _previewer(folder, run.spec) if network.levels is not None else None
    train(network, run, dataset, folder, on_preview=preview, **options)


def _of_the_data(dataset: Dataset, kind: type) -> dict[str, Any]:
    """The fields of configuration `kind` that the data decides, and what suits its pictures."""
    names = {field.name for field in dataclasses.fields(kind)}
    classes = {"num_classes": dataset.num_classes} if "num_classes" in names else {}
    if len(dataset.shape) == 1:
        return {"features": dataset.shape[0], **classes}
    channels, height, width = dataset.shape
    values: dict[str, Any] = {
        "sample_size": (height, width),
        "in_channels": channels,
        "levels": 256,
        **classes,
    }
    if dataset.num_classes and classes:
        values |= {"class_priors": "all", "class_couplings": True}
    if "num_scales" in names:
        values["num_scales"] = _scales(height, width)
    # Flat areas, such as paper around a digit, are a narrow peak of the density, which a logit spreads.
    if channels == 1:
        values |= {"preprocessing": "logit", "alpha": GREY_ALPHA}
    return values


def _scales(height: int, width: int) -> int:
    """How often both sides can be halved, at most 3 times; 1 where they cannot, which the model refuses in words."""
    count = 0
    while count < 3 and height % 2 == width % 2 == 0:
        count, height, width = count + 1, height // 2, width // 2
    return max(count, 1)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _previewer(folder: Path, spec: Spec) -> Callable[[int, nn.Module], None]:
    def preview(step: int, network: nn.Module) -> None:
        from torch import nn

        from ..engines.flow.engine import FlowEngine
        from ..files import make_folder, remove_leftovers
        from ..images import save_grid
        from ..training.loop import PREVIEWS

        # A copy: an engine moves what it is given, and this network is still in training.
        device = next(network.parameters()).device
        engine = FlowEngine.from_spec(
            nn.ModuleDict({name: copy.deepcopy(network) for name in spec.parts}),
            spec,
            device=device,
            dtype="float32",
        )
        classes = engine.flow.classes
        labels = None if classes is None else [i % classes for i in range(PREVIEW_ROWS * min(classes, 16))]
        images: Any = engine.sample(32 if labels is None else len(labels), seed=0, labels=labels)
        make_folder(folder / PREVIEWS)
        path = folder / PREVIEWS / f"step-{step:07d}.png"
        remove_leftovers(path.parent, [path.name])  # of a run that was killed here
        save_grid(images, path, columns=min(classes or 8, 16))

    return preview
