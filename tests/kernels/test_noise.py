"""The noise function: its words, its normals, its distribution, and that a sample's noise is its own."""

import math

import numpy as np
import pytest
import torch

from fastgen_kernels import STREAMS, normals, use
from fastgen_kernels.check import OperandError
from fastgen_kernels.noise import bits, error_bound, reference
from tests.refusals import refused

from . import noise_probes, philox_oracle

# Random123's kat_vectors for philox4x32-10: (counter, key) -> words.
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, -1, -(2**63), 2**63 - 1, 123456789012345]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    made = reference.philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert made.flatten().tolist() == list(answer)
    assert philox_oracle.philox(key, counter).flatten().tolist() == list(answer)


@pytest.mark.parametrize("stream", STREAMS.values())
def test_words_equal_numpy(stream):
    steps = [0, 1, 999, 2**31 - 1, 2**32 - 1, 5]
    made = reference.words(torch.tensor(SEEDS), torch.tensor(steps), stream, 50)
    for b, (seed, step) in enumerate(zip(SEEDS, steps, strict=True)):
        assert np.array_equal(made[:, b].numpy(), philox_oracle.words(seed, step, stream, 50))


def test_float64_follows_the_formula():
    made = normals(SEEDS, 17, "dropout", (3, 5, 7), torch.float64)
    for b, seed in enumerate(SEEDS):
        want = philox_oracle.normals(seed, 17, STREAMS["dropout"], 105).reshape(3, 5, 7)
        np.testing.assert_allclose(made[b].numpy(), want, rtol=0, atol=1e-14)


def adversarial_words() -> tuple[np.ndarray, np.ndarray]:
    """Pairs of words where a float32 formula changes its form, and where u is near 0 and 1."""
    powers = [1 << k for k in range(32)]
    edges = [0, 2**32, 0xB504F334, *powers, *(2**32 - p for p in powers)]  # the third is where u = sqrt(1/2)
    radius = sorted({(e + d) % 2**32 for e in edges for d in range(-3, 4)})
    borders = [*(k << 29 for k in range(8)), *powers]
    angle = sorted({(e + d) % 2**32 for e in borders for d in range(-2, 3)})
    grid = np.meshgrid(np.array(radius, np.uint32), np.array(angle, np.uint32))
    return grid[0].ravel(), grid[1].ravel()


def some_words(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    if kind == "adversarial":
        return adversarial_words()
    rng = np.random.default_rng(0)
    top = {"random": 2**32, "tail": 2**16}[kind]  # the smallest words have the largest radii
    return rng.integers(0, top, count, dtype=np.uint32), rng.integers(0, 2**32, count, dtype=np.uint32)


def cpu_errors(radius: np.ndarray, angle: np.ndarray) -> tuple[float, float]:
    """Largest error of the CPU's float32 normals, and the largest beyond half a unit in the last place."""
    pair = torch.from_numpy(np.stack([radius, angle]).astype(np.int64))
    absolute, beyond = 0.0, 0.0
    for made, want in zip(
        reference.box_muller(pair, torch.float32), philox_oracle.box_muller(radius, angle), strict=True
    ):
        error = np.abs(made.float().double().numpy() - want)
        half_unit = np.spacing(np.abs(want).astype(np.float32)) / 2
        absolute, beyond = max(absolute, error.max()), max(beyond, (error - half_unit).max())
    return absolute, beyond


@pytest.mark.parametrize("kind", ["random", "adversarial", "tail"])
def test_float32_error(kind):
    absolute, beyond = cpu_errors(*some_words(kind, 1 << 18))
    print(f"{kind}: {absolute:.2e}, {beyond:.2e} beyond half a unit in the last place")
    assert absolute < 3e-7
    assert beyond < 2e-8  # what the polynomials lose


@pytest.mark.slow
def test_float32_error_of_many_words():
    """32 million words, a quarter of them the smallest, whose radius is largest and its spacing coarsest."""
    rng = np.random.default_rng(1)
    count = 1 << 21
    worst = 0.0
    for chunk in range(16):
        radius = rng.integers(0, 2**32, count, dtype=np.uint32)
        if chunk % 4 == 0:
            radius = np.arange(chunk // 4 * count, (chunk // 4 + 1) * count, dtype=np.uint32)
        worst = max(worst, cpu_errors(radius, rng.integers(0, 2**32, count, dtype=np.uint32))[0])
    print(f"{worst:.2e}")
    assert worst < 3e-7


@pytest.mark.parametrize("count", [1, 3, 4, 31, 784, 1003])
def test_bits_do_not_depend_on_the_batch(count):
    seeds = torch.arange(40) * 987654321 - 5
    steps = torch.arange(40) % 7
    together = normals(seeds, steps, "step", (count,))
    for batch in (slice(0, 1), slice(3, 4), slice(5, 12), slice(39, 40)):
        assert torch.equal(normals(seeds[batch], steps[batch], "step", (count,)), together[batch])
    # Nor on how many elements a sample has.
    assert torch.equal(normals(seeds, steps, "step", (count + 9,))[:, :count], together)


def test_every_word_has_one_value():
    """The formula itself, wherever in a vector or its tail a word stands."""
    radius, angle = adversarial_words()
    pair = torch.from_numpy(np.stack([radius, angle]).astype(np.int64))
    whole = torch.stack(reference.box_muller(pair, torch.float32))
    for start, stop in ((0, 1), (1, 6), (7, 40), (13, 1030)):
        part = torch.stack(reference.box_muller(pair[:, start:stop].contiguous(), torch.float32))
        assert torch.equal(part, whole[:, start:stop])


def test_distribution():
    from scipy import stats

    z = normals(torch.arange(64), 5, "initial", (4096,)).double().numpy()
    n = z.size
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    # Moments 1 to 6 of a standard normal, each within five standard errors.
    for power, (mean, second) in {1: (0, 1), 2: (1, 3), 3: (0, 15), 4: (3, 105), 6: (15, 10395)}.items():
        assert abs((z**power).mean() - mean) < 5 * math.sqrt((second - mean**2) / n), power
    for bound in (3.0, 4.0):
        expected = n * 2 * stats.norm.sf(bound)
        assert abs((abs(z) > bound).sum() - expected) < 5 * math.sqrt(expected)


def test_no_correlation_between_neighbours():
    n = 1 << 16
    z = normals([3], 0, "initial", (n,))[0].double()
    others = {f"lag {lag}": torch.roll(z, lag) for lag in (1, 2, 3, 4, 28, 1024)}
    others |= {f"step {s}": normals([3], s, "initial", (n,))[0].double() for s in (1, 2)}
    others |= {stream: normals([3], 0, stream, (n,))[0].double() for stream in STREAMS if stream != "initial"}
    others |= {f"seed {s}": normals([s], 0, "initial", (n,))[0].double() for s in (2, 4, -3, 3 + 2**32)}
    for name, other in others.items():
        for a, b in ((z, other), (z**2 - 1, other**2 - 1)):
            correlation = (a * b).mean() / (a * a).mean()
            assert abs(correlation) < 5 / math.sqrt(n), name


def test_arguments():
    z = normals([1, 2], torch.tensor([3, 4], dtype=torch.int32), "inpaint", (2, 3))
    assert z.shape == (2, 2, 3)
    assert z.dtype == torch.float32
    assert z.is_contiguous()
    assert torch.equal(z[1:], normals(torch.tensor([2]), 4, "inpaint", (2, 3)))
    for argument, arguments in [
        ("stream", ([1], 0, "no such stream", (2,))),
        ("seeds", (torch.tensor([1], dtype=torch.int32), 0, "step", (2,))),
        ("seeds", (torch.tensor(1), 0, "step", (2,))),
        ("steps", ([1, 2], [1], "step", (2,))),
        ("shape", ([1], 0, "step", (0,))),
        ("dtype", ([1], 0, "step", (2,), torch.float16)),
    ]:
        with refused(ValueError, argument):
            normals(*arguments)


def test_opcheck():
    torch.library.opcheck(
        torch.ops.fastgen.normals.default, (torch.tensor([1, 2]), torch.tensor([3, 4]), 1, 30, torch.float32)
    )


def test_kernel_words(kernel_device):
    seeds, steps = torch.tensor(SEEDS), torch.tensor([0, 1, 999, 2**31 - 1, 2**32 - 1, 5])
    out = torch.empty(len(SEEDS), 4, 64, dtype=torch.int32, device=kernel_device)
    noise_probes.store_words[(len(SEEDS),)](
        out, seeds.to(kernel_device), steps.to(kernel_device), 3, BLOCK=64
    )
    assert torch.equal(out.cpu().long() & ONES, reference.words(seeds, steps, 3, 64).transpose(0, 1))


@pytest.mark.parametrize("kind", ["random", "adversarial", "tail"])
def test_kernel_formula(kernel_device, kind):
    radius, angle = some_words(kind, 1 << 18)
    pair = torch.from_numpy(np.stack([radius, angle]).view(np.int32)).to(kernel_device)
    count = len(radius)
    out = torch.empty(2, count, device=kernel_device)
    noise_probes.store_box_muller[(-(-count // 4096),)](out, pair, count, BLOCK=4096)
    exact = torch.from_numpy(np.stack(philox_oracle.box_muller(radius, angle)))
    error = ((out.cpu().double() - exact).abs() / error_bound(exact)).max().item()
    print(f"{kind}: {error:.3f} of the bound; {(out.cpu().double() - exact).abs().max().item():.2e}")
    assert error <= 1.0


@pytest.mark.parametrize("count", [1, 4, 511, 1003])
def test_kernel_normals(kernel_device, count):
    seeds = torch.tensor(SEEDS)
    with use("triton"):
        made = normals(seeds.to(kernel_device), 3, "step", (count,)).cpu()
    exact = normals(seeds, 3, "step", (count,), torch.float64)
    error = ((made.double() - exact).abs() / error_bound(exact)).max().item()
    print(f"{error:.3f} of the bound")
    assert error <= 1.0


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (([1.5], 0), ("seeds", "64", "1.5")),
        (([2**64], 0), ("seeds", "64")),
        (([1], -1), ("steps", "2^32")),
        (([1], 2**32), ("steps",)),
        (([1], [1.5]), ("steps",)),
    ],
)
def test_what_is_no_counter_is_refused(arguments, argument):
    with refused(ValueError, *argument):
        normals(*arguments, "step", (2, 2))


def test_seeds_of_64_bits():
    assert torch.equal(normals([2**64 - 1], 3, "step", (5,)), normals([-1], 3, "step", (5,)))


@pytest.mark.parametrize("count", [1, 31, 128, 1000])
def test_bits_are_those_of_the_words(count):
    """Against words of an independent Philox, lowest bit first, and a seed's own in any batch."""
    made = bits(SEEDS, "dropout", count)
    assert made.shape == (len(SEEDS), count)
    assert made.dtype == torch.bool
    for b, seed in enumerate(SEEDS):
        words = philox_oracle.words(seed, 0, STREAMS["dropout"], -(-count // 128))  # [4, blocks]
        want = [words[j % 4, j // 4] >> k & 1 for j in range(4 * words.shape[1]) for k in range(32)][:count]
        assert made[b].tolist() == [bool(w) for w in want]
        assert torch.equal(bits([seed], "dropout", count)[0], made[b])


def test_bits_are_fair():
    made = bits([1, 2, 3, 4], "dropout", 250_000).float()
    assert (made.mean(1) - 0.5).abs().max() < 5 * 0.5 / 250_000**0.5
    for arguments, argument in ((([1], "noise", 8), "stream"), (([1], "dropout", 0), "count")):
        with refused(OperandError, argument):
            bits(*arguments)
