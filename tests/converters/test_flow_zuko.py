"""Flows of zuko, converted: the same densities and samples."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastgen
from fastgen.converters import CONVERTERS, detect, from_module
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused

from .flow_cases import BATCH, TOLERANCE, agree, moved, ours

zuko = pytest.importorskip("zuko")
affine, additive = zuko.transforms.MonotonicAffineTransform, zuko.transforms.AdditiveTransform
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "RealNVP": (zuko.flows.RealNVP, {"features": 4}),
    "odd, with a context": (zuko.flows.RealNVP, {"features": 5, "context": 3, "hidden_features": (8,)}),
    "two features, one transform": (zuko.flows.NICE, {"features": 2, "transforms": 1, "activation": nn.ELU}),
    "random masks": (zuko.flows.RealNVP, {"features": 7, "randmask": True, "transforms": 4, "context": 2}),
    "additive": (
        zuko.flows.NICE,
        {"features": 5, "univariate": additive, "shapes": [()], "activation": nn.SiLU},
    ),
    "additive, random masks": (
        zuko.flows.NICE,
        {"features": 5, "univariate": additive, "shapes": [()], "randmask": True},
    ),
    "another slope": (
        zuko.flows.RealNVP,
        {"features": 3, "univariate": functools.partial(affine, slope=0.1), "activation": nn.Tanh},
    ),
    "leaky": (
        zuko.flows.RealNVP,
        {"features": 3, "hidden_features": (6, 5, 4), "activation": functools.partial(nn.LeakyReLU, 0.2)},
    ),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    kind, options = CASES[name]
    return moved(kind(**options), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str, dtype: torch.dtype) -> None:
    theirs = made(name, dtype)
    flow = ours(theirs, dtype)
    width = CASES[name][1].get("context", 0)
    context = torch.randn(BATCH, width, dtype=dtype) if width else None
    distribution = theirs(context)
    agree(flow, dtype, lambda z: distribution.transform.inv(z[0]), distribution.log_prob, context)


def test_a_base_that_is_not_standard() -> None:
    theirs = made("RealNVP", torch.float64)
    theirs.base.loc.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
    theirs.base.scale.copy_(torch.tensor([0.5, 1.0, 3.0, 2.0]))
    flow = ours(theirs, torch.float64)
    base, distribution = theirs.base(), theirs()
    agree(
        flow,
        torch.float64,
        lambda z: distribution.transform.inv(base.base_dist.loc + base.base_dist.scale * z[0]),
        distribution.log_prob,
    )


def test_a_file_says_as_much_where_its_options_are_given(tmp_path: Path) -> None:
    theirs = made("another slope")
    torch.save(theirs.state_dict(), tmp_path / "flow.pt")
    converter = detect(tmp_path / "flow.pt")
    assert converter is CONVERTERS["zuko"]
    options = {"slope": 0.1, "activation": "tanh"}
    engine = fastgen.load(tmp_path / "flow.pt", device="cpu", assume=options)
    x = torch.randn(BATCH, 3)
    want = theirs().log_prob(x)
    torch.testing.assert_close(engine.log_prob(x), want, rtol=1e-5, atol=1e-5)
    report = engine.describe()["converted"]
    assert report["mapped"] == ["activation = tanh", "slope = 0.1"]
    assert "assumed" not in report
    assumed = fastgen.load(tmp_path / "flow.pt", device="cpu")
    assert not torch.allclose(assumed.log_prob(x), want)
    lines = assumed.describe()["converted"]["assumed"]
    assert [line.split(";")[0] for line in lines] == ["activation = relu", "slope = 0.001"]
    assert "--assume slope=..." in lines[1]


def test_networks_without_biases(tmp_path: Path) -> None:
    """All layers of a network, or none; a file cannot say that none was lost."""
    torch.manual_seed(0)
    theirs = moved(zuko.flows.RealNVP(4, transforms=2, hidden_features=(6,), bias=False), torch.float64)
    flow = ours(theirs, torch.float64)
    agree(flow, torch.float64, lambda z: theirs().transform.inv(z[0]), theirs().log_prob)
    assert not any("bias" in line for line in from_module(theirs).report.assumed)
    torch.save(theirs.state_dict(), tmp_path / "flow.pt")
    assumed = CONVERTERS["zuko"].read(tmp_path / "flow.pt", None, {}).report.assumed
    assert sum("no layer has a bias" in line for line in assumed) == 2


@pytest.mark.parametrize(
    ("assume", "about"),
    [
        ({"slope": 2.0}, ("assume: slope", "30", "0.999", "2.0")),
        ({"slop": 0.1}, ("assume", "leaky_slope")),
        ({"slope": 0.5}, ("assume", "0.001")),
    ],
)
def test_options_are_checked(assume: dict[str, Any], about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        from_module(made("RealNVP"), assume)


@pytest.mark.parametrize(
    ("flow", "about"),
    [
        (
            lambda: zuko.flows.NSF(3),
            ("zuko.flows.spline.NSF", "MaskedAutoregressiveTransform"),
        ),
        (
            lambda: zuko.flows.RealNVP(
                3, univariate=zuko.transforms.MonotonicRQSTransform, shapes=[(8,), (8,), (7,)]
            ),
            ("zuko.flows.coupling.RealNVP", "MonotonicRQSTransform"),
        ),
        (
            lambda: zuko.flows.RealNVP(3, normalize=True),
            ("zuko.flows.coupling.RealNVP: transform.transforms.0.hyper.2", "LayerNorm"),
        ),
        (
            lambda: zuko.flows.RealNVP(3, activation=functools.partial(nn.ELU, alpha=0.5)),
            ("zuko.flows.coupling.RealNVP: transform.transforms.0.hyper.1", "alpha=0.5"),
        ),
        (
            lambda: zuko.lazy.Flow(
                zuko.flows.RealNVP(3).transform,
                zuko.lazy.UnconditionalDistribution(
                    zuko.distributions.BoxUniform, -torch.ones(3), torch.ones(3)
                ),
            ),
            ("zuko.lazy.Flow", "DiagNormal"),
        ),
    ],
)
def test_refused(flow: Any, about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        from_module(flow())


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    state = made("RealNVP").state_dict()
    for name, value, message in (
        ("transform.transforms.1.mask", torch.ones(9), r"mask has shape \[9\], expected \[4\]"),
        ("transform.transforms.0.hyper.4.weight", torch.ones(9, 64), "bias has shape"),
        (
            "surprise",
            torch.ones(1),
            "1 tensors belong to layers that are not supported, the first is surprise",
        ),
    ):
        torch.save({**state, name: value}, tmp_path / "flow.pt")
        with pytest.raises((CheckpointError, ConfigError), match=message):
            fastgen.load(tmp_path / "flow.pt", device="cpu")
