"""The state of a training run, whole after every save: weights, average, optimiser, losses, and what it is a run of.

It is one safetensors file, replaced atomically, so that a run killed at any moment goes on from its last save.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as serialise
from torch import nn

from ..checkpoint import Spec, spec_from_json, write_atomic
from ..config import bounded, from_dict, one_of, to_dict
from ..errors import CheckpointError
from ..runtime.device import fast_bf16

STATE_FILE = "training.safetensors"


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
        """Replace the run's state file in `folder`."""
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
        """Fill this state from `folder`'s state file."""
        path = folder / STATE_FILE
        with _open(path) as file:
            names = set(file.keys())
            for prefix, target in (("model", self.module), ("ema", self.ema)):
                state = target.state_dict()
                if any(f"{prefix}.{n}" not in names for n in state):
                    raise CheckpointError(f"{path}: does not fit the network that its own spec describes")
                with torch.no_grad():
                    for name, tensor in state.items():
                        tensor.copy_(file.get_tensor(f"{prefix}.{name}"))
            self.losses = file.get_tensor("losses").tolist()
            for name, parameter in self.module.named_parameters():
                moments = {}
                for key in ("exp_avg", "exp_avg_sq"):
                    moments[key] = torch.empty_like(parameter).copy_(
                        file.get_tensor(f"optimizer.{key}.{name}")
                    )
                step = torch.tensor(float(self.step), device=parameter.device)  # where a fused AdamW keeps it
                self.optimizer.state[parameter] = {"step": step, **moments}


def saved_run(folder: Path) -> Run | None:
    """The run in `folder`, or None where there is none. Raises CheckpointError for a damaged one."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    with _open(path) as file:
        metadata = file.metadata() or {}
    try:
        run = json.loads(metadata["run"])
        config = from_dict(RunConfig, run["config"], str(path))
        return Run(config, spec_from_json(run["spec"], str(path)), run["data"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is no training run of this version of fastgen: {error}") from error


def _open(path: Path):
    try:
        return safetensors.safe_open(str(path), framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
