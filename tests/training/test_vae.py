"""Losses of VAEs against closed forms, and what training with them comes to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.cli import main
from fastgen.engines import VAEEngine
from fastgen.errors import ConfigError
from fastgen.models.vae.convolutional import ConvolutionalVAE, ConvolutionalVAEConfig
from fastgen.models.vae.vae import VAE, Normal
from fastgen.models.vae.vector import VectorVAE, VectorVAEConfig
from fastgen.training import data
from fastgen.training.arrays import Arrays
from fastgen.training.objective import Step
from fastgen.training.settings import RunConfig
from fastgen.training.tables import Rows
from fastgen.training.vae import TotalCorrelation, VariationalConfig, moved, variational
from tests.models.vae_models import flat, hierarchical
from tests.refusals import refused

ROUNDING = 1e-10  # of float64 sums of some hundred terms of size 1 to 100


def step(x: Tensor, number: int = 0, label: Tensor | None = None) -> Step:
    return Step(x, label, torch.Generator().manual_seed(number), RunConfig(precision="fp32"), number=number)


def trained(
    vae: VAE, config: VariationalConfig, dataset: Any, steps: int, lr: float = 1e-2, batch: int = 64
) -> VAE:
    """`vae` after so many steps of Adam, its learning rate going down to 0."""
    objective = variational(vae, config, dataset)
    objective.start(nn.ModuleDict({"vae": vae}), dataset, step(dataset.batch([0, 1]).x))
    optimiser = torch.optim.Adam(vae.parameters(), lr)
    order = torch.Generator().manual_seed(0)
    for number in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - number / steps)
        found = dataset.batch(torch.randint(len(dataset), (batch,), generator=order).tolist())
        optimiser.zero_grad()
        objective.loss(vae, step(objective.inputs(found.x), number, found.label)).backward()
        optimiser.step()
    return vae.eval()


def digits() -> Any:
    return data.load("digits")


def test_the_parts_of_the_kl() -> None:
    """Mutual information, total correlation and dimension-wise KL add up to the mean of log q(z | x) - log p(z)."""
    generator = torch.Generator().manual_seed(0)
    z, mean, log_var = (torch.randn(7, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    parts = TotalCorrelation([z], [Normal(mean, log_var)], 100)
    whole = Normal(mean, log_var).log_prob(z) - Normal(torch.zeros_like(z), torch.zeros_like(z)).log_prob(z)
    total = parts.mutual_information + parts.total_correlation + parts.dimension_wise
    assert float(total) == pytest.approx(float(whole.mean()), rel=ROUNDING)


def test_total_correlation_of_independent_latents_is_zero() -> None:
    """Posteriors whose means are a grid: q(z) is a product. The batch is all of the data, so that q(z) is exact but for
    the estimate's constant, log N in each of the D + 1 densities (Chen et al. 2018, appendix C.1)."""
    axis = torch.linspace(-2, 2, 4, dtype=torch.float64)
    mean = torch.cartesian_prod(axis, axis, axis)
    posterior = Normal(mean, torch.full_like(mean, -1.0))
    z = posterior.sample(
        torch.randn(mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    count, dimensions = mean.shape
    found = TotalCorrelation([z], [posterior], count).total_correlation
    assert float(found) == pytest.approx((dimensions - 1) * math.log(count), rel=ROUNDING)


def test_total_correlation_of_correlated_latents() -> None:
    """Means that are normal with covariance S, posteriors of variance v: q(z) is N(0, S + v), whose total correlation
    is -log det(correlations) / 2. By a batch of 2,000, whose sampling error six standard errors bound."""
    generator = torch.Generator().manual_seed(0)
    count, covariance = 2000, torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)
    mean = torch.randn(count, 2, generator=generator, dtype=torch.float64) @ factor.T
    posterior = Normal(mean, torch.full_like(mean, math.log(0.25)))
    z = posterior.sample(torch.randn(mean.shape, generator=generator, dtype=torch.float64))
    found = float(TotalCorrelation([z], [posterior], count).total_correlation) - math.log(count)
    assert found == pytest.approx(-0.5 * math.log(1 - (0.8 / 1.25) ** 2), abs=6 / count**0.5)


def test_elbo_is_the_engines() -> None:
    """Bits/dim of the loss are those of the engine's bound, in the mean over many draws."""
    images = torch.randint(256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for kind in ("logistic", "gaussian"):
        vae = flat(likelihood=kind)
        many = images.expand(400, -1, -1, -1)
        objective = variational(vae, VariationalConfig(), Arrays(many))
        assert objective.unit == "bits/dim"
        with torch.no_grad():
            losses = torch.stack([objective.loss(vae, step(many, number)) for number in range(8)])
        bound = VAEEngine(flat(likelihood=kind), device="cpu").bits_per_dim(many, 1)
        error = 6 * (bound.standard_error + float(losses.std()) / len(losses) ** 0.5)
        assert float(losses.mean()) == pytest.approx(bound.mean, abs=error)


def test_images_are_moved() -> None:
    """By every number of pixels up to `shift` along both axes, the border repeated; the loss is of moved images."""
    grid = torch.arange(48, dtype=torch.uint8).view(1, 2, 4, 6)
    wide = torch.nn.functional.pad(grid.float(), (1, 1, 1, 1), mode="replicate").byte()
    places = {wide[0, :, i : i + 4, j : j + 6].numpy().tobytes() for i in range(3) for j in range(3)}
    by = torch.randint(-1, 2, (200, 2), generator=torch.Generator().manual_seed(0))
    found = moved(grid.expand(200, -1, -1, -1), by)
    assert found.shape == (200, 2, 4, 6)
    assert {image.numpy().tobytes() for image in found.contiguous()} == places
    batch = digits().batch(range(4)).x
    vae = flat()
    still, shifted = (
        variational(vae, VariationalConfig(shift=shift), digits()).loss(vae, step(batch)) for shift in (0, 1)
    )
    assert float(still.detach()) != float(shifted.detach())


def test_beta_and_annealing_weigh_the_kl() -> None:
    """The loss is linear in beta and in the annealed weight; step k of n has k / n."""
    dataset = digits()
    x = dataset.batch(range(16)).x

    def loss(number: int = 0, **options: Any) -> float:
        vae = flat(likelihood="logistic")
        with torch.no_grad():
            found = Step(
                x, None, torch.Generator().manual_seed(0), RunConfig(precision="fp32"), number=number
            )
            return float(variational(vae, VariationalConfig(**options), dataset).loss(vae, found))

    without, once = loss(loss="beta", beta=0.0), loss()
    assert loss(loss="beta", beta=3.0) == pytest.approx(without + 3 * (once - without), rel=1e-5)
    assert loss(number=2, anneal=6) == pytest.approx(without + 0.5 * (once - without), rel=1e-5)
    assert loss(number=6, anneal=6) == pytest.approx(once, rel=1e-6)
    # As many nats as no latent has: the KL is that constant.
    free = loss(free_bits=100.0)
    assert free == pytest.approx(without + 3 * 100 / (64 * math.log(2)), rel=1e-5)


def ppca(rows: np.ndarray, latents: int) -> float:
    """The largest mean log-likelihood of probabilistic PCA (Tipping & Bishop 1999, equations 3, 7 and 8)."""
    dimensions = rows.shape[1]
    covariance = np.cov(rows.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[latents:].mean()
    weights = vectors[:, :latents] * np.sqrt(values[:latents] - noise)
    model = weights @ weights.T + noise * np.eye(dimensions)
    _, log_det = np.linalg.slogdet(model)
    fit = np.trace(np.linalg.solve(model, covariance))
    return float(-0.5 * (dimensions * np.log(2 * np.pi) + log_det + fit))


def linear_rows() -> np.ndarray:
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((2, 5)) * np.array([[2.0], [1.0]])
    values = generator.standard_normal((500, 2)) @ factors + 0.5 * generator.standard_normal((500, 5)) + 1.0
    return values.astype(np.float32)


def linear_vae() -> VectorVAE:
    torch.manual_seed(0)
    return VectorVAE(VectorVAEConfig(features=5, latents=2, hidden=(), standardise=False))


# Of a normal log-likelihood: the last steps, of a small learning rate, leave it this far below its maximum, and the
# estimate of the ELBO below, by one draw of z for each of 500 rows 40 times, has a standard error of 0.005.
NATS = 0.05


@pytest.mark.slow
def test_a_linear_vae_reaches_probabilistic_pca() -> None:
    """The trained ELBO comes to the closed form of the likelihood: a linear VAE's posteriors are exact."""
    rows = linear_rows()
    vae = trained(linear_vae(), VariationalConfig(), Rows(torch.from_numpy(rows)), 2500, lr=2e-2, batch=250)
    engine = VAEEngine(vae, device="cpu")
    x = torch.from_numpy(rows)
    wanted = ppca(rows, 2)
    found = sum(float(engine.elbo(x, seed=1000 * k).values.mean()) for k in range(40)) / 40
    assert found <= wanted + 0.02  # no bound exceeds the maximum, but for its sampling error
    assert found == pytest.approx(wanted, abs=NATS)
    assert engine.log_prob(x, 64).mean == pytest.approx(wanted, abs=NATS)


def test_the_bound_of_an_exact_posterior_is_the_likelihood() -> None:
    """With probabilistic PCA's own posterior every single draw gives log p(x); with a wrong one the importance-weighted
    bound rises with the number of draws, to it."""
    rows = linear_rows()[:200]
    vae = linear_vae()
    encoder: Any = vae.encoder.first.linear
    decoder: Any = vae.decoder.first.linear
    said: Any = vae.likelihood
    with torch.no_grad():
        weights, noise = decoder.weight.double(), math.exp(2 * float(said.split(torch.zeros(1, 5))[1]))
        # A posterior with a covariance that is diagonal: columns of the weights that are orthogonal.
        weights, _ = torch.linalg.qr(weights)
        weights = weights * torch.tensor([2.0, 1.0], dtype=torch.float64)
        decoder.weight.copy_(weights)
        inner = weights.T @ weights + noise * torch.eye(2, dtype=torch.float64)
        encoder.weight[:2] = torch.linalg.solve(inner, weights.T)
        encoder.bias[:2] = -encoder.weight[:2].double().mv(decoder.bias.double())
        encoder.weight[2:] = 0
        encoder.bias[2:] = (noise / inner.diagonal()).log()
    x = torch.from_numpy(rows)
    covariance = weights @ weights.T + noise * torch.eye(5, dtype=torch.float64)
    centre = decoder.bias.detach().double()
    truth = torch.distributions.MultivariateNormal(centre, covariance).log_prob(x.double())
    exact = VAEEngine(vae, device="cpu").log_prob(x, 1)
    torch.testing.assert_close(exact.values, truth, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        encoder.bias[:2] += 0.5
        encoder.bias[2:] += 0.7
    wrong = VAEEngine(vae, device="cpu")
    bounds = [wrong.log_prob(x, k).mean for k in (1, 4, 16, 256)]
    assert bounds == sorted(bounds)
    assert bounds[0] < float(truth.mean()) - 0.2
    assert bounds[-1] == pytest.approx(float(truth.mean()), abs=0.05)


@pytest.mark.slow
def test_collapse_is_named_and_free_bits_mend_it() -> None:
    """A KL that costs 20 times as much leaves all posteriors at the prior; free bits let each latent tell something."""
    dataset, x = digits(), digits().batch(range(200)).x.float() / 127.5 - 1
    options = {"sample_size": (8, 8), "channels": (8, 16), "hidden": (32,), "latents": 3}
    said = {"likelihood": "gaussian", "sigma": "fixed", "sigma_value": 0.3}

    def report(free_bits: float) -> Any:
        torch.manual_seed(0)
        vae = ConvolutionalVAE(ConvolutionalVAEConfig(**options, **said))
        config = VariationalConfig(loss="beta", beta=20.0, free_bits=free_bits)
        return VAEEngine(trained(vae, config, dataset, 250, lr=3e-3), device="cpu").report(x)

    collapsed = report(0.0)
    assert [v.latent for v in collapsed.collapsed] == [0, 1, 2], str(collapsed)
    mended = report(1.0)
    assert mended.collapsed == (), str(mended)
    # Beyond its free nat a latent costs 20 times as much.
    assert all(0.3 < v.kl < 1.2 and v.activity > 0.1 for v in mended.latents), str(mended)


@pytest.mark.parametrize("model", ["vae", "hvae", "vector_vae"])
def test_train_command(tmp_path: Path, model: str, capsys: pytest.CaptureFixture) -> None:
    """`fastgen train` makes a model that every command takes."""
    folder, source = tmp_path / "model", "two-moons" if model == "vector_vae" else "digits"
    of_model = {
        "vae": "--option latents=2 --option channels=4,4 --option hidden=8 --loss tcvae --beta 2 "
        "--shift 1 --temperature 0.7",
        "hvae": "--option channels=4,4 --free-bits 0.1 --anneal 2",
        "vector_vae": "--option hidden=8",
    }[model].split()
    few = ["--steps", "3", "--batch-size", "8", "--quiet"]
    assert main(["train", str(folder), "--model", model, "--data", source, *few, *of_model]) == 0
    out = str(tmp_path / ("rows.csv" if model == "vector_vae" else "sheet.png"))
    assert main(["sample", str(folder), "-n", "4", "--seed", "0", "--temperature", "0.5", "-o", out]) == 0
    assert Path(out).is_file()
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", source, "--subset", "0-9", "--samples", "2"]) == 0
    said = capsys.readouterr().out
    assert "importance-weighted bound of 2 samples" in said
    assert ("nats" if model == "vector_vae" else "bits/dim") in said
    engine: Any = fastgen.load(folder)
    assert engine.provenance["objective"]["loss"] == ("tcvae" if model == "vae" else "elbo")
    assert engine.settings.temperature == (0.7 if model == "vae" else 1.0)


def test_refusals() -> None:
    """What does not go together, by its option."""
    with refused(ConfigError, "beta", 2):
        VariationalConfig(beta=2.0)
    with refused(ConfigError, "free_bits"):
        VariationalConfig(loss="tcvae", free_bits=0.1)
    dataset = digits()
    rows = Rows(torch.zeros(4, 3))
    with refused(ConfigError, "shift"):
        variational(VectorVAE(VectorVAEConfig(features=3)), VariationalConfig(shift=1), rows)
    with refused(ConfigError, "loss"):
        variational(hierarchical(), VariationalConfig(loss="tcvae"), dataset)
    with refused(ConfigError, "data", 16):
        variational(flat(sample_size=(16, 16)), VariationalConfig(), dataset)
    with refused(ConfigError, "data", 4):
        variational(flat(num_classes=4), VariationalConfig(), dataset)
    with refused(ConfigError, "data", 16):
        variational(flat(likelihood="logistic", levels=16), VariationalConfig(), dataset)
