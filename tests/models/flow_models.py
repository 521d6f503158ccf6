"""Small flows that tests share: one of each kind, with weights that are not the start's."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.models.flow.flow import Flow
from fastgen.models.flow.glow import Glow, GlowConfig
from fastgen.models.flow.nice import NICE, NICEConfig
from fastgen.models.flow.realnvp import RealNVP, RealNVPConfig
from fastgen.models.flow.vector import VectorFlow, VectorFlowConfig

IMAGE = {"sample_size": (4, 4), "in_channels": 1, "hidden_channels": (6,)}
GLOW = IMAGE | {"num_scales": 2, "steps_per_scale": 2}
REALNVP = IMAGE | {"blocks": 1}
VECTOR = {"features": 5, "hidden_features": (8,), "steps": 3, "act_fn": "silu"}

CONFIGS = {
    "glow": GlowConfig(**GLOW),
    "glow, rosinality": GlowConfig(
        **GLOW, shift_first=True, prior="conv", prior_border=1.0, conv_border=1.0, linear="plain"
    ),
    "glow, normflows": GlowConfig(
        **GLOW,
        shift_first=True,
        parameters="shift_scale_interleaved",
        changes=0,
        conv_scaled=False,
        conv_actnorm=True,
        act_fn="leaky_relu",
        leaky_slope=0.1,
        prior="channel",
        num_classes=3,
        class_priors="all",
        preprocessing="logit",
    ),
    "glow, classes everywhere": GlowConfig(
        **GLOW,
        scale="exp",
        reverse=True,
        linear="shuffle",
        prior="conv",
        num_classes=3,
        class_couplings=True,
        squeeze_order="pixel_major",
    ),
    "glow, additive": GlowConfig(**GLOW, scale="additive", linear="reverse", prior="element", levels=None),
    "glow, odd halves": GlowConfig(**GLOW | {"in_channels": 3, "sample_size": (2, 4), "num_scales": 1}),
    "realnvp": RealNVPConfig(**REALNVP, checkerboard=(1, 1), channelwise=(2, 0)),
    "realnvp, UvA simple": RealNVPConfig(
        **REALNVP,
        network="gated",
        actnorm=False,
        shift_first=True,
        checkerboard=(3,),
        channelwise=(0,),
        alpha=5e-6,
    ),
    "realnvp, UvA multi-scale": RealNVPConfig(
        **REALNVP,
        network="gated",
        actnorm=False,
        shift_first=True,
        checkerboard=(2, 0),
        channelwise=(2, 2),
        channel_split="mask",
        dequantisation="variational",
        dequantisation_channels=4,
    ),
    "realnvp, three-channel convolutions": RealNVPConfig(
        **IMAGE | {"in_channels": 3, "sample_size": (2, 4)},
        network="conv",
        checkerboard=(1, 1),
        channelwise=(1, 0),
        scale="soft_clip",
        rescale=False,
        prior="logistic",
    ),
    "nice": NICEConfig(sample_size=(3, 3), hidden_features=(8, 8)),
    "nice, normal prior": NICEConfig(
        sample_size=(2, 3), hidden_features=(8,), preprocessing="logit", prior="standard", changes=0
    ),
    "vectors": VectorFlowConfig(**VECTOR, standardise=True),
    "vectors, everything between": VectorFlowConfig(
        **VECTOR,
        layers=("actnorm", "lu", "coupling", "shuffle", "plain", "reverse", "swap"),
        linear_bias=True,
        split="half",
        scale="tanh",
        rescale=True,
        bound=1.5,
    ),
    "vectors, nflows with a context": VectorFlowConfig(
        **VECTOR,
        network="residual",
        context_features=2,
        scale="sigmoid",
        scale_eps=1e-3,
        parameters="shift_scale",
    ),
    "vectors, normflows with classes": VectorFlowConfig(
        **VECTOR,
        split="mask",
        random_masks=True,
        separate_networks=True,
        scale="exp",
        reverse=True,
        num_classes=3,
        prior="learned",
        class_priors=True,
    ),
}
KINDS = {GlowConfig: Glow, RealNVPConfig: RealNVP, NICEConfig: NICE, VectorFlowConfig: VectorFlow}


def flow(name: str, noise: float = 0.2) -> Flow:
    """The flow of CONFIGS[name] in float64; every parameter is moved by `noise` times a normal number."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    net = KINDS[type(config)](config).double().requires_grad_(False).eval()
    return moved(net, noise)


def moved(net: Flow, noise: float) -> Flow:
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_((noise * step).to(parameter.dtype))
    return net


def data(net: Flow, batch: int, seed: int = 0) -> Tensor:
    """float64 [batch, *data_shape] in (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *net.data_shape, generator=generator, dtype=torch.float64)


def noise(net: Flow, batch: int, seed: int = 0) -> list[Tensor]:
    """Standard normal numbers for `Flow.sample`, float64."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in net.latent_shapes
    ]


def condition(net: Flow, batch: int) -> Tensor | None:
    """Labels or a context, as the flow asks for."""
    if net.classes is not None:
        return torch.arange(batch) % net.classes
    if net.context:
        generator = torch.Generator().manual_seed(2)
        return torch.randn(batch, net.context, generator=generator, dtype=torch.float64)
    return None
