"""What a live model of normflows says."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastgen.errors import ConfigError

from ..source import Facts, refuse, same, scalar

SUPPORTED = (
    "NormalizingFlow and ClassCondFlow on vectors of MaskedAffineFlow and AffineCouplingBlock over an MLP, Permute, "
    "ActNorm, AffineConstFlow, LULinearPermute, InvertibleAffine, with DiagGaussian or ClassCondDiagGaussian; "
    "MultiscaleFlow of GlowBlocks and a Squeeze a level, Merge, a Logit or Shift(-0.5), with DiagGaussian, "
    "ClassCondDiagGaussian or GlowBase"
)
ELEMENTWISE = ("ActNorm", "AffineConstFlow", "LULinearPermute", "InvertibleAffine")
Found = dict[str, list[Any]]


def facts(model: nn.Module, where: str) -> Facts:
    """Of a NormalizingFlow, ClassCondFlow or MultiscaleFlow. Raises ConfigError for what is not supported."""
    kinds = {cls.__name__ for cls in type(model).__mro__}
    found: Found = {}
    ignored: list[str] = []
    options: dict[str, Any] = {}
    source: Any = model
    if "MultiscaleFlow" in kinds:
        options = _multiscale(source, where, found)
    elif kinds & {"NormalizingFlow", "ClassCondFlow"} and "ConditionalNormalizingFlow" not in kinds:
        _base(source.q0, "q0", where, ("DiagGaussian", "ClassCondDiagGaussian"))
        for i, layer in enumerate(source.flows):
            _vector_layer(layer, f"flows.{i}", where, found, ignored)
        options = {"layers": len(source.flows)}
    else:
        raise ConfigError(f"is not supported; supported: {SUPPORTED}", argument=where)
    options |= {name: same(values, name, where) for name, values in found.items()}
    return Facts(model.state_dict(), options, tuple(dict.fromkeys(ignored)))


def _base(base: Any, path: str, where: str, known: tuple[str, ...]) -> None:
    if type(base).__name__ not in known:
        raise refuse(where, base, path, ", ".join(known))
    if base.temperature is not None:
        raise ConfigError(
            f"{path}: temperature is {base.temperature}: set it to None, and give it to `sample`",
            argument=where,
        )


def _vector_layer(layer: Any, path: str, where: str, found: Found, ignored: list[str]) -> None:
    name = type(layer).__name__
    if name == "MaskedAffineFlow":
        if not isinstance(layer.t, nn.Module):
            raise ConfigError(
                f"{path}: a MaskedAffineFlow without t is not supported; supported: t, or t and s",
                argument=where,
            )
        _perceptron(layer.t, f"{path}.t", where, found, ignored, None)
        if isinstance(layer.s, nn.Module):
            ends = found.setdefault("output_fn", [])
            _perceptron(layer.s, f"{path}.s", where, found, ignored, ends)
    elif name == "AffineCouplingBlock":
        _block(layer, path, where, found)
        _perceptron(layer.flows[1].param_map, f"{path}.flows.1.param_map", where, found, ignored, None)
    elif name == "LULinearPermute":
        found.setdefault("lu_eps", []).append(float(layer.linear.eps))
    elif name == "Permute":
        if layer.mode not in ("shuffle", "swap"):
            raise ConfigError(
                f"{path}: Permute of mode {layer.mode!r} is not supported; supported: shuffle, swap",
                argument=where,
            )
    elif name not in ELEMENTWISE:
        raise refuse(where, layer, path, SUPPORTED)


def _block(layer: Any, path: str, where: str, found: Found) -> None:
    """An AffineCouplingBlock."""
    split, coupling = layer.flows[0], layer.flows[1]
    if split.mode not in ("channel", "channel_inv"):
        raise ConfigError(
            f"{path}: split_mode {split.mode!r} is not supported; supported: channel, channel_inv",
            argument=where,
        )
    found.setdefault("split_mode", []).append(split.mode)
    if coupling.scale:
        found.setdefault("scale_map", []).append(coupling.scale_map)


def _perceptron(
    network: Any, path: str, where: str, found: Found, ignored: list[str], ends: list[Any] | None
) -> None:
    """ends: where the output function goes, None where there must be none."""
    if type(network).__name__ != "MLP":
        raise refuse(where, network, path, "MLP")
    layers = list(network.net)
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
    for layer in layers[:last]:
        if isinstance(layer, nn.LeakyReLU):
            found.setdefault("leaky", []).append(float(layer.negative_slope))
        elif isinstance(layer, nn.Dropout):
            ignored.append("dropout of the networks: has no effect when a flow is not trained")
        elif not isinstance(layer, nn.Linear):
            raise refuse(where, layer, path, "an MLP of Linear and LeakyReLU")
    tail = [type(layer).__name__ for layer in layers[last + 1 :]]
    functions = [name for name in tail if name != "ConstScaleLayer"]
    if functions not in ([], ["Tanh"]) or (ends is None and tail):
        raise ConfigError(
            f"{path}: an output_fn ({', '.join(tail)}) is not supported; supported: none, and tanh "
            "for the s of a MaskedAffineFlow",
            argument=where,
        )
    if ends is not None:
        ends.append("tanh" if functions else "none")


def _multiscale(model: Any, where: str, found: Found) -> dict[str, Any]:
    """A Glow; returns its options."""
    for i, base in enumerate(model.q0):
        _base(base, f"q0.{i}", where, ("DiagGaussian", "ClassCondDiagGaussian", "GlowBase"))
        if type(base).__name__ == "GlowBase":
            found.setdefault("logscale_factor", []).append(float(base.logscale_factor))
        if (
            type(base).__name__ != "DiagGaussian"
            and getattr(base, "num_classes", None)
            and not model.class_cond
        ):
            raise ConfigError(
                f"q0.{i} knows classes, but class_cond is false; supported: both, or neither", argument=where
            )
    for i, merge in enumerate(model.merges):
        if type(merge).__name__ != "Merge" or merge.mode != "channel":
            raise ConfigError(f"merges.{i}: only Merge('channel') is supported", argument=where)
    for i, level in enumerate(model.flows):
        for j, layer in enumerate(level):
            path = f"flows.{i}.{j}"
            wanted = "Squeeze" if j == len(level) - 1 else "GlowBlock"
            if type(layer).__name__ != wanted:
                raise refuse(where, layer, path, "GlowBlocks, then one Squeeze, in every level")
            if wanted == "GlowBlock":
                _glow_block(layer, path, where, found)
    last = model.q0[0].shape
    options: dict[str, Any] = {
        "height": int(last[1]) * 2 ** len(model.flows),
        "width": int(last[2]) * 2 ** len(model.flows),
        "transform": "none",
    }
    kind = type(model.transform).__name__
    if kind == "Logit":
        options |= {"transform": "logit", "alpha": scalar(model.transform.alpha)}
    elif kind == "Shift" and scalar(model.transform.shift) == -0.5:
        options["transform"] = "shift"
    elif model.transform is not None:
        raise ConfigError(
            f"transform: {kind} is not supported; supported: Logit, Shift(-0.5), none", argument=where
        )
    return options


def _glow_block(layer: Any, path: str, where: str, found: Found) -> None:
    names = [type(inner).__name__ for inner in layer.flows]
    if names != ["AffineCouplingBlock", "Invertible1x1Conv", "ActNorm"]:
        raise ConfigError(f"{path}: a GlowBlock of {', '.join(names)} is not supported", argument=where)
    _block(layer.flows[0], f"{path}.flows.0", where, found)
    network = layer.flows[0].flows[1].param_map
    if type(network).__name__ != "ConvNet2d":
        raise refuse(where, network, f"{path}.flows.0.flows.1.param_map", "ConvNet2d")
    for inner in network.net:
        if isinstance(inner, nn.LeakyReLU):
            found.setdefault("leaky", []).append(float(inner.negative_slope))
        elif not isinstance(inner, nn.Conv2d) and type(inner).__name__ != "ActNorm":
            raise refuse(where, inner, path, "ConvNet2d")
