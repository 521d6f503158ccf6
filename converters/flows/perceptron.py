"""Perceptrons in state dicts: ``prefix.N.weight`` and ``prefix.N.bias``, with layers without tensors between."""

from __future__ import annotations

from fastgen.errors import CheckpointError

from .state import State
from .vector import Linear, Perceptron, Residual


def linear(state: State, prefix: str) -> Linear:
    """weight [out, in], bias [out]; a layer without bias has one of 0."""
    weight = state.take(f"{prefix}.weight", None, None)
    if not state.has(f"{prefix}.bias"):
        return weight, weight.new_zeros(len(weight))
    return weight, state.take(f"{prefix}.bias", len(weight))


def perceptron(state: State, prefix: str) -> Perceptron:
    """Every linear layer below `prefix`."""
    numbers = [n for n in state.numbers(prefix) if state.has(f"{prefix}.{n}.weight")]
    if not numbers:
        raise CheckpointError(
            f"{state.where}: {prefix}: no linear layers; supported: a multilayer perceptron"
        )
    return Perceptron([linear(state, f"{prefix}.{n}") for n in numbers])


def residual(state: State, prefix: str) -> Residual:
    """A `ResidualNet` of nflows."""
    blocks = []
    for i in range(state.count(f"{prefix}.blocks")):
        block = f"{prefix}.blocks.{i}"
        gate = linear(state, f"{block}.context_layer") if state.has(f"{block}.context_layer.weight") else None
        before, after = (linear(state, f"{block}.linear_layers.{j}") for j in (0, 1))
        blocks.append((before, after, gate))
    return Residual(linear(state, f"{prefix}.initial_layer"), blocks, linear(state, f"{prefix}.final_layer"))
