"""Flows of nflows, converted: the same densities and samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastgen
from fastgen.converters import from_module
from fastgen.errors import CheckpointError, ConfigError

from .flow_cases import BATCH, TOLERANCE, agree, moved, ours

pytest.importorskip("nflows")
from nflows import distributions, flows, transforms
from nflows.nn.nets import MLP, ResidualNet

from tests.refusals import refused

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated"),
    pytest.mark.filterwarnings("ignore:Use PointwiseAffineTransform"),
    pytest.mark.filterwarnings("ignore:torch.qr is deprecated"),
]


def coupling(mask: list[int], additive: bool = False, net: Any = ResidualNet, **options: Any) -> nn.Module:
    options = {"hidden_features": 8, "num_blocks": 2, **options}
    kind = transforms.AdditiveCouplingTransform if additive else transforms.AffineCouplingTransform
    return kind(mask, lambda i, o: net(i, o, **options))


def flow(*layers: nn.Module, d: int = 5, base: nn.Module | None = None, **options: Any) -> nn.Module:
    chain = transforms.CompositeTransform(list(layers))
    return flows.Flow(chain, base or distributions.StandardNormal([d]), **options)


def between(d: int) -> list[nn.Module]:
    """Everything that is not a coupling."""
    norm = transforms.BatchNorm(d)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return [
        transforms.ActNorm(d),
        transforms.LULinear(d, identity_init=False),
        transforms.RandomPermutation(d),
        transforms.CompositeTransform([norm, transforms.IdentityTransform()]),
        transforms.ReversePermutation(d),
        transforms.PointwiseAffineTransform(shift=torch.randn(d), scale=torch.rand(d) + 0.5),
        transforms.AffineTransform(shift=0.5, scale=2.0),
    ]


CASES: dict[str, Callable[[], nn.Module]] = {
    "SimpleRealNVP": lambda: flows.SimpleRealNVP(4, 8, 3, 2, batch_norm_between_layers=False),
    "volume-preserving, odd": lambda: flows.SimpleRealNVP(5, 8, 2, 1, use_volume_preserving=True),
    "between couplings": lambda: flow(
        coupling([1, 1, 0, 0, 0]),
        *between(5),
        coupling([0, 1, 1, 0, 1]),
        *between(5),
        coupling([1, 0, 0, 0, 0]),
    ),
    "context": lambda: flow(
        coupling([-1, 1, -1, 1, -1], context_features=3, activation=F.elu),
        transforms.LULinear(5),
        coupling([-1, 1, -1, 1, -1], context_features=3, activation=F.elu),
    ),
    "additive, context, any masks": lambda: flow(
        coupling([1, 1, 0, 0, 0], True, context_features=1, activation=torch.tanh),
        coupling([1, 0, 0, 1, 0], True, context_features=1, activation=torch.tanh),
    ),
    "one transform, a learned base": lambda: flows.Flow(
        coupling([0, 0, 0, 1, 1]), distributions.DiagonalNormal([5])
    ),
    "no coupling": lambda: flow(*between(3), d=3),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return moved(CASES[name](), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str, dtype: torch.dtype) -> None:
    theirs = made(name, dtype)
    converted = ours(theirs, dtype)
    context = torch.randn(BATCH, converted.context, dtype=dtype) if converted.context else None
    base = theirs._distribution
    learned = type(base).__name__ == "DiagonalNormal"

    def sample(z: list[torch.Tensor]) -> torch.Tensor:
        latent = base.mean_ + base.log_std_.exp() * z[0] if learned else z[0]
        return theirs._transform.inverse(latent, context)[0]

    agree(converted, dtype, sample, lambda x: theirs.log_prob(x, context), context)


def test_naive_linear() -> None:
    """Its inverse needs torch.solve, which PyTorch no longer has: log_prob alone."""
    torch.manual_seed(0)
    theirs = moved(flow(transforms.NaiveLinear(5), coupling([1, 0, 1, 0, 1])), torch.float64)
    x = torch.randn(BATCH, 5, dtype=torch.float64)
    torch.testing.assert_close(
        ours(theirs, torch.float64).log_prob(x), theirs.log_prob(x), rtol=1e-10, atol=1e-10
    )


def test_a_file(tmp_path: Path) -> None:
    theirs = made("context")
    torch.save(theirs.state_dict(), tmp_path / "flow.pth")
    report = fastgen.convert(tmp_path / "flow.pth", tmp_path / "ours", assume={"activation": "elu"})
    assert report.mapped == ["activation = elu"]
    assert [line.split(";")[0] for line in report.assumed] == [
        "lu_eps = 0.001",
        "scale_activation = sigmoid(x + 2) + 0.001, the default",
    ]
    engine = fastgen.load(tmp_path / "ours", device="cpu")
    x, context = torch.randn(BATCH, 5), torch.randn(BATCH, 3)
    torch.testing.assert_close(
        engine.log_prob(x, context=context), theirs.log_prob(x, context), rtol=1e-5, atol=1e-5
    )


def test_a_layer_without_tensors_in_a_file(tmp_path: Path) -> None:
    torch.save(
        flow(coupling([1, 0, 1, 0, 1]), transforms.Tanh(), transforms.ActNorm(5)).state_dict(),
        tmp_path / "f.pt",
    )
    with refused(ConfigError, tmp_path / "f.pt", "_transforms.1"):
        fastgen.load(tmp_path / "f.pt")


def test_dropout_is_reported() -> None:
    theirs = flow(coupling([1, 0, 1, 0, 1], dropout_probability=0.1))
    assert from_module(theirs).report.ignored == [
        "dropout of the networks: has no effect when a flow is not trained"
    ]


@pytest.mark.parametrize(
    ("layers", "about"),
    [
        ([transforms.Tanh()], ("nflows.flows.base.Flow", "CompositeTransform")),
        (
            [transforms.MaskedAffineAutoregressiveTransform(5, 8)],
            ("nflows.flows.base.Flow", "MaskedAffineAutoregressiveTransform"),
        ),
        (
            [coupling([1, 0, 1, 0, 1], use_batch_norm=True)],
            ("nflows.flows.base.Flow: _transform._transforms.0", "use_batch_norm"),
        ),
        (
            [coupling([1, 0, 1, 0, 1], activation=torch.sin)],
            ("nflows.flows.base.Flow: _transform._transforms.0: transform_net.blocks.0",),
        ),
        ([transforms.RandomPermutation(5, dim=2)], ("nflows.flows.base.Flow", "RandomPermutation")),
        (
            [transforms.AffineCouplingTransform([1, 0, 1], lambda i, o: MLP([i], [o], [8]))],
            ("nflows.flows.base.Flow: _transform._transforms.0", "transform_net", "ResidualNet"),
        ),
        (
            [coupling([1, 0, 1, 0, 1]), coupling([1, 0, 1, 0, 1], hidden_features=9)],
            ("nflows.flows.base.Flow",),
        ),
        ([coupling([1, 0, 1, 0, 1]), coupling([1, 0, 1, 0, 1], True)], ("nflows.flows.base.Flow",)),
        (
            [transforms.LULinear(5), transforms.LULinear(5, eps=0.1)],
            ("nflows.flows.base.Flow", "lu_eps", "0.001", "0.1"),
        ),
    ],
)
def test_refused(layers: list[nn.Module], about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        from_module(flow(*layers))


def test_another_scale_is_refused() -> None:
    """nflows 0.14 has one; after it, couplings take a function, whose default is the same."""
    theirs = flow(coupling([1, 0, 1, 0, 1]))
    layer = theirs._transform._transforms[0]
    layer.scale_activation = lambda x: torch.sigmoid(x + 2) + 1e-3
    assert not any("scale_activation" in line for line in from_module(theirs).report.assumed)
    layer.scale_activation = lambda x: (F.softplus(x) + 1e-3).clamp(0, 3)
    with refused(ConfigError, "nflows.flows.base.Flow: _transform._transforms.0", "scale_activation"):
        from_module(theirs)
    theirs = flow(coupling([1, 0, 1, 0, 1], additive=True))
    theirs._transform._transforms[0].scale_activation = torch.exp  # of no effect
    from_module(theirs)


def test_refused_around_the_layers() -> None:
    layer = transforms.ActNorm(5)
    with refused(ConfigError, "nflows.flows.base.Flow", "embedding_net"):
        from_module(flow(layer, embedding_net=nn.Linear(3, 3)))
    with refused(ConfigError, "nflows.flows.base.Flow", "ConditionalDiagonalNormal"):
        from_module(flow(layer, base=distributions.ConditionalDiagonalNormal([5])))


def test_damaged_tensors(tmp_path: Path) -> None:
    state = made("SimpleRealNVP").state_dict()
    place = "_transform._transforms.0"
    for change, message in (
        ({f"{place}.identity_features": torch.tensor([1, 1])}, "its features are not 0 to 3, each once"),
        ({f"{place}.transform_net.final_layer.weight": torch.ones(7, 8)}, "bias has shape"),
    ):
        torch.save({**state, **change}, tmp_path / "flow.pt")
        with pytest.raises((CheckpointError, ConfigError), match=message):
            fastgen.load(tmp_path / "flow.pt")
