"""zuko's NICE and RealNVP (zuko 1.3 to 1.6), with and without a context.

transform.transforms.N.mask             bool [D]: what stays
transform.transforms.N.hyper.M.weight   the perceptron, shift and scale of a feature side by side
base.loc, base.scale                    (base._0, base._1 in older releases)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastgen.config import bounded, one_of
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.flow.networks import ACTIVATIONS
from fastgen.models.flow.vector import MAX_LAYERS

from ..base import Report
from .activations import activation_of
from .assumed import LEAKY_SLOPE, Assumed, Table
from .perceptron import perceptron
from .source import Facts, Result, Source, converter, refuse, same, without
from .state import State, precisely
from .vector import Chain

SUPPORTED = (
    "Flow (NICE, RealNVP) of GeneralCouplingTransform with MonotonicAffineTransform or AdditiveTransform over an MLP, "
    "with a DiagNormal base"
)
PREFIX = "transform.transforms"
# Layers that have no counterpart, by the names that they alone have.
OTHERS = {
    "order": "a MaskedAutoregressiveTransform (of MAF, NSF and their like)",
    "phi": "an ElementWiseTransform",
    "A": "a RotationTransform",
    "ode": "an FFJTransform (of CNF)",
}
ASSUMED: Table = {
    "activation": Assumed("relu", ("zuko.nn.MLP:activation",), theirs=None),  # which it takes for ReLU
    "leaky_slope": LEAKY_SLOPE,
    "slope": Assumed(1e-3, ("zuko.transforms.MonotonicAffineTransform:slope",)),
}


@dataclass(frozen=True)
class ZukoOptions:
    """activation: of the perceptrons, leaky_slope: its slope below 0. slope: the least slope of the affine map."""

    activation: str = one_of(*ACTIVATIONS, default=ASSUMED["activation"].value)
    leaky_slope: float = bounded(0.0, 1.0, default=ASSUMED["leaky_slope"].value)
    slope: float = bounded(1e-30, 0.999, default=ASSUMED["slope"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of a Flow of zuko."""
    found = set(names)
    return bool({"base.loc", "base._0"} & found) and any(name.startswith("transform.") for name in found)


def read(state: State, options: ZukoOptions, report: Report) -> Result:
    """The flow."""
    _check_layers(state)
    chain: Chain | None = None
    contexts, affine = set(), True
    for i in range(state.count(PREFIX, MAX_LAYERS)):
        kept = state.take(f"{PREFIX}.{i}.mask", chain.features if chain else None) != 0
        chain = chain or Chain(state.where, len(kept))
        network = perceptron(state, f"{PREFIX}.{i}.hyper", needs_biases=False)
        if not state.live and f"{PREFIX}.{i}.hyper.0.bias" not in state.names:
            report.assumed.append(
                f"{PREFIX}.{i}.hyper: no layer has a bias, so a network built with bias=False"
            )
        count = int((~kept).sum())
        outputs = len(network.linears[-1][1])
        if outputs not in (count, 2 * count):
            raise ConfigError(
                f"{PREFIX}.{i}: a coupling whose network gives {outputs} numbers for {count} features, one of splines "
                f"perhaps, is not supported; supported: {SUPPORTED}",
                argument=state.where,
            )
        affine = outputs == 2 * count
        contexts.add(network.linears[0][0].shape[1] - int(kept.sum()))
        maps: dict[str, Any] = {"scale": "additive"}
        if affine:
            maps = {"scale": "soft_clip", "slope": options.slope, "parameters": "shift_scale_interleaved"}
        chain.coupling(~kept, [network], act_fn=options.activation, leaky_slope=options.leaky_slope, **maps)
    assert chain is not None
    if not affine:
        without(options, report, "the couplings are additive", "slope")
    if options.activation != "leaky_relu":
        without(options, report, f"the activation is {options.activation}", "leaky_slope")
    names = ("base.loc", "base.scale") if state.has("base.loc") else ("base._0", "base._1")
    loc, scale = (state.take(name, chain.features) for name in names)
    standard = bool((loc == 0).all() and (scale == 1).all())
    prior = None if standard else (loc, precisely(torch.log, scale))
    return chain.result(prior, same(sorted(contexts), "the context's width", state.where))


def _check_layers(state: State) -> None:
    """Raise ConfigError that names the first layer that is no coupling over a plain perceptron."""
    layers = [f"{PREFIX}.{i}" for i in state.numbers(PREFIX)]
    for place in layers or ["transform"]:
        names = state.under(place)
        if not {"mask", "hyper"} & names or names - {"mask", "hyper"}:
            held = [name.removeprefix(f"{place}.") for name in state.names if name.startswith(f"{place}.")]
            layer = next((layer for mark, layer in OTHERS.items() if mark in names), None)
            layer = layer or f"a layer with the tensors {', '.join(held[:4])}"
            raise ConfigError(
                f"{place}: {layer} is not supported; supported: {SUPPORTED}", argument=state.where
            )
        linears = [n for n in state.numbers(f"{place}.hyper") if state.has(f"{place}.hyper.{n}.weight")]
        if linears == [3 * k for k in range(len(linears))] and len(linears) > 1:
            raise ConfigError(
                f"{place}.hyper: an MLP with a LayerNorm between its layers (normalize=True) is not supported; "
                f"supported: {SUPPORTED}",
                argument=state.where,
            )
        if linears != [2 * k for k in range(len(linears))]:
            raise CheckpointError(
                f"{place}.hyper: has linear layers {linears}, not every second one; is the file whole?",
                argument=state.where,
            )


def facts(model: nn.Module, where: str) -> Facts:
    """What a ``zuko.flows.Flow`` says."""
    transform: Any = getattr(model, "transform", None)
    if type(transform).__name__ != "LazyComposedTransform":
        raise ConfigError(
            f"transform: {type(transform).__name__} is not supported; supported: {SUPPORTED}", argument=where
        )
    base: Any = getattr(model, "base", None)
    if getattr(getattr(base, "f", None), "__name__", "") != "DiagNormal":
        raise ConfigError(f"base: only a DiagNormal is supported, got {base}", argument=where)
    acts, slopes = [], []
    for i, layer in enumerate(transform.transforms):
        path = f"{PREFIX}.{i}"
        if type(layer).__name__ != "GeneralCouplingTransform":
            raise refuse(where, layer, path, SUPPORTED)
        univariate = layer.univariate
        given = dict(univariate.keywords) if isinstance(univariate, functools.partial) else {}
        kind = univariate.func if isinstance(univariate, functools.partial) else univariate
        name = getattr(kind, "__name__", type(kind).__name__)
        shapes = {"MonotonicAffineTransform": [(), ()], "AdditiveTransform": [()]}.get(name)
        if shapes is None or [tuple(shape) for shape in layer.shapes] != shapes or set(given) - {"slope"}:
            raise ConfigError(
                f"{path}: the univariate transform {name} is not supported; supported: {SUPPORTED}",
                argument=where,
            )
        if name == "MonotonicAffineTransform":
            slopes.append(float(given.get("slope", ASSUMED["slope"].value)))
        for j, inner in enumerate(layer.hyper):
            if type(inner).__name__ != "Linear":
                acts.append(activation_of(inner, f"{where}: {path}.hyper.{j}"))
    options: dict[str, Any] = {}
    if acts:
        options["activation"], options["leaky_slope"] = same(acts, "the activation", where)
    if slopes:
        options["slope"] = same(slopes, "the slope", where)
    return Facts(model.state_dict(), options)


CONVERTER = converter(
    Source(
        name="zuko",
        about="NICE and RealNVP of zuko: a state dict, or the live module",
        supported=SUPPORTED,
        options=ZukoOptions,
        recognises=recognises,
        read=read,
        facts=facts,
    )
)
