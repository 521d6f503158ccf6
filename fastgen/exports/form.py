"""What an export form is: one of an architecture's functions as a module of standard operations, with named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BATCH = "batch"
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Port:
    """A tensor that goes into an exported file or comes out of it.

    name: what callers of the file use: an identifier. axes: its shape, a word for an axis that may have any length
    ("batch", "height"). meaning: its units and range, for the file's metadata. dtype: of a real tensor float32, which
    it is in a file of half precision too: that one rounds inside. exact: it is not rounded there, as a time that a
    network looks up.
    """

    name: str
    axes: tuple[str | int, ...]
    meaning: str
    dtype: torch.dtype = torch.float32
    exact: bool = False


@dataclass(frozen=True)
class Interface:
    """The tensors of an exported function in their order, the axes that may have any length, and their divisors.

    divisors: {"height": 8} where a dynamic axis must be a multiple of a number; 1 for those that are not named.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    divisors: Mapping[str, int] = field(default_factory=dict)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """The words for axes of any length, "batch" first, in the order in which inputs name them."""
        return tuple(
            dict.fromkeys(axis for port in self.inputs for axis in port.axes if isinstance(axis, str))
        )

    def divisor(self, axis: str) -> int:
        return self.divisors.get(axis, 1)


@dataclass(frozen=True)
class ExportForm:
    """One function of an architecture's networks that ``fastgen export`` writes as ``NAME.onnx``.

    name: "denoiser", "encode". about: one line for people.
    interface(network): its tensors; names that a network of other options does not have are left out.
    make(network): the function as a module in eval mode whose ``forward`` takes the input tensors in their order and
        returns a tuple of the outputs. Only operations that ONNX has: what it lacks (an inverse matrix) is computed
        here, beforehand. It may share the network's parameters and must leave the network as it is. Raises ConfigError
        that names the option of a network for which there is no such form.
    reference(network, *tensors): the same tuple by the reference network, in the type of its parameters.
    example(network, batch, generator, sizes): random input tensors on the CPU with which the two are compared; sizes:
        lengths of the dynamic axes besides "batch", {} where there are none.
    sizes(network): lengths of those axes in use, {"height": 28, "width": 28}.
    precisions: "fp32", "fp16": what the form can be written in.
    rounded(module, dtype): a module of `make`'s in half precision between float32 tensors; it may change the one that
        it gets. None: everything is rounded.
    missing(network): why a network of these options has no such form, "" where it has; an export leaves it out then.
    """

    name: str
    about: str
    interface: Callable[[Any], Interface]
    make: Callable[[Any], nn.Module]
    reference: Callable[..., Tensors]
    example: Callable[[Any, int, torch.Generator, Mapping[str, int]], Tensors]
    sizes: Callable[[Any], Mapping[str, int]] = lambda network: {}
    precisions: tuple[str, ...] = ("fp32", "fp16")
    rounded: Callable[[nn.Module, torch.dtype], nn.Module] | None = None
    missing: Callable[[Any], str] = lambda network: ""
