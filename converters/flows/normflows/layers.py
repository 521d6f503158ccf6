"""Which layer of normflows the tensors at a place of a file belong to."""

from __future__ import annotations

from fastgen.errors import ConfigError

from ..state import State
from .facts import SUPPORTED

# {kind: (names that mark it, all names that it may have)}; exactly these, so that no other layer is taken for one.
KINDS: dict[str, tuple[set[str], set[str]]] = {
    "masked": ({"b"}, {"b", "s", "t"}),
    "lu": ({"linear"}, {"linear", "permutation"}),
    "shuffle": ({"perm"}, {"perm", "inv_perm"}),
    "plain": (set(), {"W", "P", "L", "U", "log_S", "sign_S", "eye"}),
    "actnorm": ({"s", "t"}, {"s", "t", "data_dep_init_done"}),
}
# Layers that have no counterpart, by the names that they alone have.
OTHERS: dict[str, set[str]] = {
    "Planar": {"u", "w", "b"},
    "Radial": {"beta", "alpha", "z_0"},
    "CoupledRationalQuadraticSpline or CircularCoupledRationalQuadraticSpline": {"prqct"},
    "AutoregressiveRationalQuadraticSpline or CircularAutoregressiveRationalQuadraticSpline": {"mprqat"},
    "MaskedAffineAutoregressive": {"autoregressive_net"},
    "Residual": {"iresblock"},
    "CCAffineConst": {"s_cc", "t_cc"},
    "BatchNorm": {"eps"},
    "Reverse": {"flow"},
    "Composite": {"_flows"},
    "HamiltonianMonteCarlo": {"log_step_size", "log_mass"},
    "MetropolisHastings": {"proposal"},
    "AffineCoupling without Split and Merge": {"param_map"},
}
BLOCK = "flows.1.param_map.net"


def kind_of(state: State, place: str) -> str:
    """A key of KINDS, "block" (AffineCouplingBlock) or "swap" (no tensors). Raises ConfigError that names the layer."""
    names = state.under(place)
    if not names:
        return "swap"
    if (
        names == {"flows"}
        and state.has(f"{place}.{BLOCK}.0.weight")
        and len(state.numbers(f"{place}.flows")) == 1
    ):
        return "block"
    for kind, (marks, every) in KINDS.items():
        if marks <= names <= every and (kind != "actnorm" or state.has(f"{place}.s")):
            return kind
    raise ConfigError(
        f"{place}: {layer_of(state, place)} is not supported; supported: {SUPPORTED}", argument=state.where
    )


def layer_of(state: State, place: str) -> str:
    """The layer in words: its class, or else its tensors."""
    names = state.under(place)
    if names == {"flows"}:
        inner = sorted(
            name for i in state.numbers(f"{place}.flows") for name in state.under(f"{place}.flows.{i}")
        )
        if {"data_dep_init_done", "param_map"} <= set(inner):
            return "a GlowBlock of other layers"
    found = next((layer for layer, marks in OTHERS.items() if marks <= names), None)
    if found is not None:
        return f"{'an' if found[0] in 'AEIOU' else 'a'} {found}"
    start = f"{place}."
    held = [name.removeprefix(start) for name in state.names if name.startswith(start)]
    return f"a layer with the tensors {', '.join(held[:4])}{' and others' if len(held) > 4 else ''}"
