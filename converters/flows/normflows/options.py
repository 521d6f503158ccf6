"""What the tensors of normflows do not say, and what its couplings' options are in our terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastgen.config import bounded, one_of

OWN = "own"
SCALE_MAPS = {"AffineCouplingBlock": "exp", "GlowBlock": "sigmoid"}  # where their callers say nothing


@dataclass(frozen=True)
class NormflowsOptions:
    """Its own names, but for the last three.

    scale_map, split_mode: of AffineCouplingBlock and GlowBlock; "own" is the class's default. leaky: slope of the
    networks below 0. output_fn: of MaskedAffineFlow's s. lu_eps: of LULinearPermute.
    layers: of a flow on vectors, those without tensors (Permute("swap")) counted; 0: those that have tensors, and one
    swap more if there is one after every coupling before.
    transform: of a MultiscaleFlow, none, logit (with alpha) or shift by -1/2. logscale_factor: of GlowBase.
    height, width: of images, where GlowBase has no place for them. levels: of images in [0, 1] that shall be
    dequantised, such as 256; 0: x is any real numbers.
    """

    scale_map: str = one_of(OWN, "exp", "sigmoid", "sigmoid_inv", default=OWN)
    split_mode: str = one_of("channel", "channel_inv", default="channel")
    leaky: float = bounded(0.0, 1.0, default=0.0)
    output_fn: str = one_of("none", "tanh", default="none")
    lu_eps: float = bounded(0.0, 1.0, default=1e-3)
    layers: int = bounded(0, 4096, default=0)
    transform: str = one_of("none", "logit", "shift", default="none")
    alpha: float = bounded(1e-7, 0.49, default=0.05)
    logscale_factor: float = bounded(0.0, 100.0, default=3.0)
    height: int = bounded(0, 4096, default=0)
    width: int = bounded(0, 4096, default=0)
    levels: int = bounded(0, 65_536, default=0)


def maps(options: NormflowsOptions, affine: bool) -> dict[str, Any]:
    """Our coupling's options for one of AffineCoupling's."""
    if not affine:
        return {"scale": "additive", "reverse": True}
    both = {"scale": options.scale_map.removesuffix("_inv"), "parameters": "shift_scale_interleaved"}
    # Theirs with "sigmoid", from data to latents: (x - t) sigmoid(s + 2). The last layer's t changes its sign.
    return {**both, "shift_first": True} if options.scale_map == "sigmoid" else {**both, "reverse": True}


def last_layer(options: NormflowsOptions, affine: bool, values: Tensor) -> Tensor:
    """Weight or bias of a coupling network's last layer."""
    if not affine or options.scale_map != "sigmoid":
        return values
    values = values.clone()
    values[0::2] = -values[0::2]
    return values


def activation(options: NormflowsOptions) -> dict[str, Any]:
    """Our names of LeakyReLU(leaky)."""
    if options.leaky == 0:
        return {"act_fn": "relu"}
    return {"act_fn": "leaky_relu", "leaky_slope": options.leaky}
