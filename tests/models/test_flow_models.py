"""Whole flows against what they claim: Jacobians, round trips, densities that integrate to one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastgen import checkpoint
from fastgen.architectures import ARCHITECTURES, builders
from fastgen.checkpoint import Part, Spec
from fastgen.config import from_dict, to_dict
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.glow import Glow, GlowConfig
from fastgen.models.flow.layers import ActNorm
from fastgen.models.flow.vector import VectorFlow, VectorFlowConfig
from tests.models.flow_models import CONFIGS, condition, data, flow, moved, noise
from tests.refusals import refused

NAMES = {
    "GlowConfig": "glow",
    "RealNVPConfig": "realnvp",
    "NICEConfig": "nice",
    "VectorFlowConfig": "vector_flow",
}


def flat(latents: list[Tensor]) -> Tensor:
    return torch.cat([z.flatten(1) for z in latents], dim=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_log_det_is_the_jacobians(name: str) -> None:
    net = flow(name)
    x = data(net, 1)
    label = condition(net, 1)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flat(net(v.view_as(x), label)[0])[0], x.flatten(), vectorize=True
    )
    want = torch.linalg.slogdet(jacobian).logabsdet
    assert net(x, label)[1].item() == pytest.approx(want.item(), abs=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_density_is_that_of_the_samples(name: str) -> None:
    """log p(x) of x = sample(noise) is log N(noise) - log |det dx / dnoise|: priors, half by half, included."""
    net = flow(name, 0.1)
    z = noise(net, 1)
    label = condition(net, 1)
    sizes = [part.numel() for part in z]

    def sample(v: Tensor) -> Tensor:
        parts = [part.view_as(like) for part, like in zip(v.split(sizes), z, strict=True)]
        return net.sample(parts, 1.0, label).flatten()

    v = flat(z)[0]
    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(sample, v, vectorize=True)).logabsdet
    want = (-0.5 * v.square() - 0.5 * math.log(2 * math.pi)).sum() - log_det
    got = net.log_prob(net.sample(z, 1.0, label), label)
    assert got.item() == pytest.approx(want.item(), rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name: str) -> None:
    net = flow(name)
    x, label = data(net, 3), condition(net, 3)
    latents, log_det = net(x, label)
    back, inverse_log_det = net.inverse(latents, label)
    assert [tuple(z.shape[1:]) for z in latents] == net.latent_shapes
    assert (back - x).abs().max() < 1e-12
    assert (log_det + inverse_log_det).abs().max() < 1e-11
    torch.testing.assert_close(
        net.log_prob(x, label), log_det + net.log_prior(latents, label), rtol=1e-12, atol=1e-10
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_samples_latents_are_drawn_from_the_priors(name: str) -> None:
    net = flow(name, 0.1)
    z, label = noise(net, 2), condition(net, 2)
    latents, kept, _ = net._analyse(net.sample(z, 0.7, label), label)
    for prior, latent, rest, given in zip(net.priors, latents, kept, z, strict=True):
        want = prior.draw(given, 0.7, rest, label)  # type: ignore[operator]
        torch.testing.assert_close(latent, want.expand_as(latent), rtol=0, atol=1e-9)  # logit: eps / alpha


@pytest.mark.parametrize("name", CONFIGS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    net = flow(name)
    x, label = data(net, 3), condition(net, 3)
    alone = net.log_prob(x[1:2], None if label is None else label[1:2])
    torch.testing.assert_close(net.log_prob(x, label)[1:2], alone, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", [n for n in CONFIGS if condition(flow(n), 1) is not None])
def test_the_condition_matters(name: str) -> None:
    net = flow(name)
    x = data(net, 1).expand(2, *net.data_shape)
    first, second = net.log_prob(x, condition(net, 2)).tolist()
    assert abs(first - second) > 1e-3


def test_temperature_zero_is_the_priors_mean() -> None:
    net = flow("glow, rosinality")
    (mean, _) = net.priors[-1].moments()
    latents, _ = net(net.sample(noise(net, 2), 0.0))
    # There and back through matrices whose condition numbers reach some hundreds.
    torch.testing.assert_close(latents[-1], mean.expand_as(latents[-1]), rtol=0, atol=1e-9)
    assert mean.abs().max() > 0.1


def test_a_plane_density_integrates_to_one() -> None:
    """On a grid over a square that holds all but 1e-8 of the mass."""
    config = VectorFlowConfig(
        features=2, layers=("lu", "coupling"), steps=4, linear_bias=True, hidden_features=(16,), act_fn="tanh"
    )
    torch.manual_seed(3)
    net = moved(VectorFlow(config).double().requires_grad_(False), 0.1)
    line = torch.linspace(-25.0, 25.0, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    mass = net.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)
    samples = net.sample([torch.randn(4000, 2, dtype=torch.float64)])
    assert (samples.abs() < 25).all()
    inside = (samples.abs() < 1).all(dim=1).double().mean()
    within = (grid.abs() < 1).all(dim=1)
    want = net.log_prob(grid[within]).exp().sum() * (line[1] - line[0]) ** 2
    # 5 standard deviations of a proportion, and the strip of one grid step around the square
    assert inside.item() == pytest.approx(want.item(), abs=5 * math.sqrt(0.25 / 4000) + 0.02)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_round_trip_of_a_deep_glow(dtype: torch.dtype, tolerance: float) -> None:
    config = GlowConfig(
        sample_size=(32, 32), in_channels=3, num_scales=3, steps_per_scale=8, hidden_channels=(24,)
    )
    torch.manual_seed(0)
    net = moved(Glow(config).requires_grad_(False), 0.02).to(dtype)
    x = data(net, 2).to(dtype)
    net.initialize(x)
    latents, log_det = net(x)
    assert log_det.dtype == dtype
    assert (log_det[0] - log_det[1]).abs() > 0.1  # the couplings do see the image
    assert (net.inverse(latents)[0] - x).abs().max() < tolerance


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_learns(name: str) -> None:
    net = flow(name).requires_grad_(True)
    k = (data(net, 4) * 255).floor()
    x, log_q = (
        (data(net, 4), torch.zeros(4)) if net.dequantiser is None else net.dequantiser(k, torch.randn_like(k))
    )
    (net.log_prob(x, condition(net, 4)) - log_q).mean().backward()
    without = [
        n
        for n, p in net.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    # The last scale's convolution sees zeros alone: its bias learns
    idle = [f"priors.{len(net.priors) - 1}.conv.conv.weight"] if "classes everywhere" in name else []
    assert without == idle


@pytest.mark.parametrize("name", ["glow, normflows", "realnvp", "vectors, everything between"])
def test_data_dependent_start(name: str) -> None:
    net = flow(name, 0.05)
    x, label = 3 + 2 * data(net, 64), condition(net, 64)
    if net.levels is not None:
        x = (x - 3) / 2
    outputs = {}
    layers = {n: m for n, m in net.named_modules() if isinstance(m, ActNorm)}
    net.initialize(x, label)
    for key, module in layers.items():
        module.register_forward_hook(lambda m, args, out, key=key: outputs.update({key: out}))
    net.log_prob(x, label)
    assert len(outputs) == len(layers) > 2
    for out in outputs.values():
        y = (out[0] if isinstance(out, tuple) else out).transpose(0, 1).flatten(1)
        std, mean = torch.std_mean(y, dim=1, correction=0)
        assert mean.abs().max() < 1e-9
        assert (std - 1).abs().max() < 1e-3  # 1e-6 / std beside it
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.initialize(data(net, 8, seed=9), condition(net, 8))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_the_state_stays_float32_where_networks_are_bfloat16() -> None:
    net = Glow(GlowConfig(sample_size=(8, 8), hidden_channels=(8,), num_scales=2)).requires_grad_(False)
    x = data(net, 2).bfloat16().float()
    moved(net, 0.02)
    want = net.log_prob(x)
    half = net.bfloat16()
    latents, log_det = half(x.bfloat16())
    assert log_det.dtype == torch.float32
    assert {z.dtype for z in latents} == {torch.float32}
    # A parameter keeps 8 bits, so each of 16 layers may be off by 2^-9 in the log of each of 192 elements' scale
    assert (half.log_prob(x) - want).abs().max() < 192 * 16 * 2.0**-9


def test_autocast_leaves_the_state_alone() -> None:
    net = flow("glow").float()
    x = data(net, 2).float()
    layer = net.scales[0][2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = layer(torch.rand(2, 4, 2, 2))
        total = net.log_prob(x)
    assert y.dtype == log_det.dtype == total.dtype == torch.float32
    inputs = torch.rand(2, 4, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(inputs)
    assert torch.equal(y, layer(inputs)[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_holds_all_of_it(name: str, tmp_path: Path) -> None:
    net = flow(name).float()
    config = CONFIGS[name]
    architecture = NAMES[type(config).__name__]
    assert from_dict(ARCHITECTURES[architecture].config, to_dict(config), "flow") == config
    spec = Spec("flow", {"flow": Part(architecture, to_dict(config))})
    checkpoint.save(tmp_path, spec, {f"flow.{k}": v for k, v in net.state_dict().items()})
    _, modules = checkpoint.load(tmp_path, builders)
    again = modules["flow"]
    assert isinstance(again, Flow)
    again.check()
    want = net.state_dict()
    assert all(torch.equal(value, want[key]) for key, value in again.state_dict().items())
    x, label = data(net, 2).float(), condition(net, 2)
    torch.testing.assert_close(again.log_prob(x, label), net.log_prob(x, label), rtol=1e-5, atol=1e-4)


def test_what_does_not_fit_is_refused_in_words() -> None:
    net = flow("glow, normflows")
    x = data(net, 2)
    with refused(ValueError, "x", "[B, 1, 4, 4]", "[2, 1, 4, 5]"):
        net.log_prob(torch.zeros(2, 1, 4, 5), torch.tensor([0, 1]))
    with refused(ValueError, "condition", "int64", "[2]"):
        net.log_prob(x)
    with refused(ValueError, "condition"):
        net.log_prob(x, torch.tensor([0, 3]))
    with refused(ValueError, "condition"):
        net.sample(noise(net, 2), 1.0, torch.tensor([0.0, 1.0]))
    with refused(ValueError, "latents or noise", "[B, 2, 2, 2]", "[B, 8, 1, 1]"):
        net.inverse(noise(net, 2)[:1], torch.tensor([0, 1]))
    with refused(ValueError, "x", "torch.uint8"):
        net.log_prob(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    with refused(ValueError, "condition"):
        flow("vectors").log_prob(torch.zeros(1, 5), torch.tensor([1]))
    with refused(ValueError, "condition", "[1, 2]", "[1, 3]"):
        flow("vectors, nflows with a context").log_prob(torch.zeros(1, 5), torch.zeros(1, 3))
