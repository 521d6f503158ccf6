"""Files of flows with layers that have no counterpart: the message names the layer, by its class and its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastgen
from fastgen.errors import ConfigError
from tests.refusals import refused

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.lu is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.qr is deprecated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
]
D = 4
# {class: how to make one}; arguments are the package's modules.
NORMFLOWS: dict[str, Callable[[Any], Any]] = {
    "Planar": lambda nf: nf.flows.Planar((D,)),
    "Radial": lambda nf: nf.flows.Radial((D,)),
    "CoupledRationalQuadraticSpline": lambda nf: nf.flows.CoupledRationalQuadraticSpline(D, 1, 8),
    "AutoregressiveRationalQuadraticSpline": lambda nf: nf.flows.AutoregressiveRationalQuadraticSpline(D, 1, 8),
    "CircularCoupledRationalQuadraticSpline": lambda nf: nf.flows.CircularCoupledRationalQuadraticSpline(D, 1, 8, [0]),
    "CircularAutoregressiveRationalQuadraticSpline": (
        lambda nf: nf.flows.CircularAutoregressiveRationalQuadraticSpline(D, 1, 8, [0])
    ),
    "Residual": lambda nf: nf.flows.Residual(nf.nets.LipschitzMLP([D, 8, D], init_zeros=True)),
    "MaskedAffineAutoregressive": lambda nf: nf.flows.MaskedAffineAutoregressive(D, 8),
    "CCAffineConst": lambda nf: nf.flows.CCAffineConst(D, 3),
    "BatchNorm": lambda nf: nf.flows.BatchNorm(),
    "Reverse": lambda nf: nf.flows.Reverse(nf.flows.Planar((D,))),
    "Composite": lambda nf: nf.flows.Composite([nf.flows.Planar((D,))]),
    "AffineCoupling": lambda nf: nf.flows.AffineCoupling(nf.nets.MLP([2, 8, 4])),
    "HamiltonianMonteCarlo": (
        lambda nf: nf.flows.HamiltonianMonteCarlo(nf.distributions.TwoMoons(), 2, torch.zeros(D), torch.zeros(D))
    ),
    "MetropolisHastings": (
        lambda nf: nf.flows.MetropolisHastings(
            nf.distributions.TwoMoons(), nf.distributions.DiagGaussianProposal((D,), 0.1), 2
        )
    ),
}  # fmt: skip
SUPPORTED = {
    "ActNorm", "AffineConstFlow", "AffineCouplingBlock", "GlowBlock", "InvertibleAffine", "LULinearPermute",
    "MaskedAffineFlow", "Merge", "Permute", "Squeeze",
}  # fmt: skip
# Their tensors say nothing: without any, they are taken for Permute("swap"), which the report says; of images alone.
UNTOLD = {"Flow", "PeriodicShift", "PeriodicWrap", "Split", "Invertible1x1Conv"}
NFLOWS: dict[str, Callable[[Any], Any]] = {
    "MaskedAffineAutoregressiveTransform": lambda t: t.MaskedAffineAutoregressiveTransform(D, 8),
    "SVDLinear": lambda t: t.SVDLinear(D, 2),
    "QRLinear": lambda t: t.QRLinear(D, 2),
    "HouseholderSequence": lambda t: t.HouseholderSequence(D, 2),
    "OneByOneConvolution": lambda t: t.OneByOneConvolution(D),
    "InverseTransform": lambda t: t.InverseTransform(t.ActNorm(D)),
    "piecewise": lambda t: t.PiecewiseRationalQuadraticCDF([D]),
}
ZUKO: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "NSF": (lambda z: z.flows.NSF(3), ("transform.transforms.0", "MaskedAutoregressiveTransform")),
    "MAF": (lambda z: z.flows.MAF(3), ("transform.transforms.0", "MaskedAutoregressiveTransform")),
    "NAF": (lambda z: z.flows.NAF(3), ("transform.transforms.0", "MaskedAutoregressiveTransform")),
    "GF": (lambda z: z.flows.GF(3), ("transform.transforms.0", "ElementWiseTransform")),
    "CNF": (lambda z: z.flows.CNF(3), ("transform", "FFJTransform")),
    "NICE of splines": (
        lambda z: z.flows.NICE(3, univariate=z.transforms.MonotonicRQSTransform, shapes=[(8,), (8,), (7,)]),
        ("transform.transforms.0", "splines"),
    ),
    "RealNVP with LayerNorm": (
        lambda z: z.flows.RealNVP(3, normalize=True),
        ("transform.transforms.0.hyper", "LayerNorm", "normalize=True"),
    ),
}


def saved(module: nn.Module, path: Path) -> Path:
    torch.save({"state_dict": module.state_dict()}, path / "flow.pt")
    return path / "flow.pt"


@pytest.mark.parametrize("name", NORMFLOWS)
def test_layers_of_normflows(name: str, tmp_path: Path) -> None:
    nf = pytest.importorskip("normflows")
    usual = nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0, 1, 0]), nf.nets.MLP([D, 8, D]))
    for at, layers in enumerate(([NORMFLOWS[name](nf), usual], [usual, NORMFLOWS[name](nf)])):
        path = saved(nf.NormalizingFlow(nf.distributions.DiagGaussian(D), layers), tmp_path)
        with refused(ConfigError, path, f"flows.{at}: ", name):
            fastgen.load(path, device="cpu")


def test_every_class_of_normflows_is_supported_or_named() -> None:
    nf = pytest.importorskip("normflows")
    classes = {name for name in dir(nf.flows) if isinstance(getattr(nf.flows, name), type)}
    assert classes == {*NORMFLOWS, *SUPPORTED, *UNTOLD}


def test_a_mask_alone_is_no_masked_flow_of_another_kind(tmp_path: Path) -> None:
    """Planar has a tensor b, too."""
    nf = pytest.importorskip("normflows")
    path = saved(nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [nf.flows.Planar((2,))]), tmp_path)
    with refused(ConfigError, path, "Planar") as caught:
        fastgen.load(path, device="cpu")
    assert "flows.0.b" not in str(caught.value)


def test_a_glow_of_other_blocks(tmp_path: Path) -> None:
    nf = pytest.importorskip("normflows")
    flows = [[nf.flows.AffineConstFlow((12, 1, 1)), nf.flows.Squeeze()]]
    path = saved(nf.MultiscaleFlow([nf.distributions.DiagGaussian((12, 4, 4))], flows, []), tmp_path)
    with refused(ConfigError, path, "flows.0.0", "GlowBlock"):
        fastgen.load(path, device="cpu")


@pytest.mark.parametrize("name", NFLOWS)
def test_layers_of_nflows(name: str, tmp_path: Path) -> None:
    pytest.importorskip("nflows")
    from nflows import distributions, flows, transforms

    chain = transforms.CompositeTransform([NFLOWS[name](transforms), transforms.LULinear(D)])
    path = saved(flows.Flow(chain, distributions.StandardNormal([D])), tmp_path)
    with refused(ConfigError, path, "_transform._transforms.0", name):
        fastgen.load(path, device="cpu")


def test_a_piecewise_coupling_of_nflows(tmp_path: Path) -> None:
    pytest.importorskip("nflows")
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    layer = transforms.PiecewiseRationalQuadraticCouplingTransform(
        [1, 0, 1, 0], lambda i, o: ResidualNet(i, o, hidden_features=8), tails="linear"
    )
    path = saved(flows.Flow(layer, distributions.StandardNormal([D])), tmp_path)
    with refused(ConfigError, path, "_transform", "splines", "AffineCouplingTransform"):
        fastgen.load(path, device="cpu")


@pytest.mark.parametrize("name", ZUKO)
def test_flows_of_zuko(name: str, tmp_path: Path) -> None:
    zuko = pytest.importorskip("zuko")
    make, mentions = ZUKO[name]
    path = saved(make(zuko), tmp_path)
    with refused(ConfigError, path, *mentions):
        fastgen.load(path, device="cpu")
