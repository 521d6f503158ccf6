"""The engine of style-based GANs: truncation, noise, mixing, interpolation and projection, each beside its formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import Part, Spec, save
from fastgen.config import to_dict
from fastgen.engines.gan import GANEngine, projection
from fastgen.engines.gan.projection import ProjectionOptions, distance
from fastgen.engines.gan.style import StyleGANEngine
from fastgen.engines.great_circles import slerp
from fastgen.errors import ArgumentError, ConfigError
from fastgen.images import read_metadata
from fastgen_kernels import normals
from tests.refusals import names, refused

from . import gans
from .stylegans import CASES, generator, make

# float32 against the plain networks in float64: some ten layers of sums of a hundred products of size 1.
CLOSE = 2e-5
NAMES = list(CASES)


def given(engine: StyleGANEngine, count: int) -> dict[str, Any]:
    return {} if engine.classes is None else {"labels": [i % engine.classes for i in range(count)]}


def images(
    name: str, seeds: list[int], labels: Any, psi: list[float], cutoff: int, mode: str
) -> torch.Tensor:
    """What `sample` should draw, by the network in float64 and the formula of truncation written out."""
    network = generator(name).double()
    z = normals(seeds, 0, "initial", (network.config.latent,)).double()
    w = network.mapping(z, None if labels is None else torch.tensor(labels))
    mean = network.w_mean
    ws = torch.stack(
        [
            mean + torch.tensor(psi, dtype=torch.float64)[:, None] * (w - mean) if i < cutoff else w
            for i in range(network.num_ws)
        ],
        dim=1,
    )
    shapes = network.noise_shapes
    noise: Any = {
        "const": list(network.noises),
        "none": [torch.zeros(1, 1, *shape).double() for shape in shapes],
        "random": [normals(seeds, i, "step", (1, *shape)).double() for i, shape in enumerate(shapes)],
    }[mode]
    return network.synthesis(ws, noise).clamp(-1, 1)


@pytest.mark.parametrize("mode", ["const", "random", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_the_formulas(name: str, mode: str) -> None:
    engine, seeds, psi = make(name), [3, 1, 4], [0.5, -0.7, 1.0]
    labels = given(engine, 3)
    for cutoff in (engine.styles, 2, 0):
        x = engine.sample(
            seeds=seeds, truncation_psi=psi, truncation_cutoff=cutoff, noise_mode=mode, **labels
        )
        exact = images(name, seeds, labels.get("labels"), psi, cutoff, mode)
        assert float((x - exact).abs().max()) < CLOSE
    assert float((x - x[:1]).abs().max()) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_psi_of_0_gives_one_image(name: str) -> None:
    engine = make(name)
    x = engine.sample(5, seed=7, truncation_psi=0, **given(engine, 5))
    assert (
        float((x - x[:1]).abs().max()) <= CLOSE
    )  # of one w, bit for bit; layers may sum each sample in its own order
    mean = engine.generator.w_mean[None]
    assert torch.allclose(x[:1], engine.synthesis(engine.truncate(mean, 1.0)), atol=CLOSE)
    varied = engine.sample(5, seed=7, truncation_psi=0, noise_mode="random", **given(engine, 5))
    assert float((varied - varied[:1]).abs().max()) > 0.01


@pytest.mark.parametrize("mode", ["const", "random", "none"])
def test_psi_per_sample_is_that_of_single_calls(mode: str) -> None:
    engine = make("stylegan2")
    psi = [0.0, 0.3, -1.0, 1.0, 2.5]
    together = engine.sample(seeds=[5, 6, 7, 8, 9], truncation_psi=psi, noise_mode=mode)
    for i, value in enumerate(psi):
        alone = engine.sample(seeds=[5 + i], truncation_psi=value, noise_mode=mode)
        assert torch.allclose(together[i : i + 1], alone, atol=CLOSE)
    for value in (torch.tensor(0.3), np.float32(0.3), np.array(0.3)):
        assert torch.allclose(
            engine.sample(seeds=[6], truncation_psi=value, noise_mode=mode), together[1:2], atol=CLOSE
        )
    assert torch.equal(engine.sample(seed=5, truncation_psi=psi, noise_mode=mode), together)
    assert torch.equal(engine.sample(seed=5, truncation_psi=np.array(psi), noise_mode=mode), together)


@pytest.mark.parametrize("name", NAMES)
def test_random_noise_does_not_depend_on_the_batch(name: str) -> None:
    """The noise bit for bit; images up to the order of sums, in batches of all sizes, also divided ones."""
    engine, small = make(name), make(name, max_batch=2)
    labels = given(engine, 5)
    whole = engine.sample(5, seed=20, noise_mode="random", **labels)
    assert torch.allclose(small.sample(5, seed=20, noise_mode="random", **labels), whole, atol=CLOSE)
    for i in range(5):
        own = {key: values[i] for key, values in labels.items()}
        alone = engine.sample(seeds=[20 + i], noise_mode="random", **own)
        assert torch.allclose(alone, whole[i : i + 1], atol=CLOSE)
    fixed = engine.sample(5, seed=20, **labels)
    assert float((whole - fixed).abs().max()) > 0.01


def test_the_models_own_settings() -> None:
    engine = make("stylegan", settings={"truncation_psi": 0.4, "truncation_cutoff": 3, "noise_mode": "none"})
    said = engine.request(2, seed=0)
    assert (said.truncation_psi, said.truncation_cutoff, said.noise_mode) == (0.4, 3, "none")
    plain = engine.request(2, seed=0, truncation_psi=None, truncation_cutoff=None, noise_mode="const")
    assert (plain.truncation_psi, plain.truncation_cutoff, plain.noise_mode) == (1.0, None, "const")
    assert torch.equal(
        engine.sample(2, seed=0),
        engine.sample(2, seed=0, truncation_psi=0.4, truncation_cutoff=3, noise_mode="none"),
    )
    assert engine.describe()["defaults"] == {
        "truncation_psi": 0.4,
        "truncation_cutoff": 3,
        "noise_mode": "none",
    }
    assert make("stylegan").request(1).truncation_psi == 1.0
    with refused(ConfigError, "settings: truncation_cutoff"):
        make("stylegan", settings={"truncation_cutoff": 7})


def test_requests_and_their_parts() -> None:
    engine = make("stylegan2, of labels")
    request = engine.request(seeds=[1, 2, 3], labels=[0, 1, 2], truncation_psi=[0.5, 0.5, 0.7])
    assert request.part(0, 2).truncation_psi == 0.5
    assert request.part(1, 3).truncation_psi == (0.5, 0.7)
    assert request.only(2).psis == (0.7,)
    assert engine.request(**request.to_dict()) == request
    parts = torch.cat(list(engine.sample_batches(**request.to_dict())))
    assert torch.allclose(parts, engine.draw(request), atol=CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_mixing_at_each_layer(name: str) -> None:
    """None is A, all is B, and in between each layer has the style that was asked for."""
    engine = make(name)
    labels = given(engine, 2)
    options = {"truncation_psi": 0.8, **labels}
    a, b = engine.sample(seeds=[1, 2], **options), engine.sample(seeds=[8, 9], **options)
    every = range(engine.styles)
    assert torch.allclose(engine.mix([1, 2], [8, 9], [], **options), a, atol=CLOSE)
    assert torch.allclose(engine.mix([1, 2], [8, 9], every, **options), b, atol=CLOSE)
    network = generator(name).double()
    chosen = None if engine.classes is None else torch.tensor(labels["labels"])
    wa, wb = (
        network.mapping(normals(seeds, 0, "initial", (6,)).double(), chosen) for seeds in ([1, 2], [8, 9])
    )
    for layer in every:
        ws = network.truncate(wa, 0.8).clone()
        ws[:, layer] = network.truncate(wb, 0.8)[:, layer]
        exact = network.synthesis(ws, list(network.noises)).clamp(-1, 1)
        found = engine.mix([1, 2], [8, 9], [layer], **options)
        assert float((found - exact).abs().max()) < CLOSE
        assert float((found - a).abs().max()) > 1e-4


def test_mixing_labels_and_noise() -> None:
    engine = make("stylegan, of labels")
    every = range(engine.styles)
    found = engine.mix([1, 2], [8, 9], every, labels=0, labels_b=[3, 4])
    assert torch.allclose(found, engine.sample(seeds=[8, 9], labels=[3, 4]), atol=CLOSE)
    noisy = engine.mix([1, 2], [1, 2], every, labels=0, noise_mode="random")
    assert torch.allclose(noisy, engine.sample(seeds=[1, 2], labels=0, noise_mode="random"), atol=CLOSE)


@pytest.mark.parametrize("mode", ["const", "random", "none"])
@pytest.mark.parametrize("space", ["z", "w"])
def test_interpolation(space: str, mode: str) -> None:
    """Through the samples, and half way at the slerp of z, or in the middle of both w."""
    engine = make("stylegan, of labels")
    options = {"truncation_psi": 0.9, "truncation_cutoff": 4, "noise_mode": mode}
    x = engine.interpolate([3, 1, 4], 4, space=space, labels=2, **options)
    assert x.shape == (9, 3, 12, 12)
    ends = engine.sample(seeds=[3, 1, 4], labels=2, **options)
    same = slice(0, 1) if mode == "random" else slice(None)  # the first seed's noise is that of all
    assert torch.allclose(x[[0, 4, 8]][same], ends[same], atol=CLOSE)
    network = generator("stylegan, of labels").double()
    z = normals([3, 1], 0, "initial", (6,)).double()
    label = torch.tensor([2, 2])
    if space == "z":
        middle = network.mapping(slerp(z[0], z[1], torch.tensor([0.5]).double()), label[:1])
    else:
        middle = network.mapping(z, label).mean(0, keepdim=True)
    noise = [normals([3], i, "step", (1, *s)).double() for i, s in enumerate(network.noise_shapes)]
    used = {"const": list(network.noises), "random": noise, "none": None}[mode]
    exact = network.synthesis(network.truncate(middle, 0.9, 4), used).clamp(-1, 1)
    assert float((x[2:3] - exact).abs().max()) < CLOSE


def test_interpolation_of_psi_and_labels() -> None:
    engine = make("stylegan2, of labels")
    for space in ("z", "w"):
        x = engine.interpolate([3, 1], 2, space=space, labels=[0, 4], truncation_psi=[0.2, 1.0])
        ends = engine.sample(seeds=[3, 1], labels=[0, 4], truncation_psi=[0.2, 1.0])
        assert torch.allclose(x[[0, 2]], ends, atol=CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_mapping_and_synthesis_apart(name: str) -> None:
    engine = make(name)
    labels = given(engine, 3)
    request = engine.request(3, seed=5, truncation_psi=0.6, truncation_cutoff=2, **labels)
    w = engine.mapping(engine.latents(request), **labels)
    ws = engine.truncate(w, 0.6, 2)
    assert ws.shape == (3, engine.styles, 10)
    x = engine.draw(request)
    assert torch.allclose(engine.synthesis(ws), x, atol=CLOSE)
    assert torch.allclose(engine.synthesis(ws, noise=list(engine.generator.noises)), x, atol=CLOSE)
    again = engine.generate(engine.latents(request), truncation_psi=0.6, truncation_cutoff=2, **labels)
    assert torch.allclose(again, x, atol=CLOSE)
    noisy = engine.sample(3, seed=5, truncation_psi=0.6, truncation_cutoff=2, noise_mode="random", **labels)
    assert torch.allclose(engine.synthesis(ws, noise_mode="random", seeds=[5, 6, 7]), noisy, atol=CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_projection_comes_close_to_what_the_generator_draws(name: str) -> None:
    engine = make(name)
    labels = given(engine, 2)
    x = engine.sample(2, seed=900, **labels)
    seen: list[int] = []
    found = engine.project(x, steps=60, progress=lambda step, losses: seen.append(step), **labels)
    assert seen == list(range(60))
    assert found.losses.shape == (61, 2)
    assert bool((found.loss.cpu() < found.losses[0] / 20).all())
    assert torch.allclose(found.loss, distance(found.images, x), rtol=1e-3, atol=1e-9)
    assert torch.allclose(engine.synthesis(found.ws), found.images, atol=CLOSE)
    assert torch.equal(found.ws, found.w[:, None].expand_as(found.ws))
    middle = distance(engine.synthesis(engine.truncate(engine.generator.w_mean[None], 1.0)), x[:1])
    assert float(found.loss[0]) < float(middle) / 20


def test_projection_of_what_no_style_draws() -> None:
    """A style for each layer comes closer than one for all; a call can be repeated, in any mode of autograd."""
    engine = make("stylegan2")
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    one = engine.project(x, steps=40)
    each = engine.project(x, steps=40, space="w+")
    assert float(each.loss) < float(one.loss)
    with torch.inference_mode():
        again = engine.project(x.clone(), steps=40)
    assert torch.equal(again.losses, one.losses)
    with torch.no_grad():
        none = engine.project(x, steps=5, noise_mode="none")
    assert torch.allclose(engine.synthesis(none.ws, noise_mode="none"), none.images, atol=CLOSE)
    assert not any(parameter.requires_grad for parameter in engine.generator.parameters())


def test_projection_without_labels_begins_at_any_class() -> None:
    engine = make("stylegan2, of labels")
    x = engine.sample(2, seed=900, labels=[4, 2])
    found = engine.project(x, steps=60)
    assert bool((found.loss.cpu() < found.losses[0] / 10).all())


@pytest.mark.parametrize("labels", [None, [4, 0, 2, 4]])
def test_projection_of_one_image_among_others(labels: list[int] | None) -> None:
    """Whatever stands beside it, at whatever place, in whatever part: the same descent but for rounding."""
    engine = make("stylegan2, of labels", max_batch=3)
    first = engine.sample(1, seed=900, labels=4)
    x = torch.cat([first, engine.sample(2, seed=901, labels=[0, 2]), first])
    seen = []
    together = engine.project(
        x, steps=12, labels=labels, progress=lambda step, losses: seen.append((step, losses))
    )
    alone = engine.project(first, steps=12, labels=None if labels is None else 4)
    for place in (0, 3):
        assert torch.allclose(together.losses[:, place], alone.losses[:, 0], rtol=1e-3)
        assert together.seeds[place] == alone.seeds[0]
    assert [step for step, _ in seen] == list(range(12))
    assert all(torch.equal(losses, together.losses[step]) for step, losses in seen)


def test_projection_of_what_is_no_picture() -> None:
    engine = make("stylegan2")
    x = engine.sample(2, seed=900)
    for value in (math.nan, math.inf, 1.5, -255.0):
        wrong = x.clone()
        wrong[1, 0, 3, 2] = value
        with refused(ConfigError, "x", 1):
            engine.project(wrong, steps=2)


def test_projection_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network whose images are not, an error; where w leaves it later, a warning and the best before."""
    engine = make("stylegan2")
    x = engine.sample(1, seed=900)
    look = projection._Descent.look

    def later(self: Any, step: int) -> None:
        if step == 3:
            with torch.no_grad():
                self.w.fill_(math.nan)
        look(self, step)

    monkeypatch.setattr(projection._Descent, "look", later)
    with pytest.warns(UserWarning, match="learning_rate"):
        found = engine.project(x, steps=5)
    assert found.ws.isfinite().all()
    assert float(found.loss) <= float(found.losses[:3].min()) * 1.001
    with torch.no_grad():
        engine.generator.synthesis.layers[0].weight.fill_(math.nan)
    with refused(ConfigError, "x"):
        engine.project(x, steps=2)


def test_distance_lets_values_beyond_white_and_black_be() -> None:
    target = torch.tensor([[[[1.0, -1.0], [0.5, 1.0]]]])
    x = torch.tensor([[[[1.7, -3.0], [0.0, -1.0]]]])
    assert distance(x, target).item() == pytest.approx((0.25 + 4.0) / 4)
    large = torch.zeros(1, 1, 8, 8)
    off = large.clone()
    off[..., 0, 0] = 0.4
    # One pixel of 64 off; at half the resolution one of 16 by a quarter.
    assert distance(off, large).item() == pytest.approx((0.16 / 64 + 0.01 / 16) / 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["stylegan", "stylegan2, of labels"])
def test_verify(name: str, dtype: str) -> None:
    found = make(name, dtype=dtype, graph="recorded").verify()
    assert found.passed, str(found)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_verify_all(name: str, dtype: str) -> None:
    found = make(name, dtype=dtype, graph="recorded").verify(batch=3, seed=1)
    assert found.passed, str(found)


def test_changed_weights_and_buffers_show_in_the_next_call() -> None:
    engine = make("stylegan2")
    before = engine.sample(2, seed=0, truncation_psi=0.5)
    with torch.no_grad():
        engine.generator.w_mean.add_(1.0)
    moved = engine.sample(2, seed=0, truncation_psi=0.5)
    assert not torch.allclose(before, moved, atol=0.01)
    with torch.no_grad():
        engine.generator.synthesis.layers[0].weight.mul_(-1)
    assert not torch.allclose(engine.sample(2, seed=0, truncation_psi=0.5), moved, atol=0.01)


def test_refusals() -> None:
    engine = make("stylegan")
    for arguments, argument in (
        ({"truncation_psi": 11.0}, "truncation_psi"),
        ({"truncation_psi": math.nan}, "truncation_psi"),
        ({"truncation_psi": True}, "truncation_psi"),
        ({"truncation_psi": [0.5, 0.5]}, "truncation_psi"),
        ({"truncation_psi": ["x"]}, "truncation_psi"),
        ({"truncation_cutoff": 7}, "truncation_cutoff"),
        ({"truncation_cutoff": -1}, "truncation_cutoff"),
        ({"truncation_cutoff": 1.0}, "truncation_cutoff"),
        ({"noise_mode": "fixed"}, "noise_mode"),
        ({"labels": [0]}, "labels"),
        ({"output_type": "png"}, "output_type"),
    ):
        with refused(ConfigError, argument):
            engine.sample(1, **arguments)
    with refused(ConfigError, "layers"):
        engine.mix([1], [2], [6])
    with refused(ConfigError, "layers"):
        engine.mix([1], [2], "12")
    with refused(ConfigError, "seeds_b"):
        engine.mix([1], [2, 3], [0])
    with refused(ConfigError, "layers"):
        engine.mix([1], [2], 1)
    for seeds in (0, []):
        with refused(ConfigError, "seeds_a"):
            engine.mix(seeds, [1], [0])
        with refused(ConfigError, "seeds_b"):
            engine.mix([1], seeds, [0])
    with refused(ArgumentError, "foo"):
        engine.mix([1], [2], [0], foo=1)
    labelled = make("stylegan, of labels")
    with refused(ConfigError, "labels_b"):
        labelled.mix([1], [2], [0], labels=1, labels_b=77)
    with refused(ConfigError, "labels"):
        labelled.mix([1], [2], [0], labels=77, labels_b=1)
    with refused(ConfigError, "space"):
        engine.interpolate([1, 2], 3, space="x")
    with refused(ConfigError, "seeds"):
        engine.interpolate([1], 3, space="w")
    with refused(ConfigError, "z"):
        engine.mapping(torch.zeros(2, 5))
    with refused(ConfigError, "w"):
        engine.truncate(torch.zeros(2, 5))
    ws = torch.zeros(2, 6, 10)
    with refused(ConfigError, "ws"):
        engine.synthesis(ws[:, :5])
    with refused(ConfigError, "seeds"):
        engine.synthesis(ws, noise_mode="random")
    with refused(ConfigError, "seeds"):
        engine.synthesis(ws, seeds=[1, 2])
    with refused(ArgumentError, "noise_mode, seeds"):
        engine.synthesis(ws, noise=list(engine.generator.noises), noise_mode="const")
    with refused(ConfigError, "noise"):
        engine.synthesis(ws, noise=[torch.zeros(1, 1, 4, 4)])
    noise = list(engine.generator.noises)
    for wrong in (noise[0].expand(3, -1, -1, -1), noise[2], None):
        with refused(ConfigError, "noise[1]"):
            engine.synthesis(ws, noise=[noise[0], wrong, *noise[2:]])
    x = torch.zeros(1, 1, 16, 16)
    for arguments, argument in (
        ({"steps": 0}, "steps"),
        ({"space": "z"}, "space"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"noise_mode": "random"}, "noise_mode"),
        ({"labels": 1}, "labels"),
        ({"seed": -1}, "seed"),
    ):
        with refused(ConfigError, argument):
            engine.project(x, **arguments)
    with refused(ConfigError, "x"):
        engine.project(torch.zeros(1, 1, 8, 8))


def test_what_the_other_kind_of_generator_has() -> None:
    """Options of z for a style-based generator, and of w for another one: told by name."""
    style, plain = make("stylegan"), gans.make("dcgan")
    for name, value in (("truncation_law", "clip"), ("truncation", 0.5)):
        with refused(ArgumentError, name, "truncation_psi"):
            style.sample(1, **{name: value})
        with refused(ArgumentError, name):
            style.interpolate([0, 1], 2, **{name: value})
    for name, value in (("truncation_psi", 0.5), ("truncation_cutoff", 2), ("noise_mode", "none")):
        with refused(ArgumentError, name, "truncation_law"):
            plain.sample(1, **{name: value})
        with refused(ArgumentError, name):
            plain.interpolate([0, 1], 2, **{name: value})
        with refused(ArgumentError, name):
            plain.best_of(2, **{name: value})
    with refused(ConfigError, "generator"):
        GANEngine({"generator": generator("stylegan")}, device="cpu")
    with refused(ConfigError, "generator"):
        StyleGANEngine({"generator": gans.parts("dcgan")["generator"]}, device="cpu")


def saved(folder: Path, name: str, **settings: Any) -> str:
    network = generator(name)
    spec = Spec("gan", {"generator": Part(CASES[name][0], to_dict(network.config))}, settings, {})
    save(folder, spec, {f"generator.{key}": value for key, value in network.state_dict().items()})
    return str(folder)


def test_a_folder_from_the_command_line(tmp_path: Path) -> None:
    """Saved, loaded, sampled, repeated by --like, streamed."""
    from fastgen.cli import main

    folder = saved(tmp_path / "m", "stylegan2, of labels", truncation_psi=0.8, num_classes=5)
    engine = fastgen.load(folder, device="cpu")
    assert isinstance(engine, StyleGANEngine)
    assert torch.equal(
        engine.sample(2, seed=1, labels=[1, 4]),
        make("stylegan2, of labels", settings={"truncation_psi": 0.8}).sample(2, seed=1, labels=[1, 4]),
    )
    first = tmp_path / "a.png"
    command = [
        "sample",
        folder,
        "-n",
        "4",
        "--seed",
        "3",
        "--truncation",
        "0.5,1",
        "--truncation-cutoff",
        "2",
    ]
    command += ["--noise-mode", "random"]
    assert main([*command, "-o", str(first)]) == 0
    assert main(["sample", "--like", str(first), "-o", str(tmp_path / "b.png")]) == 0
    assert first.read_bytes() == (tmp_path / "b.png").read_bytes()
    assert main([*command, "-o", str(tmp_path / "x.npz")]) == 0
    drawn = engine.sample(
        4,
        seed=3,
        labels=[0, 1, 2, 3],
        truncation_psi=[0.5, 1, 0.5, 1],
        truncation_cutoff=2,
        noise_mode="random",
    )
    with np.load(tmp_path / "x.npz") as kept:
        assert np.allclose(kept["x"], drawn.numpy(), atol=CLOSE)
    assert main([*command, "-o", str(tmp_path / "images")]) == 0
    assert main(["info", folder]) == 0
    for wrong in (["--truncation-law", "clip"], ["--truncation", "much"], ["--truncation-cutoff", "1.5"]):
        assert main(["sample", folder, *wrong, "-o", str(tmp_path / "y.png")]) == 1
    few = ["sample", folder, "-n", "1", "--truncation", "0.2,1", "-o", str(tmp_path / "y.png")]
    assert main(few) == 1  # of which the second would be of nothing
    plain = ["sample", "zoo:gan-mnist", "-o", str(tmp_path / "y.png")]
    for wrong in (["--truncation-cutoff", "1"], ["--noise-mode", "none"], ["--truncation", "0.5,1"]):
        assert main([*plain, *wrong]) == 1
    assert not (tmp_path / "y.png").exists()


def test_mix_and_interpolate_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from fastgen.cli import main

    folder = saved(tmp_path / "m", "stylegan, of labels", num_classes=5)
    engine = fastgen.load(folder, device="cpu")
    out = tmp_path / "grid.png"
    command = ["mix", folder, "--rows", "0-1", "--columns", "5,9,7", "--layers", "0-1", "--truncation", "0.7"]
    command += ["--labels", "0,1", "--column-labels", "3", "--scale", "1", "--quiet"]
    assert main([*command, "-o", str(out)]) == 0
    with Image.open(out) as image:
        pixels = np.asarray(image)
    cells = [[pixels[2 + r * 14 : 14 + r * 14, 2 + c * 14 : 14 + c * 14] for c in range(4)] for r in range(3)]
    wanted = {
        (0, 0): torch.full((1, 3, 12, 12), -1.0),
        (0, 2): engine.sample(seeds=[9], labels=3, truncation_psi=0.7),
        (2, 0): engine.sample(seeds=[1], labels=1, truncation_psi=0.7),
        (2, 3): engine.mix([1], [7], [0, 1], labels=1, labels_b=3, truncation_psi=0.7),
    }
    for (row, column), x in wanted.items():
        levels = ((x[0].permute(1, 2, 0) + 1) * 127.5).numpy()
        assert np.abs(cells[row][column] - levels).max() <= 0.51  # rounded to whole levels
    kept = read_metadata(out)
    assert kept["mix"] == {
        "rows": [0, 1],
        "columns": [5, 9, 7],
        "layers": [0, 1],
        "styles": engine.styles,
        "labels": [0, 1],
        "column_labels": [3, 3, 3],
        "truncation_psi": 0.7,
        "truncation_cutoff": None,
        "noise_mode": "const",
    }
    assert kept["sha256"] == engine.metadata(engine.request(1, labels=0))["sha256"]
    assert main(["sample", "--like", str(out), "-o", str(tmp_path / "z.png")]) == 1  # no request for samples
    assert main([*command, "-o", str(out)]) == 1  # it is there already
    assert main([*command[:-1], "--layers", "9", "-o", str(tmp_path / "b.png")]) == 1
    assert main(["mix", "zoo:gan-mnist", "-o", str(tmp_path / "b.png")]) == 1
    gif = ["interpolate", "-m", folder, "--seeds", "0-2", "--frames", "2", "--labels", "0,3", "--space", "w"]
    assert main([*gif, "--truncation", "0.5", "--noise-mode", "none", "-o", str(tmp_path / "x.gif")]) == 0
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 6
    assert main([*gif, "--truncation-law", "clip", "-o", str(tmp_path / "y.gif")]) == 1
    capsys.readouterr()
    assert main(["interpolate", "--space", "w", "-o", str(tmp_path / "y.gif")]) == 1  # of a DCGAN
    assert names(capsys.readouterr().err, "--space", "zoo:gan-mnist")
    for wrong, flag in (
        (["--truncation", "0,1"], "--truncation"),
        (["--rows", "3", "--columns", "4", "--truncation", "0,1"], "--truncation"),
        (["--labels", "0-4"], "--labels"),
        (["--column-labels", "0-3"], "--column-labels"),
        (["--column-labels", "77"], "--column-labels"),
        (["--labels", "77"], "--labels"),
        (["--layers", "9"], "--layers"),
        (["--truncation-cutoff", "70"], "--truncation-cutoff"),
    ):
        assert main([*command, *wrong, "-o", str(tmp_path / "b.png")]) == 1
        assert f"{flag}: " in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_an_animation_of_several_psi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way ends where it began: at the first seed with the first psi."""
    from fastgen.cli import main

    asked: list[dict[str, Any]] = []
    interpolate = StyleGANEngine.interpolate

    def noted(self: Any, **options: Any) -> Any:
        asked.append(options)
        return interpolate(self, **options)

    monkeypatch.setattr(StyleGANEngine, "interpolate", noted)
    folder = saved(tmp_path / "m", "stylegan2")
    command = ["interpolate", "-m", folder, "--seeds", "0-2", "--frames", "2", "-o", str(tmp_path / "x.gif")]
    assert main([*command, "--truncation", "0.2,1,0.5"]) == 0
    assert asked[0]["seeds"] == [0, 1, 2, 0]
    assert asked[0]["truncation_psi"] == [0.2, 1.0, 0.5, 0.2]
    assert main([*command, "--overwrite", "--truncation", "0.2,1"]) == 0
    assert asked[1]["truncation_psi"] == [0.2, 1.0, 0.2, 0.2]
    assert main([*command, "--overwrite", "--truncation", "0.2,1,0.5,0.4"]) == 1  # more than seeds


def test_project_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from fastgen.cli import main
    from fastgen.commands import project

    assert (ProjectionOptions.steps, ProjectionOptions.learning_rate) == (project.STEPS, project.RATE)
    folder = saved(tmp_path / "m", "stylegan2")
    engine = fastgen.load(folder, device="cpu")
    picture = tmp_path / "picture.png"
    fastgen.save_grid(engine.sample(1, seed=900), tmp_path / "sheet.png")
    from fastgen.images import save_image

    save_image(engine.sample(1, seed=900)[0], picture)
    command = ["project", str(picture), "-m", folder, "--steps", "30", "--json"]
    out, styles, plot = tmp_path / "out.png", tmp_path / "ws.npz", tmp_path / "loss.png"
    files = ["-o", str(out), "--styles", str(styles), "--plot", str(plot)]
    assert main([*command, *files]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == [str(out), str(styles), str(plot)]
    with np.load(styles) as kept:
        ws = torch.from_numpy(kept["ws"])
    assert ws.shape == (1, engine.styles, 10)
    target = engine.sample(1, seed=900)
    assert float(distance(engine.synthesis(ws), target)) == pytest.approx(facts["loss"][0], abs=1e-4)
    assert facts["loss"][0] < 0.01
    assert out.stat().st_size
    assert plot.stat().st_size
    made = {"label": None, "steps": 30, "space": "w", "seed": 0, "learning_rate": 0.1, "noise_mode": "const"}
    assert facts | made == facts
    assert read_metadata(out)["project"].items() >= made.items()
    assert main([*command, *files]) == 1
    capsys.readouterr()
    new = tmp_path / "new.png"
    for wrong, flag in (
        (["--plot", str(new)], "--out, --styles, --plot"),
        (["--plot", str(tmp_path / "m" / ".." / "new.png")], "--out, --styles, --plot"),
        (["--styles", str(tmp_path / "none" / "x.npz")], str(tmp_path / "none" / "x.npz")),
        (["--steps", "200000"], "--steps"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--seed", "-1"], "--seed"),
    ):
        with monkeypatch.context() as patch:  # before the model is read
            patch.setattr(project, "load_engine", lambda *_: pytest.fail("was loaded"))
            assert main([*command, *wrong, "-o", str(new)]) == 1
        assert f"{flag}: " in capsys.readouterr().err
    labelled = saved(tmp_path / "l", "stylegan2, of labels", num_classes=5)
    assert main(["project", str(picture), "-m", labelled, "--label", "77", "-o", str(new)]) == 1
    assert "--label: " in capsys.readouterr().err
    assert not new.exists()
    assert main([*command, "--label", "3", "-o", str(tmp_path / "b.png")]) == 1
    assert main(["project", str(picture), "-m", "zoo:gan-mnist", "-o", str(tmp_path / "b.png")]) == 1
