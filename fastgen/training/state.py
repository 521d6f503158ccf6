"""The state of a training run, whole after every save: weights, averages, optimisers, losses, what it is a run of.

It is one safetensors file, replaced atomically, so that a run killed at any moment goes on from its last save:

    model.NAME, ema.NAME                weights and buffers of the networks, and of the averages of those published
    optimizer.exp_avg.NAME, exp_avg_sq  what AdamW remembers of each parameter
    losses                              float64 [steps], of several groups [steps, groups]
    updates                             int64 [parameters], how often each was updated; missing where all of them
                                        were updated once per step

NAME is "part.name", in a run with one network "name". The metadata's "run" is :meth:`Run.encoded`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_atomic
from ..tensor_file import TensorFile
from .run import STATE_FILE, Run

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter
MAX_GROUPS = 16


@dataclass
class RunState:
    """Networks in training, by name; the moving averages of those that the run publishes; an optimiser for each group
    of parameters; the losses so far, one per group for every step.
    """

    run: Run
    networks: nn.ModuleDict
    averages: nn.ModuleDict
    optimizers: Mapping[str, torch.optim.AdamW]
    losses: list[tuple[float, ...]]

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    @cached_property
    def published(self) -> nn.ModuleDict:
        """The networks that `averages` are averages of."""
        return nn.ModuleDict({name: self.networks[name] for name in self.averages})

    def save(self, folder: Path) -> None:
        """Replace the run's state file in `folder`. Raises WriteError; ConfigError for what could not be resumed."""
        tensors = self._weights()
        memories, updates = self._memories(), []
        for name, parameter in self._parameters().items():
            memory = memories[parameter]
            for key in MOMENTS:
                # A parameter that no loss has reached yet has no memory; AdamW begins one with zeros.
                kept = memory[key] if key in memory else torch.zeros_like(parameter)
                tensors[f"optimizer.{key}.{name}"] = kept
            updates.append(float(memory["step"]) if "step" in memory else 0.0)
        counts = torch.tensor(updates, dtype=torch.int64, device="cpu")
        if (counts != self.step).any():
            tensors["updates"] = counts
        losses = torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        tensors["losses"] = losses.flatten() if len(self.optimizers) == 1 else losses
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
        targets, memories = self._weights(), self._memories()
        parameters = self._parameters()
        for name, parameter in parameters.items():
            for key in MOMENTS:
                memories[parameter][key] = torch.empty_like(parameter, requires_grad=False)
                targets[f"optimizer.{key}.{name}"] = memories[parameter][key]
        updates = None
        with TensorFile(path) as file:
            _compare(file, self.networks, self.run, len(self.optimizers))
            for name, tensor in file.read({}):
                if file.flaw is not None:
                    raise CheckpointError(f"{file.flaw}", argument=path)
                if name == "losses":
                    self.losses = [tuple(row) for row in tensor.view(len(tensor), -1).tolist()]
                elif name == "updates":
                    updates = tensor.tolist()
                else:
                    targets[name].copy_(tensor)
                del tensor  # before the next one is read
        counts = [self.step] * len(parameters) if updates is None else updates
        if min(counts) < 0:
            raise CheckpointError(f"updates of a parameter are {min(counts)}", argument=path)
        for parameter, count in zip(parameters.values(), counts, strict=True):
            # where a fused AdamW keeps it
            memories[parameter]["step"] = torch.tensor(float(count), device=parameter.device)

    def _parameters(self) -> dict[str, Tensor]:
        """Every parameter by the name that it is saved under, sorted: networks may come in another order next time."""
        return dict(sorted(_named(self.networks, dict(self.networks.named_parameters())).items()))

    def _weights(self) -> dict[str, Tensor]:
        """What is saved of the networks and their averages; the tensors themselves."""
        tensors = {f"model.{n}": t for n, t in _named(self.networks, self.networks.state_dict()).items()}
        averages = _named(self.networks, self.averages.state_dict())
        return tensors | {f"ema.{n}": t for n, t in averages.items()}

    def _memories(self) -> dict[Tensor, dict[str, Tensor]]:
        """What the optimisers remember of each parameter; filled in place. Of one that is fixed nothing, for zeros."""
        fixed: dict[Tensor, dict[str, Tensor]] = {parameter: {} for parameter in self.networks.parameters()}
        return fixed | {
            parameter: optimizer.state[parameter]
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }


def check_state(folder: Path, networks: nn.ModuleDict, run: Run) -> None:
    """Whether the state file in `folder` holds `networks` (on `meta`, say), before they are really built.

    Raises CheckpointError.
    """
    with TensorFile(folder / STATE_FILE) as file:
        _compare(file, networks, run)


def _compare(file: TensorFile, networks: nn.ModuleDict, run: Run, groups: int | None = None) -> None:
    """Hold a state file's header against the networks, the length of the run and, if known, the number of groups."""
    entry = file.entries.get("losses")
    shape = () if entry is None else entry.shape
    columns = shape[1] if len(shape) == 2 else 1
    if (
        entry is None
        or entry.dtype != torch.float64
        or len(shape) not in (1, 2)
        or not 0 < shape[0] <= run.config.steps
        or not 1 <= columns <= MAX_GROUPS
        or (groups is not None and columns != groups)
    ):
        per_step = "" if groups in (None, 1) else f", {groups} per step"
        raise CheckpointError(
            f"expected losses of 1 to {run.config.steps} steps{per_step}", argument=file.path
        )
    expected: dict[str, Tensor] = {"losses": torch.empty(shape, dtype=torch.float32, device="meta")}
    weights = networks.state_dict()
    averaged = {name: t for name, t in weights.items() if name.partition(".")[0] in run.spec.parts}
    expected |= {f"model.{name}": t for name, t in _named(networks, weights).items()}
    expected |= {f"ema.{name}": t for name, t in _named(networks, averaged).items()}
    parameters = _named(networks, dict(networks.named_parameters()))
    for name, parameter in parameters.items():
        expected |= {f"optimizer.{key}.{name}": parameter for key in MOMENTS}
    if "updates" in file.entries:
        expected["updates"] = torch.empty(len(parameters), dtype=torch.int64, device="meta")
    file.compare(expected, "its own spec")


def _named(networks: nn.ModuleDict, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, named "part.name", as the state file names them. `networks`: all of the run's."""
    if len(networks) > 1:
        return dict(tensors)
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
