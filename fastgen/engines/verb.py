"""A verb: something that an engine computes for a batch of samples, each independent of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]
Networks = Mapping[str, nn.Module] | nn.ModuleDict  # by part


@dataclass(frozen=True)
class Verb:
    """What is captured, verified, timed and exported, from one declaration.

    name: "log_prob". arguments, results: names of its tensors, all of them [B, ...].
    fast: the tensors to a tuple of tensors, on the engine's device; it reads no value on the host, so that a CUDA graph
        can hold it.
    reference: the same by the reference networks in plain PyTorch, in the type of their parameters: (networks,
        *tensors), and `noise` as a keyword argument where the verb draws noise.
    trial: (batch, generator) -> random tensors for it, on the engine's device.
    noise: the standard normal noise [B, ...] that `fast` makes of the same tensors; None: it draws none.
    exact: names of real arguments that are not rounded, as a timestep that a network looks up.
    timed: as `trial`, for the benchmark, where that wants larger tensors than a comparison with float64.
    """

    name: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    fast: Callable[..., Tensors]
    reference: Callable[..., Tensors]
    trial: Callable[[int, torch.Generator], Tensors]
    noise: Callable[..., Tensor] | None = None
    exact: tuple[str, ...] = ()
    timed: Callable[[int, torch.Generator], Tensors] | None = None

    def plain(self, networks: nn.ModuleDict, *tensors: Tensor, noise: Tensor | None = None) -> Tensors:
        """The reference, on the noise that `fast` would make, or on `noise`."""
        if self.noise is None:
            return self.reference(networks, *tensors)
        return self.reference(networks, *tensors, noise=self.noise(*tensors) if noise is None else noise)
