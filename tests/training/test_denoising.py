"""Each objective of a denoiser: its gradient against the paper's formula, written out in NumPy, and what is refused."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.diffusion import NoiseSchedule
from fastgen.diffusion.consistency_model import ConsistencyModel
from fastgen.diffusion.edm import EDM
from fastgen.diffusion.flow_matching import FlowMatching
from fastgen.diffusion.processes import AnyProcess
from fastgen.diffusion.sde import VESDE, VPSDE, SubVPSDE
from fastgen.errors import ConfigError, DataError
from fastgen.families import denoising
from fastgen.training.arrays import Arrays
from fastgen.training.diffusion import Denoising, DenoisingConfig
from fastgen.training.levels import drawn
from fastgen.training.objective import Step
from fastgen.training.settings import RunConfig
from fastgen.training.spread import measured
from fastgen.training.tables import Rows
from tests.refusals import refused

Array = np.ndarray
B, D, GAMMA, DATA = 37, 3, 2.5, 0.7


class Told(nn.Module):
    """F(x, t) = W x + v cos(t / 300) + b, in float64: its gradient is written out by hand below."""

    def __init__(self, outputs: int = D) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.W, self.v, self.b = (
            nn.Parameter(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64))
            for shape in ((outputs, D), (outputs,), (outputs,))
        )

    def forward(self, x: Tensor, t: Tensor, label: None) -> Tensor:
        return x @ self.W.T + self.v * (t.double() / 300).cos()[:, None] + self.b


def data(scale: float = 0.6) -> Tensor:
    return scale * torch.randn(B, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def step(x: Tensor) -> Step:
    return Step(x, None, torch.Generator().manual_seed(3), RunConfig(precision="fp32"))


def draws(kind: str) -> tuple[Array, Array]:
    """What the objective draws from the step's generator: its times or levels, and the noise, [B, D]."""
    generator = torch.Generator().manual_seed(3)
    if kind == "timesteps":
        t = torch.randint(1000, (B,), generator=generator)
    elif kind == "normal":
        t = torch.randn(B, generator=generator, dtype=torch.float64)
    else:
        t = 1 - torch.rand(B, generator=generator, dtype=torch.float64)
    return t.numpy(), torch.randn(B, D, generator=generator, dtype=torch.float32).double().numpy()


# What a network is given and trained to return: (its input [B, D], told time [B], c and k in the loss
# mean over samples of k |c_skip + c F - wanted|^2 / D, as (input, time, wanted, c, k)).
Paper = tuple[Array, Array, Array, Array, Array]


def ddpm(x: Array, predicts: str, weight: Callable[[Array], Array]) -> Paper:
    """Ho et al. 2020, eq. 4 and 14, on betas from 1e-4 to 0.02. weight: of the prediction's own error, of the SNR."""
    t, noise = draws("timesteps")
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t][:, None]
    noisy = np.sqrt(bar) * x + np.sqrt(1 - bar) * noise
    wanted = {"epsilon": noise, "sample": x, "v": np.sqrt(bar) * noise - np.sqrt(1 - bar) * x}[predicts]
    k = weight(bar[:, 0] / (1 - bar[:, 0]))
    return noisy, t, wanted, np.ones(B), k


def sde(x: Array, kind: str, predicts: str) -> Paper:
    """Song et al. 2021, eq. 7 with lambda = sigma^2, and eq. 29 for p(x(t) | x(0))."""
    u, noise = draws("uniform")
    t = 1e-5 + (1 - 1e-5) * u
    integral = 0.1 * t + 0.5 * t**2 * 19.9
    if kind == "ve":
        mean, std, told = np.ones(B), 0.01 * (50 / 0.01) ** t, 0.01 * 5000**t
        told = told if predicts == "score" else np.log(std)
    else:
        mean, std, told = np.exp(-integral / 2), np.sqrt(1 - np.exp(-integral)), 999 * t
        std = 1 - np.exp(-integral) if kind == "subvp" else std
    noisy = mean[:, None] * x + std[:, None] * noise
    if predicts == "score":  # the gradient of log p(x(t) | x(0))
        return noisy, told, -(noisy - mean[:, None] * x) / std[:, None] ** 2, np.ones(B), std**2
    wanted = noise if predicts == "epsilon" else mean[:, None] * noise - std[:, None] * x
    return noisy, told, wanted, np.ones(B), np.ones(B)


def edm(x: Array) -> Paper:
    """Karras et al. 2022, eq. 7 and 8 and table 1: lambda |c_skip y + c_out F(c_in y, c_noise) - x|^2."""
    normal, noise = draws("normal")
    sigma = np.exp(-1.2 + 1.2 * normal)
    noisy = x + sigma[:, None] * noise
    skip, out = DATA**2 / (sigma**2 + DATA**2), sigma * DATA / np.sqrt(sigma**2 + DATA**2)
    scaled = noisy / np.sqrt(sigma**2 + DATA**2)[:, None]
    weight = (sigma**2 + DATA**2) / (sigma * DATA) ** 2
    return scaled, np.log(sigma) / 4, x - skip[:, None] * noisy, out, weight


def flow(x: Array, predicts: str) -> Paper:
    """Liu et al. 2023, eq. 1: the straight line's velocity, here from data (0) to noise (1); min-SNR of x_0."""
    s, noise = draws("uniform")
    noisy = (1 - s)[:, None] * x + s[:, None] * noise
    if predicts == "velocity":
        return noisy, 1000 * s, noise - x, np.ones(B), np.ones(B)
    return noisy, 1000 * s, x, np.ones(B), np.minimum(((1 - s) / s) ** 2, GAMMA)


def one(snr: Array) -> Array:
    return np.ones_like(snr)


CASES: dict[str, tuple[AnyProcess, str, Callable[[Array], Paper]]] = {
    "ddpm epsilon": (NoiseSchedule(), "simple", lambda x: ddpm(x, "epsilon", one)),
    "ddpm sample": (NoiseSchedule(prediction_type="sample"), "simple", lambda x: ddpm(x, "sample", one)),
    "ddpm v": (NoiseSchedule(prediction_type="v_prediction"), "simple", lambda x: ddpm(x, "v", one)),
    # Salimans & Ho 2022, section 4: SNR weighs x_0 as 1 weighs epsilon, SNR + 1 as 1 weighs v.
    "ddpm sample snr": (
        NoiseSchedule(prediction_type="sample"),
        "snr",
        lambda x: ddpm(x, "sample", lambda snr: snr),
    ),
    "ddpm epsilon snr": (NoiseSchedule(), "snr", lambda x: ddpm(x, "epsilon", one)),
    "ddpm sample truncated": (
        NoiseSchedule(prediction_type="sample"),
        "truncated-snr",
        lambda x: ddpm(x, "sample", lambda snr: np.maximum(snr, 1)),
    ),
    # Hang et al. 2023, section 3.4: min(SNR, gamma) for x_0, over SNR for epsilon, over SNR + 1 for v.
    "ddpm sample min-snr": (
        NoiseSchedule(prediction_type="sample"),
        "min-snr",
        lambda x: ddpm(x, "sample", lambda snr: np.minimum(snr, GAMMA)),
    ),
    "ddpm epsilon min-snr": (
        NoiseSchedule(),
        "min-snr",
        lambda x: ddpm(x, "epsilon", lambda snr: np.minimum(snr, GAMMA) / snr),
    ),
    "ddpm v min-snr": (
        NoiseSchedule(prediction_type="v_prediction"),
        "min-snr",
        lambda x: ddpm(x, "v", lambda snr: np.minimum(snr, GAMMA) / (snr + 1)),
    ),
    # Karras et al. 2022 at the noise level sigma / alpha = SNR^-1/2.
    "ddpm sample edm": (
        NoiseSchedule(prediction_type="sample"),
        "edm",
        lambda x: ddpm(x, "sample", lambda snr: (1 / snr + DATA**2) / (1 / snr * DATA**2)),
    ),
    "vp epsilon": (VPSDE(), "simple", lambda x: sde(x, "vp", "epsilon")),
    "vp score": (VPSDE(prediction_type="score"), "simple", lambda x: sde(x, "vp", "score")),
    "vp v": (VPSDE(prediction_type="v_prediction"), "simple", lambda x: sde(x, "vp", "v")),
    "subvp epsilon": (SubVPSDE(), "simple", lambda x: sde(x, "subvp", "epsilon")),
    "subvp score": (SubVPSDE(prediction_type="score"), "simple", lambda x: sde(x, "subvp", "score")),
    "ve score": (VESDE(), "simple", lambda x: sde(x, "ve", "score")),
    "ve epsilon": (
        VESDE(prediction_type="epsilon", time="log_sigma"),
        "simple",
        lambda x: sde(x, "ve", "epsilon"),
    ),
    "edm": (EDM(sigma_data=DATA), "edm", edm),
    "flow velocity": (FlowMatching(), "simple", lambda x: flow(x, "velocity")),
    "flow sample min-snr": (
        FlowMatching(prediction_type="sample"),
        "min-snr",
        lambda x: flow(x, "sample"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_papers(name: str) -> None:
    """The loss and its gradient, made by hand for an affine network. Times are told in float32."""
    process, weighting, paper = CASES[name]
    config = DenoisingConfig(weighting=weighting, gamma=GAMMA, sigma_data=DATA)
    net, x = Told(), data()
    loss = Denoising(process, None, config=config).loss(net, step(x))
    loss.backward()

    inputs, told, wanted, c, k = paper(x.numpy())
    told = np.cos(told.astype(np.float32).astype(np.float64) / 300)
    W, v, b = (p.detach().numpy() for p in (net.W, net.v, net.b))
    error = c[:, None] * (inputs @ W.T + v * told[:, None] + b) - wanted
    slope = 2 * (k * c)[:, None] * error / (B * D)
    assert float(loss.detach()) == pytest.approx(float((k * (error**2).mean(axis=1)).mean()), rel=1e-10)
    for parameter, want in (
        (net.W, slope.T @ inputs),
        (net.v, (slope * told[:, None]).sum(axis=0)),
        (net.b, slope.sum(axis=0)),
    ):
        # In float64; 1e-9 leaves room for quotients by sigma_min, whose squares are 1e-10.
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("images", [False, True])
def test_a_learned_variance_is_trained_by_the_bound(predicts: str, images: bool) -> None:
    """Nichol & Dhariwal 2021, eq. 16: L_simple, and 0.001 T times the term of t, whose mean is not trained by it.

    8-bit images have a decoder over the width of a level, rows a density; written with torch.distributions.
    """
    T = 5  # so that t = 0 is among few samples
    process = NoiseSchedule(num_train_timesteps=T, beta_start=0.3, beta_end=0.5, prediction_type=predicts)
    net = Told(2 * D)
    x = (data() * 127.5).round().clamp(-127, 127) / 127.5 if images else data()
    x[:2, 0] = torch.tensor([-1.0, 1.0])

    class Pixels(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: None) -> Tensor:
            out: Tensor = net(x.flatten(1), t, None)
            return out.reshape(len(x), 2 * D, *x.shape[2:])

    shaped = x[:, :, None, None] if images else x
    Denoising(process, None, learned=True).loss(Pixels(), step(shaped)).backward()
    found = [p.grad for p in net.parameters()]

    generator = torch.Generator().manual_seed(3)
    t = torch.randint(T, (B,), generator=generator)
    noise = torch.randn(B, D, generator=generator).double()
    assert 0 < (t == 0).sum() < B
    betas = torch.linspace(0.3, 0.5, T, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    bar, beta = bars[t][:, None], betas[t][:, None]
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars])[t][:, None]
    tilde = beta * (1 - before) / (1 - bar)
    floor = torch.where(t[:, None] == 0, betas[1] * (1 - bars[0]) / (1 - bars[1]), tilde)
    noisy = bar.sqrt() * x + (1 - bar).sqrt() * noise

    own = Told(2 * D)
    F, V = own(noisy, t, None).chunk(2, dim=1)
    wanted = {"epsilon": noise, "sample": x, "v_prediction": bar.sqrt() * noise - (1 - bar).sqrt() * x}
    x0 = {
        "epsilon": (noisy - (1 - bar).sqrt() * F) / bar.sqrt(),
        "sample": F,
        "v_prediction": bar.sqrt() * noisy - (1 - bar).sqrt() * F,
    }[predicts].detach()
    v = (V + 1) / 2
    std = (beta**v * floor ** (1 - v)).sqrt()

    def posterior(clean: Tensor) -> Tensor:
        of_clean = before.sqrt() * beta / (1 - bar) * clean
        return of_clean + (1 - beta).sqrt() * (1 - before) / (1 - bar) * noisy

    decoder = torch.distributions.Normal(posterior(x0), std)
    terms = []
    for i in range(B):
        if t[i] > 0:
            q = torch.distributions.Normal(posterior(x)[i], tilde[i].sqrt())
            p = torch.distributions.Normal(posterior(x0)[i], std[i])
            terms.append(torch.distributions.kl_divergence(q, p).mean())
        elif images:
            above = torch.where(x > 0.999, 1.0, decoder.cdf(x + 1 / 255))[i]
            below = torch.where(x < -0.999, 0.0, decoder.cdf(x - 1 / 255))[i]
            terms.append(-(above - below).log().mean())
        else:
            terms.append(-decoder.log_prob(x)[i].mean())
    bound = torch.stack(terms).mean() / math.log(2)
    (((F - wanted[predicts]) ** 2).mean() + 0.001 * T * bound).backward()
    for got, want in zip(found, (p.grad for p in own.parameters()), strict=True):
        assert got is not None
        assert want is not None
        assert torch.count_nonzero(want[D:]) == want[D:].numel()  # the variance is trained
        # Differences of probabilities near 1 lose up to 6 of 16 digits in the formula here.
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_an_improbable_decoder_has_finite_gradients() -> None:
    """An estimate that is 300 standard deviations off, as before the first step."""
    process = NoiseSchedule(prediction_type="sample")
    x = torch.ones(64, 1, 2, 2)

    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.V = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor, label: None) -> Tensor:
            return torch.cat([torch.full_like(x, -1.0), self.V.expand_as(x)], dim=1)

    net = Off()
    generator = torch.Generator()
    seed = next(
        s for s in range(100) if (torch.randint(1000, (64,), generator=generator.manual_seed(s)) == 0).any()
    )
    given = Step(x, None, torch.Generator().manual_seed(seed), RunConfig(precision="fp32"))
    loss = Denoising(process, None, learned=True).loss(net, given)
    loss.backward()
    assert net.V.grad is not None
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(net.V.grad))


@pytest.mark.parametrize(
    "process", [NoiseSchedule(), VPSDE(), SubVPSDE(), VESDE(), EDM(), FlowMatching(invert_sigmas=True)]
)
def test_the_target_is_what_sampling_takes_the_output_for(process: AnyProcess) -> None:
    """From a perfect network's output the estimate of x_0 that solvers make is x_0."""
    levels = drawn(process, 200, torch.Generator().manual_seed(0))
    x, noise = torch.randn(2, 200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noisy, F = levels.noisy(x, noise), levels.target(x, noise)
    terms = levels.skip[:, None] * noisy, levels.out[:, None] * F
    # A float64's rounding, of terms that cancel.
    bound = 1e-14 * (terms[0].abs() + terms[1].abs() + 1)
    assert bool(((terms[0] + terms[1] - x).abs() <= bound).all())


def test_levels_are_drawn_by_the_papers_rules() -> None:
    generator, count = torch.Generator().manual_seed(0), 4000
    # A mean of n draws is off by more than 5 standard errors once in two million times.
    logs = drawn(EDM(), count, generator, (-0.7, 1.3)).sigma.log()
    assert float(logs.mean()) == pytest.approx(-0.7, abs=5 * 1.3 / count**0.5)
    assert float(logs.std()) == pytest.approx(1.3, rel=5 / (2 * count) ** 0.5)
    sigma = drawn(FlowMatching(), count, generator).sigma
    assert float(sigma.mean()) == pytest.approx(0.5, abs=5 * 12**-0.5 / count**0.5)
    assert 0 < float(sigma.min()) < 0.01 < 0.99 < float(sigma.max()) <= 1
    t = drawn(VPSDE(time="unit"), count, generator).time
    assert float(t.mean()) == pytest.approx(0.5, abs=5 * 12**-0.5 / count**0.5)
    with refused(ConfigError, "schedule"):
        drawn(ConsistencyModel(), 2, generator)


def test_at_pure_noise_weights_are_finite() -> None:
    """Flow's sigma = 1 has no signal: SNR is 0."""
    from fastgen.training.levels import of_points
    from fastgen.training.weighting import WEIGHTINGS, weights

    process = FlowMatching()
    levels = of_points([process.point(1.0)])
    found = [weights(name, levels, prediction_type="velocity", sigma_data=0.5) for name in WEIGHTINGS]
    assert [None if w is None else float(w) for w in found] == [None, 0.0, 1.0, 0.0, 4.0]


def rows() -> Rows:
    return Rows(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("flags", "argument", "mention"),
    [
        ({"process": "flow", "prediction_type": "epsilon"}, "--prediction-type", "velocity"),
        ({"prediction_type": "velocity"}, "--prediction-type", "v_prediction"),
        ({"prediction_type": "score"}, "--prediction-type", "epsilon"),
        ({"process": "subvp", "prediction_type": "v_prediction"}, "--prediction-type", "score"),
        ({"process": "edm", "prediction_type": "sample"}, "--prediction-type", "edm"),
        ({"process": "vp", "beta_schedule": "linear"}, "--beta-schedule", "ddpm"),
        ({"process": "edm", "learn_sigma": True}, "--learn-sigma", "ddpm"),
        ({"loss_weighting": "max-snr"}, "--loss-weighting", "min-snr"),
        ({"min_snr_gamma": 5.0}, "--min-snr-gamma", "min-snr"),
        ({"min_snr_gamma": -1.0, "loss_weighting": "min-snr"}, "train: gamma", "-1.0"),
    ],
)
def test_what_does_not_go_together(flags: dict[str, Any], argument: str, mention: str) -> None:
    with refused(ConfigError, argument, mention):
        denoising.chosen(Namespace(**flags), rows(), None, "rows")


def test_refusals_of_the_objective() -> None:
    for process in (VPSDE(), EDM(), FlowMatching()):
        with refused(ConfigError, "learned", process.name):
            Denoising(process, None, learned=True)
    with refused(ConfigError, "schedule", "consistency"):
        Denoising(ConsistencyModel(), None)
    with refused(ConfigError, "num_train_timesteps"):
        Denoising(NoiseSchedule(num_train_timesteps=1), None, learned=True)
    none_left = NoiseSchedule(rescale_betas_zero_snr=True)
    Denoising(none_left, None)
    with refused(ConfigError, "prediction_type", 999):
        Denoising(none_left, None, config=DenoisingConfig(weighting="snr"))


def test_noise_levels_follow_the_data() -> None:
    """EDM's by its deviation, VE's by its largest distance."""
    data = Arrays(torch.tensor([0, 0, 255, 255], dtype=torch.uint8).reshape(2, 1, 1, 2), None)
    assert measured(data, None, "data") == (1.0, pytest.approx(8**0.5, rel=1e-3))
    edm = denoising.chosen(Namespace(process="edm"), data, None, "data")
    assert edm.schedule["sigma_data"] == edm.loss.sigma_data == 1.0
    assert edm.loss.weighting == "edm"
    assert edm.loss.log_sigma_mean == pytest.approx(-1.2 + math.log(2))
    ve = denoising.chosen(Namespace(process="ve"), data, None, "data")
    assert ve.schedule["sigma_max"] == pytest.approx(8**0.5, rel=1e-3)
    with refused(DataError, "data"):
        measured(Arrays(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), None), None, "data")


def test_an_epsilon_keeps_some_signal_to_the_end() -> None:
    """On the cosine schedule its x_0 would be its own error over 5e-5, and samples that are not clipped run away."""

    def schedule(**flags: Any) -> Any:
        return denoising.chosen(Namespace(**flags), rows(), None, "rows").schedule["beta_schedule"]

    assert schedule() == "squaredcos_cap_v2"
    assert schedule(prediction_type="epsilon") == "linear"
    assert schedule(prediction_type="epsilon", beta_schedule="squaredcos_cap_v2") == "squaredcos_cap_v2"
