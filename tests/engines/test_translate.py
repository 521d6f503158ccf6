"""The engine from images to images: sizes, batches, seeds, statistics, scores, what it refuses, what it verifies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import Spec, save
from fastgen.engines import TranslateEngine
from fastgen.engines.translate.images import padded
from fastgen.errors import ArgumentError, ConfigError
from fastgen_kernels.noise import bits
from tests.refusals import refused

from .translations import CASES, engine, images, network

# As in tests/fused/test_translate.py: libraries add in other orders for other batches.
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.mark.parametrize("name", list(CASES))
def test_a_batch_is_its_images(name: str) -> None:
    """In "instance" mode, without dropout and with: what stands beside an image does not matter."""
    e = engine(name)
    x = images(8, 40, 33)
    together = e.translate(x)
    assert together.shape == (8, e.networks["generator"].config.out_channels, 40, 33)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, torch.cat([e.translate(x[i : i + 1]) for i in range(8)]), **CLOSE)
    if e.has_dropout:
        seeds = [5, 3, 2**64 - 1, 0, 7, 7, 1, 2]
        mixed = e.translate(x, seeds=seeds, dropout=True)
        assert not torch.allclose(mixed, together, **CLOSE)
        one = [e.translate(x[i : i + 1], seed=seed, dropout=True) for i, seed in enumerate(seeds)]
        torch.testing.assert_close(mixed, torch.cat(one), **CLOSE)


def test_dropout_is_that_of_the_seeds_bits() -> None:
    e = engine("resnet")
    x, net = images(2), e.networks["generator"]
    kept = bits([9, 10], "dropout", net.dropout_count(32, 32))
    torch.testing.assert_close(e.translate(x, seed=9, dropout=True), net(x, kept), **CLOSE)
    assert not torch.equal(e.translate(x[:1], dropout=True), e.translate(x[:1], dropout=True))


def test_dropout_by_default() -> None:
    """Off, and on where the settings say so or where seeds are given, which would mean nothing without."""
    e, x = engine(), images(1)
    assert torch.equal(e.translate(x), e.translate(x, dropout=False))
    on = engine(dropout=True)
    assert not torch.equal(on.translate(x), on.translate(x))
    assert torch.equal(on.translate(x, dropout=False), e.translate(x))
    assert torch.equal(on.translate(x, seed=1), e.translate(x, seed=1, dropout=True))
    assert torch.equal(e.translate(x, seed=1), e.translate(x, seed=1, dropout=True))
    with refused(ConfigError, "dropout"):
        e.translate(x, seed=1, dropout=False)
    plain = engine("unet 32")
    for argument, options in (
        ("seed", {"seed": 1}),
        ("seeds", {"seeds": [1]}),
        ("dropout", {"dropout": True}),
    ):
        with refused(ConfigError, argument):
            plain.translate(x, **options)

    assert (e.describe()["defaults"]["dropout"], on.describe()["defaults"]["dropout"]) == (False, True)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (64, 64), (65, 2)])
def test_any_size(size: tuple[int, int]) -> None:
    """What is missing is the image reflected, as numpy pads, which reflects again and again."""
    e = engine()
    image = images(1, *size)[0]
    height, width = (-(-side // 64) * 64 for side in size)
    want = np.pad(image.numpy(), ((0, 0), (0, height - size[0]), (0, width - size[1])), mode="reflect")
    assert np.array_equal(padded(image, height, width).numpy(), want)
    got = e.translate([image])
    assert [y.shape for y in got] == [(3, *size)]
    net = e.networks["generator"]
    whole = net(torch.from_numpy(want)[None])[0, :, : size[0], : size[1]]
    torch.testing.assert_close(got[0], whole, **CLOSE)


def test_lists_of_unlike_sizes() -> None:
    e = engine()
    sizes = [(64, 64), (9, 70), (30, 64), (64, 64)]
    given = [images(1, *size, seed=i)[0] for i, size in enumerate(sizes)]
    made = e.translate(given, seeds=[4, 5, 6, 7], dropout=True)
    assert [y.shape for y in made] == [x.shape for x in given]
    for x, y, seed in zip(given, made, [4, 5, 6, 7], strict=True):
        torch.testing.assert_close(e.translate(x[None], seed=seed, dropout=True)[0], y, **CLOSE)


def test_output_types() -> None:
    e = engine("unet 32")
    x = images(2)
    plain, arrays, pictures = (
        e.translate(x),
        e.translate(x, output_type="np"),
        e.translate(x, output_type="pil"),
    )
    assert arrays.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(arrays, (plain.permute(0, 2, 3, 1).numpy() + 1) / 2, atol=1e-6)
    assert [p.size for p in pictures] == [(32, 32)] * 2
    one, other = e.translate([x[0], x[1, :, :5]], output_type="np")
    assert (one.shape, other.shape) == ((32, 32, 3), (5, 32, 3))


def test_statistics_of_norms() -> None:
    e, x = engine(), images(4, 64, 64)
    net = e.networks["generator"]
    found = {mode: e.translate(x, norm_mode=mode) for mode in ("instance", "batch", "running")}
    for mode, y in found.items():
        torch.testing.assert_close(y, net(x, None, mode), **CLOSE)
    assert not torch.allclose(found["batch"], found["instance"], **CLOSE)
    torch.testing.assert_close(e.translate(x[:1], norm_mode="batch"), found["instance"][:1], **CLOSE)
    running = engine(norm_mode="running")
    torch.testing.assert_close(running.translate(x), found["running"], **CLOSE)
    assert running.describe()["defaults"]["norm_mode"] == "running"


def test_a_batch_with_statistics_of_its_own_is_never_divided() -> None:
    e = engine(max_batch=2)
    with refused(ConfigError, "images", 3, 2):
        e.translate(images(3), norm_mode="batch")
    with refused(ConfigError, "images"):
        e.translate([images(1)[0], images(1, 65)[0]], norm_mode="batch")
    with refused(ConfigError, "y", 3, 2):
        e.score(images(3), images(3), norm_mode="batch")
    with refused(ConfigError, "norm_mode"):
        engine(norm_mode="batch")
    with refused(ConfigError, "norm_mode"):
        e.best_of(images(1), 2, norm_mode="batch")


@pytest.mark.parametrize("name", ["unet", "resnet"])
@pytest.mark.parametrize("mode", ["instance", "running", "batch"])
def test_scores(name: str, mode: str) -> None:
    e = engine(name)
    net = e.networks["discriminator"]
    x = images(3) if net.config.in_channels else None
    y = images(3, channels=net.config.out_channels, seed=1)
    want = net(x, y, mode).mean((1, 2, 3))
    torch.testing.assert_close(e.score(x, y, norm_mode=mode), want, **CLOSE)
    if mode != "batch":
        lists = [None if v is None else list(v) for v in (x, y)]
        assert lists[1] is not None
        torch.testing.assert_close(e.score(lists[0], lists[1], norm_mode=mode), want, **CLOSE)


def test_best_of() -> None:
    """Every image tries the same seeds; the first of its ranking is handed out."""
    e = engine()
    x = images(2, 30, 40)
    best = e.best_of(x, 3, seed=10)
    assert best.scores.shape == (2, 3)
    for k in range(2):
        assert sorted(best.seeds[k]) == [10, 11, 12]
        assert (best.scores[k].diff() <= 0).all()
        tries = x[k : k + 1].expand(3, -1, -1, -1)
        made = e.translate(tries, seeds=best.seeds[k], dropout=True)
        torch.testing.assert_close(best.images[k], made[0], **CLOSE)
        torch.testing.assert_close(e.score(tries, made), best.scores[k], **CLOSE)
    listed = e.best_of([x[0], x[1, :, :7]], 2, seed=10, output_type="np")
    assert [image.shape for image in listed.images] == [(30, 40, 3), (7, 40, 3)]


def test_parts_that_are_not_there() -> None:
    whole = engine()
    alone = TranslateEngine({"generator": whole.networks["generator"]}, device="cpu")
    assert torch.equal(alone.translate(images(1)), whole.translate(images(1)))
    assert set(alone.verbs()) == {"translate", "translate_dropout"}
    for call in (lambda: alone.score(images(1), images(1)), lambda: alone.best_of(images(1), 2)):
        with refused(ConfigError, "discriminator"):
            call()
    judge = TranslateEngine({"discriminator": whole.networks["discriminator"]}, device="cpu")
    assert set(judge.verbs()) == {"score"}
    with refused(ConfigError, "generator"):
        judge.translate(images(1))
    still = engine("unet 32")
    with refused(ConfigError, "generator"):
        still.best_of(images(1), 2)


def test_arguments() -> None:
    e, x = engine(), images(2)
    wrong: list[tuple[str, Any]] = [
        ("images", x[0]),
        ("images", (x * 100).to(torch.uint8)),
        ("images", x[:, :2]),
        ("images", x[:0]),
        ("images", []),
        ("images", "photo.png"),
        ("images[1]", [x[0], x]),
        ("images[0]", [x[0, :2]]),
        ("images[0]", ["photo.png"]),
    ]
    for argument, given in wrong:
        with refused(ConfigError, argument):
            e.translate(given)
    with refused(ConfigError, "images", 1):
        e.translate(torch.stack([x[0], x[0] * float("nan")]))
    with refused(ConfigError, "norm_mode"):
        e.translate(x, norm_mode="population")
    with refused(ConfigError, "dropout"):
        e.translate(x, dropout="no")  # type: ignore[arg-type]
    with refused(ConfigError, "seeds", 2, 3):
        e.translate(x, seeds=[1, 2, 3])
    with refused(ArgumentError, "seed, seeds"):
        e.translate(x, seed=1, seeds=[1, 2])
    with refused(ConfigError, "output_type"):
        e.translate(x, output_type="jpeg")
    with refused(ConfigError, "n"):
        e.best_of(x, 0)
    with refused(ConfigError, "dropout"):
        engine("unet 32").translate(x, dropout=True)
    with refused(ConfigError, "y"):
        e.score(x, images(1))
    with refused(ConfigError, "x"):
        e.score(None, x)
    with refused(ConfigError, "x"):
        engine("resnet").score(x, images(2, channels=2))


def test_from_a_checkpoint(tmp_path: Path) -> None:
    parts = CASES["unet"]
    tensors = {
        f"{part}.{n}": t for part, made in parts.items() for n, t in network(made).state_dict().items()
    }
    save(tmp_path, Spec("translate", parts, {"norm_mode": "running", "dropout": True}), tensors)
    e = fastgen.load(tmp_path, device="cpu")
    assert isinstance(e, TranslateEngine)
    assert e.describe()["defaults"] == {"norm_mode": "running", "dropout": True}
    assert e.describe()["sides"] == {"multiple": 64, "least": 64}
    chosen = fastgen.load(tmp_path, device="cpu", norm_mode="instance", dropout=False)
    assert chosen.describe()["defaults"] == {"norm_mode": "instance", "dropout": False}
    assert torch.equal(chosen.translate(images(1)), engine().translate(images(1)))
    more = {f"critic.{n}": t for n, t in network(parts["discriminator"]).state_dict().items()}
    save(tmp_path, Spec("translate", {**parts, "critic": parts["discriminator"]}), {**tensors, **more})
    with refused(ConfigError, "parts", "critic"):
        fastgen.load(tmp_path, device="cpu")


def test_changed_weights_show() -> None:
    """Filters that were laid out, and folded, are made anew."""
    for mode in ("instance", "running"):
        e, x = engine(norm_mode=mode), images(1, 64, 64)
        before = e.translate(x)
        other = e.translate(x, norm_mode="running" if mode == "instance" else "instance")
        with torch.no_grad():
            for parameter in e.networks["generator"].parameters():
                parameter.mul_(1.1)
        assert not torch.equal(e.translate(x), before)
        torch.testing.assert_close(e.translate(x), e.networks["generator"](x, None, mode), **CLOSE)
        assert not torch.equal(
            e.translate(x, norm_mode="running" if mode == "instance" else "instance"), other
        )


@pytest.mark.parametrize("name", list(CASES))
def test_captured(name: str) -> None:
    """What a CUDA graph could hold: the same bits as uncaptured, on other images than those of the recording."""
    plain, captured = engine(name), engine(name, graph="recorded")
    for seed in (0, 1):
        x = images(2, seed=seed)
        assert torch.equal(plain.translate(x), captured.translate(x))
        if plain.has_dropout:
            made = [e.translate(x, seed=seed, dropout=True) for e in (plain, captured)]
            assert torch.equal(*made)
    assert captured.describe()["captured"]


VERIFIED = [
    (name, norm, mode, dtype)
    for name in ("unet", "resnet")
    for norm, mode in (
        ("batch", "instance"),
        ("batch", "running"),
        ("instance", "instance"),
        ("none", "instance"),
    )
    for dtype in ("float32", "bfloat16")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm", "mode", "dtype"), VERIFIED)
def test_verify(name: str, norm: str, mode: str, dtype: str) -> None:
    result = engine(name, norm, norm_mode=mode, dtype=dtype).verify()
    assert result.passed, str(result)


def test_verify_sees_a_wrong_layer() -> None:
    e = engine("unet 32")
    twin = e._fast["generator", "instance"]
    assert twin is not None
    layer = twin.get_submodule("network.up.2.norm")
    layer.eps = 0.1  # type: ignore[assignment]
    failed = [check.name for check in e.verify().checks if not check.passed]
    assert "generator.up.2.norm" in failed
    assert "translate" in failed


def test_a_score_that_failed_is_an_error() -> None:
    e, x = engine(), images(2)
    broken = x.clone()
    broken[1, 0, 0, 0] = math.nan
    with refused(ConfigError, "y", 1):
        e.score(x, broken)


def test_the_best_of_more_tries_than_fit_at_once() -> None:
    one, turns = engine(), engine(max_batch=2)
    a, b = (e.best_of(images(1), 5, seed=3) for e in (one, turns))
    assert a.seeds == b.seeds
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=1e-4)


def test_networks_of_other_names() -> None:
    for networks in ({}, {"other": engine().networks["generator"]}):
        with refused(ConfigError, "networks"):
            TranslateEngine(networks, device="cpu")
