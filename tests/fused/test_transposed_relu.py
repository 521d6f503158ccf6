"""A ReLU within the transposed convolution before it, in every type that a CPU has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.fused.networks import sequential
from fastgen.fused.onednn import OneDNNConv, takes
from fastgen.fused.transposed import takes_transposed
from fastgen_kernels.op import UNIT_ROUNDOFF


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 32])  # few channels go another way
@pytest.mark.parametrize("count", [2, 60])  # and few pixels a third one
def test_one_layer_for_two(dtype: torch.dtype, channels: int, count: int) -> None:
    """The same values, to the rounding of sums of some hundred products of size 1 / 10."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.ConvTranspose2d(32, channels, 4, 2, 1), nn.ReLU()).requires_grad_(False)
    x = torch.randn(count, 32, 6, 5)
    wanted = plain.to(dtype).double()(x.to(dtype).double())
    given = nn.Sequential(*(layer.to(dtype) for layer in plain))
    twin = sequential(given, prepacked=True)
    if not takes_transposed(given[0]):
        pytest.skip(f"this machine has no fast form in {dtype}")
    assert len(twin) == 1
    found = twin(x.to(dtype).contiguous(memory_format=torch.channels_last))
    assert found.dtype == dtype
    assert float(found.min()) == 0
    error = (found.double() - wanted).abs().max()
    assert float(error) <= 1.01 * UNIT_ROUNDOFF[dtype] * float(wanted.max()) + 1e-6


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 32])
@pytest.mark.parametrize(("size", "stride"), [(4, 2), (3, 1), (3, 2)])
def test_small_convolutions(channels: int, size: int, stride: int) -> None:
    """Whichever way: few pixels as a matrix product, more by oneDNN, in memory of either order."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 32, size, stride, 1)
    if not takes(conv):
        pytest.skip("this machine has no fast form")
    twin = OneDNNConv(conv, rectified=True, prepacked=True)
    ways = set()
    for count in (1, 3, 40):
        x = torch.randn(count, channels, 8, 12)
        wanted = torch.relu(conv.double()(x.double()))
        conv.float()
        residual = torch.randn_like(wanted, dtype=torch.float32)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            ways.add(twin._by_product(given) is None)
            # 288 products at most, of size 1 and of weights that sum up to 1 in squares.
            assert float((twin(given).double() - wanted).abs().max()) <= 1e-5
            assert float((twin(given, residual) - residual - wanted).abs().max()) <= 1e-5
    assert ways == {False, True}
