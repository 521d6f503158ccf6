"""Several processes that train one run, as ``torchrun`` starts them: each has its share of every batch.

After the backward pass of a loss its gradients are averaged over the processes in one all-reduce; every process then
makes the same update of its own copy of the networks. ``DistributedDataParallel`` is not used: it counts on one
``forward`` of one module per backward pass, and the objectives of GANs, flows and distillation call networks in other
ways.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError, DataError, FastgenError, TrainingError

T = TypeVar("T")


class Processes:
    """One process that trains alone, or one of several. rank: 0 to size - 1; the first one writes and reports.

    Methods that exchange something must be called by all processes in the same order. They raise TrainingError where
    another process has ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        """device: of tensors that are exchanged."""
        self.rank, self.size, self.device = rank, size, device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def rows(self, batch_size: int) -> range:
        """Which samples of a batch are this process' own; `batch_size` must be a multiple of `size`."""
        own = batch_size // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def copied(self, networks: nn.Module) -> None:
        """The first process' parameters and buffers, in place."""
        if self.size > 1:
            with torch.no_grad(), _connected():
                for tensor in (*networks.parameters(), *networks.buffers()):
                    whole = tensor.contiguous()
                    dist.broadcast(whole, 0)
                    tensor.copy_(whole)

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Each of `tensors` becomes its mean over the processes, in place; of one dtype and device."""
        if self.size == 1 or not tensors:
            return
        with torch.no_grad(), _connected():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        with _connected():
            found = torch.tensor(value, device=self.device)
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def data_error(self, error: DataError | None) -> DataError | None:
        """The error that this process or another one has met, if any has."""
        if self.size == 1 or not self.largest(int(error is not None)):
            return error
        said: list[Any] = [None] * self.size
        with _connected():
            dist.all_gather_object(said, None if error is None else (error.reason, str(error.argument)))
        reason, argument = next(found for found in said if found is not None)
        return error or DataError(reason, argument=argument)

    def on_first(self, function: Callable[[], T]) -> T:
        """What `function` returns in the first process, which alone calls it. Its errors are raised in all of them."""
        if self.size == 1:
            return function()
        outcome: list[Any] = [None, None]
        caught: BaseException | None = None
        if self.first:
            try:
                outcome = [function(), None]
            except BaseException as error:  # the others wait for an answer
                caught, outcome = error, [None, str(error) or type(error).__name__]
        with _connected():
            dist.broadcast_object_list(outcome, 0, device=self.device)
        if caught is not None:
            raise caught
        if outcome[1] is not None:
            raise TrainingError(f"the first process could not begin: {outcome[1]}", argument="torchrun")
        found: T = outcome[0]
        return found


@contextmanager
def _connected() -> Iterator[None]:
    """Raises TrainingError where an exchange fails: by then another process has ended, or the network has failed."""
    try:
        yield
    except FastgenError:
        raise
    except RuntimeError as error:
        raise TrainingError(f"another process has ended: {error}", argument="torchrun") from error


def torchrun() -> bool:
    """Whether this process is one of several that ``torchrun`` has started."""
    there = dist.is_available() and dist.is_torchelastic_launched()
    return there and int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: str) -> str:
    """`device` as this process should have it: of GPUs the one with its number on this machine. Raises ConfigError."""
    if not torchrun() or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    if device not in ("auto", "cuda"):
        raise ConfigError(
            f"expected auto, cpu or cuda: of several processes each takes a GPU of its own, got {device}",
            argument="device",
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def launched(device: torch.device) -> Iterator[Processes]:
    """The processes that train together: those of ``torchrun``, over NCCL on GPUs and Gloo on CPUs, else one alone."""
    if not torchrun():
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _connected():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
