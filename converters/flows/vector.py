"""Layer after layer of a flow on vectors, from data to latents, and the `vector_flow` that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastgen.config import from_dict
from fastgen.errors import ConfigError
from fastgen.models.flow.vector import VectorFlowConfig

from .source import Result, same
from .state import precisely, set_flag

Linear = tuple[Tensor, Tensor]  # weight [out, in], bias [out]


@dataclass
class Perceptron:
    """Linear layers with activations between."""

    linears: list[Linear]

    kind = "mlp"

    @property
    def hidden(self) -> tuple[int, ...]:
        return tuple(len(bias) for _, bias in self.linears[:-1])

    def tensors(self, context: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(self.linears):
            found |= {f"layers.{2 * i}.weight": weight, f"layers.{2 * i}.bias": bias}
        return found

    def ends(self, first: Callable[[Linear], Linear], last: Callable[[Linear], Linear]) -> Perceptron:
        """With another first and last layer."""
        changed = [first(self.linears[0]), *self.linears[1:]]
        return Perceptron([*changed[:-1], last(changed[-1])])


@dataclass
class Residual:
    """A linear layer, residual blocks (two linear layers, perhaps a third for the context's gate), a linear layer."""

    first: Linear
    blocks: list[tuple[Linear, Linear, Linear | None]]
    last: Linear

    kind = "residual"

    @property
    def hidden(self) -> tuple[int, ...]:
        return (len(self.first[1]),)

    @property
    def linears(self) -> list[Linear]:
        return [self.first, self.last]

    def tensors(self, context: int) -> dict[str, Tensor]:
        layers: dict[str, Linear] = {"first": self.first, "last": self.last}
        for i, (before, after, gate) in enumerate(self.blocks):
            layers |= {f"blocks.{i}.branch.1": before, f"blocks.{i}.branch.3": after}
            if context and gate is None:
                raise ConfigError(
                    "a residual network beside others that take a context has none; supported: all or none"
                )
            if gate is not None:
                layers[f"blocks.{i}.gate"] = gate
        return {
            f"{name}.{part}": value
            for name, pair in layers.items()
            for part, value in zip(("weight", "bias"), pair, strict=True)
        }

    def ends(self, first: Callable[[Linear], Linear], last: Callable[[Linear], Linear]) -> Residual:
        return Residual(first(self.first), self.blocks, last(self.last))


Network = Perceptron | Residual


@dataclass
class _Coupling:
    changed: Tensor  # bool [D]
    networks: list[Network]  # one, or those of the raw scale and of the shift
    sees_all: bool  # the networks take and give all features


@dataclass
class Chain:
    """Collects layers. where: for messages. features: D.

    Networks take the features that stay (in order) and then the context; unless they see all features, their outputs
    are for those that change. `options` of the couplings must be the same for all.
    """

    where: str
    features: int
    kinds: list[str] = field(default_factory=list)
    layers: list[dict[str, Tensor] | _Coupling] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)

    def coupling(
        self, changed: Tensor, networks: Sequence[Network], sees_all: bool = False, **options: Any
    ) -> None:
        """changed: bool [D]. options: those of `CouplingOptions`, act_fn and leaky_slope."""
        self._add("coupling", _Coupling(changed, list(networks), sees_all))
        self.options.append(options)

    def actnorm(self, loc: Tensor, scale: Tensor, initialised: Tensor | bool = True) -> None:
        """y = scale (x + loc); [D]."""
        self._add("actnorm", {"loc": loc, "scale": scale, "initialised": set_flag(initialised)})

    def permutation(self, index: Tensor) -> None:
        """y[i] = x[index[i]]; int64 [D]."""
        self._add("shuffle", {"index": index.to(torch.int64)})

    def plain(self, weight: Tensor, bias: Tensor | None) -> None:
        """y = weight x + bias."""
        self._add("plain", {"weight": weight, **({} if bias is None else {"bias": bias})})

    def lu(self, lower: Tensor, upper: Tensor, diagonal: Tensor, bias: Tensor | None, eps: float) -> None:
        """y = L U x + bias as nflows has it: entries of the triangles in rows, diagonal softplus(diagonal) + eps."""
        d = self.features
        matrices = []
        for entries, place in (
            (lower, torch.tril_indices(d, d, -1, device="cpu")),
            (upper, torch.triu_indices(d, d, 1, device="cpu")),
        ):
            matrix = entries.new_zeros(d, d)
            matrix[place[0], place[1]] = entries
            matrices.append(matrix)
        log_s = precisely(lambda u: torch.log(torch.nn.functional.softplus(u) + eps), diagonal)
        tensors = {
            "permutation": torch.arange(d, device="cpu"),
            "sign": torch.ones_like(diagonal),
            "lower": matrices[0],
            "upper": matrices[1],
            "log_s": log_s,
        }
        self._add("lu", {**tensors, **({} if bias is None else {"bias": bias})})

    def _add(self, kind: str, layer: dict[str, Tensor] | _Coupling) -> None:
        self.kinds.append(kind)
        self.layers.append(layer)

    def result(
        self, prior: tuple[Tensor, Tensor] | None, context: int = 0, num_classes: int | None = None
    ) -> Result:
        """prior: mean and log standard deviation, [D] or [classes, D]; None for the standard normal one.

        context: columns of the networks' first layers behind the features. num_classes: labels, which the prior knows.
        """
        couplings = [layer for layer in self.layers if isinstance(layer, _Coupling)]
        values: dict[str, Any] = {
            "features": self.features,
            "layers": self.kinds,
            "steps": 1,
            "context_features": context,
            "num_classes": num_classes,
            "class_priors": num_classes is not None,
            "prior": "standard" if prior is None else "learned",
        }
        if couplings:
            values |= same(self.options, "an option", self.where)
            networks = [network for coupling in couplings for network in coupling.networks]
            values["network"] = same((n.kind for n in networks), "the coupling network", self.where)
            values["hidden_features"] = same((n.hidden for n in networks), "the networks' width", self.where)
            if values["network"] == "residual":
                values["blocks"] = same(
                    (len(n.blocks) for n in networks if isinstance(n, Residual)), "blocks", self.where
                )
            values["separate_networks"] = (
                same((len(c.networks) for c in couplings), "the number of networks", self.where) > 1
            )
            values |= self._split(couplings)
        values["linear_bias"] = any(isinstance(layer, dict) and "bias" in layer for layer in self.layers)
        config = from_dict(VectorFlowConfig, values, self.where)
        tensors: dict[str, Tensor] = {}
        for i, (kind, layer) in enumerate(zip(self.kinds, self.layers, strict=True)):
            found = (
                self._coupling_tensors(layer, config, context)
                if isinstance(layer, _Coupling)
                else dict(layer)
            )
            if kind in ("plain", "lu") and config.linear_bias and "bias" not in found:
                found["bias"] = next(iter(found.values())).new_zeros(self.features, dtype=torch.float32)
            tensors |= {f"scales.0.{i}.{name}": value for name, value in found.items()}
        if prior is not None:
            rows = num_classes or 1
            for name, value in zip(("mean", "log_std"), prior, strict=True):
                tensors[f"priors.0.{name}"] = value.reshape(rows, self.features)
        return Result("vector_flow", config, tensors)

    def _split(self, couplings: list[_Coupling]) -> dict[str, Any]:
        """The simplest split that says what all of the couplings change."""
        index = torch.arange(self.features, device="cpu")
        patterns = {"alternate": index % 2 == 1, "half": index >= (self.features + 1) // 2}
        if not any(coupling.sees_all for coupling in couplings):
            for split, odd in patterns.items():
                for first in (1, 0):
                    for in_turn in (True, False):
                        wanted = [(first + i * in_turn) % 2 for i in range(len(couplings))]
                        if all(
                            torch.equal(coupling.changed, odd == bool(changes))
                            for coupling, changes in zip(couplings, wanted, strict=True)
                        ):
                            return {"split": split, "changes": first, "changes_in_turn": in_turn}
        return {"split": "mask"}

    def _coupling_tensors(
        self, coupling: _Coupling, config: VectorFlowConfig, context: int
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        kept = int((~coupling.changed).sum())
        inputs = self.features if coupling.sees_all else kept
        for name, network in zip(
            ("scale", "shift") if config.separate_networks else ("",), coupling.networks, strict=True
        ):
            if network.linears[0][0].shape[1] != inputs + context:
                raise ConfigError(
                    f"a coupling's network takes {network.linears[0][0].shape[1]} numbers, expected "
                    f"{inputs} features and a context of {context}",
                    argument=self.where,
                )
            if config.split == "mask" and not coupling.sees_all:
                network = network.ends(self._wider_first(coupling), self._wider_last(coupling, config))
            if config.num_classes:  # of the labels, which these networks do not look at
                network = network.ends(
                    lambda ends: _columns(ends, config.num_classes or 0), lambda ends: ends
                )
            middle = f"network.{name}." if name else "network."
            found |= {middle + part: value for part, value in network.tensors(context).items()}
        if config.split == "mask":
            found["mask"] = coupling.changed.to(torch.uint8)
        return found

    def _wider_first(self, coupling: _Coupling) -> Callable[[Linear], Linear]:
        """Columns of 0 for the features that change."""

        def widen(linear: Linear) -> Linear:
            weight, bias = linear
            kept = int((~coupling.changed).sum())
            wide = weight.new_zeros(len(weight), self.features + weight.shape[1] - kept)
            wide[:, : self.features][:, ~coupling.changed] = weight[:, :kept]
            wide[:, self.features :] = weight[:, kept:]
            return wide, bias

        return widen

    def _wider_last(self, coupling: _Coupling, config: VectorFlowConfig) -> Callable[[Linear], Linear]:
        """Rows of 0 for the features that stay."""
        groups = 1 if config.scale == "additive" or config.separate_networks else 2
        interleaved = config.parameters.endswith("_interleaved") and groups == 2
        changed = int(coupling.changed.sum())

        def widen(linear: Linear) -> Linear:
            wide = []
            for values in linear:
                tail = values.shape[1:]
                shape = (changed, groups) if interleaved else (groups, changed)
                rows = values.reshape(*shape, *tail)
                rows = rows if interleaved else rows.transpose(0, 1)
                all_rows = values.new_zeros(self.features, groups, *tail)
                all_rows[coupling.changed] = rows
                all_rows = all_rows if interleaved else all_rows.transpose(0, 1)
                wide.append(all_rows.reshape(-1, *tail))
            return wide[0], wide[1]

        return widen


def _columns(linear: Linear, count: int) -> Linear:
    weight, bias = linear
    return torch.cat([weight, weight.new_zeros(len(weight), count)], dim=1), bias
