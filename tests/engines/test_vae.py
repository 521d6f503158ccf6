"""The VAE engine: its verbs against the reference network, seeds, bounds, pinned latents, the report, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.engines import VAEEngine
from fastgen.errors import ArgumentError, ConfigError
from fastgen_kernels import normals
from tests.models.vae_models import MODELS, filled, flat, hierarchical, vector
from tests.refusals import refused

EXACT = 1e-5  # float32 networks of a few layers, values of size 1


def engine(name: str, **options: Any) -> VAEEngine:
    return VAEEngine(MODELS[name](), device="cpu", **options)


def data(found: VAEEngine, count: int = 3) -> tuple[Tensor, Any]:
    """x on 256 levels, or of two, and labels where the model has classes."""
    generator = torch.Generator().manual_seed(1)
    labels = None if found.vae.classes is None else [k % found.vae.classes for k in range(count)]
    if not found.images:
        return 3 + torch.randn(count, *found.shape, generator=generator), labels
    assert found.vae.likelihood is not None
    levels = found.vae.likelihood.levels or 256
    k = torch.randint(levels, (count, *found.shape), generator=generator)
    return k * (2 / (levels - 1)) - 1, labels


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str) -> None:
    """encode, decode and reconstruct are the reference network's, in the engine's units."""
    found = engine(name)
    x, labels = data(found)
    exact = MODELS[name]().double()
    given = None if labels is None else torch.tensor(labels)
    wanted = exact.encode(exact.inward(x.double()), given)
    moments = found.encode(x, labels=labels)
    for q, p in zip(moments, wanted, strict=True):
        torch.testing.assert_close(q.mean.double(), p.mean, rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(q.log_var.double(), p.log_var, rtol=EXACT, atol=EXACT)
    images = exact.outward(exact.mean(exact.decode([p.mean for p in wanted], given)))
    decoded = found.decode([q.mean for q in moments], labels=labels)
    torch.testing.assert_close(decoded.double(), images, rtol=EXACT, atol=EXACT)
    shown = images.clamp(-1, 1) if found.images else images
    torch.testing.assert_close(found.reconstruct(x, labels=labels).double(), shown, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_verify(name: str, dtype: str) -> None:
    """Every verb and layer is within what rounding explains."""
    result = engine(name, dtype=dtype).verify()
    assert result.passed, str(result)
    assert {"decode", "sample", "log_likelihood", "log_weight"} <= {check.name for check in result.checks}


def test_verify_sees_a_wrong_network() -> None:
    """A fast network that computes something else does not pass."""
    found = engine("bernoulli")
    found.fused.decoder = filled(flat(), seed=1).decoder  # that of the reference stays
    wrong = {check.name for check in found.verify().checks if not check.passed}
    assert {"decode", "sample", "log_likelihood"} <= wrong


@pytest.mark.parametrize("name", ["logistic", "hierarchical", "vector"])
def test_samples_belong_to_their_seeds(name: str) -> None:
    """Whatever is drawn beside them, in turns of any size; and a request repeats them."""
    found, turns = engine(name), engine(name, max_batch=2)
    labels = None if found.vae.classes is None else [0, 1, 2, 3, 0]
    x = found.sample(5, seed=7, labels=labels)
    torch.testing.assert_close(turns.sample(5, seed=7, labels=labels), x, rtol=EXACT, atol=EXACT)
    alone = found.sample(seeds=[9], labels=None if labels is None else [2])
    torch.testing.assert_close(alone, x[2:3], rtol=EXACT, atol=EXACT)
    request = found.request(5, seed=7, labels=labels)
    assert torch.equal(found.draw(found.request(**request.to_dict())), x)
    assert not torch.equal(found.sample(5, seed=8, labels=labels), x)


def test_temperature() -> None:
    """0 is the mean of the prior; each group has its own."""
    found = engine("hierarchical")
    mean = found.sample(seeds=[1], temperature=0)
    assert torch.equal(mean, found.sample(seeds=[2], temperature=0))
    below = found.sample(seeds=[1], temperature=[0, 1, 1])
    assert not torch.equal(below, mean)
    assert not torch.equal(below, found.sample(seeds=[1], temperature=[1, 0, 0]))
    assert torch.equal(found.sample(seeds=[1], temperature=[1, 1, 1]), found.sample(seeds=[1]))


@pytest.mark.parametrize("name", ["hierarchical", "bernoulli"])
def test_pinned_latents(name: str) -> None:
    """What is given is taken, what is below is drawn given it; all of them pinned is `decode`."""
    found = engine(name)
    generator = torch.Generator().manual_seed(0)
    z = {g: torch.randn(2, *shape, generator=generator) for g, shape in enumerate(found.vae.latent_shapes)}
    every = found.sample(2, seed=0, latents=z)
    wanted = found.decode(list(z.values())).clamp(-1, 1)
    torch.testing.assert_close(every, wanted, rtol=EXACT, atol=EXACT)
    if name == "hierarchical":
        top = found.sample(2, seed=0, latents={0: z[0]})
        other = found.sample(2, seed=5, latents={0: z[0]})
        assert not torch.equal(top, other)  # the groups below are drawn
        below = found.sample(2, seed=0, latents={0: z[0]}, temperature=0)
        assert torch.equal(below, found.sample(2, seed=5, latents={0: z[0]}, temperature=0))
        one = found.sample(2, seed=0, latents={0: z[0][:1]})
        assert torch.equal(one[0], top[0])


@pytest.mark.parametrize("name", MODELS)
def test_bounds(name: str) -> None:
    """elbo, log_prob and bits_per_dim say the same of the same, and what kind of number it is."""
    found = engine(name)
    x, labels = data(found)
    parts = found.elbo(x, labels=labels, seed=3)
    torch.testing.assert_close(parts.values, parts.log_likelihood - parts.kl)
    assert parts.kind == "bound"
    one, many = (found.log_prob(x, k, labels=labels, seed=3) for k in (1, 40))
    assert (one.kind, many.kind) == ("bound", "importance-weighted bound")
    assert many.samples == 40
    bits = found.bits_per_dim(x, 1, labels=labels, seed=3)
    assert (bits.kind, bits.samples) == ("bound", 1)
    dimensions = math.prod(found.shape)
    said = found.vae.likelihood
    assert said is not None
    if said.discrete or said.levels is None:
        torch.testing.assert_close(bits.values, one.values / (-dimensions * math.log(2)))
    else:  # a density of dequantised images: near that of the levels times their distance
        by_density = math.log2(said.levels) - (one.values / math.log(2) + dimensions) / dimensions
        torch.testing.assert_close(bits.values, by_density, rtol=0.05, atol=0.05)
    # The analytic KL is the expectation of log q - log p: the same x often, each with a seed of its own.
    often = x[:1].repeat(200, *[1] * (x.dim() - 1))
    same = None if labels is None else labels[:1] * 200
    draws, elbos = found.log_prob(often, labels=same).values, found.elbo(often, labels=same).values
    error = 6 * float(draws.std() + elbos.std()) / len(draws) ** 0.5
    assert float(draws.mean()) == pytest.approx(float(elbos.mean()), abs=error)


def test_log_prob_is_the_importance_weighted_bound() -> None:
    """The mean of p(x, z) / q(z | x), by torch.distributions, of the draws that the engine makes of its seeds."""
    found = engine("logistic")
    x, labels = data(found)
    exact, k = MODELS["logistic"]().double(), 5
    terms = []
    for draw in range(k):
        noise = normals([3, 4, 5], draw, "initial", (3,)).double()
        walk = exact.infer(exact.inward(x.double()), [noise], torch.tensor(labels))
        said = exact.likelihood.log_prob(walk.output, exact.inward(x.double()))
        terms.append(said + walk.log_weight())
    wanted = torch.stack(terms).logsumexp(0) - math.log(k)
    got = found.log_prob(x, k, labels=labels, seed=3).values
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-3)


def test_the_report_names_collapsed_latents() -> None:
    """KL by latent is torch.distributions'; latents that the encoder leaves at the prior have collapsed."""
    vae = flat(likelihood="logistic")
    last = vae.encoder.rest[-1]
    with torch.no_grad():
        for row in (1, 4):  # of the second latent: mean and log-variance
            last.weight[row] = 0
            last.bias[row] = 0
    found = VAEEngine(vae, device="cpu")
    x, _ = data(found, 20)
    report = found.report(x)
    (q,) = found.encode(x)
    theirs = torch.distributions.Normal(q.mean, (0.5 * q.log_var).exp())
    wanted = torch.distributions.kl_divergence(theirs, torch.distributions.Normal(0.0, 1.0)).mean(0)
    for latent in report.latents:
        assert latent.kl == pytest.approx(float(wanted[latent.latent]), rel=1e-4, abs=1e-6)
    assert [latent.latent for latent in report.collapsed] == [1]
    assert report.total == pytest.approx(float(wanted.sum()), rel=1e-4)
    assert "collapsed (1 of 3): 1" in str(report)


def test_the_report_of_groups() -> None:
    """A hierarchical model's, by channel of each group; the draws above are those of the seed."""
    found = engine("hierarchical")
    x, _ = data(found, 6)
    report = found.report(x)
    assert [(v.group, v.latent) for v in report.latents] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert report.total == pytest.approx(float(found.elbo(x).kl.mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["logistic", "hierarchical"])
def test_interpolate_and_traverse(name: str) -> None:
    """Ends are reconstructions; a traversal changes one latent alone."""
    found = engine(name)
    x, labels = data(found, 2)
    label = None if labels is None else labels[:1]
    row = found.interpolate(x[:1], x[1:], 5, labels=label)
    assert row.shape == (5, *found.shape)
    torch.testing.assert_close(row[:1], found.reconstruct(x[:1], labels=label), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(row[-1:], found.reconstruct(x[1:], labels=label), rtol=EXACT, atol=EXACT)
    rows = found.traverse(0, x=x, steps=3, limit=2.0, labels=labels)
    means = [q.mean for q in found.encode(x, labels=labels)]
    means[0][:, 0] = 0.0
    middle = found.decode(means, labels=labels).clamp(-1, 1)
    torch.testing.assert_close(rows[1::3], middle, rtol=EXACT, atol=EXACT)
    alone = found.traverse(0, steps=4, labels=label)
    assert alone.shape == (4, *found.shape)
    assert not torch.equal(alone[0], alone[3])


def test_refusals() -> None:
    """Errors name the argument."""
    found = engine("logistic")
    x, labels = data(found)
    with refused(ConfigError, "labels"):
        found.encode(x)
    with refused(ConfigError, "x"):
        found.log_prob(x + 1e-2, labels=labels)  # between levels
    with refused(ConfigError, "x", [3, 1, 4, 4]):
        found.encode(x[:, :, :4, :4], labels=labels)
    with refused(ConfigError, "samples", 0):
        found.log_prob(x, 0, labels=labels)
    with refused(ConfigError, "temperature", 1):
        found.sample(2, labels=0, temperature=[1, 1])
    with refused(ConfigError, "dimension", 2):
        found.traverse(3, labels=0)
    with refused(ConfigError, "group"):
        found.traverse(0, group=1, labels=0)
    with refused(ConfigError, "latents"):
        found.sample(2, labels=0, latents={1: x})
    with refused(ConfigError, "latents[0]"):
        found.decode(torch.zeros(2, 4), labels=0)
    with refused(ConfigError, "b", 2):
        found.interpolate(x[:2], x[:1], labels=0)
    with refused(ArgumentError, "seed, seeds"):
        found.sample(2, seed=1, seeds=[1, 2], labels=0)
    grey = engine("bernoulli")
    with refused(ConfigError, "x"):
        grey.bits_per_dim(torch.zeros(1, 1, 8, 8))
    assert grey.elbo(torch.zeros(1, 1, 8, 8)).values.shape == (1,)  # a cross-entropy is had of any grey
    with refused(ConfigError, "output_type"):
        engine("vector").sample(2, output_type="pil")


def test_weights_that_change() -> None:
    """A change in place shows in the next call; likelihoods stay in float32 in an engine of bfloat16."""
    found = engine("gaussian", dtype="bfloat16")
    assert found.vae.likelihood.log_sigma.dtype == torch.float32
    assert found.vae.dtype == torch.bfloat16
    x, labels = data(found)
    before = found.elbo(x, labels=labels).values
    with torch.no_grad():
        found.vae.likelihood.log_sigma += 1
    assert not torch.equal(found.elbo(x, labels=labels).values, before)
    rows = VAEEngine(vector(), device="cpu", dtype="bfloat16")
    assert rows.vae.standardise.scale.dtype == torch.float32
    assert hierarchical().latent_shapes == ((2, 2, 2), (2, 2, 2), (1, 4, 4))
