"""The discriminators of StyleGAN and StyleGAN2: layers against formulas written out in float64, shapes, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import Tensor, nn

from fastgen.errors import ConfigError
from fastgen.models.gan.stylegan.discriminator import (
    ResidualBlock,
    StyleGAN2Discriminator,
    StyleGAN2DiscriminatorConfig,
    StyleGANDiscriminator,
    StyleGANDiscriminatorConfig,
    averaged_conv,
    with_deviation,
)
from tests.refusals import refused

BOTH: Any = pytest.mark.parametrize(
    ("network", "config"),
    [
        (StyleGANDiscriminator, StyleGANDiscriminatorConfig),
        (StyleGAN2Discriminator, StyleGAN2DiscriminatorConfig),
    ],
    ids=["stylegan", "stylegan2"],
)
# Sums of up to a few hundred products of size 1 in float64.
ROUNDING = 1e-12


def small(network: Any, config: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = network(config(**{"in_channels": 2, "size": 12, "widths": (3, 4, 5), **options}))
    return made.double()


@pytest.mark.parametrize(("count", "group"), [(8, 4), (12, 4), (6, 3), (3, 4), (1, 4), (4, 1)])
def test_the_deviation_of_a_batch_written_out(count: int, group: int) -> None:
    """By loops: images i, n + i, 2 n + i, ... are a group; the plane is the mean over features of their deviation."""
    x = np.random.default_rng(0).normal(size=(count, 3, 2, 5)).astype(np.float32)
    found = with_deviation(torch.tensor(x), group).numpy()
    size = min(group, count)
    groups = count // size
    assert np.array_equal(found[:, :3], x)
    for i in range(count):
        others = x[[k * groups + i % groups for k in range(size)]].astype(np.float64)
        expected = np.sqrt(others.var(axis=0) + 1e-8).mean()
        # float32: a mean of 30 numbers of size 1, each off by a few units in the last place
        assert found[i, 3] == pytest.approx(np.full((2, 5), expected), rel=8 * 2**-24)


def test_a_batch_that_is_not_whole_groups() -> None:
    with refused(ConfigError, "group"):
        with_deviation(torch.zeros(6, 1, 2, 2), 4)


def test_the_deviation_of_equal_images_has_a_gradient() -> None:
    """Not NaN, which a square root at 0 would give."""
    x = torch.ones(4, 2, 3, 3, requires_grad=True)
    with_deviation(x, 4).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


def test_a_convolution_and_a_mean_in_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 6, 4), (5, 3, 3, 3), (5,))
    )
    plain = F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)
    assert torch.allclose(averaged_conv(x, weight, bias), plain, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 1), (2, 1, 1)])
def test_a_residual_block_written_out(taps: tuple[int, ...]) -> None:
    """SciPy's whole convolution of the image, whose middle is taken; then every second pixel."""
    torch.manual_seed(0)
    block = ResidualBlock(2, 3, StyleGAN2DiscriminatorConfig(blur=taps)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    row = np.array(taps) / sum(taps)

    def filtered(images: Tensor, cut: int, more: int) -> Tensor:
        """`cut` rows and columns of the whole are left out in front; `more` than the image has are kept."""
        whole = [convolve2d(image, np.outer(row, row)) for image in images[0].numpy()]
        height, width = images.shape[2] + more, images.shape[3] + more
        return torch.tensor(np.stack([image[cut : cut + height, cut : cut + width] for image in whole]))[None]

    def plain(conv: Any, images: Tensor, scale: float) -> Tensor:
        """Every output pixel without padding, of weights divided by the root of how many meet in one."""
        return F.conv2d(images, conv.weight * scale, conv.bias)

    def active(values: Tensor) -> Tensor:
        return torch.where(values < 0, 0.2 * values, values) * math.sqrt(2)

    with torch.no_grad():
        first = active(plain(block.conv1, F.pad(x, (1, 1, 1, 1)), 1 / math.sqrt(2 * 9)))
        wide = filtered(first, len(taps) - 1 - (len(taps) + 1) // 2, 1)  # a pixel more, for a stride of 2
        second = active(plain(block.conv2, wide, 1 / math.sqrt(2 * 9))[..., ::2, ::2])
        beside = filtered(x, len(taps) - 1 - (len(taps) - 1) // 2, 0)[..., ::2, ::2]
        expected = (second + plain(block.shortcut, beside, 1 / math.sqrt(2))) / math.sqrt(2)
        assert torch.allclose(block(x), expected, rtol=0, atol=ROUNDING)


@BOTH
def test_a_label_chooses_a_projection(network: Any, config: Any) -> None:
    """The logit is the product of features and the label's vector, divided by the root of their number."""
    made: Any = small(network, config, num_classes=3)
    x, labels = torch.randn(4, 2, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    features: list[Tensor] = []
    made.head.register_forward_hook(lambda _, __, result: features.append(result))
    logits = made(x, labels)
    table = [made.labels(torch.tensor([label]))[0] for label in range(3)]
    for i, label in enumerate(labels.tolist()):
        expected = float((features[0][i] @ table[label]).detach()) / math.sqrt(5)
        assert float(logits[i].detach()) == pytest.approx(expected, abs=ROUNDING)
    assert made.labels.layers[0].lr_multiplier == made.config.mapping_lr


@BOTH
def test_sides(network: Any, config: Any) -> None:
    """28 pixels end at 7, odd sides at one resolution; every weight takes part."""
    for size, widths in ((28, (3, 4, 5)), (5, (3,)), (2, (2, 3))):
        made = small(network, config, size=size, widths=widths)
        logits = made(torch.randn(4, 2, size, size, dtype=torch.float64))
        assert logits.shape == (4,)
        gradients = torch.autograd.grad(logits.sum(), list(made.parameters()))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


@BOTH
def test_it_sees_a_collapse(network: Any, config: Any) -> None:
    """The same image four times has another logit than among other images: of one image alone it would not."""
    made = small(network, config)
    x = torch.randn(4, 2, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.allclose(made(x)[:1], made(x[:1].expand(4, -1, -1, -1))[:1], atol=1e-6)
        alone = small(network, config, group=1)
        assert torch.allclose(alone(x)[:1], alone(x[:1]), atol=ROUNDING)


@BOTH
def test_configurations_that_cannot_be(network: Any, config: Any) -> None:
    with refused(ConfigError, "size"):
        config(size=30, widths=(4, 4, 4))
    with refused(ConfigError, "widths"):
        config(widths=())


def test_a_shortcut_needs_a_filter() -> None:
    with refused(ConfigError, "blur"):
        StyleGAN2DiscriminatorConfig(blur=())
    assert StyleGANDiscriminatorConfig(blur=()).blur == ()
