"""What the tensors of normflows do not say, and what its couplings' options are in our terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastgen.config import bounded, one_of

from ..assumed import Assumed, Table

OWN = "own"
SCALE_MAPS = {  # where their callers say nothing
    "AffineCouplingBlock": Assumed("exp", ("normflows.flows.AffineCouplingBlock:scale_map",)),
    "GlowBlock": Assumed("sigmoid", ("normflows.flows.GlowBlock:scale_map",)),
}
# The other options of its classes; each is one for all classes that have it.
ASSUMED: Table = {
    "split_mode": Assumed(
        "channel", ("normflows.flows.AffineCouplingBlock:split_mode", "normflows.flows.GlowBlock:split_mode")
    ),
    "leaky": Assumed(
        0.0, ("normflows.nets.MLP:leaky", "normflows.nets.ConvNet2d:leaky", "normflows.flows.GlowBlock:leaky")
    ),
    "output_fn": Assumed("none", ("normflows.nets.MLP:output_fn",), theirs=None),
    "lu_eps": Assumed(1e-3, ("normflows.flows.mixing._LULinear:eps",)),
    "transform": Assumed("none", ("normflows.MultiscaleFlow:transform",), theirs=None),
    "alpha": Assumed(0.05, ("normflows.transforms.Logit:alpha",)),
    "logscale_factor": Assumed(3.0, ("normflows.distributions.GlowBase:logscale_factor",)),
}


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
    split_mode: str = one_of("channel", "channel_inv", default=ASSUMED["split_mode"].value)
    leaky: float = bounded(0.0, 1.0, default=ASSUMED["leaky"].value)
    output_fn: str = one_of("none", "tanh", default=ASSUMED["output_fn"].value)
    lu_eps: float = bounded(0.0, 1.0, default=ASSUMED["lu_eps"].value)
    layers: int = bounded(0, 4096, default=0)
    transform: str = one_of("none", "logit", "shift", default=ASSUMED["transform"].value)
    alpha: float = bounded(1e-7, 0.49, default=ASSUMED["alpha"].value)
    logscale_factor: float = bounded(0.0, 100.0, default=ASSUMED["logscale_factor"].value)
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
