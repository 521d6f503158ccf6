"""nflows' flows on vectors (nflows 0.14): affine and additive couplings, LU linear, ActNorm, permutations, batch norm.

_transform._transforms.N.identity_features, .transform_features, .transform_net.*    a coupling over a ResidualNet
_transform._transforms.N.lower_entries, .upper_entries, .unconstrained_upper_diag, .bias         LULinear
_transform._transforms.N._weight, .bias                                                         NaiveLinear
_transform._transforms.N._permutation | .log_scale, .shift | .unconstrained_weight, .running_mean ... | ._scale
_distribution.mean_, .log_std_                                                                  DiagonalNormal
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastgen.config import bounded, one_of
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.flow.networks import ACTIVATIONS
from fastgen.models.flow.vector import MAX_LAYERS

from ..base import Report
from .activations import activation_of
from .assumed import LEAKY_SLOPE, Assumed, Table
from .perceptron import residual
from .source import Facts, Result, Source, converter, refuse, same, without
from .state import State, precisely
from .vector import Chain

SUPPORTED = (
    "Flow of CompositeTransform with AffineCouplingTransform or AdditiveCouplingTransform over a ResidualNet without "
    "batch norm, LULinear, NaiveLinear, ActNorm, BatchNorm, PointwiseAffineTransform, Permutation, RandomPermutation, "
    "ReversePermutation, IdentityTransform; StandardNormal or DiagonalNormal"
)
PREFIX = "_transform._transforms"
COUPLINGS = ("AffineCouplingTransform", "AdditiveCouplingTransform")
LINEAR = ("LULinear", "NaiveLinear")
PERMUTATIONS = ("Permutation", "RandomPermutation", "ReversePermutation")
AFFINE = ("PointwiseAffineTransform", "AffineTransform")
ASSUMED_SCALE = "scale_activation = sigmoid(x + 2) + 0.001, the default; of another one, nothing is in a file"
MARKS = (
    "identity_features",
    "lower_entries",
    "_weight",
    "_permutation",
    "log_scale",
    "running_mean",
    "_scale",
)
# Layers that have no counterpart, by the names that they alone have.
OTHERS: dict[str, str] = {
    "autoregressive_net": "a masked autoregressive transform (MaskedAffineAutoregressiveTransform or a piecewise one)",
    "permutation": "a OneByOneConvolution",
    "orthogonal_1": "an SVDLinear",
    "orthogonal": "a QRLinear",
    "q_vectors": "a HouseholderSequence",
    "unnormalized_widths": "a piecewise CDF",
    "unnormalized_pdf": "a piecewise CDF",
    "unconditional_transform": "a coupling with an unconditional_transform",
    "_transform": "an InverseTransform",
    "_transforms": "a CompositeTransform within another",
}
ASSUMED: Table = {
    "activation": Assumed(
        "relu",
        ("nflows.nn.nets.ResidualNet:activation", "nflows.flows.SimpleRealNVP:activation"),
        theirs="torch.nn.functional.relu",
    ),
    "leaky_slope": LEAKY_SLOPE,
    "lu_eps": Assumed(1e-3, ("nflows.transforms.LULinear:eps",)),
    "batch_norm_eps": Assumed(1e-5, ("nflows.transforms.BatchNorm:eps",)),
}


@dataclass(frozen=True)
class NflowsOptions:
    """activation, leaky_slope: of the ResidualNets. lu_eps: of LULinear. batch_norm_eps: of BatchNorm."""

    activation: str = one_of(*ACTIVATIONS, default=ASSUMED["activation"].value)
    leaky_slope: float = bounded(0.0, 1.0, default=ASSUMED["leaky_slope"].value)
    lu_eps: float = bounded(0.0, 1.0, default=ASSUMED["lu_eps"].value)
    batch_norm_eps: float = bounded(0.0, 1.0, default=ASSUMED["batch_norm_eps"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of an nflows Flow."""
    marks = {*MARKS, *OTHERS}
    return any(name.startswith("_transform.") and not marks.isdisjoint(name.split(".")[1:]) for name in names)


def read(state: State, options: NflowsOptions, report: Report) -> Result:
    """The flow."""
    numbers = state.numbers(PREFIX)
    if len(numbers) > MAX_LAYERS:
        raise ConfigError(
            f"{PREFIX}: {len(numbers)} layers; at most {MAX_LAYERS} are supported", argument=state.where
        )
    places = [f"{PREFIX}.{i}" for i in numbers] or ["_transform"]
    if numbers and numbers != list(range(len(numbers))):
        lost = min(set(range(len(numbers))) - set(numbers))
        raise ConfigError(
            f"{PREFIX}.{lost} has no tensors, so that a file does not say what it is; convert the live "
            "module: fastgen.load(flow)",
            argument=state.where,
        )
    kinds = {place: _kind(state, place) for place in places}
    features = _features(state, places)
    chain = Chain(state.where, features)
    contexts: list[int] = []
    for place, kind in kinds.items():
        if kind == "identity_features":
            contexts.append(_coupling(state, place, chain, options, report))
        elif kind == "lower_entries":
            entries = features * (features - 1) // 2
            chain.lu(
                state.take(f"{place}.lower_entries", entries),
                state.take(f"{place}.upper_entries", entries),
                state.take(f"{place}.unconstrained_upper_diag", features),
                state.take(f"{place}.bias", features),
                options.lu_eps,
            )
        elif kind == "_weight":
            weight = state.take(f"{place}._weight", features, features)
            chain.plain(weight, state.take(f"{place}.bias", features))
        elif kind == "_permutation":
            chain.permutation(state.take(f"{place}._permutation", features))
        else:
            _elementwise(state, place, kind, chain, options)
    used = set(kinds.values())
    if "lower_entries" not in used:
        without(options, report, "there is no LULinear", "lu_eps")
    if "running_mean" not in used:
        without(options, report, "there is no BatchNorm", "batch_norm_eps")
    if "identity_features" not in used:
        without(options, report, "there is no coupling", "activation")
    if options.activation != "leaky_relu":
        without(options, report, f"the activation is {options.activation}", "leaky_slope")
    prior = None
    if state.has("_distribution.mean_"):
        mean, log_std = (state.take(f"_distribution.{n}", 1, features) for n in ("mean_", "log_std_"))
        prior = (mean, log_std)
    state.drop("_distribution._log_z")
    context = same(contexts, "the context's width", state.where) if contexts else 0
    return chain.result(prior, context)


def _kind(state: State, place: str) -> str:
    names = state.under(place)
    layer = next((layer for mark, layer in OTHERS.items() if mark in names), None)
    for mark in MARKS:
        if mark in names and layer is None:
            return mark
    start = f"{place}."
    held = [name.removeprefix(start) for name in state.names if name.startswith(start)]
    layer = layer or f"a layer with the tensors {', '.join(held[:4])}"
    raise ConfigError(f"{place}: {layer} is not supported; supported: {SUPPORTED}", argument=state.where)


def _features(state: State, places: list[str]) -> int:
    """D, from the first layer that says it."""
    for place in places:
        for name in ("_permutation", "log_scale", "running_mean", "_weight", "unconstrained_upper_diag"):
            if state.has(f"{place}.{name}"):
                return state.peek(f"{place}.{name}").shape[0]
        if state.has(f"{place}.identity_features"):
            return sum(state.peek(f"{place}.{n}_features").numel() for n in ("identity", "transform"))
    raise CheckpointError(
        f"no layer says how many features there are; supported: {SUPPORTED}", argument=state.where
    )


def _coupling(state: State, place: str, chain: Chain, options: NflowsOptions, report: Report) -> int:
    """Adds the coupling; returns its context's width."""
    kept = state.take(f"{place}.identity_features", None)
    moved = state.take(f"{place}.transform_features", None)
    rising = all(bool((index.diff() > 0).all()) for index in (kept, moved))
    if not rising or sorted([*kept.tolist(), *moved.tolist()]) != list(range(chain.features)):
        raise CheckpointError(
            f"{place}: its features are not 0 to {chain.features - 1}, each once, in rising order",
            argument=state.where,
        )
    if not state.has(f"{place}.transform_net.initial_layer.weight"):
        raise ConfigError(
            f"{place}.transform_net: only a ResidualNet is supported, this one has "
            f"{', '.join(sorted(state.under(f'{place}.transform_net')))}",
            argument=state.where,
        )
    network = residual(state, f"{place}.transform_net")
    outputs = len(network.last[1])
    if outputs not in (len(moved), 2 * len(moved)):
        raise ConfigError(
            f"{place}: a coupling whose network gives {outputs} numbers for {len(moved)} features, a piecewise one "
            f"(splines) perhaps, is not supported; supported: {' and '.join(COUPLINGS)}",
            argument=state.where,
        )
    maps: dict[str, Any] = {"scale": "additive"}
    if outputs == 2 * len(moved):
        maps = {"scale": "sigmoid", "scale_eps": 1e-3, "parameters": "shift_scale"}
        if not state.live and ASSUMED_SCALE not in report.assumed:
            report.assumed.append(ASSUMED_SCALE)
    changed = torch.zeros(chain.features, dtype=torch.bool, device="cpu")
    changed[moved.cpu()] = True
    chain.coupling(changed, [network], act_fn=options.activation, leaky_slope=options.leaky_slope, **maps)
    return network.first[0].shape[1] - len(kept)


def _elementwise(state: State, place: str, kind: str, chain: Chain, options: NflowsOptions) -> None:
    """ActNorm, BatchNorm at inference and PointwiseAffineTransform, all as y = scale (x + loc)."""
    d = chain.features
    if kind == "log_scale":
        log_scale, shift = state.take(f"{place}.log_scale", d), state.take(f"{place}.shift", d)
        loc = precisely(lambda t, s: t * torch.exp(-s), shift, log_scale)
        chain.actnorm(loc, precisely(torch.exp, log_scale), state.take(f"{place}.initialized"))
        return
    if kind == "_scale":
        scale, shift = (
            state.take(f"{place}.{name}").double().expand(d).clone() for name in ("_scale", "_shift")
        )
        chain.actnorm(shift / scale, scale)
        return
    names = ("unconstrained_weight", "bias", "running_mean", "running_var")
    eps = options.batch_norm_eps
    weight, bias, mean, variance = (state.take(f"{place}.{name}", d) for name in names)

    def scale_of(w: Tensor, v: Tensor) -> Tensor:
        return (softplus(w) + eps) / torch.sqrt(v + eps)

    loc = precisely(lambda b, w, v, m: b / scale_of(w, v) - m, bias, weight, variance, mean)
    chain.actnorm(loc, precisely(scale_of, weight, variance))


def facts(model: nn.Module, where: str) -> Facts:
    """What an ``nflows.flows.Flow`` says."""
    transform: Any = getattr(model, "_transform", None)
    distribution: Any = getattr(model, "_distribution", None)
    embedding = getattr(model, "_embedding_net", None)
    if not isinstance(transform, nn.Module) or not isinstance(distribution, nn.Module):
        raise ConfigError(f"is not supported; supported: {SUPPORTED}", argument=where)
    if embedding is not None and type(embedding) is not nn.Identity:
        raise ConfigError(
            f"embedding_net: a {type(embedding).__name__} is not supported; supported: none (call it before, "
            "and hand its output over as context)",
            argument=where,
        )
    if type(distribution).__name__ not in ("StandardNormal", "DiagonalNormal"):
        raise refuse(where, distribution, "_distribution", SUPPORTED)
    tensors = {f"_distribution.{name}": t for name, t in distribution.state_dict().items()}
    found: dict[str, list[Any]] = {"activation": [], "lu_eps": [], "batch_norm_eps": []}
    ignored = []
    layers = list(_layers(transform, "_transform"))
    for i, (path, layer) in enumerate((p, m) for p, m in layers if type(m).__name__ != "IdentityTransform"):
        name = type(layer).__name__
        if name in COUPLINGS:
            ignored += _check_coupling(layer, f"{where}: {path}", found["activation"])
        elif name == "LULinear":
            found["lu_eps"].append(float(layer.eps))
        elif name == "BatchNorm":
            found["batch_norm_eps"].append(float(layer.eps))
        elif name in PERMUTATIONS and layer._dim != 1:
            raise ConfigError(
                f"{path}: a {name} of dimension {layer._dim} is not supported; supported: 1", argument=where
            )
        elif name not in (*LINEAR, *PERMUTATIONS, *AFFINE, "ActNorm"):
            raise refuse(where, layer, path, SUPPORTED)
        tensors |= {f"{PREFIX}.{i}.{key}": value for key, value in layer.state_dict().items()}
    options: dict[str, Any] = {
        key: same(values, key, where) for key, values in found.items() if values and key != "activation"
    }
    if found["activation"]:
        options["activation"], options["leaky_slope"] = same(found["activation"], "the activation", where)
    return Facts(tensors, options, tuple(dict.fromkeys(ignored)))


def _layers(transform: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every transform, those of composites one after the other."""
    if type(transform).__name__ == "CompositeTransform":
        for i, inner in enumerate(transform._transforms):
            yield from _layers(inner, f"{path}._transforms.{i}")
    else:
        yield path, transform


def _check_coupling(layer: Any, where: str, acts: list[tuple[str, float]]) -> list[str]:
    """Appends the activations of its network; returns what has no effect. Raises ConfigError."""
    if layer.unconditional_transform is not None:
        raise ConfigError("unconditional_transform is not supported; supported: none", argument=where)
    if type(layer).__name__ == "AffineCouplingTransform" and not _usual_scale(layer):
        raise ConfigError(
            "scale_activation is not supported but for the default, sigmoid(x + 2) + 0.001", argument=where
        )
    network = layer.transform_net
    if type(network).__name__ != "ResidualNet":
        raise refuse(where, network, "transform_net", "ResidualNet")
    ignored = []
    for i, block in enumerate(network.blocks):
        if block.use_batch_norm:
            raise ConfigError(
                f"transform_net.blocks.{i}: use_batch_norm is not supported; supported: False", argument=where
            )
        if block.dropout.p:
            ignored.append("dropout of the networks: has no effect when a flow is not trained")
        acts.append(activation_of(block.activation, f"{where}: transform_net.blocks.{i}"))
    return ignored


def _usual_scale(layer: Any) -> bool:
    """Whether it has the default scale: in nflows 0.14 there is no other; later ones take any function."""
    function = getattr(layer, "scale_activation", None)
    if function is None:
        return True
    x = torch.linspace(-20, 20, 401, dtype=torch.float64, device="cpu")
    return torch.allclose(function(x), torch.sigmoid(x + 2) + 1e-3, rtol=1e-12, atol=0)


CONVERTER = converter(
    Source(
        name="nflows",
        about="coupling flows on vectors of nflows: a state dict, or the live module",
        supported=SUPPORTED,
        options=NflowsOptions,
        recognises=recognises,
        read=read,
        facts=facts,
    )
)
