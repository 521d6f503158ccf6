"""VAEs against torch.distributions, and their likelihoods against what they say they are."""

from __future__ import annotations

import pytest
import torch
from torch import distributions

from fastgen.errors import ConfigError
from fastgen.models.vae.convolutional import ConvolutionalVAEConfig, Told
from fastgen.models.vae.hierarchical import HierarchicalVAEConfig
from fastgen.models.vae.likelihoods import Bernoulli, Gaussian, Logistic
from fastgen.models.vae.vae import VAE, Normal, kl
from tests.models.vae_models import MODELS
from tests.refusals import refused

ROUNDING = 1e-11  # of sums of some hundred float64 terms of size 1 to 100


def normals(*shape: int, seed: int = 0) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    return Normal(*(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)))


def theirs(normal: Normal) -> distributions.Normal:
    return distributions.Normal(normal.mean, (0.5 * normal.log_var).exp())


def test_kl_terms() -> None:
    """Equal to torch.distributions', element by element."""
    q, p = normals(4, 6), normals(4, 6, seed=1)
    wanted = distributions.kl_divergence(theirs(q), theirs(p))
    torch.testing.assert_close(kl(q, p), wanted, rtol=ROUNDING, atol=ROUNDING)


def test_log_densities() -> None:
    """Of latents."""
    q, z = normals(4, 6), normals(4, 6, seed=1).mean
    torch.testing.assert_close(q.log_prob(z), theirs(q).log_prob(z).sum(1), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("sigma", ["fixed", "shared", "learned"])
def test_gaussian(sigma: str) -> None:
    """The normal density, its sigma as the options say."""
    said = Gaussian(sigma, 0.3, None).double()
    output, x = normals(4, 6)
    mean, log_sigma = said.split(output)
    if sigma == "fixed":
        torch.testing.assert_close(log_sigma.exp(), torch.tensor(0.3, dtype=torch.float64), rtol=0, atol=1e-7)
    if sigma == "learned":
        assert mean.shape == log_sigma.shape == (4, 3)
        x = x[:, :3]
    wanted = distributions.Normal(mean, log_sigma.exp()).log_prob(x).sum(1)
    torch.testing.assert_close(said.log_prob(output, x), wanted, rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(said.mean(output), mean)


def test_bernoulli() -> None:
    """Of black and white pixels."""
    output = normals(4, 6).mean
    x = (normals(4, 6, seed=1).mean > 0).double()
    wanted = distributions.Bernoulli(logits=output).log_prob(x).sum(1)
    torch.testing.assert_close(Bernoulli().log_prob(output, x), wanted, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_logistic(levels: int) -> None:
    """Probabilities of levels are differences of the logistic's distribution function, and add up to 1."""
    said = Logistic("learned", 0.1, levels)
    output = normals(3, 2).mean  # of one element a sample: its mean and its scale
    x = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    mean, log_scale = said.split(output)
    found = torch.stack([said.log_prob(output, value.expand(3, 1)) for value in x], dim=1)
    edges = torch.cat([torch.tensor([-torch.inf]), (x[1:] + x[:-1]) / 2, torch.tensor([torch.inf])])
    distribution = torch.sigmoid((edges.double() - mean) / log_scale.exp())
    torch.testing.assert_close(found.exp(), distribution.diff(dim=1), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_walks(name: str) -> None:
    """What `infer` finds by torch.distributions; and that encode, decode and generate walk the same way."""
    vae: VAE = MODELS[name]().double()
    generator = torch.Generator().manual_seed(0)
    x = vae.inward(torch.randn(3, *vae.data_shape, generator=generator, dtype=torch.float64))
    label = None if vae.classes is None else torch.tensor([0, 3, 1])
    noise = [torch.randn(3, *s, generator=generator, dtype=torch.float64) for s in vae.latent_shapes]
    found = vae.infer(x, noise, label)
    weight, divergence = torch.zeros(3).double(), torch.zeros(3).double()
    for z, q, p, n in zip(found.latents, found.posteriors, found.priors, noise, strict=True):
        torch.testing.assert_close(z, theirs(q).mean + theirs(q).stddev * n)
        weight += (theirs(p).log_prob(z) - theirs(q).log_prob(z)).flatten(1).sum(1)
        divergence += distributions.kl_divergence(theirs(q), theirs(p)).flatten(1).sum(1)
    torch.testing.assert_close(found.log_weight(), weight, rtol=ROUNDING, atol=ROUNDING)
    total = torch.stack([value.flatten(1).sum(1) for value in found.kl()]).sum(0)
    torch.testing.assert_close(total, divergence, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(vae.decode(found.latents, label), found.output)
    latents, output = vae.generate(3, lambda group, prior: found.latents[group], label)
    torch.testing.assert_close(output, found.output)
    means = vae.infer(x, None, label)
    for q, again in zip(means.posteriors, vae.encode(x, label), strict=True):
        torch.testing.assert_close(q, again)
    priors: list[Normal] = []
    vae.generate(3, lambda group, prior: priors.append(prior) or found.latents[group], label)
    for p, again in zip(found.priors, priors, strict=True):
        torch.testing.assert_close(p, again)
    assert len(latents) == vae.groups


@pytest.mark.parametrize("name", MODELS)
def test_units(name: str) -> None:
    """`outward` undoes `inward`, whose slope `log_slope` says."""
    vae: VAE = MODELS[name]().double()
    x = torch.randn(2, *vae.data_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(vae.outward(vae.inward(x)), x)
    jacobian = torch.autograd.functional.jacobian(lambda v: vae.inward(v[None])[0].flatten(), x[0])
    slope = jacobian.reshape(x[0].numel(), -1).diagonal().abs().log().sum()
    assert float(vae.log_slope()) == pytest.approx(float(slope), rel=1e-12)


def test_the_latents_of_a_level_depend_on_those_above() -> None:
    """A prior is a function of the groups above, and of no others."""
    vae = MODELS["hierarchical"]().double()
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(1, *s, generator=generator, dtype=torch.float64) for s in vae.latent_shapes]
    for changed in range(vae.groups):
        other = [value + (group == changed) for group, value in enumerate(z)]
        seen: list[list[Normal]] = [[], []]
        for kept, given in zip(seen, (z, other), strict=True):
            vae.generate(1, lambda g, p, kept=kept, given=given: kept.append(p) or given[g])
        same = [torch.equal(a.mean, b.mean) for a, b in zip(*seen, strict=True)]
        assert same == [group <= changed for group in range(vae.groups)]


def test_configurations_that_do_not_fit() -> None:
    """Images that cannot be halved so often; levels without numbers of their own."""
    with refused(ConfigError, "sample_size", 8):
        ConvolutionalVAEConfig(sample_size=(28, 28))
    with refused(ConfigError, "channels"):
        ConvolutionalVAEConfig(channels=())
    with refused(ConfigError, "latents", 2):
        HierarchicalVAEConfig(latents=(1, 2, 3))


def test_a_label_scales_and_shifts() -> None:
    torch.manual_seed(0)
    layer = Told(3, 5, 4).double()
    x, label = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    assert layer.embed is not None
    scale, shift = layer.embed.weight[label, :5], layer.embed.weight[label, 5:]
    torch.testing.assert_close(layer(x, label), layer.linear(x) * scale + shift, rtol=0, atol=1e-12)
    torch.testing.assert_close(Told(3, 5, None).double()(x).shape, layer(x, label).shape)
