"""Flows of normflows, converted: the same densities and samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.converters import build, from_module
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused

from .flow_cases import BATCH, TOLERANCE, agree, moved, ours

nf = pytest.importorskip("normflows")
pytestmark = pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
TANH = {"output_fn": "tanh", "output_scale": 1.5, "score_scale": 0.7}


def mlp(*widths: int, **options: Any) -> nn.Module:
    return nf.nets.MLP(list(widths), **options)


def masked(d: int, first: int = 0, scale: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    mask = (torch.arange(d) % 2 == first).float()
    s = None if scale is None else mlp(d, 8, 8, d, **scale, **options)
    return nf.flows.MaskedAffineFlow(mask, mlp(d, 8, 8, d, **options), s)


def block(d: int, scale_map: str = "exp", split: str = "channel", scale: bool = True) -> nn.Module:
    kept = (d + 1) // 2 if split == "channel" else d // 2
    network = mlp(kept, 8, (d - kept) * (1 + scale), leaky=0.1)
    return nf.flows.AffineCouplingBlock(network, scale, scale_map, split)


def normalizing(d: int, *layers: nn.Module, **options: Any) -> nn.Module:
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(d, **options), list(layers))


def between(d: int) -> list[nn.Module]:
    return [
        nf.flows.LULinearPermute(d, identity_init=False),
        nf.flows.Permute(d, "shuffle"),
        nf.flows.ActNorm(d),
        nf.flows.mixing.InvertibleAffine(d),
        nf.flows.Permute(d, "swap"),
        nf.flows.mixing.InvertibleAffine(d, use_lu=False),
        nf.flows.AffineConstFlow(d),
    ]


VECTORS: dict[str, Callable[[], nn.Module]] = {
    "RealNVP": lambda: normalizing(4, *(masked(4, i % 2, {}) for i in range(4))),
    "RealNVP, odd, tanh, ActNorm": lambda: normalizing(
        5, *(m for i in range(3) for m in (masked(5, i % 2, TANH, leaky=0.01), nf.flows.ActNorm(5)))
    ),
    "tanh alone": lambda: normalizing(3, masked(3, 0, {"output_fn": "tanh"}), trainable=False),
    "NICE": lambda: normalizing(3, masked(3, 0), masked(3, 1), trainable=False),
    "blocks and swaps": lambda: normalizing(
        2, *(m for _ in range(3) for m in (block(2), nf.flows.Permute(2, "swap")))
    ),
    "blocks, odd, sigmoid": lambda: normalizing(5, block(5, "sigmoid"), *between(5), block(5, "sigmoid")),
    "blocks, odd, sigmoid_inv, inverted": lambda: normalizing(
        5, *between(5), block(5, "sigmoid_inv", "channel_inv"), *between(5)
    ),
    "blocks, additive": lambda: normalizing(
        5, block(5, scale=False), nf.flows.Permute(5, "swap"), block(5, scale=False)
    ),
    "ClassCondFlow": lambda: nf.ClassCondFlow(
        nf.distributions.ClassCondDiagGaussian(3, 4), [masked(3, i % 2, {}) for i in range(2)]
    ),
}


def glow(
    levels: int = 2, steps: int = 2, base: str = "DiagGaussian", classes: int | None = None, transform: Any = None,
    channels: int = 3, side: int = 8, **options: Any,
) -> nn.Module:  # fmt: skip
    bases, flows, merges = [], [], []
    for i in range(levels):
        width = channels * 2 ** (levels + 1 - i)
        flows.append([nf.flows.GlowBlock(width, 6 + i, init_zeros=False, **options) for _ in range(steps)])
        flows[-1].append(nf.flows.Squeeze())
        latent = (width if i == 0 else width // 2, side // 2 ** (levels - i), side // 2 ** (levels - i))
        if i > 0:
            merges.append(nf.flows.Merge())
        if base == "DiagGaussian" or (base == "last class" and i > 0):
            bases.append(nf.distributions.DiagGaussian(latent))
        elif base == "GlowBase":
            bases.append(nf.distributions.GlowBase(latent, classes))
        elif base == "mixed" and i > 0:
            bases.append(nf.distributions.GlowBase(latent))
        else:
            bases.append(nf.distributions.ClassCondDiagGaussian(latent, classes or 3))
    known = base not in ("DiagGaussian", "GlowBase") or classes is not None
    return nf.MultiscaleFlow(bases, flows, merges, transform, class_cond=known)


GLOWS: dict[str, dict[str, Any]] = {
    "as published": {"scale_map": "sigmoid", "transform": nf.transforms.Logit(0.1)},
    "classes": {"base": "ClassCondDiagGaussian", "classes": 4, "scale_map": "exp", "leaky": 0.1},
    "GlowBase, classes": {"base": "GlowBase", "classes": 4, "split_mode": "channel_inv", "use_lu": False},
    "GlowBase": {
        "base": "GlowBase",
        "net_actnorm": True,
        "scale_map": "sigmoid_inv",
        "channels": 1,
        "levels": 1,
    },
    "mixed bases": {"base": "mixed", "classes": 3, "levels": 3, "steps": 1, "scale": False},
    "classes at the last": {"base": "last class", "classes": 3, "transform": nf.transforms.Shift()},
}


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = glow(**GLOWS[name]) if name in GLOWS else VECTORS[name]()
    for module in model.modules():
        if hasattr(module, "data_dep_init_done"):
            module.data_dep_init_done.fill_(1.0)
    # Less where many layers follow each other: what they lose to rounding grows with their scales.
    return moved(model, dtype, 0.05 if name in GLOWS else 0.2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_agree(name: str, dtype: torch.dtype) -> None:
    theirs = made(name, dtype)
    flow = ours(theirs, dtype)
    labels = torch.arange(BATCH) % flow.classes if flow.classes else None
    base = theirs.q0

    def sample(z: list[Tensor]) -> Tensor:
        if labels is None:
            x = base.loc + base.log_scale.exp() * z[0]
        else:
            x = base.loc.T[labels] + base.log_scale.T[labels].exp() * z[0]
        for layer in theirs.flows:
            x = layer(x)[0]
        return x

    def log_prob(x: Tensor) -> Tensor:
        return theirs.log_prob(x) if labels is None else theirs.log_prob(x, labels)

    agree(flow, dtype, sample, log_prob, labels)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", GLOWS)
def test_glows_agree(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = made(name, dtype)
    flow = ours(theirs, dtype)
    labels = torch.arange(BATCH) % flow.classes if flow.classes else None

    def sample(z: list[Tensor]) -> Tensor:
        """Their own sampling, with our noise in place of theirs: level 0 is our last scale."""
        left = list(reversed(z))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *args, **kwargs: left.pop(0))
            return theirs.sample(BATCH, labels)[0]

    agree(flow, dtype, sample, lambda x: theirs.log_prob(x.clone(), labels), labels, images=True)


def test_images_with_levels() -> None:
    engine = fastgen.load(made("as published"), device="cpu", assume={"levels": 256})
    assert engine.discrete
    assert engine.flow.config.alpha == 0.1
    report = engine.describe()["converted"]
    assert "levels = 256" in report["mapped"]
    assert engine.sample(2, seed=0).shape == (2, 3, 8, 8)
    assert engine.describe()["source"] == "module normflows.core.MultiscaleFlow"


@pytest.mark.parametrize("name", ["as published", "GlowBase", "GlowBase, classes"])
def test_a_glow_in_a_file(name: str, tmp_path: Path) -> None:
    theirs = made(name)
    torch.save(theirs.state_dict(), tmp_path / "glow.pt")
    options = {"as published": {"transform": "logit", "alpha": 0.1}, "GlowBase": {"scale_map": "sigmoid_inv"}}
    assume: dict[str, Any] = options.get(name, {"split_mode": "channel_inv"})
    if "GlowBase" in name:
        with refused(ConfigError, tmp_path / "glow.pt", "assume="):
            fastgen.load(tmp_path / "glow.pt", device="cpu", assume=assume)
        assume |= {"height": 8, "width": 8}
    engine = fastgen.load(tmp_path / "glow.pt", device="cpu", assume=assume)
    labels = torch.arange(BATCH) % 4 if engine.flow.classes else None
    x = torch.rand(BATCH, *engine.shape)
    want = theirs.log_prob(x, labels)
    torch.testing.assert_close(engine.log_prob(x, labels=labels), want, rtol=1e-5, atol=1e-5)


def test_swaps_in_a_file(tmp_path: Path) -> None:
    """They have no tensors; the last one leaves no gap."""
    theirs = made("blocks and swaps")
    torch.save(theirs.state_dict(), tmp_path / "flow.pt")
    options = {"scale_map": "exp", "leaky": 0.1}
    engine = fastgen.load(tmp_path / "flow.pt", device="cpu", assume=options)
    x = torch.randn(BATCH, 2)
    torch.testing.assert_close(engine.log_prob(x), theirs.log_prob(x), rtol=1e-5, atol=1e-5)
    assert (
        "flows.1, flows.3, flows.5: without tensors, so Permute('swap'); layers = 6 in all"
        in (engine.describe()["converted"]["assumed"])
    )
    fewer = fastgen.load(tmp_path / "flow.pt", device="cpu", assume={**options, "layers": 5})
    assert not torch.allclose(fewer.log_prob(x), theirs.log_prob(x))
    with refused(ConfigError, tmp_path / "flow.pt", "layers", "3", "4"):
        fastgen.load(tmp_path / "flow.pt", device="cpu", assume={"layers": 3})


def test_an_output_function_in_a_file(tmp_path: Path) -> None:
    theirs = made("RealNVP, odd, tanh, ActNorm")
    torch.save(theirs.state_dict(), tmp_path / "flow.pt")
    with refused(ConfigError, tmp_path / "flow.pt", "output_fn"):
        fastgen.load(tmp_path / "flow.pt", device="cpu")
    engine = fastgen.load(tmp_path / "flow.pt", device="cpu", assume={"output_fn": "tanh", "leaky": 0.01})
    x = torch.randn(BATCH, 5)
    torch.testing.assert_close(engine.log_prob(x), theirs.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "about"),
    [
        (lambda: [nf.flows.Planar((4,))], ("normflows.core.NormalizingFlow", "NormalizingFlow")),
        (
            lambda: [nf.flows.CoupledRationalQuadraticSpline(4, 1, 8)],
            ("normflows.core.NormalizingFlow", "CoupledRationalQuadraticSpline"),
        ),
        (
            lambda: [nf.flows.MaskedAffineFlow(torch.ones(4), None, mlp(4, 8, 4))],
            ("normflows.core.NormalizingFlow",),
        ),
        (lambda: [masked(4, 0, {"output_fn": "sigmoid"})], ("normflows.core.NormalizingFlow", "output_fn")),
        (
            lambda: [nf.flows.MaskedAffineFlow(torch.ones(4), mlp(4, 8, 4, output_fn="tanh"))],
            ("normflows.core.NormalizingFlow", "output_fn"),
        ),
        (
            lambda: [nf.flows.MaskedAffineFlow(torch.ones(4) / 2, mlp(4, 8, 4))],
            ("normflows.core.NormalizingFlow",),
        ),
        (
            lambda: [block(4), block(4, split="channel_inv")],
            ("normflows.core.NormalizingFlow", "split_mode", "channel"),
        ),
        (
            lambda: [nf.flows.MaskedAffineFlow(torch.ones(4), nn.Linear(4, 4))],
            ("normflows.core.NormalizingFlow", "flows.0.t"),
        ),
    ],
)
def test_vectors_refused(layers: Callable[[], list[nn.Module]], about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        from_module(normalizing(4, *layers()))


@pytest.mark.parametrize(
    ("change", "about"),
    [
        (
            lambda m: setattr(m, "transform", nf.transforms.Shift(0.1)),
            ("normflows.core.MultiscaleFlow",),
        ),
        (
            lambda m: m.flows[1].insert(0, nf.flows.Squeeze()),
            ("normflows.core.MultiscaleFlow", "flows.1.0", "GlowBlocks"),
        ),
        (lambda m: setattr(m.merges[0], "mode", "checkerboard"), ("normflows.core.MultiscaleFlow",)),
        (lambda m: setattr(m.q0[0], "temperature", 0.7), ("normflows.core.MultiscaleFlow", "0.7")),
    ],
)
def test_glows_refused(change: Callable[[Any], None], about: tuple[str | None, ...]) -> None:
    model = made("as published")
    change(model)
    with refused(ConfigError, *about):
        from_module(model)


def test_a_layer_far_beyond_the_others(tmp_path: Path) -> None:
    state = made("NICE").state_dict()
    torch.save({**state, "flows.99999.s": torch.zeros(1, 3)}, tmp_path / "flow.pt")
    with refused(ConfigError, tmp_path / "flow.pt", "flows.99999", "1024"):
        fastgen.load(tmp_path / "flow.pt", device="cpu")


def test_damaged_tensors(tmp_path: Path) -> None:
    state = made("as published").state_dict()
    for name, value, message in (
        ("flows.0.0.flows.1.log_S", torch.zeros(3), r"log_S has shape \[3\], expected \[24\]"),
        ("flows.0.0.flows.2.s", None, "flows.0.0.flows.2.s is missing"),
        ("flows.0.0.flows.3.s", torch.zeros(3), "the first is flows.0.0.flows.3.s"),
    ):
        changed = {k: v for k, v in {**state, name: value}.items() if v is not None}
        torch.save(changed, tmp_path / "glow.pt")
        with pytest.raises(CheckpointError, match=message):
            fastgen.load(tmp_path / "glow.pt", device="cpu")


def test_a_module_is_copied() -> None:
    theirs = made("RealNVP")
    (flow,) = build(from_module(theirs)).values()
    before = flow.log_prob(torch.zeros(1, 4)).clone()  # type: ignore[operator]
    for parameter in theirs.parameters():
        parameter.zero_()
    assert torch.equal(flow.log_prob(torch.zeros(1, 4)), before)  # type: ignore[operator]


def test_a_file_of_coupling_blocks_is_read_with_their_exponential(tmp_path: Path) -> None:
    """Whose default is not GlowBlock's: log-densities were nats off."""
    torch.manual_seed(0)
    layers = [block(4), nf.flows.Permute(4, "shuffle"), block(4)]
    theirs = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    path = tmp_path / "flow.pt"
    torch.save(theirs.state_dict(), path)
    engine = fastgen.load(path, device="cpu", dtype="float32", assume={"leaky": 0.1})
    x = torch.randn(64, 4)
    torch.testing.assert_close(engine.log_prob(x), theirs.log_prob(x).detach(), rtol=1e-5, atol=1e-5)
    assert any("AffineCouplingBlock" in line for line in engine.describe()["converted"]["assumed"])
