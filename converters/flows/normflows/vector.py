"""NormalizingFlow and ClassCondFlow of normflows, on vectors.

flows.N.b, .t.net.M.*, .s.net.M.*                                 MaskedAffineFlow
flows.N.flows.1.param_map.net.M.*                                 AffineCouplingBlock
flows.N.s, .t, .data_dep_init_done                                ActNorm, without the last AffineConstFlow
flows.N.perm, .inv_perm; none for mode "swap"                     Permute
flows.N.permutation._permutation, .linear.lower_entries ...       LULinearPermute
flows.N.W, or .P, .L, .U, .log_S, .sign_S                         InvertibleAffine
q0.loc, q0.log_scale: [1, D], or [D, classes]
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.flow.vector import MAX_LAYERS

from ...base import Report
from ..perceptron import perceptron
from ..source import Result, scalar, without
from ..state import State, permutation_of, precisely
from ..vector import Chain, Perceptron
from .layers import kind_of
from .options import NormflowsOptions, activation, last_layer, maps


def read(state: State, options: NormflowsOptions, report: Report) -> Result:
    """The flow, layer by layer from data to latents."""
    shape = state.peek("q0.loc").shape
    if len(shape) != 2:
        raise ConfigError(
            f"q0.loc has shape {list(shape)}; supported: [1, D] and [D, classes], flows on vectors, and "
            "MultiscaleFlow",
            argument=state.where,
        )
    classes = shape[0] != 1
    features = shape[0 if classes else 1]
    chain = Chain(state.where, features)
    kinds = [kind_of(state, f"flows.{i}") for i in range(_count(state, options, report))]
    for i, kind in reversed(list(enumerate(kinds))):
        _layer(state, f"flows.{i}", kind, chain, options)
    num_classes = None
    prior: tuple[Tensor, Tensor] | None
    if classes:
        num_classes = shape[1]
        loc, log_scale = (state.take(f"q0.{n}", features, num_classes).T for n in ("loc", "log_scale"))
        prior = (loc, log_scale)
    else:
        loc, log_scale = (state.take(f"q0.{n}", 1, features) for n in ("loc", "log_scale"))
        prior = None if bool((loc == 0).all() and (log_scale == 0).all()) else (loc, log_scale)
    if targets := [name for name in state.left if name.startswith("p.")]:
        state.drop(*targets)
        report.ignored.append("p, the target distribution: a flow is trained with it, and does not need it")
    used = set(kinds)
    for kind, why, names in (
        ("block", "there is no AffineCouplingBlock", ("scale_map", "split_mode")),
        ("masked", "there is no MaskedAffineFlow", ("output_fn",)),
        ("lu", "there is no LULinearPermute", ("lu_eps",)),
        (
            "glow",
            "the flow is not on images",
            ("transform", "alpha", "logscale_factor", "height", "width", "levels"),
        ),
    ):
        if kind not in used:
            without(options, report, why, *names)
    if not used & {"block", "masked"}:
        without(options, report, "there is no coupling", "leaky")
    return chain.result(prior, num_classes=num_classes)


def _count(state: State, options: NormflowsOptions, report: Report) -> int:
    """How many layers there are. Those without tensors are swaps."""
    numbers = state.numbers("flows")
    seen = numbers[-1] + 1
    if seen > MAX_LAYERS:
        raise ConfigError(
            f"flows.{seen - 1}: at most {MAX_LAYERS} layers are supported", argument=state.where
        )
    swaps = sorted(set(range(seen)) - set(numbers))
    if options.layers:
        if options.layers < seen:
            raise ConfigError(
                f"layers: {options.layers}, but there are tensors of layer {seen - 1}", argument=state.where
            )
        return options.layers
    couplings = [i for i in numbers if kind_of(state, f"flows.{i}") in ("block", "masked")]
    after = (
        bool(swaps)
        and bool(couplings)
        and couplings[-1] == seen - 1
        and swaps == [i + 1 for i in couplings[:-1]]
    )
    count = seen + after
    without(options, report, "", "layers")
    if swaps or after:
        named = ", ".join(f"flows.{i}" for i in [*swaps, *([seen] if after else [])])
        report.assumed.append(f"{named}: without tensors, so Permute('swap'); layers = {count} in all")
    else:
        report.assumed.append(f"layers = {count}: no Permute('swap') behind the last one that has tensors")
    return count


def _layer(state: State, place: str, kind: str, chain: Chain, options: NormflowsOptions) -> None:
    d = chain.features
    if kind == "swap":
        chain.permutation(torch.arange(d, device="cpu").roll(-((d + 1) // 2)))
    elif kind == "shuffle":
        state.drop(f"{place}.perm")
        chain.permutation(state.take(f"{place}.inv_perm", d))
    elif kind == "masked":
        _masked(state, place, chain, options)
    elif kind == "block":
        _block(state, place, chain, options)
    elif kind == "actnorm":
        log_scale, shift = (state.take(f"{place}.{name}", 1, d)[0] for name in ("s", "t"))
        flag = f"{place}.data_dep_init_done"
        chain.actnorm(
            -shift, precisely(lambda s: torch.exp(-s), log_scale), not state.has(flag) or state.take(flag)
        )
    elif kind == "lu":
        linear = f"{place}.linear"
        entries = d * (d - 1) // 2
        chain.permutation(state.take(f"{place}.permutation._permutation", d))
        lower, upper = (state.take(f"{linear}.{n}_entries", entries) for n in ("lower", "upper"))
        diagonal = state.take(f"{linear}.unconstrained_upper_diag", d)
        chain.lu(lower, upper, diagonal, state.take(f"{linear}.bias", d), options.lu_eps)
    else:
        chain.plain(_matrix(state, place, d).T.contiguous(), None)


def _matrix(state: State, place: str, d: int) -> Tensor:
    """W of InvertibleAffine, whose inverse is x W."""
    if state.has(f"{place}.W"):
        return state.take(f"{place}.W", d, d)
    p, lower, upper = (state.take(f"{place}.{name}", d, d) for name in ("P", "L", "U"))
    permutation_of(p, f"{state.where}: {place}.P")
    log_s, sign = state.take(f"{place}.log_S", d), state.take(f"{place}.sign_S", d)
    state.drop(f"{place}.eye")

    def product(lower: Tensor, upper: Tensor, log_s: Tensor, sign: Tensor, p: Tensor) -> Tensor:
        unit = lower.tril(-1) + torch.eye(d, dtype=lower.dtype, device=lower.device)
        return p @ unit @ (upper.triu(1) + torch.diag(sign * log_s.exp()))

    return precisely(product, lower, upper, log_s, sign, p)


def _masked(state: State, place: str, chain: Chain, options: NormflowsOptions) -> None:
    kept = state.take(f"{place}.b", 1, chain.features)[0]
    if not bool(((kept == 0) | (kept == 1)).all()):
        raise ConfigError(
            f"{place}.b: a mask of other numbers than 0 and 1 is not supported", argument=state.where
        )
    if not state.has(f"{place}.t.net.0.weight"):
        raise ConfigError(f"{place}.t: only an MLP is supported, and needed", argument=state.where)
    shift = perceptron(state, f"{place}.t.net")
    found = {**activation(options), "reverse": True}
    if not state.has(f"{place}.s.net.0.weight"):
        chain.coupling(kept == 0, [shift], sees_all=True, scale="additive", **found)
        return
    scale, bound = _scale_network(state, f"{place}.s.net", options)
    maps_ = {"scale": "exp"} if bound is None else {"scale": "tanh", "bound": bound}
    chain.coupling(kept == 0, [scale, shift], sees_all=True, **maps_, **found)


def _scale_network(state: State, prefix: str, options: NormflowsOptions) -> tuple[Perceptron, float | None]:
    """The network of s and, where a tanh ends it, what that is multiplied with."""
    network = perceptron(state, prefix)
    end = max(n for n in state.numbers(prefix) if state.has(f"{prefix}.{n}.weight"))
    factors = {n: scalar(state.take(f"{prefix}.{n}.scale")) for n in state.numbers(prefix) if n > end}
    if options.output_fn == "none":
        if factors:
            raise ConfigError(
                f"{prefix}: has scaled outputs, so an output_fn: say which, as output_fn = tanh",
                argument=state.where,
            )
        return network, None
    # A factor or none, the tanh, a factor or none.
    behind = end + 3 if end + 1 in factors else end + 2
    before, after = factors.pop(end + 1, 1.0), factors.pop(behind, 1.0)
    if factors:
        raise CheckpointError(
            f"{prefix}.{min(factors)}: its place is neither before nor behind a tanh; is the file whole?",
            argument=state.where,
        )

    def scaled(linear: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        weight, bias = (precisely(lambda v: v * before, value) for value in linear)
        return weight, bias

    return network.ends(lambda linear: linear, scaled), after


def _block(state: State, place: str, chain: Chain, options: NormflowsOptions) -> None:
    network = perceptron(state, f"{place}.flows.1.param_map.net")
    index = torch.arange(chain.features, device="cpu")
    first = index < (chain.features + 1) // 2
    changed = ~first if options.split_mode == "channel" else first
    count, outputs = int(changed.sum()), len(network.linears[-1][1])
    if outputs not in (count, 2 * count):
        raise CheckpointError(
            f"{place}: its network gives {outputs} numbers for {count} features that change, with "
            f"split_mode {options.split_mode}",
            argument=state.where,
        )
    affine = outputs == 2 * count

    def last(linear: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        weight, bias = (last_layer(options, affine, value) for value in linear)
        return weight, bias

    chain.coupling(
        changed, [network.ends(lambda linear: linear, last)], **activation(options), **maps(options, affine)
    )
