"""A ReLU within the transposed convolution before it, in every type that a CPU has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.fused.networks import sequential
from fastgen.fused.transposed import takes_transposed
from fastgen_kernels.op import UNIT_ROUNDOFF


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 32])  # few channels go another way
def test_one_layer_for_two(dtype: torch.dtype, channels: int) -> None:
    """The same values, to the rounding of sums of some hundred products of size 1 / 10."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.ConvTranspose2d(32, channels, 4, 2, 1), nn.ReLU()).requires_grad_(False)
    x = torch.randn(2, 32, 6, 5)
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
