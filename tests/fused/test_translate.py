"""Twins of networks from images to images against the reference: all norms, modes, paddings, dropout; hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastgen.fused.onednn import why_not
from fastgen.fused.translate import BAND, TOGETHER, fast, instance_norm
from fastgen.fused.transposed import OneDNNTransposed, PhasedTransposed, transposed
from fastgen.fused.winograd import Winograd
from tests.engines.translations import PATCH, PIXEL, RESNET, UNET, images, network

ONEDNN = why_not(torch.float32) is None
# Sums of float32 products in other orders, through some 16 layers whose norms pass errors on.
CLOSE = {"rtol": 0, "atol": 2e-5}
NORMS = [("batch", "instance"), ("batch", "running"), ("instance", "instance"), ("none", "instance")]


@pytest.mark.parametrize(("norm", "mode"), NORMS)
@pytest.mark.parametrize("dropout", [False, True])
def test_unet(norm: str, mode: str, dropout: bool) -> None:
    net = network(UNET, norm=norm, dropout=dropout)
    twin, x = fast(net, mode), images(3, 64, 128)
    assert twin is not None
    kept = torch.rand(3, net.dropout_count(64, 128)) < 0.5 if dropout else None
    before = copy.deepcopy(net.state_dict())
    given = x.clone()
    torch.testing.assert_close(twin(x, kept), net(x, kept, mode), **CLOSE)
    assert torch.equal(given, x)  # activations in place never reach the caller's images
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("norm", "mode"), NORMS)
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "reflect", "dropout": True},
        {"padding": "replicate", "dropout": False},
        {"padding": "zero", "upsampling": "bilinear", "dropout": False},
        {"upsampling": "nearest", "downs": 1, "blocks": 0, "dropout": False},
    ],
    ids=str,
)
def test_resnet(norm: str, mode: str, options: dict[str, Any]) -> None:
    net = network(RESNET, norm=norm, **options)
    twin, x = fast(net, mode), images(2, 16, 24)
    assert twin is not None
    kept = (
        torch.rand(2, net.dropout_count(16, 24)) < 0.5 if net.config.dropout and net.config.blocks else None
    )
    torch.testing.assert_close(twin(x, kept), net(x, kept, mode), **CLOSE)


def test_resnet_by_winograd() -> None:
    """Wide enough for minimal filtering, whose border is reflected."""
    net = network(RESNET, channels=16, blocks=1, dropout=False, norm="instance")
    twin, x = fast(net, "instance"), images(1, 64, 64)
    assert twin is not None
    torch.testing.assert_close(twin(x), net(x), **CLOSE)


@pytest.mark.parametrize(("norm", "mode"), NORMS)
@pytest.mark.parametrize("part", [PATCH, PIXEL], ids=["patch", "pixel"])
def test_scores(norm: str, mode: str, part: Any) -> None:
    net = network(part, norm=norm)
    twin = fast(net, mode)
    assert twin is not None
    x, y = images(3), images(3, channels=net.config.out_channels, seed=1)
    want = net(x, y, mode).mean((1, 2, 3))
    got = twin(x, y) if net.config.in_channels else twin(y)
    torch.testing.assert_close(got, want, **CLOSE)


def test_scores_through_patch_conv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of a GPU, on its PyTorch path."""
    from fastgen.fused import translate

    monkeypatch.setattr(translate, "on_cpu", lambda module: False)
    for norm, mode in NORMS:
        net = network(PATCH, norm=norm)
        twin = fast(net, mode)
        assert twin is not None
        assert any(isinstance(m, translate.FusedPatches) for m in twin.modules())
        x, y = images(2), images(2, seed=1)
        torch.testing.assert_close(twin(x, y), net(x, y, mode).mean((1, 2, 3)), **CLOSE)


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros"])
def test_winograd_pads(padding: str) -> None:
    conv = nn.Conv2d(64, 64, 3, padding=1, padding_mode=padding).requires_grad_(False)
    x = images(2, 16, 20, channels=64)
    torch.testing.assert_close(Winograd(conv.weight, conv.bias, padding)(x), conv(x), rtol=0, atol=1e-5)


@pytest.mark.skipif(not ONEDNN, reason="no oneDNN")
@pytest.mark.parametrize(
    ("channels", "size", "more", "kind"),
    [(3, 4, 0, PhasedTransposed), (32, 4, 0, OneDNNTransposed), (3, 3, 1, OneDNNTransposed)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_transposed(channels: int, size: int, more: int, kind: type, bias: bool) -> None:
    conv = nn.ConvTranspose2d(8, channels, size, 2, 1, output_padding=more, bias=bias).requires_grad_(False)
    twin = transposed(conv)
    assert type(twin) is kind
    for height, width in ((1, 1), (4, 3), (9, 16)):  # of one layout, made for the first
        x = images(2, height, width, channels=8)
        torch.testing.assert_close(twin(x), conv(x), rtol=0, atol=1e-5)


def test_images_are_worked_on_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch beyond `TOGETHER` is divided; it gives what a whole one gives."""
    from fastgen.fused import translate

    net = network(UNET)
    twin, x = fast(net, "instance"), images(5, 64, 64)
    assert twin is not None
    kept = torch.rand(5, net.dropout_count(64, 64)) < 0.5
    whole = twin(x, kept)
    assert 5 * twin.network.widest(64, 64) * 4 < TOGETHER  # type: ignore[operator,union-attr]
    monkeypatch.setattr(translate, "TOGETHER", 2 * twin.network.widest(64, 64) * 4)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(twin(x, kept), whole, **CLOSE)


def test_what_has_hooks_or_another_class_stays() -> None:
    net = network(UNET)
    net.up[0].conv.register_forward_hook(lambda *given: None)
    assert fast(net, "instance") is None

    class Own(type(network(UNET))):  # type: ignore[misc]
        """A subclass may compute something else."""

    own = Own(net.config)
    assert fast(own, "instance") is None


@torch.no_grad()
@pytest.mark.parametrize("size", [(256, 256), (67, 53), (3, 2000), (5, 4)])
def test_statistics_of_many_pixels(size: tuple[int, int]) -> None:
    """Compared with float64. A sum of n values, one after the other, is off by about sqrt(n) / 2 roundings. Here n is
    the pixels of a band or of a row; sums of all 65,536 pixels are off by seven times the bound."""
    image = (0.3 * torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)) + 0.5).contiguous(
        memory_format=torch.channels_last
    )
    weight, bias = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, -1.0])
    wide = image.double()
    exact = (wide - wide.mean((2, 3), keepdim=True)) / (
        wide.var((2, 3), keepdim=True, correction=0) + 1e-5
    ).sqrt()
    exact = exact * weight.double()[:, None, None] + bias.double()[:, None, None]
    found = instance_norm(image, weight, bias, 1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    terms = max(BAND, size[1])
    assert float((found.double() - exact).square().mean().sqrt()) < terms**0.5 / 2 * 2.0**-24
