"""What surrounds a denoiser in exported samplers, against the engine's own arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastgen.engines.diffusion.adjust import EVERY_KIND, adjusted
from fastgen.exports.noise import export_normals
from fastgen.exports.reverse_step import Adjust, Noise, Update
from fastgen_kernels import STREAMS, normals, signed_seeds
from fastgen_kernels.reverse_step import reference, row

SHAPE = (2, 3, 5)
EDGES = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("count", [1, 5, 784, 4096])
@pytest.mark.parametrize("stream", ["initial", "step", "dequantise"])
def test_noise_is_the_engines_bit_for_bit(stream: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    seeds = torch.cat([signed_seeds(EDGES), torch.randint(-(2**63), 2**63 - 1, (40,), generator=generator)])
    steps = torch.randint(0, 2**32, seeds.shape, generator=generator)
    steps[:3] = torch.tensor([0, 1, 2**32 - 1])
    assert torch.equal(
        export_normals(seeds, steps, stream, count), normals(seeds, steps, stream, (count,), device="cpu")
    )


def test_noise_of_a_shape() -> None:
    seeds = torch.tensor([3, 4])
    (z,) = Noise(SHAPE)(seeds, torch.tensor([5, 6]), torch.tensor([STREAMS["step"]]))
    assert torch.equal(z, normals(seeds, torch.tensor([5, 6]), "step", SHAPE))


def case(learned: int, guided: bool, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of four samples, of which the second and the fourth are guided."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    channels = SHAPE[0] * (2 if learned else 1)
    rows = normal(4, row.ROW_WORDS)
    rows[:, row.CLIP] = torch.tensor([math.inf, 1.0, 0.5, math.inf])
    rows[:, row.GUIDANCE] = torch.tensor([1.0, 2.5, 1.0, 0.0]) if guided else 1.0
    rows[:, row.THRESHOLD_TAIL :] = 0.0
    rows[0, row.A + row.H : row.A + row.H + 4] = 0.0
    rows[0, row.B + row.H : row.B + row.H + 4] = 0.0
    history = normal(4, row.MAX_SLOTS, *SHAPE)
    history[0] = math.nan  # not used there
    return {
        "x": normal(4, *SHAPE),
        "history": history,
        "output": normal(8 if guided else 4, channels, *SHAPE[1:]),
        "rows": rows,
        "slot": torch.tensor([-1, 0, 3, 1]),
        "z": normal(4, *SHAPE),
        "guidance": rows[:, row.GUIDANCE],
    }


def compact(output: Tensor, guided: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The network's output as exported steps take it: without the evaluations that nobody needs."""
    if not guided:
        return output, {}
    return output[[0, 1, 2, 3, 5, 7]], {"unguided": torch.tensor([0, 4, 2, 5])}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [0, 1, 2])
def test_the_update_is_the_kernels_reference(learned: int, guided: bool) -> None:
    given = case(learned, guided)
    rows = given["rows"].clone()
    words = reference.integer_words(rows)
    words[:, row.SLOT] = given["slot"].int()
    words[:, [row.NOISE_STEP, row.NEXT]] = 0
    x, history, _ = reference.reverse_step(
        given["x"],
        given["history"].transpose(0, 1),
        given["output"],
        rows,
        torch.arange(4),
        learned,
        given["z"],
    )
    output, more = compact(given["output"], guided)
    if guided:
        more["guidance"] = given["guidance"]
    names = ("x", "history", "rows", "slot", "z")
    got_x, got_history = Update(SHAPE, learned, guided)(
        output=output, **{name: given[name] for name in names}, **more
    )
    torch.testing.assert_close(got_x, x, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(got_history, history.transpose(0, 1), rtol=2e-6, atol=2e-6, equal_nan=True)


def test_a_sample_that_is_not_guided_does_not_see_that_others_are() -> None:
    given = case(0, True)
    names = ("x", "history", "rows", "slot", "z", "guidance")
    together, more = compact(given["output"], True)
    update = Update(SHAPE, 0, True)
    x, _ = update(output=together, **{name: given[name] for name in names}, **more)
    alone, _ = update(
        output=given["output"][2:3],
        unguided=torch.tensor([0]),
        **{name: given[name][2:3] for name in names},
    )
    assert torch.equal(x[2:3], alone)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", ["none", "rescale", "threshold", "langevin", "langevin of the batch"])
def test_adjusted_rows_are_the_engines(kind: str, guided: bool) -> None:
    given = case(0, guided, seed=1)
    rows = given["rows"]
    if kind == "rescale":
        rows[1:, row.RESCALE] = torch.tensor([0.7, 0.5, 1.0])
    elif kind == "threshold":
        rows[:, row.THRESHOLD_TAIL] = torch.tensor([0.005, 0.0, 0.5, 0.3])
        rows[:, row.THRESHOLD_MAX] = torch.tensor([1.5, 100.0, 0.0, 2.0])
    elif kind != "none":
        rows[:, row.LANGEVIN] = torch.tensor([1.0, 0.0, 1.0, 0.0]) if kind == "langevin" else 2.0
    wanted = adjusted(rows, given["x"], given["output"], given["z"], guided=guided, kinds=EVERY_KIND)
    output, more = compact(given["output"], guided)
    if guided:
        more["guidance"] = given["guidance"]
    (found,) = Adjust(SHAPE, 0, guided)(given["x"], output, rows, given["z"], **more)
    if kind == "none":
        assert torch.equal(found, rows)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
