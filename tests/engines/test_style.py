"""The style engine: what blending, masks, strengths, colours and tiles mean, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgen_kernels
from fastgen.engines.style import Style, StyleEngine
from fastgen.engines.style.tiles import Tiles, spans
from fastgen.errors import ConfigError
from fastgen.models.style.network import Signals
from tests.refusals import refused

from .styles import NAMES, engine, network, picture

# Of pictures in [-1, 1]: some 20 layers, each of which passes on what those before it have rounded.
CLOSE = 1e-4


@pytest.fixture(params=NAMES)
def made(request: pytest.FixtureRequest) -> StyleEngine:
    return engine(request.param)


def off(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def two() -> Tensor:
    """Two styles that differ in all their statistics."""
    return torch.cat([picture(2), picture(3) * 0.2 + torch.tensor([0.3, -0.2, 0.1]).view(3, 1, 1)])


def plain(made: StyleEngine, content: Tensor, style: Tensor) -> Tensor:
    """By the network as its authors have it."""
    return (made.network((content + 1) / 2, (style + 1) / 2) * 2 - 1).clamp(-1, 1)


def test_a_picture_gets_the_style_of_one_of_another_size(made: StyleEngine) -> None:
    content, style = picture(1, count=2), picture(2, 33, 51)
    found = made.stylize(content, style)
    assert off(found, plain(made, content, style.expand(2, -1, -1, -1))) < CLOSE
    assert found.std() > 0.05
    assert not found.is_inference()


@pytest.mark.parametrize("size", [(5, 9), (40, 40), (31, 64), (67, 17)])
def test_any_size(size: tuple[int, int], made: StyleEngine) -> None:
    content = picture(1, *size)
    assert off(made.stylize(content, picture(2)), plain(made, content, picture(2))) < CLOSE


def test_pictures_of_unlike_sizes(made: StyleEngine) -> None:
    contents = [picture(1)[0], picture(2, 24, 31)[0], picture(3)[0]]
    found = made.stylize(contents, picture(4))
    assert [tuple(one.shape) for one in found] == [tuple(one.shape) for one in contents]
    for one, content in zip(found, contents, strict=True):
        assert off(one, made.stylize(content[None], picture(4))[0]) < CLOSE


def test_a_style_is_encoded_once(made: StyleEngine) -> None:
    style = made.encode_style(picture(2))
    assert torch.equal(made.stylize(picture(1), style), made.stylize(picture(1), picture(2)))
    both = made.encode_style([picture(2)[0], picture(3, 30, 31)[0]])
    assert (len(both), len(both[1])) == (2, 1)
    assert torch.equal(both[0].codes, style.codes)
    joined = Style.joined([style, both[1]])
    assert torch.equal(made.stylize(picture(1), [style, both[1]]), made.stylize(picture(1), joined))


def test_weights(made: StyleEngine) -> None:
    styles, content = two(), picture(1)
    one = made.stylize(content, styles[:1])
    assert torch.equal(made.stylize(content, styles, weights=[1, 0]), one)
    assert torch.equal(made.stylize(content, styles, weights=[2, 2]), made.stylize(content, styles))
    assert off(made.stylize(content, styles), one) > 100 * CLOSE
    assert torch.equal(made.stylize(content, styles[[0, 0]]), one)


def test_without_strength_it_is_the_autoencoded_content(made: StyleEngine) -> None:
    content = picture(1)
    itself = made.stylize(content, content)
    assert off(made.stylize(content, picture(2), alpha=0), itself) < CLOSE
    features = made.network.features((content + 1) / 2)  # type: ignore[operator]
    if made.network.one_encoder:
        decoded = (made.network.decode(features) * 2 - 1)[:, :, :45, :62]  # type: ignore[operator]
        assert off(itself, decoded.clamp(-1, 1)) < CLOSE


def test_strength_of_adain_is_equation_14() -> None:
    made, content, style = engine("adain"), picture(1), picture(2)
    want = (made.network((content + 1) / 2, (style + 1) / 2, 0.3) * 2 - 1).clamp(-1, 1)
    assert off(made.stylize(content, style, alpha=0.3), want) < CLOSE


def test_strength_grows_steadily(made: StyleEngine) -> None:
    content = picture(1)
    ends = [made.stylize(content, picture(2), alpha=a) for a in (0.0, 1.0)]
    before = 0.0
    for alpha in (0.25, 0.5, 0.75):
        distance = float((made.stylize(content, picture(2), alpha=alpha) - ends[0]).square().mean())
        assert distance > before
        before = distance
    assert float((ends[1] - ends[0]).square().mean()) > before


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_a_mask_of_ones_equals_none(alpha: float, made: StyleEngine) -> None:
    styles, content = two(), picture(1)
    for given, weights in ((styles, [3.0, 1.0]), (styles[:1], None)):
        want = made.stylize(content, given, alpha, weights)
        ones = torch.ones(len(given), 45, 62)
        assert off(made.stylize(content, given, alpha, weights, mask=ones), want) < CLOSE
    assert off(made.stylize(content, styles[:1], alpha, mask=torch.ones(45, 62)), want) < CLOSE


def test_masks_of_two_styles(made: StyleEngine) -> None:
    """Far from the seam the picture is that of each style, and where no mask is, the content's own."""
    content, styles = picture(1, 96, 160), two()
    masks = torch.zeros(2, 96, 160)
    masks[0, :, :80], masks[1, :, 80:] = 1, 1
    found = made.stylize(content, styles, mask=masks)
    apart = [made.stylize(content, styles[i : i + 1]) for i in range(2)]
    if made.network.one_encoder:  # only where later layers do not normalise what the seam has changed
        assert off(found[..., :40], apart[0][..., :40]) < CLOSE
        assert off(found[..., 120:], apart[1][..., 120:]) < CLOSE
    else:
        assert (found - apart[0])[..., :40].square().mean() < (found - apart[1])[..., :40].square().mean()
    none = made.stylize(content, styles, mask=torch.zeros(2, 96, 160))
    assert off(none, made.stylize(content, styles, alpha=0)) < CLOSE


def test_overlapping_masks_share(made: StyleEngine) -> None:
    styles, content = two(), picture(1)
    half = torch.full((2, 45, 62), 0.5)
    ones = torch.ones(2, 45, 62)
    assert off(made.stylize(content, styles, mask=half), made.stylize(content, styles, mask=ones)) < CLOSE


def test_colours_are_kept(made: StyleEngine) -> None:
    content = picture(1) * 0.2  # no colour is clipped
    new = made.stylize(content, picture(2))
    found = made.stylize(content, picture(2), preserve_color=True)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    inside = (found.abs() < 1).all(1, keepdim=True).expand_as(found)
    grey = ((found - content) - (found - content)[:, :1]).abs()[inside].max()
    assert grey < 1e-5  # all colours of a pixel move by the same
    brightness = ((found - new) * luma).sum(1, keepdim=True).expand_as(found)[inside].abs().max()
    assert inside.float().mean() > 0.5
    assert brightness < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"alpha": 0.6}, {"mask": True}, {"preserve_color": True}])
def test_tiles_have_no_seams(name: str, options: dict[str, Any]) -> None:
    content, styles = picture(1, 150, 203), two()
    if "mask" in options:
        generator = torch.Generator().manual_seed(0)
        options = {"mask": torch.rand(2, 150, 203, generator=generator)}
    whole, tiled = engine(name), engine(name, tile=64)
    assert off(tiled.stylize(content, styles, **options), whole.stylize(content, styles, **options)) < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_exact(name: str) -> None:
    """In float64, where a seam of any size would show."""
    net = network(name).double()
    content = picture(1, 131, 170).double()
    tiles = Tiles(131, 170, 48, net.stride, net.reach)
    features = tiles.shrink(net.features, content)
    assert off(features, net.features(content)) < 1e-12
    assert off(tiles.shrink(net.style_features, content), net.style_features(content)) < 1e-12
    decoded = net.decode(features)[:, :, :131, :170]
    assert off(tiles.enlarge(net.decode, features), decoded) < 1e-12
    # And no more of the neighbours is taken than is needed, by a pixel of the features.
    few = Tiles(131, 170, 48, net.stride, net.reach - 2 * net.stride)
    assert off(few.shrink(net.features, content), net.features(content)) > 1e-9


def test_spans_cover_a_side() -> None:
    for length, most in ((1, 8), (8, 8), (9, 8), (100, 7)):
        found = list(spans(length, most, 3))
        assert [i for span in found for i in range(span.start, span.stop)] == list(range(length))
        assert all(span.stop - span.start <= most for span in found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verified(name: str, dtype: str) -> None:
    found = engine(name, dtype=dtype).verify()
    assert found.passed, str(found)


def test_planes_get_the_statistics_asked_for() -> None:
    """The fused AdaIN of the engine's network."""
    made = engine("adain")
    x, code = torch.randn(2, 64, 12, 9), torch.rand(2, 1, 128) + 0.5
    y = made.fused.modulate(x.clone(), Signals(code))
    mean, std = code[:, 0].chunk(2, 1)
    assert off(y.mean((2, 3)), mean) < 1e-5
    assert off(y.std((2, 3)), std) < 1e-4  # eps beside the variance


def test_adain_runs_through_the_fused_operation(made: StyleEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.fused import style as twins

    calls = []

    def seen(*arguments: Any, **options: Any) -> Tensor:
        calls.append(options)
        return fastgen_kernels.adain(*arguments, **options)

    monkeypatch.setattr(twins, "adain", seen)
    made.stylize(picture(1), picture(2))
    assert len(calls) == (1 if made.network.one_encoder else 2)


def test_output_types() -> None:
    made = engine("microast")
    found = made.stylize(picture(1), picture(2), output_type="np")
    assert isinstance(found, np.ndarray)
    assert found.shape == (1, 45, 62, 3)
    (image,) = made.stylize([picture(1)[0]], picture(2), output_type="pil")
    assert image.size == (62, 45)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no batch": ({"content": picture(1)[0]}, "content"),
    "integers": ({"content": picture(1).int()}, "content"),
    "grey": ({"content": picture(1)[:, :1]}, "content"),
    "nothing": ({"content": []}, "content"),
    "a name": ({"content": "cat.png"}, "content"),
    "NaN": ({"content": picture(1) * float("nan")}, "content"),
    "a small content": ({"content": picture(1, 4, 40)}, "content"),
    "a small style": ({"style": picture(1, 40, 4)}, "style"),
    "no style": ({"style": []}, "style"),
    "alpha": ({"alpha": 1.1}, "alpha"),
    "alpha of words": ({"alpha": "1"}, "alpha"),
    "weights": ({"weights": [1.0, 2.0]}, "weights"),
    "negative weights": ({"style": picture(1, count=2), "weights": [1.0, -1.0]}, "weights"),
    "no weight": ({"weights": [0.0]}, "weights"),
    "weights whose sum is no float": (
        {"style": picture(1, count=2), "weights": [1e308, 1e308]},
        "weights",
    ),
    "infinite weights": (
        {"style": picture(1, count=2), "weights": [float("inf"), -float("inf")]},
        "weights",
    ),
    "huge weights": ({"style": picture(1, count=2), "weights": [10**400, 1]}, "weights"),
    "weights of words": ({"style": picture(1, count=2), "weights": "12"}, "weights"),
    "a word for a weight": ({"weights": ["1"]}, "weights"),
    "weights by name": ({"style": picture(1, count=2), "weights": {1: 2, 3: 4}}, "weights"),
    "flags for weights": ({"style": picture(1, count=2), "weights": [True, False]}, "weights"),
    "a tensor of flags": ({"weights": torch.tensor([True])}, "weights"),
    "complex weights": ({"weights": torch.tensor([1j])}, "weights"),
    "one weight": ({"weights": 1.0}, "weights"),
    "a number for a mask": ({"mask": 5}, "mask"),
    "complex mask": ({"mask": torch.ones(45, 62, dtype=torch.complex64)}, "mask"),
    "mask": ({"mask": torch.ones(2, 45, 62)}, "mask"),
    "mask's size": ({"mask": torch.ones(45, 61)}, "mask"),
    "mask's values": ({"mask": torch.full((45, 62), 1.5)}, "mask"),
    "masks": ({"mask": [torch.ones(45, 62)] * 2}, "mask"),
    "mask of words": ({"mask": ["a"]}, "mask"),
    "colour": ({"preserve_color": 1}, "preserve_color"),
    "output": ({"output_type": "jpg"}, "output_type"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    options, argument = WRONG[name]
    with refused(ConfigError, argument):
        engine("microast").stylize(**{"content": picture(1), "style": picture(2), **options})


def test_the_smallest_pictures(made: StyleEngine) -> None:
    least = made.network.minimum
    small = picture(1, least, least)  # type: ignore[arg-type]
    assert torch.isfinite(made.stylize(small, small)).all()
    with refused(ConfigError, "style", f"{least - 1} x {least}"):  # type: ignore[operator]
        made.encode_style(picture(1, least, least - 1))  # type: ignore[arg-type, operator]


def test_a_style_of_other_weights_is_refused() -> None:
    style = engine("microast", 0).encode_style(picture(2))
    with refused(ConfigError, "style"):
        engine("microast", 1).stylize(picture(1), style)
    made = engine("microast")
    style = made.encode_style(picture(2))
    with torch.no_grad():
        made.network.modulator.weights[0].bias.add_(1)  # type: ignore[union-attr, index, operator]
    with refused(ConfigError, "style"):
        made.stylize(picture(1), style)
    with refused(ConfigError, "style"):
        made.stylize(picture(1), [style, made.encode_style(picture(2))])


def test_codes_that_are_none_of_the_engines_are_refused() -> None:
    made = engine("microast")
    style = made.encode_style(picture(2, count=2))
    codes = style.codes
    for wrong in (
        codes[:0],
        codes[:, 1:],
        codes[0],
        codes.int(),
        codes * float("nan"),
        codes.to("meta"),
        [1.0],
    ):
        with refused(ConfigError, "style"):
            made.stylize(picture(1), Style(wrong, style.sha256))  # type: ignore[arg-type]
    with refused(ConfigError, "style"):
        made.stylize(picture(1), [style, Style(codes[:, 1:], style.sha256)])


def test_codes_belong_to_who_asked_for_them() -> None:
    made = engine("microast")
    style = made.encode_style(picture(2, count=2))
    want = made.stylize(picture(1), style)
    style.codes.mul_(1.0)
    style[1].codes.mul_(0.5)
    assert off(made.stylize(picture(1), style), want) > CLOSE


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
def test_what_is_not_finite_is_refused(output_type: str, made: StyleEngine) -> None:
    last = [m for m in made.network.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]  # type: ignore[union-attr, operator]
    with torch.no_grad():
        last.bias.fill_(float("nan"))  # type: ignore[union-attr]
    style = made.encode_style(picture(2))
    for content in (picture(1, count=2), [picture(1)[0]]):
        with refused(ConfigError, "content", 0):
            made.stylize(content, style, output_type=output_type)


def test_a_code_that_is_not_finite_is_refused() -> None:
    made = engine("microast")
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.fill_(float("nan"))
    with refused(ConfigError, "style", 0):
        made.encode_style(picture(2))


def test_large_pictures_are_not_worked_on_together_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made, style = engine("microast"), picture(2)
    calls: list[int] = []
    call = StyleEngine._call

    def seen(self: StyleEngine, name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        calls.append(len(tensors[0]))
        return call(self, name, *tensors)

    monkeypatch.setattr(StyleEngine, "_call", seen)
    contents = picture(1, 128, 200, count=5)
    together = made.stylize(contents, style, mask=torch.ones(128, 200))
    assert calls == [1, 2, 2, 1]  # the style, and 65,536 pixels at most
    for one, content in zip(together, contents, strict=True):
        assert off(one[None], made.stylize(content[None], style, mask=torch.ones(128, 200))) < CLOSE


def test_changed_weights_show(made: StyleEngine) -> None:
    before = made.stylize(picture(1), picture(2))
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.mul_(0.9)
    after = made.stylize(picture(1), picture(2))
    assert off(before, after) > 10 * CLOSE
    assert off(after, plain(made, picture(1), picture(2))) < CLOSE


@pytest.mark.parametrize("tile", [0, 63, 1.5, "large"])
def test_tile_is_checked(tile: Any) -> None:
    with refused(ConfigError, "tile"):
        engine("adain", tile=tile)
