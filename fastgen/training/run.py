"""The state of a training run, whole after every save: weights, average, optimiser, losses, and what it is a run of.

It is one safetensors file, replaced atomically, so that a run killed at any moment goes on from its last save.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..checkpoint import Spec, encoded, spec_from_json
from ..config import at_most, bounded, from_dict, parse_json, to_dict
from ..errors import CheckpointError, ConfigError
from ..files import exists, write_atomic
from ..tensor_file import MAX_HEADER_BYTES, TensorFile
from .settings import RunConfig

STATE_FILE = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter


@dataclass(frozen=True)
class Run:
    """What a run is a run of; `data` describes its samples, so that a resumed run can tell others from them."""

    config: RunConfig
    spec: Spec
    data: dict[str, Any]

    def encoded(self, folder: Path) -> str:
        """Its JSON in `folder`'s state file, as the strict reader has seen it.

        Raises ConfigError or CheckpointError where the reader refuses it, or the model's own config.
        """
        path = folder / STATE_FILE
        encoded(self.spec, folder)
        run = {"config": to_dict(self.config), "spec": dataclasses.asdict(self.spec), "data": self.data}
        text = json.dumps(run)
        # quoted once more, it has to leave room for the names of the tensors
        if len(json.dumps(text)) > MAX_HEADER_BYTES // 2:
            raise ConfigError(
                f"could not be resumed: its settings take {len(text)} bytes; are there so many classes?",
                argument=path,
            )
        try:
            _run(text, str(path))
        except CheckpointError as error:
            why = str(error).removeprefix(f"{path}: ")
            raise CheckpointError(f"could not be resumed: {why}", argument=path) from error
        return text


@dataclass
class RunState:
    """A network in training: `module`, its moving average `ema`, the optimiser, and the losses so far."""

    run: Run
    module: nn.Module
    ema: nn.Module
    optimizer: torch.optim.AdamW
    losses: list[float]

    @property
    def step(self) -> int:
        return len(self.losses)

    def save(self, folder: Path) -> None:
        """Replace the run's state file in `folder`. Raises WriteError; ConfigError for what could not be resumed."""
        tensors = {f"model.{name}": t for name, t in self.module.state_dict().items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                if key != "step":  # the same for all, and the run knows it
                    tensors[f"optimizer.{key}.{name}"] = value
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        # One entry: safetensors writes several in an order that varies, and equal runs should be equal files.
        metadata = {"run": self.run.encoded(folder)}
        # NHWC tensors come back in NCHW order: the memory format is restored after loading.
        flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        data = serialise(flat, metadata=metadata)
        TensorFile(folder / STATE_FILE, data)
        write_atomic(folder / STATE_FILE, data)

    def restore(self, folder: Path) -> None:
        """Fill this state from `folder`'s state file. Raises CheckpointError."""
        path = folder / STATE_FILE
        targets = {f"model.{name}": t for name, t in self.module.state_dict().items()}
        targets |= {f"ema.{name}": t for name, t in self.ema.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            moments = {key: torch.empty_like(parameter, requires_grad=False) for key in MOMENTS}
            targets |= {f"optimizer.{key}.{name}": t for key, t in moments.items()}
            self.optimizer.state[parameter] = moments
        with TensorFile(path) as file:
            _compare(file, self.module, self.run.config)
            for name, tensor in file.read({}):
                if file.flaw is not None:
                    raise CheckpointError(f"{file.flaw}", argument=path)
                if name == "losses":
                    self.losses = tensor.tolist()
                else:
                    targets[name].copy_(tensor)
                del tensor  # before the next one is read
        for parameter in self.module.parameters():
            # where a fused AdamW keeps it
            self.optimizer.state[parameter]["step"] = torch.tensor(float(self.step), device=parameter.device)


def saved_run(folder: Path) -> Run | None:
    """The run in `folder`, or None where there is none. Raises CheckpointError for a damaged one."""
    path = folder / STATE_FILE
    if not exists(path):
        return None
    with TensorFile(path) as file:
        metadata = file.metadata
    return _run(metadata.get("run"), str(path))


def _run(text: str | None, where: str) -> Run:
    """A run from its JSON, checked; `where` names the file in errors. Raises CheckpointError."""
    try:
        if text is None:
            raise ValueError("no run in its metadata")
        run = parse_json(text, where)
        config = from_dict(RunConfig, run["config"], where)
        spec = spec_from_json(run["spec"], where)
        if len(spec.parts) != 1:
            raise ValueError(f"{len(spec.parts)} networks are trained")
        return Run(config, spec, _data(run["data"], f"{where}: data"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"is no training run of this version of fastgen: {error}", argument=where
        ) from error


def check_state(folder: Path, module: nn.Module, config: RunConfig) -> None:
    """Whether the state file in `folder` holds `module` (on `meta`, say), before the module is really built.

    Raises CheckpointError.
    """
    with TensorFile(folder / STATE_FILE) as file:
        _compare(file, module, config)


def _compare(file: TensorFile, module: nn.Module, config: RunConfig) -> None:
    """Hold a state file's header against the network and the length of the run."""
    entry = file.entries.get("losses")
    if entry is None or entry.dtype != torch.float64 or not 0 < math.prod(entry.shape) <= config.steps:
        raise CheckpointError(f"expected losses of 1 to {config.steps} steps", argument=file.path)
    expected: dict[str, Tensor] = {"losses": torch.empty(math.prod(entry.shape), device="meta")}
    for prefix in ("model", "ema"):
        expected |= {f"{prefix}.{name}": t for name, t in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        expected |= {f"optimizer.{key}.{name}": parameter for key in MOMENTS}
    file.compare(expected, "its own spec")


@dataclass(frozen=True)
class _Pictures:
    """``training.data.describe`` of pictures, read back: the same keys in the same order, so that states are equal."""

    pictures: int = bounded(1, 1 << 62)
    shape: tuple[int, ...] = bounded(1, 1 << 20, max_items=3)
    num_classes: int | None = bounded(1, 1 << 62, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ConfigError(
                f"expected channels, height and width, got {list(self.shape)}", argument="shape"
            )


@dataclass(frozen=True)
class _Rows:
    """Likewise of rows of numbers."""

    rows: int = bounded(1, 1 << 62)
    shape: tuple[int, ...] = bounded(1, 1 << 20, max_items=1)
    num_classes: int | None = bounded(1, 1 << 62, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def __post_init__(self) -> None:
        if len(self.shape) != 1:
            raise ConfigError(f"expected the number of columns, got {list(self.shape)}", argument="shape")


def _data(raw: Any, where: str) -> dict[str, Any]:
    """A description of samples, checked. Raises ConfigError."""
    kind = _Rows if isinstance(raw, Mapping) and "rows" in raw else _Pictures
    return to_dict(from_dict(kind, raw, where))
