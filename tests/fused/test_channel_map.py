"""Affine layers folded into one map, against running them one after the other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.errors import CheckpointError
from fastgen.fused.channel_map import fold
from fastgen.models.flow.layers import ActNorm, Affine, Layer, Permutation, Scaling, Standardise
from fastgen.models.flow.linear import LUConv, PlainConv
from tests.refusals import refused

KINDS = {
    "actnorm": ActNorm,
    "standardise": Standardise,
    "scaling": Scaling,
    "affine": lambda c: Affine(-1.5, 0.25),
    "permutation": Permutation.random,
    "plain": PlainConv,
    "lu": lambda c: LUConv(c, bias=True),
}


@given(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=6), st.integers(1, 7), st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_a_run_is_its_layers_one_after_the_other(kinds: list[str], channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    layers: list[Layer] = []
    for kind in kinds:
        layer = KINDS[kind](channels).double()
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            if name in ("loc", "scale", "log_scale", "bias", "log_s", "lower", "upper"):
                value.data += 0.3 * torch.randn(channels, *[1] * (value.dim() - 1)).double()
        layers.append(layer)
    x = torch.randn(4, channels, dtype=torch.float64)
    y, total = x, torch.zeros(4, dtype=torch.float64)
    for layer in layers:
        y, change = layer(y)
        total = total + change
    there = fold(layers, channels)
    back = there.inverted()
    torch.testing.assert_close(x @ there.dense().t() + there.shift, y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y @ back.dense().t() + back.shift, x, rtol=1e-8, atol=1e-8)
    assert there.log_det == pytest.approx(float(total[0].detach()), abs=1e-10)
    assert back.log_det == -there.log_det
    # An independent one: log |det| of the matrix.
    assert there.log_det == pytest.approx(
        float(torch.linalg.slogdet(there.dense().detach()).logabsdet), abs=1e-9
    )


def test_thousands_of_permuted_channels_need_no_matrix() -> None:
    layers = [Permutation.random(100_000), ActNorm(100_000), Permutation.reverse(100_000)]
    there = fold(layers, 100_000)
    assert there.matrix is None
    assert there.inverted().matrix is None


def test_a_singular_matrix_is_refused_with_its_name() -> None:
    layer = PlainConv(3)
    layer.weight.data[2] = layer.weight.data[1]
    layer.name = "scales.1.4"
    with refused(CheckpointError, "scales.1.4"):
        fold([layer], 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    layer = ActNorm(3)
    layer.loc.data[1] = value
    layer.name = "scales.0.1"
    with refused(CheckpointError, "scales.0.1"):
        fold([layer], 3)
