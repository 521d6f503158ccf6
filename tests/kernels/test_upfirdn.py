"""Resampling beside other people's: scipy's upfirdn, a written-out sum; gradients; what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastgen_kernels import OPS, upfirdn, use
from fastgen_kernels.upfirdn import eager, plan
from fastgen_kernels.upfirdn.cases import arguments
from tests.refusals import refused

OP = OPS["upfirdn"]
CPU = torch.device("cpu")
PLAIN = [case for case in OP.cases if not case.production]


def made(shape=(2, 3, 5, 7), dtype=torch.float64, **options):
    return arguments(torch.Generator().manual_seed(0), CPU, dtype, shape, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2), (2, 5)])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
def test_scipy(taps, up, down):
    """Along one axis after the other, all that the filter touches: T - 1 rows before, and behind without the zeros
    that follow the last pixel."""
    signal = pytest.importorskip("scipy.signal")
    given = made(taps=taps)
    x, filter = given["x"], given["filter"]
    got = upfirdn(x, filter, up=up, down=down, padding=(taps - 1, taps - up))
    want = signal.upfirdn(filter.numpy(), x.numpy(), up, down, axis=3)
    want = signal.upfirdn(filter.numpy(), want, up, down, axis=2)
    close(got, torch.from_numpy(want))


def test_written_out():
    """Every output as a sum over taps, with padding before and behind that differ, one of them negative."""
    up, down, before, after = 2, 3, -1, 4
    given = made((1, 2, 6, 5), taps=4)
    x, f = given["x"], given["filter"].tolist()
    got = upfirdn(x, given["filter"], up=up, down=down, padding=(before, after), gain=1.5)

    def pixel(c, i, j):
        """Of the padded, upsampled image."""
        i, j = i - before, j - before
        if i % up or j % up or not (0 <= i // up < 6 and 0 <= j // up < 5):
            return 0.0
        return float(x[0, c, i // up, j // up])

    for c, oh, ow in np.ndindex(*got.shape[1:]):
        total = sum(
            f[3 - a] * f[3 - b] * pixel(c, oh * down + a, ow * down + b) for a in range(4) for b in range(4)
        )
        assert math.isclose(float(got[0, c, oh, ow]), 1.5 * total, rel_tol=1e-12, abs_tol=1e-12)


def test_epilogue():
    given = made(
        taps=None, vectors=("scale", "bias", "post_scale"), noise=2, each=True, slope=0.2, act_gain=1.7
    )
    x = given["x"] * given["scale"][:, :, None, None]
    x = x + given["noise"] * given["noise_weight"][:, None, None] + given["bias"][:, None, None]
    x = torch.where(x < 0, 0.2 * x, x) * 1.7 * given["post_scale"][:, :, None, None]
    close(upfirdn(**given), x)


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_eager(case):
    """What benchmarks compare with computes the same."""
    given = case.make(torch.Generator().manual_seed(0), CPU, torch.float64)
    close(eager.upfirdn(**given), upfirdn(**given))


def test_a_constant_stays():
    """Away from the border a filter of sum 1 keeps a constant, at twice the size with a gain of 4."""
    x, taps = torch.full((1, 1, 6, 6), 3.0), torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    close(upfirdn(x, taps, up=2, padding=(2, 1), gain=4.0)[..., 2:-2, 2:-2], torch.full((1, 1, 8, 8), 3.0))


@pytest.mark.parametrize("options", [{"up": 2, "padding": (2, 1)}, {"down": 2, "padding": (1, 1)}])
def test_gradients(options):
    """Against differences, to the second order; the operation is linear in x but for the activation."""
    given = made((1, 2, 3, 4), vectors=("scale", "bias", "post_scale"), noise=1, slope=0.2, **options)
    names = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
    others = {name: value for name, value in given.items() if name not in names}
    tensors = [given[name].clone().requires_grad_() for name in names]

    def function(*values):
        return upfirdn(**dict(zip(names, values, strict=True)), **others)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("layout", ["last", "first"])
def test_rows_of_a_program(kernel_device, monkeypatch, layout, rows):
    """However many rows a program has, the bits are the same."""
    monkeypatch.setattr(plan, "PROGRAMS", 0)
    given = made((1, 3, 7, 6), torch.float32, layout=layout, up=2, padding=(2, 1))
    given = {k: v.to(kernel_device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with use("triton"):
        monkeypatch.setattr(plan, "ROWS", rows)
        got = upfirdn(**given)
        monkeypatch.setattr(plan, "ROWS", 1)
        assert torch.equal(got, upfirdn(**given))
    assert max(OP.errors(given, got).values()) <= 1.0


def test_a_sample_by_itself(kernel_device):
    given = made((3, 5, 4, 6), torch.float32, padding=(2, 1), vectors=("scale",))
    given = {k: v.to(kernel_device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with use("triton"):
        together = upfirdn(**given)
        alone = upfirdn(**given | {"x": given["x"][1:2], "scale": given["scale"][1:2]})
    assert torch.equal(together[1:2], alone)


def test_layout_and_memory():
    x = torch.randn(2, 3, 4, 5)
    assert upfirdn(x).data_ptr() != x.data_ptr()
    last = x.contiguous(memory_format=torch.channels_last)
    assert upfirdn(last, torch.ones(2)).is_contiguous(memory_format=torch.channels_last)
    half = upfirdn(last.half(), torch.ones(2))
    assert half.dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert upfirdn(x, torch.ones(2)).dtype == torch.float32


REFUSED = [
    ("x", {"x": torch.zeros(3, 4, 4)}, ()),
    ("x", {"x": torch.zeros(1, 2, 4, 4, dtype=torch.int64)}, ()),
    ("filter", {"filter": torch.ones(2, 2)}, ()),
    ("filter", {"filter": torch.ones(33)}, (33,)),
    ("filter", {"filter": torch.ones(4)[::2]}, ()),
    ("up", {"up": 0}, ()),
    ("up", {"up": 2.0}, ()),
    ("down", {"down": 17}, (17,)),
    ("padding", {"padding": (1,)}, ()),
    ("padding", {"padding": (-2, -2)}, ()),
    ("gain", {"gain": math.inf}, ()),
    ("gain", {"gain": torch.ones(())}, ()),
    ("scale", {"scale": torch.ones(2)}, ()),
    ("post_scale", {"post_scale": torch.ones(1, 4)[:, ::2]}, ()),
    ("noise_weight", {"noise": torch.ones(1, 1, 4, 4)}, ()),
    ("noise", {"noise_weight": torch.ones(1)}, ()),
    ("noise", {"noise": torch.ones(1, 1, 4, 3), "noise_weight": torch.ones(1)}, ()),
    ("noise_weight", {"noise": torch.ones(1, 1, 4, 4), "noise_weight": torch.ones(3)}, ()),
    ("bias", {"bias": torch.ones(3)}, ()),
    ("bias", {"bias": torch.ones(2, dtype=torch.float64)}, ()),
    ("slope", {"slope": math.nan}, ()),
    ("act_gain", {"act_gain": None}, ()),
]


@pytest.mark.parametrize(("argument", "wrong", "mentions"), REFUSED, ids=lambda value: str(value)[:30])
def test_refused(argument, wrong, mentions):
    with refused(ValueError, argument, *mentions):
        upfirdn(**{"x": torch.zeros(1, 2, 4, 4)} | wrong)


def test_float64_has_no_kernel():
    with use("triton"), refused(ValueError, "x"):
        OP.fused(torch.zeros(1, 1, 2, 2, dtype=torch.float64))


def test_costs():
    """A filter of 4 taps over 5x7 pixels: 8 rows of columns, then 5x7 sums, of 7 operations each."""
    given = made((1, 1, 5, 7), torch.float32, padding=(2, 1))
    assert OP.flops(**given) == 7 * (5 * 7 + 5 * 7)
    assert OP.bytes_moved(**given) == 4 * (35 + 35 + 4)
    assert F.pad(given["x"], (2, 1, 2, 1)).shape[2:] == (8, 10)
