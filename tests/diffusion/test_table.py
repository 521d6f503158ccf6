"""The row layout, bit for bit, and the plain interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgen.diffusion import NoiseSchedule, TableBuilder, idle_row, pack, run, solver_table
from fastgen.diffusion.table import X0, F, H, X, Z
from fastgen_kernels.reverse_step import row
from tests.refusals import refused

DTYPES = [(torch.float32, torch.int32), (torch.float64, torch.int64)]


def two_rows():
    builder = TableBuilder("toy", clip=1.5)
    builder.add(7, (0.5, -0.25), 2 * X + 3 * X0 - F + 0.1 * Z, slot=2, history=X + F, input_scale=0.5)
    builder.add(3.5, (1.0, 0.0), X0 - H[2], input_scale=0.125, log2_std=(-3.0, -1.0))
    return builder.table(initial_scale=80.0)


@pytest.mark.parametrize(("dtype", "integer"), DTYPES)
def test_pack_layout(dtype: torch.dtype, integer: torch.dtype) -> None:
    rows, times = pack(two_rows(), 5, (1.0, 3.0), dtype)
    assert rows.shape == (2, row.ROW_WORDS)
    assert rows.dtype == times.dtype == dtype
    words = rows.view(integer)
    assert times.tolist() == [7.0, 3.5]
    assert rows[:, row.P].tolist() == [0.5, 1.0]
    assert rows[:, row.Q].tolist() == [-0.25, 0.0]
    assert rows[:, row.GUIDANCE].tolist() == [1.0, 3.0]
    assert rows[:, row.CLIP].tolist() == [1.5, 1.5]
    assert rows[:, row.NEXT_SCALE].tolist() == [0.125, 1.0]
    assert rows[:, row.INPUT_SCALE].tolist() == [0.5, 0.125]
    assert words[:, row.SLOT].tolist() == [2, -1]
    assert words[:, row.NOISE_STEP].tolist() == [0, 1]
    assert words[:, row.NEXT].tolist() == [6, 0]
    a = torch.tensor([2, 3, -1, 0.1, 0, 0, 0, 0], dtype=dtype)
    assert torch.equal(rows[0, row.A : row.A + 8], a)
    assert rows[1, row.A : row.A + 8].tolist() == [0, 1, 0, 0, 0, 0, -1, 0]
    assert rows[0, row.B : row.B + 8].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    assert rows[1, row.LOG2_STD_MIN : row.LOG2_STD_MAX + 1].tolist() == [-3, -1]
    assert not words[:, row.INPUT_SCALE + 1 :].any()


@pytest.mark.parametrize(("dtype", "integer"), DTYPES)
def test_pack_keeps_the_nearest_bits_of_a_real_table(dtype: torch.dtype, integer: torch.dtype) -> None:
    table = solver_table("dpm++2m", NoiseSchedule(), 20)
    rows, times = pack(table, 100, 2.5, dtype)
    real = torch.empty(0, dtype=dtype).numpy().dtype
    np.testing.assert_array_equal(rows[:, row.A : row.A + 8].numpy(), table.a.astype(real))
    np.testing.assert_array_equal(rows[:, row.B : row.B + 8].numpy(), table.b.astype(real))
    np.testing.assert_array_equal(rows[:, row.P].numpy(), table.p.astype(real))
    np.testing.assert_array_equal(times.numpy(), table.time)
    words = rows.view(integer)
    assert words[:, row.NEXT].tolist() == [*range(101, 120), 0]
    assert words[:, row.SLOT].tolist() == [0] * 18 + [-1] * 2  # the last row is first order: reads no history
    assert words[:, row.NOISE_STEP].tolist() == list(range(20))


@pytest.mark.parametrize(("dtype", "integer"), DTYPES)
def test_idle_row_is_the_identity(dtype: torch.dtype, integer: torch.dtype) -> None:
    words = idle_row(dtype)
    assert words.shape == (row.ROW_WORDS,)
    assert words[row.A : row.A + 8].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert words.view(integer)[[row.SLOT, row.NOISE_STEP, row.NEXT]].tolist() == [-1, 0, 0]
    assert words[[row.CLIP, row.NEXT_SCALE, row.INPUT_SCALE]].tolist() == [np.inf, 1, 1]


def test_pack_refuses() -> None:
    table = two_rows()
    with refused(ValueError, "offset"):
        pack(table, 0)
    with refused(ValueError, "guidance_scale"):
        pack(table, 1, (1.0, 2.0, 3.0))
    with refused(ValueError, "guidance_scale"):
        pack(table, 1, float("nan"))
    with refused(ValueError, "dtype"):
        pack(table, 1, dtype=torch.float16)
    steep = NoiseSchedule(beta_start=0.1, beta_end=0.1, num_train_timesteps=1300)  # alphas_cumprod 3e-60
    assert pack(solver_table("ddim", steep, 1300), 1)[0].isfinite()[:, row.P].all()
    builder = TableBuilder("large")
    builder.add(0, (1e39, 0.0), X)
    with refused(ValueError, "large", "torch.float32"):
        pack(builder.table(), 1)
    pack(builder.table(), 1, dtype=torch.float64)


def test_builder_refuses_what_is_not_finite() -> None:
    builder = TableBuilder("broken")
    builder.add(9, (1.0, 0.0), X)
    builder.add(4, (1.0, 0.0), np.nan * Z)
    with refused(ValueError, "broken", "4.0"):
        builder.table()


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_run_by_hand(kind: str) -> None:
    """Two rows by hand: clipping, noise, the slot's old value on the right, input scale and time."""
    convert = (lambda a: a) if kind == "numpy" else torch.from_numpy
    x, z = np.array([[[4.0, -1.0]]]), np.array([[[10.0, 20.0]]])
    seen = []

    def network(inp, t):
        seen.append((np.asarray(inp).tolist(), t))
        return inp * 0 + 2.0

    out = run(two_rows(), network, convert(x), convert(np.stack([z, np.full_like(z, np.nan)])))
    x0 = np.clip(0.5 * x - 0.25 * 2, -1.5, 1.5)
    first = 2 * x + 3 * x0 - 2 + 0.1 * z
    expected = np.clip(first, -1.5, 1.5) - (x + 2)
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-15)
    assert seen == [((0.5 * x).tolist(), 7.0), ((0.125 * first).tolist(), 3.5)]


def test_table_is_read_only_and_describes_itself() -> None:
    table = two_rows()
    assert len(table) == 2
    assert table.slots == 3
    assert table.stochastic
    with pytest.raises(ValueError, match="read-only"):
        table.a[0, 0] = 1.0
