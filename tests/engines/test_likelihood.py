"""Likelihoods of diffusion models: closed forms of mixtures, autograd's Jacobian, formulas written out."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

import fastgen
from fastgen import ConfigError, DiffusionEngine
from fastgen.diffusion import NoiseSchedule, process_from_config
from fastgen.diffusion.probability_flow import ProbabilityFlow
from fastgen.engines.diffusion.likelihood import decoder, ode
from fastgen.engines.diffusion.likelihood.bound import Chain, strata
from fastgen.engines.diffusion.likelihood.network import Denoiser
from fastgen.errors import ArgumentError, FastgenError
from fastgen_kernels import normals
from tests.refusals import refused

from ..diffusion.mixtures import PROCESSES, BestNetwork, Mixture, best, name
from ..small import SCHEDULE, TinyNet, network, spec, unet_config

COSINE = PROCESSES[1]
SHAPE = (1, 1, 2)


def engine_of(values: dict[str, Any], net: nn.Module, shape: Any = SHAPE, **options: Any) -> DiffusionEngine:
    process = process_from_config(values)
    options = {"value_range": None, **options}
    return DiffusionEngine.from_module(net, process, process.prediction_type, shape, **options)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


# The probability flow.


@pytest.mark.parametrize("values", PROCESSES, ids=name)
def test_the_flow_gives_the_density_of_a_mixture(values: dict[str, Any]) -> None:
    mixture, process, net = best(2, values)
    x = mixture.sample(12)
    found = engine_of(values, net).log_prob(x.view(-1, *SHAPE), steps=40)
    assert found.kind == "exact"
    assert not found.errors.any()
    # In nats a dimension; 1e-3: steps, and the prior, which the noisiest mixture is not exactly.
    off = (found.values - mixture.log_prob(x, ProbabilityFlow(process).noise)).abs() / 2
    assert off.max() < 1e-3
    assert ((found.values - mixture.log_prob(x)).abs() / 2).mean() < 1e-3


@pytest.mark.parametrize("values", [COSINE, {"process": "edm"}], ids=name)
def test_hutchinson_estimates_the_exact_value(values: dict[str, Any]) -> None:
    values = {**values, "prediction_type": values.get("prediction_type", "edm")}
    mixture, _, net = best(4, values)
    engine, x = engine_of(values, net, (1, 2, 2)), mixture.sample(32).view(-1, 1, 2, 2)
    exact = engine.log_prob(x, steps=20)
    found = engine.log_prob(x, 16, steps=20, trace="hutchinson", seed=5)
    assert (found.kind, found.samples) == ("Hutchinson", 16)
    off = (found.values - exact.values) / found.errors
    # The mean of 32 quotients, each of Student's distribution with 15 degrees of freedom and variance 15 / 13.
    assert off.mean().abs() < 3 * math.sqrt(15 / 13 / 32)
    assert 0.6 < off.std() < 1.6
    pooled = found.errors.square().sum().sqrt() / 32
    assert (found.mean - exact.mean) < 3 * pooled
    single = engine.log_prob(x[:2], trace="hutchinson", steps=4)
    assert single.errors.isnan().all()


def test_change_of_variables_is_autograds_jacobian() -> None:
    """On a network that is no score: log p is that of the noise, and log |det| of the map to it, float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1)).double()
    flow, steps = ProbabilityFlow(process_from_config(COSINE)), 60
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def slope(y: Tensor, u: float) -> Tensor:
        at = flow.slope(u)
        return at.own * y + at.output * net(at.input * y)

    def mapped(z: Tensor) -> Tensor:  # the classical Runge-Kutta method once more, with gradients
        y, h = flow.shrinkage * z, (flow.end - flow.start) / steps
        for i in range(steps):
            u = flow.start + i * h
            a = slope(y, u)
            b = slope(y + h / 2 * a, u + h / 2)
            c = slope(y + h / 2 * b, u + h / 2)
            y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, u + h if i < steps - 1 else flow.end))
        return y

    told = Plain(net)
    denoiser = Denoiser(told, torch.float64, 1)

    def field(y: Tensor, u: float, number: int) -> tuple[Tensor, Tensor]:
        at = flow.slope(u)
        output, trace = denoiser.with_trace(at.input * y, torch.zeros(len(y)), None, None)
        return at.own * y + at.output * output, 4 * at.own + at.output * at.input * trace

    ended = ode.fixed(field, flow.shrinkage * x, 1, flow.start, flow.end, "rk4", steps)
    found = ode.log_density(flow, ended)[0]
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda z: mapped(z[None])[0].flatten(), x[i])
        log_det = torch.linalg.slogdet(jacobian.reshape(4, 4))[1]
        noise = stats.norm.logpdf(mapped(x[i : i + 1]).detach().numpy()).sum()
        # The map of finite steps and the integral along them differ by their error, h^4 = 1e-4 of a slope near 1.
        assert float(found[i]) == pytest.approx(noise + float(log_det), abs=1e-4)


class Plain(nn.Module):
    """A network that is told a time, and does not listen."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("rk4", 4)])
def test_order_of_fixed_steps(method: str, order: int) -> None:
    """dy/du = -y^2, whose divergence is -2 y: both have closed forms."""

    def field(y: Tensor, u: float, number: int) -> tuple[Tensor, Tensor]:
        return -y.square(), (-2 * y).flatten(1).sum(1)[None]

    y = torch.tensor([[0.7], [1.3]], dtype=torch.float64)
    wanted = y / (1 + 2 * y), -2 * torch.log1p(2 * y).T
    errors = []
    for steps in (20, 40):
        ended = ode.fixed(field, y, 1, 0.0, 2.0, method, steps)
        errors.append(
            max(float((ended.y - wanted[0]).abs().max()), float((ended.integral - wanted[1]).abs().max()))
        )
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


def test_adaptive_steps() -> None:
    pytest.importorskip("torchdiffeq")
    mixture, process, net = best(2, COSINE)
    engine, x = engine_of(COSINE, net), mixture.sample(8)
    noise = ProbabilityFlow(process).noise
    found = engine.log_prob(x.view(-1, *SHAPE), solver="dopri5", rtol=1e-6, atol=1e-6)
    assert ((found.values - mixture.log_prob(x, noise)).abs() / 2).max() < 1e-3
    rough = engine.log_prob(x.view(-1, *SHAPE), solver="dopri5", rtol=1e-3, atol=1e-3)
    assert rough.evaluations < found.evaluations
    a, b = (engine.log_prob(x.view(-1, *SHAPE), 2, solver="dopri5", trace="hutchinson") for _ in range(2))
    assert torch.equal(a.values, b.values)


def test_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    engine = engine_of(COSINE, TinyNet())
    with refused(FastgenError, "solver", "torchdiffeq", "fastgen[likelihood]"):
        engine.log_prob(torch.zeros(1, *SHAPE), solver="dopri5")
    assert engine.log_prob(torch.zeros(1, *SHAPE), steps=2).kind == "exact"


def test_a_value_belongs_to_its_seed_and_not_to_its_batch() -> None:
    engine = engine_of(COSINE, TinyNet(2), (2, 5, 7), max_batch=2)
    x = torch.randn(5, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    for given in ({"trace": "hutchinson", "steps": 3}, {"method": "bound", "timesteps": 7}):
        whole = engine.log_prob(x, 2, seed=3, **given)
        for k in (0, 3):
            alone = engine.log_prob(x[k : k + 1], 2, seed=3 + k, **given)
            torch.testing.assert_close(alone.values, whole.values[k : k + 1], rtol=1e-6, atol=1e-4)
        assert not torch.equal(whole.values, engine.log_prob(x, 2, seed=4, **given).values)


# The variational bound.


@pytest.mark.parametrize("values", [COSINE, {"process": "edm", "prediction_type": "edm"}], ids=name)
def test_the_bound_lies_above_the_truth(values: dict[str, Any]) -> None:
    mixture, _, net = best(2, values)
    x = mixture.sample(80)
    engine, truth = engine_of(values, net), -mixture.log_prob(x)
    for variance, tight in (("fixed_small", 2.0), ("fixed_large", 0.2)):
        found = engine.log_prob(x.view(-1, *SHAPE), method="bound", variance_type=variance, timesteps=60)
        assert found.kind == "bound"
        above = -found.values - truth  # of data of the mixture, on average (Gibbs' inequality)
        error = float(above.std() / math.sqrt(len(x)))
        assert -3 * error < above.mean() < tight + 3 * error


def formula(
    schedule: NoiseSchedule, net: nn.Module, x: Tensor, noise: list[Tensor], variance: str, levels: bool
) -> tuple[float, list[float]]:
    """The bound's terms as the papers write them: by betas (Ho et al. 2020, eq. 6, 7; Nichol & Dhariwal 2021, eq. 15).

    x: float64 [1, C, H, W] in [-1, 1]. Returns the prior's term and those of t = 0, 1, ..., in nats.
    """
    betas, bar = schedule.betas, schedule.alphas_cumprod
    before = np.append(1.0, bar[:-1])
    tilde = betas * (1 - before) / (1 - bar)
    tilde[0] = tilde[1]
    terms, channels = [], x.shape[1]
    for t in range(len(betas)):
        state = math.sqrt(bar[t]) * x + math.sqrt(1 - bar[t]) * noise[t]
        output = net(state.float(), torch.tensor([float(t)])).double()
        clean = ((state - math.sqrt(1 - bar[t]) * output[:, :channels]) / math.sqrt(bar[t])).clamp(-1, 1)
        if variance == "learned_range":
            share = (output[:, channels:] + 1) / 2
            model = torch.exp(share * math.log(betas[t]) + (1 - share) * math.log(tilde[t]))
        else:
            # The decoder's is that of fixed_small, as in both papers' code.
            model = torch.full_like(x, betas[t] if variance == "fixed_large" and t else tilde[t])
        if t == 0:
            deviation = model.sqrt().numpy()
            high, low = x.numpy() + 1 / 255, x.numpy() - 1 / 255
            mass = stats.norm.cdf(np.where(high > 1, np.inf, high), clean.numpy(), deviation)
            mass = mass - stats.norm.cdf(np.where(low < -1, -np.inf, low), clean.numpy(), deviation)
            density = stats.norm.logpdf(x.numpy(), clean.numpy(), deviation)
            terms.append(float(-(np.log(mass) if levels else density).sum()))
            continue
        factor = math.sqrt(before[t]) * betas[t] / (1 - bar[t])
        apart = (factor * (x - clean)).square()
        kl = 0.5 * (torch.log(model / tilde[t]) + (tilde[t] + apart) / model - 1)
        terms.append(float(kl.sum()))
    last = bar[-1]
    prior = 0.5 * (last * x.square() + (1 - last) - 1 - math.log(1 - last)).sum()
    return float(prior), terms


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_terms_are_the_papers(variance: str) -> None:
    learned = variance if variance == "learned_range" else None
    values = {"num_train_timesteps": 12, "beta_start": 0.02, "beta_end": 0.4, "prediction_type": "epsilon"}
    net = TinyNet(2, 4 if learned else 2)
    engine = engine_of(values, net, (2, 3, 5), variance=learned, value_range=(-1.0, 1.0))
    k = images(2, 2, 3, 5)
    k[0, 0, 0, :2] = torch.tensor([0, 255])
    x = k.double() * (2 / 255) - 1
    given = {} if learned else {"variance_type": variance}
    bits = engine.bits_per_dim(k, method="bound", seed=9, **given)
    nats = engine.log_prob(x, method="bound", seed=9, **given)
    assert bits.terms is not None
    assert nats.terms is not None
    for i in range(2):
        noise = [normals([9 + i], t, "step", (2, 3, 5)).double() for t in range(12)]
        for found, unit, levels in ((bits.terms, math.log(2) * 30, True), (nats.terms, 1.0, False)):
            prior, terms = formula(NoiseSchedule(**values), net, x[i : i + 1], noise, variance, levels)
            assert float(found.prior[i]) * unit == pytest.approx(prior, rel=1e-9)
            assert (found.by_timestep[i] * unit).tolist() == pytest.approx(
                terms, rel=1e-4
            )  # the network is float32
    assert bits.values.tolist() == pytest.approx((bits.terms.prior + bits.terms.by_timestep.sum(1)).tolist())
    assert nats.values.tolist() == pytest.approx((-nats.terms.prior - nats.terms.by_timestep.sum(1)).tolist())


def test_a_few_timesteps_estimate_all() -> None:
    values = {"num_train_timesteps": 60, "beta_end": 0.3, "prediction_type": "epsilon"}
    engine = engine_of(values, TinyNet(1), (1, 2, 3))
    x = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)).repeat(200, 1, 1, 1)
    every, some = (engine.log_prob(x, method="bound", timesteps=k) for k in (None, 8))
    assert (every.evaluations, some.evaluations) == (60, 8)
    off = (some.values - every.values).double()
    assert abs(float(off.mean())) < 3 * float(off.std()) / math.sqrt(200)
    assert some.terms is not None
    assert bool(some.terms.by_timestep.isfinite().sum(1).eq(8).all())
    assert bool(some.terms.mean().isfinite().all())  # among 200 samples each level was somewhere


@pytest.mark.parametrize(("count", "chosen"), [(1000, 40), (1000, 999), (10, 2), (5, 4), (3, 2), (7, 9)])
def test_strata_are_all_levels_once(count: int, chosen: int) -> None:
    for even in (False, True):
        found = strata(count, chosen, even)
        assert [t for first, last in found for t in range(first, last)] == list(range(count))
        assert all(first < last for first, last in found)
        assert len(found) == min(count, chosen)
        assert found[0] == (0, 1)


def test_discretised_decoder() -> None:
    """The probabilities of all levels sum to 1, are differences of the distribution function, and finite in tails."""
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, deviation in ((0.3, 0.02), (-1.2, 0.5), (1.0, 1e-4)):
        log_variance = torch.full_like(levels, 2 * math.log(deviation))
        found = decoder.discretised(levels, torch.full_like(levels, mean), log_variance, (-1.0, 1.0), 256)
        assert bool(found.isfinite().all())
        assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-12)
        cut = np.append((levels.numpy() - 1 / 255), np.inf)
        cut[0] = -np.inf
        wanted = np.diff(stats.norm.cdf(cut, mean, deviation))
        np.testing.assert_allclose(found.exp().numpy(), wanted, atol=1e-13)


# Levels.


@pytest.mark.parametrize("noise", ["uniform", "decoder"])
def test_bits_of_levels_are_what_dequantisation_says(noise: str) -> None:
    """One pixel of a Gaussian that is known: the average over draws against a quadrature in float64."""
    schedule = NoiseSchedule(**COSINE)
    mixture = Mixture(1)
    net, k = BestNetwork(mixture, schedule), torch.tensor([90, 200]).view(2, 1, 1, 1)
    engine = engine_of(COSINE, net, (1, 1, 1), value_range=(-1.0, 1.0))
    found = engine.bits_per_dim(k, 24, steps=16, dequantisation=noise, seed=2)
    assert (found.kind, found.dequantisation, found.samples) == ("bound", noise, 24)
    w, width = ProbabilityFlow(schedule).noise, 2 / 255
    chain = Chain.of(ProbabilityFlow(schedule), 2)

    def cost(z: float, x: float) -> float:
        log_p = float(mixture.log_prob(torch.tensor([[z]], dtype=torch.float64), w))
        if noise == "uniform":
            return -log_p - math.log(width)
        alpha, sigma = torch.tensor(chain.alpha[:1]), torch.tensor(chain.sigma[:1])
        clean = float(mixture.clean((alpha * z)[:, None], alpha, sigma))
        mass = np.diff(stats.norm.cdf([x - width / 2, x + width / 2], clean, math.exp(chain.small[0] / 2)))
        return -log_p + stats.norm.logpdf(z, x, w) - math.log(float(mass[0]))

    for i, x in enumerate((k.flatten() * (2 / 255) - 1).tolist()):
        if noise == "uniform":
            wanted = integrate.quad(lambda z, x=x: cost(z, x) / width, x - width / 2, x + width / 2)[0]
        else:
            wanted = integrate.quad(
                lambda z, x=x: cost(z, x) * stats.norm.pdf(z, x, w), x - 5 * w, x + 5 * w
            )[0]
        # 2e-3 bits: of 16 steps, and 5 deviations of z are not all
        assert abs(float(found.values[i]) - wanted / math.log(2)) < 3 * float(found.errors[i]) + 2e-3


def test_levels_in_the_engines_own_range() -> None:
    k = images(2, 1, 4, 4)
    told: dict[str, Any] = {"labels": None, "steps": 2, "trace": "hutchinson"}
    engine = engine_of(COSINE, TinyNet(), (1, 4, 4), value_range=(0.0, 1.0))
    found = engine.bits_per_dim(k, **told)
    assert torch.equal(found.values, engine.bits_per_dim(k / 255, **told).values)
    assert (found.kind, found.dequantisation) == ("Hutchinson bound", "decoder")
    assert "Hutchinson bound, decoder dequantisation" in str(found)
    assert found.to_dict()["dequantisation"] == "decoder"
    with refused(ConfigError, "x"):
        engine.bits_per_dim(k / 127.5 - 1)
    edm = {"process": "edm", "prediction_type": "edm"}
    other = engine_of(edm, TinyNet(), (1, 4, 4), value_range=(-1.0, 1.0)).bits_per_dim(k, steps=2)
    assert (other.kind, other.dequantisation) == ("bound", "uniform")


def test_bits_of_continuous_data_are_those_of_the_density() -> None:
    engine = engine_of(COSINE, TinyNet(), (1, 2, 2))
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    nats, bits = (verb(x, steps=3) for verb in (engine.log_prob, engine.bits_per_dim))
    assert bits.kind == "exact"
    torch.testing.assert_close(bits.values, -nats.values / (4 * math.log(2)))
    assert "nats (exact, 3 of data)" in str(nats)


# The network.


def test_labels(tmp_path: Any) -> None:
    config = unet_config()
    net = network(config)
    from fastgen.checkpoint import save

    save(tmp_path, spec(config), nn.ModuleDict({"unet": net}).state_dict())
    engine = fastgen.load(str(tmp_path), device="cpu")
    assert isinstance(engine, DiffusionEngine)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"steps": 2, "solver": "heun", "trace": "hutchinson"}
    values = [
        engine.log_prob(x, labels=labels, **given).values
        for labels in (None, 0, [0, 2], torch.tensor([0, 2]))
    ]
    assert not torch.allclose(values[0], values[1])
    assert torch.equal(values[1][0], values[2][0])
    assert torch.equal(values[2], values[3])
    with torch.inference_mode():
        torch.testing.assert_close(engine.log_prob(x, labels=0, **given).values, values[1])
    for label in ("one", 3, [0]):
        with refused(ConfigError, "labels"):
            engine.log_prob(x, labels=label)


def test_networks_in_16_bits_compute_in_float32() -> None:
    torch.manual_seed(0)
    wide = Plain(nn.Conv2d(1, 1, 3, padding=1).to(torch.bfloat16))
    twin = Plain(nn.Conv2d(1, 1, 3, padding=1))
    twin.load_state_dict({name: value.float() for name, value in wide.state_dict().items()})
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    found = [engine_of(COSINE, net, (1, 3, 3)).log_prob(x, steps=3).values for net in (wide, twin)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-4)
    assert wide.net.weight.dtype == torch.bfloat16
    assert wide.net.weight.grad is None


@pytest.mark.parametrize(
    ("given", "error", "argument"),
    [
        ({"samples": 0}, ConfigError, "samples"),
        ({"samples": True}, ConfigError, "samples"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"labels": 1}, ConfigError, "labels"),
        ({"method": "exact"}, ConfigError, "method"),
        ({"solver": "euler"}, ConfigError, "solver"),
        ({"steps": 0}, ConfigError, "steps"),
        ({"steps": 2.5}, ConfigError, "steps"),
        ({"trace": "full"}, ConfigError, "trace"),
        ({"rtol": 1e-3}, ConfigError, "rtol"),
        ({"solver": "dopri5", "steps": 3}, ConfigError, "steps"),
        ({"solver": "dopri5", "rtol": 0.0}, ConfigError, "rtol"),
        ({"guidance_scale": 1.5}, ConfigError, "guidance_scale"),
        ({"timesteps": 3}, ArgumentError, "timesteps"),
        ({"method": "bound", "steps": 3}, ArgumentError, "steps"),
        ({"method": "bound", "timesteps": 1}, ConfigError, "timesteps"),
        ({"method": "bound", "levels": 30}, ConfigError, "levels"),
        ({"method": "bound", "variance_type": "learned"}, ConfigError, "variance_type"),
        ({"method": "bound", "variance_type": "small"}, ConfigError, "variance_type"),
        ({"step": 3}, ArgumentError, "step"),
        ({"dequantisation": "gaussian"}, ConfigError, "dequantisation"),
    ],
)
def test_arguments_are_refused(given: dict[str, Any], error: type[Exception], argument: str) -> None:
    engine = engine_of(COSINE, TinyNet(), (1, 2, 2), value_range=(-1.0, 1.0))
    with refused(error, argument):
        engine.bits_per_dim(images(1, 1, 2, 2), **given)
    assert engine.bits_per_dim(images(1, 1, 2, 2), steps=1, guidance_scale=1).kind == "bound"


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 1, 2, 3),
        torch.zeros(1, 2, 2),
        torch.zeros(0, 1, 2, 2),
        torch.zeros(1, 1, 2, 2, dtype=torch.int64),
        torch.full((1, 1, 2, 2), math.nan),
        np.zeros((1, 1, 2, 2)),
    ],
    ids=["size", "dimensions", "none", "dtype", "nan", "numpy"],
)
def test_data_is_refused(x: Any) -> None:
    with refused(ConfigError, "x"):
        engine_of(COSINE, TinyNet(), (1, 2, 2)).log_prob(x)


def test_levels_are_refused() -> None:
    engine = engine_of(COSINE, TinyNet(), (1, 2, 2), value_range=(-1.0, 1.0))
    for x in (
        images(1, 1, 2, 2) + 256,
        torch.full((1, 1, 2, 2), 0.5),
        images(1, 1, 2, 3),
        torch.zeros(1, 1, 2, 2) - 2,
    ):
        with refused(ConfigError, "x"):
            engine.bits_per_dim(x)
    with refused(ConfigError, "dequantisation"):
        engine.log_prob(torch.zeros(1, 1, 2, 2), dequantisation="uniform")
    with refused(ConfigError, "dequantisation"):
        engine_of(COSINE, TinyNet(), (1, 2, 2)).bits_per_dim(
            torch.zeros(1, 1, 2, 2), dequantisation="uniform"
        )


def test_networks_that_know_whole_timesteps_only() -> None:
    engine = engine_of(COSINE, TinyNet(), (1, 2, 2), integer_time=True)
    x = torch.zeros(1, 1, 2, 2)
    with refused(ConfigError, "method"):
        engine.log_prob(x)
    assert engine.log_prob(x, method="bound", timesteps=3).kind == "bound"
    assert engine.describe()["levels"] is None
    config = unet_config(time_embedding_type="learned", num_train_timesteps=1000, num_class_embeds=None)
    learned = engine_of(SCHEDULE, network(config), (1, 8, 8))
    with refused(ConfigError, "method"):
        learned.log_prob(torch.zeros(1, 1, 8, 8))
