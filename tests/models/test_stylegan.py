"""Style-based generators: their operations against formulas written out, truncation, shapes, configurations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict, to_dict
from fastgen.errors import ConfigError
from fastgen.models.building import without_values
from fastgen.models.gan.stylegan.layers import (
    EqualizedConv,
    EqualizedLinear,
    blur,
    downsampled,
    upfirdn,
    upsampled,
)
from fastgen.models.gan.stylegan.stylegan import StyleGAN, StyleGANConfig, StyleLayer
from fastgen.models.gan.stylegan.stylegan2 import StyleGAN2, StyleGAN2Config, modulated_conv
from tests.refusals import refused

EXACT = 1e-12  # float64, sums of some tens of products of size 1
DIGITS: dict[str, Any] = {"size": 28, "widths": (8, 6, 5), "latent": 7, "w_dim": 9, "mapping_layers": 2}
KINDS: dict[str, dict[str, Any]] = {"stylegan": DIGITS, "stylegan2": DIGITS}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("stylegan", DIGITS),
    "v1, of w": ("stylegan", {**DIGITS, "input": "latent"}),
    "v1, classes": ("stylegan", {**DIGITS, "num_classes": 3}),
    "v1, no filter": ("stylegan", {**DIGITS, "blur": (), "shared_noise": True}),
    "v1, bias before": ("stylegan", {**DIGITS, "bias_before_blur": True}),
    "v1, one resolution": ("stylegan", {**DIGITS, "size": 2, "widths": (4,)}),
    "v2": ("stylegan2", DIGITS),
    "v2, classes": ("stylegan2", {**DIGITS, "num_classes": 3, "equalized": False}),
    "v2, three taps": ("stylegan2", {**DIGITS, "blur": (1, 2, 1), "clamp": 0.5}),
    "v2, one pixel": ("stylegan2", {**DIGITS, "size": 4, "widths": (5, 4, 3), "out_channels": 1}),
}


def generator(case: str, seed: int = 0) -> Any:
    """In float64, with strengths and biases that are not 0."""
    architecture, values = CASES[case]
    torch.manual_seed(seed)
    entry = ARCHITECTURES[architecture]
    made: Any = entry.module(entry.config(**values)).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "noise_strength" in name or name.endswith("bias"):
                parameter += 0.3 * torch.randn_like(parameter)
        made.w_mean.normal_()
    return made.requires_grad_(False)


def inputs(made: Any, batch: int) -> tuple[Tensor, Tensor | None]:
    z = torch.randn(batch, made.config.latent, dtype=torch.float64)
    classes = made.config.num_classes
    return z, None if classes is None else torch.arange(batch) % classes


def filtered(
    x: Tensor, taps: list[float], up: int, down: int, padding: tuple[int, int], gain: float
) -> Tensor:
    """The definition, for one row of pixels: sum over i of taps[i] x_up[n down - i], x_up between zeros."""
    spread = [0.0] * (len(x) * up)
    spread[::up] = x.tolist()
    row = [0.0] * max(padding[0], 0) + spread + [0.0] * max(padding[1], 0)
    row = row[max(-padding[0], 0) : len(row) - max(-padding[1], 0)]
    count = len(taps)
    full = [
        gain * sum(taps[i] / sum(taps) * row[n - i] for i in range(count)) for n in range(count - 1, len(row))
    ]
    return torch.tensor(full[::down], dtype=torch.float64)


@pytest.mark.parametrize(
    ("taps", "up", "down", "padding", "gain"),
    [
        ((1, 3, 3, 1), 2, 1, (2, 1), 2.0),
        ((1, 3, 3, 1), 1, 2, (1, 1), 1.0),
        ((1, 2, 4), 1, 1, (1, 1), 0.7),  # not symmetric
        ((1, 5, 2, 1, 1), 3, 2, (-1, 4), 1.0),  # pixels cut off
        ((1,), 2, 3, (0, -2), 1.0),
    ],
)
def test_upfirdn_is_its_definition(taps: Any, up: int, down: int, padding: Any, gain: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    found = upfirdn(x, taps, up=up, down=down, padding=padding, gain=gain**2)

    def rows(image: Tensor) -> Tensor:
        return torch.stack([filtered(row, list(taps), up, down, padding, gain) for row in image])

    for n in range(2):
        for c in range(3):
            expected = rows(rows(x[n, c]).t()).t()
            assert found[n, c].shape == expected.shape
            assert float((found[n, c] - expected).abs().max()) < EXACT


def test_filters_keep_sizes_and_means() -> None:
    """A constant image stays what it is away from the border, at every size."""
    x = torch.ones(1, 2, 9, 9, dtype=torch.float64)
    for taps in ((1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1)):
        for made, size in (
            (blur(x, taps), 9),
            (upsampled(x, taps), 18),
            (downsampled(x[..., :8, :8], taps), 4),
        ):
            assert made.shape == (1, 2, size, size)
        assert torch.allclose(blur(x, taps)[..., 3:-3, 3:-3], torch.ones(()).double())
        # Each pixel of the larger image sees half of the taps: equal sums only where the filter has a zero there.
        inner = upsampled(x, taps)[..., 4:-4, 4:-4]
        assert torch.allclose(F.avg_pool2d(inner, 2), torch.ones(()).double())
    assert blur(x, ()) is x


def test_equalized_layers_are_plain_ones() -> None:
    torch.manual_seed(0)
    linear = EqualizedLinear(5, 4, gain=1.3, lr_multiplier=0.01, bias=0.2).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    expected = x @ (linear.weight * (1.3 * 0.01 / math.sqrt(5))).t() + linear.bias * 0.01
    assert torch.allclose(linear(x), expected, atol=EXACT)
    assert torch.allclose(linear.bias * 0.01, torch.full((4,), 0.2).double(), atol=1e-7)  # float32's 0.2
    assert 50 < float(EqualizedLinear(100, 100, lr_multiplier=0.01).weight.std()) < 200
    conv = EqualizedConv(3, 4, 3, gain=0.7, stride=2, padding=0).double()
    image = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    plain = F.conv2d(image, conv.weight * (0.7 / math.sqrt(27)), conv.bias, stride=2)
    assert torch.allclose(conv(image), plain, atol=EXACT)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize(("kernel", "demodulate"), [(3, True), (3, False), (1, False)])
def test_a_modulated_convolution_is_a_filter_for_each_sample(up: bool, kernel: int, demodulate: bool) -> None:
    """Karras et al. 2020, eq. 1 and 3, with filters made and used one by one."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6, 4, dtype=torch.float64)
    weight = torch.randn(7, 5, kernel, kernel, dtype=torch.float64)
    style = torch.randn(3, 5, dtype=torch.float64)
    taps = (1, 3, 3, 1)
    found = modulated_conv(x, weight, style, demodulate=demodulate, eps=1e-3, up=up, blur=taps)
    for n in range(3):
        own = weight * style[n][None, :, None, None]
        if demodulate:
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-3).sqrt()
        if up:
            # Zeros between pixels, a convolution that mirrors the filter, then FIR and a cut, both centred.
            spread = torch.zeros(1, 5, 12, 8, dtype=torch.float64)
            spread[..., ::2, ::2] = x[n]
            wide = F.conv2d(F.pad(spread, (4, 4, 4, 4)), own.flip(2, 3))
            row = torch.tensor(taps, dtype=torch.float64) / 8
            fir = torch.outer(row, row).expand(7, 1, 4, 4)
            begin = (wide.shape[2] - 3 - 12) // 2
            expected = 4 * F.conv2d(wide, fir, groups=7)[..., begin : begin + 12, begin : begin + 8]
        else:
            expected = F.conv2d(x[n : n + 1], own, padding=kernel // 2)
        assert found[n : n + 1].shape == expected.shape
        assert float((found[n : n + 1] - expected).abs().max()) < EXACT * 100


def test_adain_sets_mean_and_deviation() -> None:
    """The second half of the style is the mean, the first the deviation, of every channel of every sample."""
    torch.manual_seed(0)
    config = StyleGANConfig(**DIGITS)
    layer = StyleLayer(4, 5, "same", config).double()
    w = torch.randn(3, 9, dtype=torch.float64)
    x = layer(torch.randn(3, 4, 6, 5, dtype=torch.float64), w, torch.randn(3, 1, 6, 5, dtype=torch.float64))
    scale, shift = layer.affine(w).split(5, dim=1)
    assert torch.allclose(x.mean((2, 3)), shift, atol=1e-10)
    assert torch.allclose(x.var((2, 3), correction=0), scale.square(), rtol=1e-5)  # but for eps


@pytest.mark.parametrize("case", CASES)
def test_parts_make_the_whole(case: str) -> None:
    """forward is synthesis of the mapping without truncation; shapes; no sample depends on those beside it."""
    made = generator(case)
    z, labels = inputs(made, 3)
    images = made(z, labels)
    assert images.shape == (3, *made.config.shape)
    w = made.mapping(z, labels)
    assert w.shape == (3, made.config.w_dim)
    assert len(made.noises) == len(made.noise_shapes)
    ws = made.truncate(w)
    assert ws.shape == (3, made.num_ws, made.config.w_dim)
    assert torch.equal(made.synthesis(ws, list(made.noises)), images)
    assert float(images.std()) > 0.05
    for i in range(3):
        one = made(z[i : i + 1], None if labels is None else labels[i : i + 1])
        assert float((one[0] - images[i]).abs().max()) < 1e-10
    own = [torch.randn(3, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]
    assert float((made.synthesis(ws, own) - made.synthesis(ws, None)).abs().max()) > 1e-3
    zeros = [torch.zeros(1, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]
    assert torch.equal(made.synthesis(ws, zeros), made.synthesis(ws, None))


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_every_style_and_every_noise_is_seen(case: str) -> None:
    made = generator(case)
    ws = made.truncate(made.mapping(inputs(made, 1)[0]))
    noise = list(made.noises)
    before = made.synthesis(ws, noise)
    for i in range(made.num_ws):
        changed = ws.clone()
        changed[:, i] += 1.0
        assert float((made.synthesis(changed, noise) - before).abs().max()) > 1e-3
    for i, image in enumerate(noise):
        others = [*noise[:i], image + torch.randn_like(image), *noise[i + 1 :]]
        assert float((made.synthesis(ws, others) - before).abs().max()) > 1e-6


@pytest.mark.parametrize("case", ["v1", "v2"])
def test_truncation(case: str) -> None:
    """At 0 the mean, at 1 w itself, bit for bit; per sample as one by one; the cutoff; the formula in between."""
    made = generator(case)
    w = made.mapping(inputs(made, 3)[0])
    whole = w[:, None].expand(-1, made.num_ws, -1)
    assert torch.equal(made.truncate(w), whole)
    assert torch.equal(made.truncate(w, 0.0), made.w_mean.expand(3, made.num_ws, -1))
    psi = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    found = made.truncate(w, psi)
    expected = made.w_mean + psi[:, None] * (w - made.w_mean)
    assert torch.allclose(found, expected[:, None].expand_as(found), atol=EXACT)
    cut = torch.tensor([0, 2, made.num_ws])
    for i in range(3):
        assert torch.equal(made.truncate(w[i : i + 1], psi[i : i + 1]), found[i : i + 1])
        part = made.truncate(w, psi, cut)[i]
        assert torch.equal(part[: cut[i]], found[i, : cut[i]])
        assert torch.equal(part[cut[i] :], whole[i, cut[i] :])
        assert torch.equal(made.truncate(w, psi, int(cut[i]))[i], part)
    assert made.truncate(w.float(), 0.5).dtype == torch.float32


def test_labels_change_the_image() -> None:
    for case in ("v1, classes", "v2, classes"):
        made = generator(case)
        z, _ = inputs(made, 1)
        first, second = (made(z, torch.tensor([label])) for label in (0, 2))
        assert float((first - second).abs().max()) > 1e-3


def test_clamp() -> None:
    made = generator("v2, three taps")
    for layer in made.synthesis.layers:
        layer.weight.mul_(100)
        layer.noise_strength.fill_(100.0)
    last = made.synthesis.layers[0](
        made.synthesis.const, torch.ones(1, 9).double(), torch.randn(1, 1, 7, 7).double()
    )
    assert float(last.abs().max()) == 0.5


@pytest.mark.parametrize("case", CASES)
def test_built_without_values(case: str) -> None:
    """As checkpoints are loaded: nothing lies outside the state dict, and the configuration goes through JSON."""
    architecture, values = CASES[case]
    entry = ARCHITECTURES[architecture]
    config: Any = entry.config(**values)
    assert from_dict(entry.config, to_dict(config), "test") == config
    made = generator(case)
    with without_values():
        empty: Any = entry.module(config)
    empty.load_state_dict(made.state_dict(), assign=True)
    z, labels = inputs(made, 2)
    assert torch.equal(empty(z, labels), made(z, labels))


@pytest.mark.parametrize("kind", [StyleGANConfig, StyleGAN2Config])
def test_sizes_that_do_not_halve(kind: Any) -> None:
    for size, widths in ((30, (4, 4, 4)), (4, (4, 4, 4, 4)), (7, (4, 4))):
        with refused(ConfigError, "size"):
            kind(size=size, widths=widths)
    with refused(ConfigError, "widths"):
        kind(size=8, widths=())
    if kind is StyleGAN2Config:
        with refused(ConfigError, "blur"):
            kind(size=8, widths=(4, 4), blur=())
    else:
        with refused(ConfigError, "size"):
            kind(size=2, widths=(4, 4))  # AdaIN of one pixel


def test_the_papers_networks() -> None:
    """18 styles for 1024 pixels in both; parameters as the papers' code counts them, of float32 each."""
    with without_values():
        first: Any = StyleGAN(StyleGANConfig())
        second: Any = StyleGAN2(StyleGAN2Config())
    assert (first.num_ws, second.num_ws) == (18, 18)
    assert (len(first.noise_shapes), len(second.noise_shapes)) == (18, 17)
    assert first.config.bottom == second.config.bottom == 4
    count = sum(p.numel() for p in second.parameters())
    assert count == 30_370_060
