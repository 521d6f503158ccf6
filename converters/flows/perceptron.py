"""Perceptrons in state dicts: ``prefix.N.weight`` and ``prefix.N.bias``, with layers without tensors between."""

from __future__ import annotations

from fastgen.errors import CheckpointError
from fastgen.models.flow.vector import VectorFlowConfig

from .state import State, most
from .vector import Linear, Perceptron, Residual


def linear(state: State, prefix: str) -> Linear:
    """weight [out, in], bias [out]."""
    weight = state.take(f"{prefix}.weight", None, None)
    return weight, state.take(f"{prefix}.bias", len(weight))


def perceptron(state: State, prefix: str, needs_biases: bool = True) -> Perceptron:
    """Every linear layer below `prefix`. needs_biases: false where all may be without, whose biases are 0 then."""
    numbers = [n for n in state.numbers(prefix) if state.has(f"{prefix}.{n}.weight")]
    if not numbers:
        raise CheckpointError(
            f"{prefix}: no linear layers; supported: a multilayer perceptron", argument=state.where
        )
    if not needs_biases and not any(state.has(f"{prefix}.{n}.bias") for n in numbers):
        weights = [state.take(f"{prefix}.{n}.weight", None, None) for n in numbers]
        return Perceptron([(weight, weight.new_zeros(len(weight))) for weight in weights])
    return Perceptron([linear(state, f"{prefix}.{n}") for n in numbers])


def residual(state: State, prefix: str) -> Residual:
    """A `ResidualNet` of nflows."""
    blocks = []
    for i in range(state.count(f"{prefix}.blocks", most(VectorFlowConfig, "blocks"))):
        block = f"{prefix}.blocks.{i}"
        gate = linear(state, f"{block}.context_layer") if state.has(f"{block}.context_layer.weight") else None
        before, after = (linear(state, f"{block}.linear_layers.{j}") for j in (0, 1))
        blocks.append((before, after, gate))
    return Residual(linear(state, f"{prefix}.initial_layer"), blocks, linear(state, f"{prefix}.final_layer"))
