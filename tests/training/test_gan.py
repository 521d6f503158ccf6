"""Training of GANs: what discriminators find on discrete examples, penalties, updates, exact resume, the gauge."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import rel_entr
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from fastgen.checkpoint import load_spec
from fastgen.cli import main
from fastgen.errors import ConfigError
from fastgen.families.gan_recipe import mean_distance, pyramid
from fastgen.families.preview import GAUGE, gauged
from fastgen.models.gan.dcgan import DCGAN, DCGANConfig, DCGANDiscriminator, DCGANDiscriminatorConfig
from fastgen.training.adversarial import discriminator_loss, generator_loss
from fastgen.training.gan import Adversarial, GANConfig
from fastgen.training.loop import LOSS_FILE, _generator
from fastgen.training.objective import Step
from fastgen.training.penalties import clip, gradient_penalty, r1_penalty
from fastgen.training.run import STATE_FILE
from fastgen.training.settings import RunConfig
from tests.refusals import refused
from tests.training.divergences import LOG2, js, kl, wasserstein1

P = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)
Q = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
SMALL = [
    *("--steps", "4", "--batch-size", "4", "--preview-every", "2", "--save-every", "2"),
    *("--precision", "fp32", "--device", "cpu", "--quiet", "--size", "8", "--channels", "1", "--latent", "6"),
]


def test_divergences_as_scipy_has_them() -> None:
    assert float(kl(P, Q)) == pytest.approx(rel_entr(P.numpy(), Q.numpy()).sum(), abs=1e-12)
    places = torch.tensor([3.0, -1.0, 0.5, 7.0, 2.0], dtype=torch.float64)
    expected = wasserstein_distance(places.numpy(), places.numpy(), P.numpy(), Q.numpy())
    assert float(wasserstein1(places, P, Q)) == pytest.approx(expected, abs=1e-12)
    apart = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(js(*apart)) == pytest.approx(LOG2, abs=1e-7)


@pytest.mark.parametrize("same", [False, True])
def test_training_finds_the_best_discriminator(same: bool) -> None:
    """D ends at p / (p + q), and the loss at log 4 - 2 JS(p, q): log 4, the value -log 4, where p = q."""
    q = P if same else Q
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def loss() -> Tensor:
        # As often as each value is drawn: 20 samples of each distribution.
        real, fake = (logits.repeat_interleave((20 * p).round().long()) for p in (P, q))
        return discriminator_loss("minimax", real, fake)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    assert torch.allclose(logits.sigmoid(), P / (P + q), atol=1e-5)
    assert float(loss()) == pytest.approx(math.log(4) - 2 * float(js(P, q)), abs=1e-9)


@pytest.mark.parametrize("theta", [0.5, -2.0])
def test_the_critic_of_two_point_masses(theta: float) -> None:
    """With data at 0 and samples at theta, WGAN-GP's critic measures |theta|, and its slope is W1's gradient there.

    JS is log 2 for every theta but 0, so that its gradient is 0. The penalty is weak against the loss by 1 / lambda:
    for a critic of constant slope the optimum is |slope| = 1 + 1 / (2 lambda) times the distance.
    """
    torch.manual_seed(0)
    weight = 1000.0
    slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
    real, fake = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), theta, dtype=torch.float64)

    def critic(x: Tensor) -> Tensor:
        return (slope * x).flatten()

    optimizer = torch.optim.LBFGS([slope], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    share = torch.full((1,), 0.3, dtype=torch.float64)
    with torch.no_grad():
        slope.copy_(torch.tensor(-0.1 * math.copysign(1, theta)))

    def closure() -> float:
        optimizer.zero_grad()
        loss = discriminator_loss("wasserstein", critic(real), critic(fake))
        loss = loss + weight * gradient_penalty(critic, real, fake, share)
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    distance = float(critic(real) - critic(fake))
    factor = 1 + abs(theta) / (2 * weight)
    assert distance == pytest.approx(abs(theta) * factor, rel=1e-3)
    where = fake.clone().requires_grad_()
    generator_loss("wasserstein", critic(where)).backward()  # W1 = |theta|
    assert float(where.grad) == pytest.approx(math.copysign(factor, theta), rel=1e-3)
    places, one, other = torch.tensor([0.0, theta]), torch.tensor([1.0, 0]), torch.tensor([0, 1.0])
    assert float(wasserstein1(places.double(), one.double(), other.double())) == pytest.approx(abs(theta))
    assert float(js(one, other)) == pytest.approx(LOG2, abs=1e-7)


def test_penalties_of_a_quadratic() -> None:
    """f(x) = sum a x^2 / 2 has the gradient a x."""
    torch.manual_seed(0)
    a, real, fake = torch.randn(3).double(), torch.randn(4, 3).double(), torch.randn(4, 3).double()
    share = torch.rand(4, dtype=torch.float64)
    weights = a.clone().requires_grad_()

    def f(x: Tensor) -> Tensor:
        return (weights * x.square() / 2).sum(1)

    between = share[:, None] * real + (1 - share[:, None]) * fake
    expected = ((a * between).norm(dim=1) - 1).square().mean()
    assert float(gradient_penalty(f, real, fake, share)) == pytest.approx(float(expected), rel=1e-12)
    found = r1_penalty(f, real)
    assert float(found) == pytest.approx(float(0.5 * (a * real).square().sum(1).mean()), rel=1e-12)
    found.backward()  # through the gradient: d/da of a^2 x^2 / 2
    assert torch.allclose(weights.grad, a * real.square().mean(0), atol=1e-12)


def test_clipping() -> None:
    network = nn.Linear(4, 4)
    nn.init.normal_(network.weight)
    kept = network.weight.detach().clone().clamp(-0.01, 0.01)
    clip(network, 0.01)
    assert torch.equal(network.weight, kept)


def test_gradients_of_the_hinge() -> None:
    """SAGAN, eq. 4: 0 beyond the margins, -1 / n and 1 / n within, and -1 / n everywhere for the generator."""
    real = torch.tensor([-2.0, 0.5, 1.5], requires_grad=True)
    fake = torch.tensor([-1.5, 0.0, 3.0], requires_grad=True)
    discriminator_loss("hinge", real, fake).backward()
    assert real.grad.tolist() == pytest.approx([-1 / 3, -1 / 3, 0.0])
    assert fake.grad.tolist() == pytest.approx([0.0, 1 / 3, 1 / 3])
    judged = torch.randn(3, requires_grad=True)
    generator_loss("hinge", judged).backward()
    assert judged.grad.tolist() == pytest.approx([-1 / 3] * 3)


def networks(**options: object) -> nn.ModuleDict:
    torch.manual_seed(0)
    shape = {"kernels": (4, 4), "strides": (1, 2), "paddings": (0, 1)}
    judge = {"kernels": (4, 4), "strides": (2, 1), "paddings": (1, 0)}
    generator = DCGANConfig(latent=6, widths=(8,), out_channels=1, num_classes=3, embedding=2, **shape)
    discriminator = DCGANDiscriminatorConfig(
        in_channels=1, size=8, widths=(8,), num_classes=3, conditioning="projection", **{**judge, **options}
    )
    return nn.ModuleDict({"generator": DCGAN(generator), "discriminator": DCGANDiscriminator(discriminator)})


def step(batch: int = 6) -> Step:
    x = torch.rand(batch, 1, 8, 8) * 2 - 1
    return Step(x, torch.arange(batch) % 3, _generator(0, 0), RunConfig(precision="fp32", batch_size=batch))


@pytest.mark.parametrize("penalty", ["none", "gradient", "r1"])
@pytest.mark.parametrize("updates", [1, 3])
def test_the_losses_of_a_step(penalty: str, updates: int) -> None:
    """The discriminator `updates` times, then the generator; each reaches the parameters of its own group."""
    parts = networks(norm="none")
    objective = Adversarial(
        GANConfig(gan_loss="hinge", penalty=penalty, updates=updates, orthogonal=0.1), 1e-3
    )
    names = []
    for name, loss in objective.losses(parts, step()):
        names.append(name)
        grads = torch.autograd.grad(loss, list(parts[name].parameters()), allow_unused=False)
        assert all(bool(grad.isfinite().all()) for grad in grads)
    assert names == ["discriminator"] * updates + ["generator"]


def test_weights_are_clipped_after_each_update() -> None:
    parts = networks(norm="none")
    objective = Adversarial(GANConfig(gan_loss="wasserstein", clip=0.005), 1e-3)
    for name, _ in objective.losses(parts, step()):
        if name == "generator":
            largest = max(float(p.detach().abs().max()) for p in parts["discriminator"].parameters())
            assert largest <= 0.005


def test_a_batch_that_cannot_be_shared() -> None:
    objective = Adversarial(GANConfig(updates=5), 1e-3)
    with refused(ConfigError, "batch_size"):
        list(objective.losses(networks(), step(3)))


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Eight images of two classes."""
    for i in range(8):
        folder = tmp_path / "images" / ("ant", "bee")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    return str(tmp_path / "images")


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("dcgan", ["--generator", "widths=8", "--discriminator", "widths=8"]),
        ("wgan_gp", ["--generator", "widths=8", "--discriminator", "widths=8", "--updates", "2"]),
        ("sagan", ["--generator", "channels=8", "--discriminator", "channels=8"]),
        pytest.param(
            "biggan", ["--generator", "channels=8", "--discriminator", "channels=8"], marks=pytest.mark.slow
        ),
        pytest.param(
            "biggan_deep",
            ["--generator", "channels=8", "--discriminator", "channels=8"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(
    model: str, more: list[str], images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, losses and gauge, byte for byte."""
    import fastgen.training.loop as loop

    if model.startswith("biggan_deep"):
        more = [*more, "--latent", "8"]
    elif model == "biggan":
        more = [*more, "--latent", "6"]
    arguments = ["--data", images, "--model", model, *SMALL, *more]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", str(whole), *arguments]) == 0
    plain = loop._train_step

    def stops(state: loop.RunState, *rest: object) -> None:
        if state.step == 3:
            raise KeyboardInterrupt
        plain(state, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_train_step", stops)
        assert main(["train", str(parts), *arguments]) == 130
    assert main(["train", str(parts), "--resume", "--quiet", "--device", "cpu"]) == 0
    for name in (STATE_FILE, LOSS_FILE, f"previews/{GAUGE}"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    spec = load_spec(whole)
    assert spec.settings["class_names"] == ["ant", "bee"]
    assert main(["sample", str(whole), "-n", "2", "-o", str(tmp_path / "x.png"), "--quiet"]) == 0


def test_what_cannot_be_trained(images: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start = ["train", str(tmp_path / "m"), "--data", images, "--model", "dcgan", *SMALL]
    for more, shown in (
        (["--penalty", "r1"], "--penalty"),
        (["--generator", "out_channels=3", "widths=8"], "--generator"),
        (["--discriminator", "size=16", "strides=4,1", "widths=8"], "--discriminator"),
        (["--gan-loss", "psnr"], "gan_loss"),
    ):
        assert main([*start, *more]) == 1
        assert shown in capsys.readouterr().err
    assert (
        main(["train", str(tmp_path / "m"), "--data", "two-moons", "--model", "dcgan", "--steps", "1"]) == 1
    )
    with refused(ConfigError, "--size"):
        pyramid(9)


def test_the_gauge() -> None:
    """The root mean square distance of two samples; 0 for a generator that draws one image."""
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]).view(3, 1, 1, 2)
    assert mean_distance(x) == pytest.approx((5 + 5 + 0) / 3 / 2**0.5)
    assert mean_distance(x[:1].expand(4, -1, -1, -1)) == 0.0


def test_a_gauge_is_drawn_again_from_where_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / GAUGE
    for number, value in ((2, 0.5), (4, 0.25), (6, 0.1), (4, 0.125)):
        path.write_text(gauged(path, number, {"samples": value}))
    assert path.read_text() == "step,samples\n2,0.500000\n4,0.125000\n"
