"""The engine of GANs: fast twins against reference networks, truncation, interpolation, scores, requests."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

import fastgen
from fastgen.checkpoint import Part, Spec, save
from fastgen.config import to_dict
from fastgen.engines.gan import GANEngine
from fastgen.engines.gan.latents import truncated
from fastgen.engines.great_circles import slerp
from fastgen.errors import ArgumentError, ConfigError
from fastgen.fused import gan_residual
from tests.refusals import refused

from .gans import CASES, make, parts

# float32 against the plain networks in float64: a dozen layers of sums of some hundred products of size 1.
CLOSE = 2e-5


def given(engine: GANEngine, count: int) -> dict[str, object]:
    return {} if engine.classes is None else {"labels": [i % engine.classes for i in range(count)]}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("table", [True, False])
def test_twins_compute_what_the_networks_do(name: str, table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and scores; of classes as a table, and of too many classes for one."""
    if not table:
        monkeypatch.setattr(gan_residual, "TABLE", 0)
    engine, plain = make(name), parts(name).double()
    options = given(engine, 3)
    labels = None if engine.classes is None else torch.tensor(options["labels"])
    z = torch.randn(3, engine.generator.config.latent, generator=torch.Generator().manual_seed(1))
    for level in (1.0, 0.37):
        exact = plain["generator"](z.double(), labels, torch.full((3,), level, dtype=torch.float64))
        x = engine.generate(z, level=level, **options)
        assert float((x - exact).abs().max()) < CLOSE
    judged = options if engine.judges_labels else {}
    score = plain["discriminator"](x.double(), *([labels] if judged else []))
    assert float((engine.score(x, **judged) - score).abs().max()) < CLOSE * max(1.0, float(score.abs().max()))
    assert type(engine.fused["generator"]) is not type(engine.generator)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dcgan concat", "biggan", "biggan_deep, standing statistics"])
def test_verify(name: str, dtype: str) -> None:
    found = make(name, dtype=dtype, graph="recorded").verify()
    assert found.passed, str(found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_verify_all(name: str, dtype: str) -> None:
    found = make(name, dtype=dtype, graph="recorded").verify(batch=3, seed=1)
    assert found.passed, str(found)


def test_a_changed_weight_shows_in_the_next_call() -> None:
    """Spectral norms, batch norms and tables are folded anew."""
    engine = make("biggan")
    before = engine.sample(2, seed=0, labels=[0, 1])
    with torch.no_grad():
        engine.generator.blocks[0].norm1.gain.parametrizations.weight.original.mul_(-1)
    after = engine.sample(2, seed=0, labels=[0, 1])
    assert not torch.equal(before, after)
    with torch.no_grad():
        engine.generator.blocks[0].norm1.gain.parametrizations.weight.original.mul_(-1)
    assert torch.equal(before, engine.sample(2, seed=0, labels=[0, 1]))


@pytest.mark.parametrize(
    ("factor", "bound", "law"),
    [(0.5, 2.0, "rescale"), (1.0, 0.5, "clip"), (1.0, 3.0, "clip"), (1.0, math.inf, "whole")],
)
def test_both_laws_of_truncation(factor: float, bound: float, law: str) -> None:
    """t * truncnorm(-2, 2) and truncnorm(-t, t), as SciPy has them (Kolmogorov-Smirnov, 1 false alarm in 1000)."""
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    z = truncated(noise, *(torch.full((20_000,), v, dtype=torch.float64) for v in (factor, bound)))
    rank = noise[:, 0].argsort()
    assert bool((z[rank, 0].diff() >= 0).all())
    assert float(z.abs().max()) <= factor * bound
    values = z.flatten().numpy() / factor
    distribution = "norm" if law == "whole" else truncnorm(-bound, bound).cdf
    assert kstest(values, distribution).pvalue > 1e-3
    if law == "whole":
        assert torch.equal(z, noise.double())


def test_truncated_normals_are_those_of_the_inverse_cdf() -> None:
    """To the last digits of float64, in the tails too."""
    noise = torch.tensor([[-8.0, -3.0, -1.0, 0.0, 1e-6, 2.0, 5.0, 8.0]])
    for bound in (0.02, 0.5, 2.0):
        z = truncated(noise, torch.ones(1, dtype=torch.float64), torch.tensor([bound], dtype=torch.float64))
        tails = torch.special.ndtr(-noise.double().abs())
        expected = truncnorm(-bound, bound).ppf(tails.numpy())
        assert np.allclose(-np.abs(z.numpy()), expected, rtol=1e-9, atol=1e-12)
        assert bool((z.sign() == noise.sign()).all())


def test_requests_say_what_the_laws_mean() -> None:
    engine = make("dcgan", settings={"truncation": 0.5})
    assert (engine.request(1).factor, engine.request(1).bound, engine.request(1).level) == (0.5, 2.0, 0.5)
    clipped = engine.request(1, truncation=0.7, truncation_law="clip")
    assert (clipped.factor, clipped.bound, clipped.level) == (1.0, 0.7, 0.7)
    whole = engine.request(1, truncation=None)
    assert (whole.factor, whole.bound, whole.level) == (1.0, math.inf, 1.0)
    assert engine.request(**whole.to_dict()) == whole


@pytest.mark.parametrize("name", ["dcgan concat", "biggan"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    """The latents bit for bit; the images up to the order of sums."""
    engine = make(name)
    labels = [0, 1, 2, 3, 4]
    all_of = engine.request(seeds=[5, 6, 7, 8, 9], labels=labels, truncation=0.6)
    alone = engine.request(seeds=[7], labels=[2], truncation=0.6)
    assert torch.equal(engine.latents(all_of)[2:3], engine.latents(alone))
    assert torch.allclose(engine.draw(all_of)[2:3], engine.draw(alone), atol=CLOSE)


def test_images_of_latents_are_those_of_sample() -> None:
    engine = make("biggan_deep, standing statistics")
    request = engine.request(3, seed=4, labels=[0, 1, 2], truncation=0.4)
    x = engine.generate(engine.latents(request), labels=[0, 1, 2], level=0.4)
    assert torch.allclose(x, engine.draw(request), atol=CLOSE)
    assert not torch.allclose(engine.generate(engine.latents(request), labels=[0, 1, 2]), x, atol=1e-3)


def test_interpolation_passes_through_the_samples() -> None:
    engine = make("biggan")
    x = engine.interpolate([3, 1, 4], 5, labels=2, truncation=0.8)
    assert x.shape == (11, 3, 16, 16)
    ends = engine.sample(seeds=[3, 1, 4], labels=2, truncation=0.8)
    assert torch.allclose(x[[0, 5, 10]], ends, atol=CLOSE)
    moved = x.diff(dim=0).flatten(1).norm(dim=1)
    assert float(moved.min()) > 0
    turned = engine.interpolate([3, 1], 2, labels=[0, 4])
    assert torch.allclose(turned[[0, 2]], engine.sample(seeds=[3, 1], labels=[0, 4]), atol=CLOSE)


def test_slerp() -> None:
    """Equal steps of the angle, lengths in proportion; the straight line where there is no great circle."""
    a, b = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    share = torch.tensor([0.0, 1 / 3, 0.5, 1.0], dtype=torch.float64)
    found = slerp(a, b, share)
    angles = torch.atan2(found[:, 1], found[:, 0])
    assert torch.allclose(angles, share * math.pi / 2, atol=1e-12)
    assert torch.allclose(found.norm(dim=1), 2 - share, atol=1e-12)
    assert torch.allclose(slerp(a, -a, share)[2], torch.zeros(2).double())
    assert torch.allclose(slerp(a, 2 * a, share)[2], 1.5 * a)


def test_the_best_are_those_of_the_highest_scores() -> None:
    engine = make("dcgan projection")
    best = engine.best_of(8, 3, seed=10, labels=1)
    x = engine.sample(8, seed=10, labels=1)
    scores = engine.score(x, labels=1)
    assert torch.equal(best.scores, scores.sort(descending=True).values[:3])
    order = scores.argsort(descending=True)[:3].tolist()
    assert best.seeds == tuple(10 + i for i in order)
    assert torch.equal(best.images, x[order])


def test_a_generator_alone() -> None:
    """It samples, and has no scores."""
    engine = GANEngine({"generator": parts("dcgan")["generator"]}, device="cpu")
    assert engine.sample(2, seed=0).shape == (2, 3, 16, 16)
    assert not engine.describe()["discriminator"]
    with refused(ConfigError, "discriminator"):
        engine.score(torch.zeros(1, 3, 16, 16))
    with refused(ConfigError, "discriminator"):
        engine.best_of(4)
    with refused(ArgumentError, "name"):
        engine.call("score", torch.zeros(1, 3, 16, 16))


def test_refusals() -> None:
    engine = make("biggan")
    for arguments, argument in (
        ({"labels": [0], "truncation": 0.0}, "truncation"),
        ({"labels": [0], "truncation": math.nan}, "truncation"),
        ({"labels": [0], "truncation": True}, "truncation"),
        ({"labels": [0], "truncation_law": "cut"}, "truncation_law"),
        ({"labels": None}, "labels"),
        ({"labels": [5]}, "labels"),
    ):
        with refused(ConfigError, argument):
            engine.sample(1, **arguments)
    with refused(ConfigError, "z"):
        engine.generate(torch.zeros(2, 5), labels=[0, 1])
    with refused(ConfigError, "level"):
        engine.generate(torch.zeros(2, 12), labels=[0, 1], level=1.5)
    with refused(ConfigError, "x"):
        engine.score(torch.zeros(2, 3, 8, 8), labels=[0, 1])
    with refused(ConfigError, "space"):
        engine.interpolate([0, 1], 4, space="w", labels=0)
    with refused(ConfigError, "seeds"):
        engine.interpolate([0], 4, labels=0)
    with refused(ConfigError, "frames"):
        engine.interpolate([0, 1], 0, labels=0)
    with refused(ConfigError, "n"):
        engine.best_of(4, 5, labels=0)
    with refused(ConfigError, "parts"):
        GANEngine({"critic": parts("dcgan")["discriminator"]}, device="cpu")
    with refused(ConfigError, "settings: num_classes"):
        make("biggan", settings={"num_classes": 3})


def test_a_folder_from_the_command_line(tmp_path: Path) -> None:
    """Saved, loaded, sampled, repeated by --like, streamed, interpolated."""
    from fastgen.cli import main

    networks = parts("biggan")
    kinds = {"generator": "biggan", "discriminator": "biggan_discriminator"}
    made = {n: Part(kinds[n], to_dict(networks[n].config)) for n in kinds}
    spec = Spec("gan", made, {"num_classes": 5, "class_names": ["a", "b", "c", "d", "e"]}, {})
    save(tmp_path / "m", spec, networks.state_dict())
    engine = fastgen.load(str(tmp_path / "m"), device="cpu")
    assert torch.equal(
        engine.sample(2, seed=1, labels=["b", "e"]), make("biggan").sample(2, seed=1, labels=[1, 4])
    )
    folder, first = str(tmp_path / "m"), tmp_path / "a.png"
    command = ["sample", folder, "-n", "4", "--seed", "3", "--truncation", "0.5", "--truncation-law", "clip"]
    assert main([*command, "-o", str(first)]) == 0
    assert main(["sample", "--like", str(first), "-o", str(tmp_path / "b.png")]) == 0
    assert first.read_bytes() == (tmp_path / "b.png").read_bytes()
    assert main([*command, "-o", str(tmp_path / "x.npz")]) == 0
    drawn = engine.sample(4, seed=3, labels=[0, 1, 2, 3], truncation=0.5, truncation_law="clip")
    with np.load(tmp_path / "x.npz") as kept:
        assert np.allclose(kept["x"], drawn.numpy(), atol=CLOSE)
    gif = ["interpolate", "-m", folder, "--seeds", "0-2", "--frames", "2", "--labels", "a,d"]
    assert main([*gif, "-o", str(tmp_path / "x.gif")]) == 0
    from PIL import Image

    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 6
    assert main([*gif, "-o", str(tmp_path / "x.gif")]) == 1
    assert main([*gif, "-o", str(tmp_path / "x.png")]) == 1
    assert main(["sample", folder, "--truncation", "much", "-o", str(tmp_path / "y.png")]) == 1
