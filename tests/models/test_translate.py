"""Networks from images to images: shapes, initial weights, statistics of norms, dropout by given masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.config import from_dict
from fastgen.errors import ConfigError
from fastgen.models.building import without_values
from fastgen.models.translate.discriminators import PatchDiscriminator, PatchDiscriminatorConfig
from fastgen.models.translate.layers import BatchNorm
from fastgen.models.translate.resnet import ResNetGenerator, ResNetGeneratorConfig
from fastgen.models.translate.unet import UNetGenerator, UNetGeneratorConfig
from tests.engines.translations import PATCH, RESNET, UNET, images, network
from tests.refusals import refused


@pytest.mark.parametrize("downs", [5, 6, 7])
def test_unet_takes_images_of_its_multiple(downs: int) -> None:
    unet = network(UNET, downs=downs, dropout=False)
    side = 1 << downs
    assert unet.multiple == unet.least == side
    y = unet(images(2, side, 2 * side))
    assert y.shape == (2, 3, side, 2 * side)
    assert y.abs().max() <= 1


def test_the_published_sizes() -> None:
    """Parameters as junyanz's README and the papers' code have them: 54.41 M, 11.38 M, 2.77 M."""
    with without_values():
        counts = [
            sum(p.numel() for p in net.parameters())
            for net in (
                UNetGenerator(UNetGeneratorConfig()),
                ResNetGenerator(ResNetGeneratorConfig()),
                PatchDiscriminator(PatchDiscriminatorConfig()),
            )
        ]
    assert [round(count / 1e6, 2) for count in counts] == [54.41, 11.38, 2.77]


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70), (5, 286)])
def test_a_logit_sees_its_patch(layers: int, patch: int) -> None:
    """Gradients of the middle logit reach as many pixels as the paper says (Isola et al. 2017, section 6.1.2)."""
    net = network(PATCH, layers=layers, norm="none", in_channels=0, out_channels=1, channels=2)
    y = images(1, 416, 416, channels=1).requires_grad_()
    logits = net(None, y)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert y.grad is not None
    rows = y.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == patch


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = UNetGenerator(UNetGeneratorConfig(channels=16, downs=5))
    weights = torch.cat(
        [m.weight.flatten() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    )
    scales = torch.cat([m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 5 * 0.02 / len(weights) ** 0.5
    assert scales.mean().item() == pytest.approx(1, abs=5 * 0.02 / len(scales) ** 0.5)
    assert scales.std().item() == pytest.approx(0.02, rel=0.2)
    assert all(not m.bias.any() for m in net.modules() if getattr(m, "bias", None) is not None)


def test_statistics_of_norms() -> None:
    """Each against its formula, in float64."""
    norm = BatchNorm(3).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.copy_(torch.rand(3) + 0.5)
    x = images(4, 5, 6).double()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    found = {
        "instance": (x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)),
        "batch": (x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)),
        "running": (norm.running_mean[:, None, None], norm.running_var[:, None, None]),
    }
    for mode, (mean, var) in found.items():
        want = (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(norm(x, mode), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", [UNET, RESNET], ids=["unet", "resnet"])
def test_dropout_by_masks(part: object) -> None:
    """All kept doubles what follows dropout; masks of PyTorch's own dropout give what it gives; others are refused."""
    net = network(part)  # type: ignore[arg-type]
    x = images(2, 64, 64)
    count = net.dropout_count(64, 64)
    assert count > 0
    kept = torch.rand(2, count, generator=torch.Generator().manual_seed(3)) < 0.5
    y = net(x, kept)
    assert not torch.equal(y, net(x))
    assert torch.allclose(y[1:], net(x[1:], kept[1:]), atol=2e-5)
    shapes: list[torch.Size] = []

    def dropped(value: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
        shapes.append(value.shape[1:])
        start = sum(shape.numel() for shape in shapes[:-1])
        part = kept[:, start : start + shapes[-1].numel()].view(value.shape)
        return torch.where(part, 2 * value, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "dropout", dropped)
        assert torch.equal(net(x), y)
    assert sum(shape.numel() for shape in shapes) == count
    with refused(ConfigError, "kept", count):
        net(x, kept[:, :-1])
    with refused(ConfigError, "norm_mode"):
        net(x, None, "population")


def test_training_mode_draws_dropout_and_keeps_statistics() -> None:
    net = network(UNET).train()
    x = images(2, 64, 64)
    before = net.down[1].norm.running_mean.clone()
    a, b = net(x), net(x)
    assert not torch.equal(a, b)
    assert not torch.equal(before, net.down[1].norm.running_mean)


def test_configurations_that_nothing_would_read_are_refused() -> None:
    with refused(ConfigError, "dropout", 5):
        UNetGeneratorConfig(downs=5, dropout=True)
    with refused(ConfigError, "x: downs"):
        from_dict(UNetGeneratorConfig, {"downs": 4}, "x")
    with pytest.raises(TypeError):
        network(PATCH)(None, images(1))
