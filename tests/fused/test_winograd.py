"""Convolutions by minimal filtering: the transforms, and the numbers within what their sums round."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgen import DiffusionEngine
from fastgen.engines.layers import summed
from fastgen.fused import onednn, winograd
from fastgen.fused.onednn import OneDNNConv
from fastgen.fused.winograd import Winograd, fits, gains, matrices
from fastgen.models.unet import UNet, UNetConfig

U = 2.0**-24


def test_the_transforms_are_a_convolution() -> None:
    """In one dimension, in float64: four results of six numbers and three weights."""
    a, g, b = matrices()
    torch.manual_seed(0)
    d, w = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    want = F.conv1d(d[None, None], w[None, None])[0, 0]
    torch.testing.assert_close(a @ ((g @ w) * (b @ d)), want, rtol=0, atol=1e-14)


def allowed(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Three sums in a row, and filters that are rounded: on absolute values."""
    made = Winograd(conv.weight, conv.bias).magnitudes()
    terms = sum(summed(n) for n in (36, conv.in_channels, 36))
    return (terms + 5 * U) * made(x.abs()).double()


@pytest.mark.parametrize("size", [(16, 16), (12, 28), (64, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part", [1, 1 << 12, 1 << 19])  # a row of tiles, some rows, some images
@torch.no_grad()
def test_it_is_the_convolution(
    size: tuple[int, int], bias: bool, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "PART", part)
    monkeypatch.setattr(winograd, "ENOUGH", 1)
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias)
    wide = torch.randn(3, 7, *size)
    for x in (wide[:, 1:6], wide[:, 1:6].contiguous(memory_format=torch.channels_last), wide[1:2, :5]):
        want = F.conv2d(
            x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), 1, 1
        )
        got = Winograd(conv.weight, conv.bias)(x)
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert ((got.double() - want).abs() <= allowed(conv, x)).all()


@torch.no_grad()
def test_what_follows_the_convolution() -> None:
    if (reason := onednn.why_not(torch.float32)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 129, 3, padding=1)
    x = torch.randn(2, 64, 16, 20).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, 129, 16, 20).contiguous(memory_format=torch.channels_last)
    kept = residual.clone()
    for rectified in (False, True):
        fast = OneDNNConv(conv, rectified, prepacked=True)
        assert fast.winograd_of(x) is not None
        bound = allowed(conv, x) + 2 * U * (residual.abs() + fast.plain(x).abs()).double()
        for given in ((x,), (x, residual)):
            assert ((fast(*given) - fast.plain(*given)).abs() <= 2 * bound).all()  # both round
    assert torch.equal(residual, kept)


def test_who_is_filtered_so() -> None:
    wide = nn.Conv2d(64, 128, 3, padding=1)
    assert fits(wide)
    for other in (
        nn.Conv2d(63, 256, 3, padding=1),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.Conv2d(64, 128, 3, padding=2, dilation=2),
        nn.Conv2d(64, 128, 3),
        nn.Conv2d(64, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(64, 128, 3, padding=1).bfloat16(),
        nn.Conv2d(64, 128, 3, padding=1).double(),
    ):
        assert not fits(other)
    assert gains(torch.empty(1, 64, 16, 16))
    assert gains(torch.empty(1, 64, 4, 64))
    for batch, height, width in ((64, 8, 8), (1, 18, 16), (1, 16, 18), (1, 12, 20)):
        assert not gains(torch.empty(batch, 64, height, width))
    # Filters that were laid out for another kind of call stay so.
    assert OneDNNConv(wide).winograd_of(torch.empty(1, 64, 16, 16)) is None


def engine() -> DiffusionEngine:
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=(16, 16),
        in_channels=3,
        out_channels=3,
        block_out_channels=(128,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=8,
    )
    return DiffusionEngine.from_module(
        UNet(config), {}, "epsilon", (3, 16, 16), device="cpu", solver="ddim", steps=4
    )


def test_verify_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := onednn.why_not(torch.float32)) is not None:
        pytest.skip(reason)
    right = engine()
    found = right.verify()
    assert found.passed, str(found)
    layer = right.fused.get_submodule("mid_block.resnets.0.conv1")
    assert isinstance(layer, OneDNNConv)
    assert layer._winograd is not None
    made = Winograd.__call__
    # As far off as TF32 would be, which is no float32.
    monkeypatch.setattr(Winograd, "__call__", lambda self, x: made(self, x) * (1 + 2.0**-11))
    assert not engine().verify().passed
