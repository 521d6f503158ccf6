"""Training of style-based GANs: mixing, lazy R1, the moving average of w, exact resume, what the recipes refuse."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen.checkpoint import WEIGHTS_FILE, load_spec
from fastgen.cli import main
from fastgen.families.preview import GAUGE
from fastgen.training.adversarial import discriminator_loss, generator_loss
from fastgen.training.loop import LOSS_FILE, _generator
from fastgen.training.objective import Step
from fastgen.training.run import STATE_FILE, saved_run
from fastgen.training.settings import RunConfig
from fastgen.training.stylegan import StyleAdversarial, StyleGANConfig, crossovers, mixed

ROUNDING = 1e-6  # float32: sums of at most a hundred numbers of size 1, relative
LAYERS = 5


class ToyGenerator(nn.Module):
    """w = z times a parameter; an image is the sum of its styles, and keeps them to be looked at."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(latent=3, num_classes=classes)
        self.num_ws, self.noise_shapes = LAYERS, ((1, 2), (2, 2))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("w_mean", torch.zeros(3))
        self.seen: list[Any] = []

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        w = self.scale * z
        self.seen.append((w.detach(), labels))
        return w

    def synthesis(self, ws: Tensor, noise: list[Tensor]) -> Tensor:
        self.seen.append((ws.detach(), noise))
        return ws.sum(1)[:, None, None, :]


class Linear(nn.Module):
    """Logits a . x + c, whose gradient in x is a everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.c = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return x[:, 0, 0] @ self.a + self.c


def step(number: int = 0, count: int = 4, label: Tensor | None = None) -> Step:
    x = torch.randn(count, 1, 1, 3, generator=_generator(1, number))
    return Step(x, label, _generator(0, number), RunConfig(precision="fp32"), None, number)


def toys(classes: int | None = None) -> Any:
    return nn.ModuleDict({"generator": ToyGenerator(classes), "discriminator": Linear()})


@pytest.mark.parametrize("every", [3, 16])
def test_lazy_r1_of_a_linear_discriminator(every: int) -> None:
    """An update of its own in steps 0, k, 2 k, ...: k gamma |a|^2 / 2, whose gradient in a is k gamma a."""
    parts, gamma = toys(), 0.75
    objective = StyleAdversarial(StyleGANConfig(penalty_weight=gamma, r1_every=every), 1e-3)
    a = parts["discriminator"].a
    for number in range(2 * every + 1):
        found = list(objective.losses(parts, step(number)))
        due = number in (0, every, 2 * every)
        assert [name for name, _ in found] == ["discriminator"] * (1 + due) + ["generator"]
        if due:
            loss = found[1][1]
            assert float(loss.detach()) == pytest.approx(
                every * gamma * float(a.detach().square().sum()) / 2, rel=ROUNDING
            )
            (gradient,) = torch.autograd.grad(loss, a)
            assert torch.allclose(gradient, every * gamma * a.detach(), rtol=ROUNDING)


@pytest.mark.parametrize(("gamma", "every"), [(0.75, 1), (0.0, 16)])
def test_losses_written_out(gamma: float, every: int) -> None:
    """With k = 1, R1 is a part of each loss; without a weight there is none. Both losses see the same samples."""
    parts = toys()
    objective = StyleAdversarial(StyleGANConfig(penalty_weight=gamma, r1_every=every), 1e-3)
    at = step()
    found = dict(objective.losses(parts, at))
    assert set(found) == {"discriminator", "generator"}
    ws, _ = parts["generator"].seen[1]
    with torch.no_grad():
        judge = parts["discriminator"]
        on_real, on_fake = judge(at.x), judge(ws.sum(1)[:, None, None, :])
        expected = discriminator_loss("non-saturating", on_real, on_fake)
        expected = expected + gamma * judge.a.square().sum() / 2
        of_generator = generator_loss("non-saturating", on_fake)
    assert float(found["discriminator"].detach()) == pytest.approx(float(expected), rel=ROUNDING)
    assert float(found["generator"].detach()) == pytest.approx(float(of_generator), rel=ROUNDING)


def test_rates_of_lazy_regularisation() -> None:
    """17 updates in 16 steps, each worth 16 / 17 of one (Karras et al. 2020, appendix B)."""
    parts = toys()
    config = StyleGANConfig(r1_every=16, beta1=0.5, beta2=0.99, d_lr=2.0)
    groups = StyleAdversarial(config, 0.1).groups(parts)
    c = 16 / 17
    assert groups["generator"].lr == 0.1
    assert groups["generator"].betas == (0.5, 0.99)
    assert groups["discriminator"].lr == pytest.approx(0.1 * 2 * c)
    assert groups["discriminator"].betas == pytest.approx((0.5**c, 0.99**c))
    for plain in (StyleGANConfig(r1_every=1), StyleGANConfig(penalty_weight=0.0)):
        assert StyleAdversarial(plain, 0.1).groups(parts)["discriminator"].lr == 0.1


def test_which_layer_each_style_is_in() -> None:
    """By loops, over layers and images."""
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    layers = torch.tensor([1, 3, 5, 2])
    found = mixed(first, second, layers, LAYERS)
    for i in range(4):
        for layer in range(LAYERS):
            assert torch.equal(found[i, layer], (first if layer < layers[i] else second)[i])


@pytest.mark.parametrize("mixing", [0.0, 0.9, 1.0])
def test_how_often_styles_are_mixed(mixing: float) -> None:
    """Places 1 to 4 of 5 layers equally often, and nowhere for the rest: within five standard deviations."""
    count = 20_000
    places = crossovers(count, LAYERS, mixing, _generator(0, 0))
    assert places.dtype == torch.int64
    shares = np.bincount(places.numpy(), minlength=LAYERS + 1) / count
    expected = np.array([0.0, *[mixing / (LAYERS - 1)] * (LAYERS - 1), 1 - mixing])
    assert np.all(np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / count))


def test_one_layer_has_one_style() -> None:
    assert crossovers(3, 1, 1.0, _generator(0, 0)).tolist() == [1, 1, 1]


def test_what_the_generator_sees() -> None:
    """Two z of the same label for each image, and noise for each image and layer."""
    parts, labels = toys(2), torch.tensor([0, 1, 1, 0])
    list(StyleAdversarial(StyleGANConfig(mixing=1.0), 1e-3).losses(parts, step(label=labels)))
    (w, seen), (ws, noise) = parts["generator"].seen
    assert seen.tolist() == [0, 1, 1, 0] * 2
    assert [tuple(n.shape) for n in noise] == [(4, 1, 1, 2), (4, 1, 2, 2)]
    assert not torch.equal(noise[0][0], noise[0][1])
    for i in range(4):
        assert torch.equal(ws[i, 0], w[i])
        assert torch.equal(ws[i, -1], w[4 + i])


def test_the_moving_average_of_w() -> None:
    """sum over steps of d^(n - i) (1 - d) mean(w_i), of the first z of each image."""
    parts, decay, means = toys(), 0.9, []
    objective = StyleAdversarial(StyleGANConfig(w_decay=decay), 1e-3)
    for number in range(6):
        list(objective.losses(parts, step(number)))
        (w, _), _ = parts["generator"].seen[-2:]
        means.append(w[:4].double().mean(0))
    expected = sum(decay ** (5 - i) * (1 - decay) * mean for i, mean in enumerate(means))
    assert torch.allclose(parts["generator"].w_mean.double(), expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_same_step_draws_the_same() -> None:
    """All that is random comes from the step's generator."""
    torch.manual_seed(0)
    found = [[float(loss.detach()) for _, loss in _losses()] for _ in range(2)]
    assert found[0] == found[1]


def _losses() -> list[tuple[str, Tensor]]:
    return list(StyleAdversarial(StyleGANConfig(), 1e-3).losses(toys(), step()))


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Eight images of two classes."""
    for i in range(8):
        folder = tmp_path / "images" / ("ant", "bee")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    return str(tmp_path / "images")


SMALL = [
    *("--steps", "4", "--batch-size", "4", "--preview-every", "2", "--save-every", "2", "--latent", "6"),
    *("--precision", "fp32", "--device", "cpu", "--quiet", "--channels", "1", "--size", "28"),
    *("--generator", "widths=5,4,3", "mapping_layers=2"),
    *("--discriminator", "widths=3,4,5", "mapping_layers=2"),
]


@pytest.mark.parametrize("model", ["stylegan", "stylegan2"])
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(
    model: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, losses, gauge and model, byte for byte, across steps with an R1 of their own; the model has w_mean."""
    import fastgen.training.loop as loop

    arguments = ["--data", images, "--model", model, "--r1-every", "2", *SMALL]
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
    for name in (STATE_FILE, WEIGHTS_FILE, LOSS_FILE, f"previews/{GAUGE}"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    state, published = load_file(whole / STATE_FILE), load_file(whole / WEIGHTS_FILE)
    assert torch.equal(published["generator.w_mean"], state["model.generator.w_mean"])
    assert float(published["generator.w_mean"].abs().max()) > 0
    # Four updates and, of the discriminator, two of R1.
    assert state["updates"].unique().tolist() == [4, 6]
    spec, run = load_spec(whole), saved_run(whole)
    assert run is not None
    assert (set(spec.parts), set(run.auxiliary)) == ({"generator"}, {"discriminator"})
    assert spec.settings["class_names"] == ["ant", "bee"]
    assert main(["sample", str(whole), "-n", "2", "-o", str(tmp_path / "x.png"), "--quiet"]) == 0


def test_a_model_without_labels(images: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    arguments = ["--data", images, "--model", "stylegan2", "--unlabelled", "--w-dim", "4", *SMALL]
    assert main(["train", str(folder), *arguments]) == 0
    spec = load_spec(folder)
    config = spec.parts["generator"].config
    assert (config["num_classes"], config["latent"], config["w_dim"], spec.settings) == (None, 6, 4, {})


def test_what_cannot_be_trained(images: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start = ["train", str(tmp_path / "m"), "--data", images, "--model", "stylegan2", *SMALL]
    for more, shown in (
        (["--batch-size", "6"], "--batch-size"),
        (["--generator", "out_channels=3", "widths=3"], "--generator"),
        (["--generator", "num_classes=7"], "--generator"),
        (["--discriminator", "size=14", "widths=3,4"], "--discriminator"),
        (["--gan-loss", "psnr"], "gan_loss"),
        (["--mixing", "1.5"], "mixing"),
        (["--latent", "0"], "latent"),
    ):
        assert main([*start, *more]) == 1
        assert shown in capsys.readouterr().err
        assert not (tmp_path / "m").exists()
    with pytest.raises(SystemExit):
        main([*start, "--updates", "2"])
    assert "--updates" in capsys.readouterr().err
    assert (
        main(["train", str(tmp_path / "m"), "--data", "two-moons", "--model", "stylegan", "--steps", "1"])
        == 1
    )
