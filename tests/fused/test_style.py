"""Twins of blocks for style transfer beside the blocks themselves, in float64 and on odd sizes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from fastgen.fused.onednn import OneDNNConv, why_not
from fastgen.fused.style import FewOutputs, FusedResidual, MirroredUp, Separable, fused
from fastgen.models.style.microast import Residual
from fastgen.models.style.network import convolution
from tests.engines.styles import NAMES, network, picture

SIZES = [(8, 8), (17, 30), (33, 20)]
DTYPES = [torch.float32, torch.bfloat16]
# Sums of some hundred products, rounded to the type once or twice: of the greatest value.
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def relu(*blocks: nn.Module) -> list[nn.Module]:
    return [layer for block in blocks for layer in (block, nn.ReLU())]


def bilinear() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear")


BLOCKS = {
    "mirrored": ([*relu(convolution(8, 12, 3))], OneDNNConv),
    "wide": ([*relu(convolution(64, 64, 3))], OneDNNConv),
    "strided": ([*relu(convolution(8, 12, 3, stride=2))], OneDNNConv),
    "doubled": ([nn.UpsamplingNearest2d(scale_factor=2), *relu(convolution(8, 8, 3))], MirroredUp),
    "doubled, linear": ([nn.UpsamplingNearest2d(scale_factor=2), convolution(8, 12, 3)], MirroredUp),
    "colours": ([convolution(8, 3, 3)], FewOutputs),
    "colours of many pixels": ([convolution(8, 3, 9)], FewOutputs),
    "grey without mirroring": ([nn.Conv2d(8, 1, 3)], FewOutputs),
    "grouped, strided": (relu(convolution(8, 16, 3, 2, groups=8), convolution(16, 16, 1)), Separable),
    "grouped sums": (relu(convolution(8, 4, 3, groups=4), convolution(4, 6, 1)), Separable),
    "grouped and doubled": (
        [bilinear(), *relu(convolution(8, 4, 3, groups=4), convolution(4, 6, 1))],
        Separable,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str, dtype: torch.dtype) -> None:
    if (reason := why_not(dtype)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    blocks, kind = BLOCKS[name]
    plain = copy.deepcopy(nn.Sequential(*blocks)).to(dtype, memory_format=torch.channels_last)
    twin = fused(nn.Sequential(*plain))  # type: ignore[arg-type]
    assert isinstance(list(twin.children())[-1], kind)
    exact = copy.deepcopy(plain).double()
    channels = next(block for block in plain if isinstance(block, nn.Conv2d)).in_channels
    for batch, size in itertools.product((1, 2), SIZES):
        x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=torch.channels_last)
        check(twin(x), exact(x.double()), dtype)


def check(found: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert (found.shape, found.dtype) == (want.shape, dtype)
    assert float((found.double() - want).abs().max() / want.abs().max()) < CLOSE[dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_residual(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = Residual(8).to(dtype, memory_format=torch.channels_last)
    twin, exact = FusedResidual(block), copy.deepcopy(block).double()
    x = torch.randn(2, 8, 9, 14).to(dtype).contiguous(memory_format=torch.channels_last)
    check(twin(x), exact(x.double()), dtype)
    for shape in ((2, 8, 1, 1), (2, 8, 9, 14)):
        weight, bias = torch.randn(2, *shape)
        check(twin(x, weight, bias), exact(x.double(), weight.double(), bias.double()), dtype)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_networks(name: str) -> None:
    plain = network(name).to(memory_format=torch.channels_last)
    twin, exact = fused(plain), copy.deepcopy(plain).double()
    assert any(isinstance(module, FewOutputs) for module in twin.modules())
    content, style = picture(1).add(1).div(2), picture(2, 37, 51).add(1).div(2)
    check(twin(content, style), exact(content.double(), style.double()), torch.float32)
    check(twin(content, style, 0.3), exact(content.double(), style.double(), 0.3), torch.float32)


@torch.no_grad()
def test_hooks_are_heard() -> None:
    plain = network("microast")
    heard = []
    plain.decoder[10].register_forward_hook(lambda *call: heard.append(call))  # type: ignore[operator, index]
    plain.residual[0].conv1.register_forward_hook(lambda *call: heard.append(call))  # type: ignore[index, union-attr, operator]
    fused(plain)(picture(1), picture(2))
    assert len(heard) == 2
