"""MultiscaleFlow of normflows with GlowBlocks; its level N is our scale levels - 1 - N.

flows.N.M.flows.0.flows.1.param_map.net.*     the coupling's ConvNet2d
flows.N.M.flows.1.{P, L, U, log_S, sign_S}    the 1x1 convolution, or .W
flows.N.M.flows.2.{s, t, data_dep_init_done}  ActNorm
q0.N.*                                        DiagGaussian, ClassCondDiagGaussian or GlowBase
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastgen.config import from_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.flow.glow import GlowConfig

from ...base import Report
from ..source import Result, same, without
from ..state import State, most, permutation_of, precisely, set_flag
from .layers import layer_of
from .options import NormflowsOptions, activation, last_layer, maps


def read(state: State, options: NormflowsOptions, report: Report) -> Result:
    """The flow."""
    where = state.where
    scales = state.count("flows", most(GlowConfig, "num_scales"))
    limit = most(GlowConfig, "steps_per_scale")
    steps = same([state.count(f"flows.{i}", limit) for i in range(scales)], "the number of GlowBlocks", where)
    tensors: dict[str, Tensor] = {}
    kinds: list[tuple[Any, ...]] = []
    hidden = []
    for scale in range(scales):
        level = scales - 1 - scale
        widths = []
        for step in range(steps):
            theirs, at = f"flows.{level}.{steps - 1 - step}.flows", 1 + 3 * step
            if not state.has(f"{theirs}.0.flows.1.param_map.net.0.weight"):
                raise ConfigError(
                    f"flows.{level}.{steps - 1 - step}: {layer_of(state, theirs.removesuffix('.flows'))} is not "
                    "supported; supported: GlowBlocks, then a Squeeze, in every level",
                    argument=where,
                )
            ours = f"scales.{scale}"
            tensors |= _actnorm(state, f"{theirs}.2", f"{ours}.{at}")
            channels = len(tensors[f"{ours}.{at}.loc"])
            plain = state.has(f"{theirs}.1.W")
            tensors |= _linear(state, f"{theirs}.1", f"{ours}.{at + 1}", channels)
            found, width, kind = _network(
                state, f"{theirs}.0.flows.1.param_map.net", channels, options, f"{ours}.{at + 2}.network"
            )
            tensors |= found
            kinds.append((plain, *kind))
            widths.append(width)
        hidden.append(same(widths, "the networks' width", where))
    plain, affine, conv_actnorm = same(kinds, "the kind of GlowBlock", where)
    channels = len(tensors["scales.0.1.loc"])
    if channels % 4:
        raise CheckpointError(
            f"{channels} channels after the first Squeeze; expected a multiple of 4", argument=where
        )
    priors = [_prior(state, f"q0.{scales - 1 - i}", options) for i in range(scales)]
    values = {
        "sample_size": _size(state, priors, options, scales, report),
        "in_channels": channels // 4,
        "levels": options.levels or None,
        "preprocessing": {"none": "none", "logit": "logit", "shift": "centre"}[options.transform],
        "num_scales": scales,
        "steps_per_scale": steps,
        "linear": "plain" if plain else "lu",
        "changes": int(options.split_mode == "channel"),
        "hidden_channels": hidden[:1] if len(set(hidden)) == 1 else hidden,
        "conv_actnorm": conv_actnorm,
        "conv_scaled": False,
        **activation(options),
        **maps(options, affine),
        **_together(priors, tensors),
    }
    if options.transform == "logit":
        values["alpha"] = options.alpha
    else:
        without(options, report, f"the transform is {options.transform}", "alpha")
    if not affine:
        without(options, report, "the couplings are additive", "scale_map")
    if not any(state.has(f"q0.{i}.loc_logs") for i in range(scales)):
        without(options, report, "there is no GlowBase", "logscale_factor")
    without(options, report, "the flow is on images", "output_fn", "lu_eps", "layers")
    return Result("glow", from_dict(GlowConfig, values, where), tensors)


def _actnorm(state: State, theirs: str, ours: str) -> dict[str, Tensor]:
    """Theirs is, from data to latents, (x - t) exp(-s)."""
    log_scale, shift = (state.take(f"{theirs}.{name}", 1, None, 1, 1).flatten() for name in ("s", "t"))
    return {
        f"{ours}.loc": -shift,
        f"{ours}.scale": precisely(lambda s: torch.exp(-s), log_scale),
        f"{ours}.initialised": set_flag(state.take(f"{theirs}.data_dep_init_done")),
    }


def _linear(state: State, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    if state.has(f"{theirs}.W"):
        return {f"{ours}.weight": state.take(f"{theirs}.W", width, width)}
    state.drop(f"{theirs}.eye")
    return {
        f"{ours}.permutation": permutation_of(
            state.take(f"{theirs}.P", width, width), f"{state.where}: {theirs}.P"
        ),
        f"{ours}.lower": state.take(f"{theirs}.L", width, width),
        f"{ours}.upper": state.take(f"{theirs}.U", width, width),
        f"{ours}.log_s": state.take(f"{theirs}.log_S", width),
        f"{ours}.sign": state.take(f"{theirs}.sign_S", width),
    }


def _network(
    state: State, theirs: str, channels: int, options: NormflowsOptions, ours: str
) -> tuple[dict[str, Tensor], int, tuple[bool, bool]]:
    """A ConvNet2d's tensors, its width, and whether it is of an affine coupling and has ActNorms."""
    places = [n for n in state.numbers(theirs) if state.has(f"{theirs}.{n}.weight")]
    norms = [n for n in state.numbers(theirs) if state.has(f"{theirs}.{n}.actNorm.s")]
    if places != ([0, 3, 6] if norms else [0, 2, 4]):
        raise CheckpointError(f"{theirs}: not the three convolutions of a GlowBlock", argument=state.where)
    found: dict[str, Tensor] = {}
    names = ("first", "inner.2" if norms else "inner.1")
    for place, name in zip(places, names, strict=False):
        found[f"{ours}.{name}.weight"] = state.take(f"{theirs}.{place}.weight")
        if not norms:
            found[f"{ours}.{name}.bias"] = state.take(f"{theirs}.{place}.bias")
    for place, name in zip(norms, ("inner.0", "inner.3"), strict=False):  # theirs is x exp(s) + t
        log_scale, shift = (
            state.take(f"{theirs}.{place}.actNorm.{n}", 1, None, 1, 1).flatten() for n in ("s", "t")
        )
        found[f"{ours}.{name}.loc"] = precisely(lambda t, s: t * torch.exp(-s), shift, log_scale)
        found[f"{ours}.{name}.scale"] = precisely(torch.exp, log_scale)
        done = state.take(f"{theirs}.{place}.actNorm.data_dep_init_done")
        found[f"{ours}.{name}.initialised"] = set_flag(done)
    outputs = state.peek(f"{theirs}.{places[-1]}.weight").shape[0]
    affine = outputs == channels
    for part in ("weight", "bias"):
        value = state.take(f"{theirs}.{places[-1]}.{part}")
        found[f"{ours}.last.conv.{part}"] = last_layer(options, affine, value)
    return found, found[f"{ours}.first.weight"].shape[0], (affine, bool(norms))


def _prior(state: State, prefix: str, options: NormflowsOptions) -> tuple[Tensor, Tensor, bool]:
    """Mean and log standard deviation, [1 or classes, C, H, W] (1, 1 at the end: any size), if they know classes."""
    if not state.has(f"{prefix}.loc_logs"):
        loc, log_scale = state.take(f"{prefix}.loc"), state.take(f"{prefix}.log_scale")
        if loc.dim() != 4 or loc.shape != log_scale.shape:
            raise CheckpointError(
                f"{prefix}.loc: expected [1, C, H, W] or [C, H, W, classes]", argument=state.where
            )
        if loc.shape[0] == 1:
            return loc, log_scale, False
        return loc.permute(3, 0, 1, 2), log_scale.permute(3, 0, 1, 2), True
    found = []
    classes = state.has(f"{prefix}.loc_cc")
    for name in ("loc", "log_scale"):
        value, logs = (state.take(f"{prefix}.{name}{end}", 1, None, 1, 1) for end in ("", "_logs"))
        scaled = precisely(lambda v, s: v * torch.exp(s * options.logscale_factor), value, logs)
        if classes:
            scaled = scaled + state.take(f"{prefix}.{name}_cc", None, value.shape[1])[:, :, None, None]
        found.append(scaled)
    return found[0], found[1], classes


def _size(
    state: State,
    priors: list[tuple[Tensor, Tensor, bool]],
    options: NormflowsOptions,
    scales: int,
    report: Report,
) -> list[int]:
    """Height and width of the images: as a prior has it for each element, or as the options say."""
    given = [options.height, options.width]
    for i, (mean, _, _) in enumerate(priors):
        if mean.shape[2:] != (1, 1) or not state.has(f"q0.{scales - 1 - i}.loc_logs"):
            found = [side * 2 ** (i + 1) for side in mean.shape[2:]]
            if any(given) and given != found:
                raise ConfigError(
                    f"height, width: the priors are for {found}, got {given}", argument=state.where
                )
            if not any(given):
                without(options, report, "the priors say it", "height", "width")
            return found
    if not all(given):
        raise ConfigError(
            "GlowBase does not say how large the images are: give "
            "assume={'height': 32, 'width': 32} (--assume height=32 --assume width=32)",
            argument=state.where,
        )
    return given


def _together(priors: list[tuple[Tensor, Tensor, bool]], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Adds the priors' tensors, all of one form, the smallest that holds them; returns the options of that form."""
    counts = {mean.shape[0] for mean, _, classes in priors if classes}
    if not counts and all(bool((mean == 0).all() and (log_std == 0).all()) for mean, log_std, _ in priors):
        return {"prior": "standard"}
    if len(counts) > 1:
        raise CheckpointError(f"priors of {sorted(counts)} classes", argument="q0")
    count = next(iter(counts), None)
    last_only = count is not None and not any(classes for _, _, classes in priors[:-1])
    # Height and width of scale i, of a prior for each element; those for each channel are spread over the image.
    known = next(
        ((i, prior[0].shape[2:]) for i, prior in enumerate(priors) if prior[0].shape[2:] != (1, 1)), None
    )
    for i, pair in enumerate(priors):
        rows = count if count is not None and (i == len(priors) - 1 or not last_only) else 1
        for name, value in zip(("mean", "log_std"), pair[:2], strict=True):
            spread = [1, 1] if known is None else [side * 2 ** known[0] // 2**i for side in known[1]]
            tensors[f"priors.{i}.{name}"] = value.expand(rows, -1, *spread).contiguous()
    found: dict[str, Any] = {"prior": "channel" if known is None else "element"}
    if count is not None:
        found |= {"num_classes": count, "class_priors": "last" if last_only else "all"}
    return found
