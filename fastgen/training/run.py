"""The state of a training run, whole after every save: weights, average, optimiser, losses, and what it is a run of.

It is one safetensors file, replaced atomically, so that a run killed at any moment goes on from its last save.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..checkpoint import Spec, spec_from_json
from ..config import at_most, bounded, from_dict, one_of, parse_json, to_dict
from ..errors import CheckpointError, ConfigError
from ..files import write_atomic
from ..runtime.device import fast_bf16
from ..tensor_file import TensorFile

STATE_FILE = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of. Rates are per step; `precision` auto becomes fp32 or bf16 when the run starts;
    `weights_dtype` is the dtype of the saved average (the run itself keeps float32).
    """

    data: str = "digits"
    labels: str | None = None
    subset: tuple[int, ...] | None = bounded(0, 2**31, default=None, max_items=2)
    steps: int = bounded(1, 100_000_000, default=2000)
    batch_size: int = bounded(1, 65536, default=128)
    lr: float = bounded(0.0, 1.0, default=1e-3)
    warmup: int = bounded(0, 1_000_000, default=100)
    weight_decay: float = bounded(0.0, 10.0, default=0.01)
    grad_clip: float = bounded(0.0, 1e9, default=1.0)
    ema_decay: float = bounded(0.0, 1.0, default=0.999)
    label_dropout: float = bounded(0.0, 1.0, default=0.1)
    flip: bool = False
    seed: int = bounded(0, 2**31 - 1, default=0)
    precision: str = one_of("auto", "fp32", "bf16", default="auto")
    weights_dtype: str = one_of("float32", "float16", default="float32")
    save_every: int = bounded(1, 100_000_000, default=200)
    preview_every: int = bounded(0, 100_000_000, default=500)

    def settled(self, device: torch.device) -> RunConfig:
        """With `precision` chosen for `device`."""
        if self.precision != "auto":
            return self
        return dataclasses.replace(self, precision="bf16" if fast_bf16(device) else "fp32")


@dataclass(frozen=True)
class Run:
    """What a run is a run of; `data` describes its pictures, so that a resumed run can tell others from them."""

    config: RunConfig
    spec: Spec
    data: dict[str, Any]


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
        """Replace the run's state file in `folder`. Raises WriteError."""
        tensors = {f"model.{name}": t for name, t in self.module.state_dict().items()}
        tensors |= {f"ema.{name}": t for name, t in self.ema.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                if key != "step":  # the same for all, and the run knows it
                    tensors[f"optimizer.{key}.{name}"] = value
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        run = {
            "config": to_dict(self.run.config),
            "spec": dataclasses.asdict(self.run.spec),
            "data": self.run.data,
        }
        # One entry: safetensors writes several in an order that varies, and equal runs should be equal files.
        metadata = {"run": json.dumps(run)}
        # NHWC tensors come back in NCHW order: the memory format is restored after loading.
        flat = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        write_atomic(folder / STATE_FILE, serialise(flat, metadata=metadata))

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
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(f"{path}: {name} holds values that are not finite")
                if name == "losses":
                    self.losses = tensor.tolist()
                else:
                    targets[name].copy_(tensor)
        for parameter in self.module.parameters():
            # where a fused AdamW keeps it
            self.optimizer.state[parameter]["step"] = torch.tensor(float(self.step), device=parameter.device)


def saved_run(folder: Path) -> Run | None:
    """The run in `folder`, or None where there is none. Raises CheckpointError for a damaged one."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    with TensorFile(path) as file:
        metadata = file.metadata
    try:
        run = parse_json(metadata["run"], str(path))
        config = from_dict(RunConfig, run["config"], str(path))
        spec = spec_from_json(run["spec"], str(path))
        if len(spec.parts) != 1:
            raise ValueError(f"{len(spec.parts)} networks are trained")
        return Run(config, spec, from_dict(_Pictures, run["data"], f"{path}: data").to_dict())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path}: is no training run of this version of fastgen: {error}") from error


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
        raise CheckpointError(f"{file.path}: expected losses of 1 to {config.steps} steps")
    expected: dict[str, Tensor] = {"losses": torch.empty(math.prod(entry.shape), device="meta")}
    for prefix in ("model", "ema"):
        expected |= {f"{prefix}.{name}": t for name, t in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        expected |= {f"optimizer.{key}.{name}": parameter for key in MOMENTS}
    file.compare(expected, "its own spec")


@dataclass(frozen=True)
class _Pictures:
    """``training.data.describe``, read back."""

    pictures: int = bounded(1, 1 << 62)
    shape: tuple[int, ...] = bounded(1, 1 << 20, max_items=3)
    num_classes: int | None = bounded(1, 1 << 62, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ConfigError(f"shape: expected channels, height and width, got {list(self.shape)}")

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)
