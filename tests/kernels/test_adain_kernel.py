"""AdaIN's kernels, in the interpreter or on the GPU: options by layouts against float64; plans and bits."""

import pytest
import torch

from fastgen_kernels import OPS, adain, use
from fastgen_kernels.adain import cases, kernel, reference

OP = OPS["adain"]
STYLES = {
    "affine": {},
    "statistics": {"style": "statistics"},
    "map": {"style": (2, 3, 5)},
    "one map": {"style": (1, 4, 4), "correction": 1},
    "none": {"style": None},
}
ENDS = {
    "bare": {},
    "stylegan": {"noise": 2, "bias": True, "slope_before": 0.2, "eps": 1e-8},
    "patchgan": {"slope_after": 0.2},
    "all": {"noise": 1, "bias": True, "slope_before": 0.1, "slope_after": 0.3, "alpha": 0.3},
}


def make(shape, device, dtype=torch.float32, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), device, dtype, shape, **options)


def worst(arguments):
    with use("triton"):
        return OP.errors(arguments)["y"]


@pytest.fixture
def small_tiles(monkeypatch):
    """Planes of more than 16 pixels are split, into several spans of several tiles."""
    for name, split in (("PLANAR", kernel.Tile(1, 16, 1)), ("CHANNELS_LAST", kernel.Tile(4, 16, 1))):
        monkeypatch.setattr(kernel, name, (kernel.Tile(4, 16, 1),))
        monkeypatch.setattr(kernel, f"{name}_SPLIT", kernel.Split(split, programs=12, most=4))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_options(kernel_device, style, ends, channels_last):
    options = style | ends | {"channels_last": channels_last}
    assert worst(make((2, 3, 5, 7), kernel_device, torch.bfloat16, **options)) <= 1.0
    assert worst(make((2, 3, 5, 7), kernel_device, torch.float32, sliced=True, **options)) <= 1.0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("style", [{}, {"style": (2, 9, 11)}], ids=["affine", "map"])
def test_options_of_split_planes(kernel_device, small_tiles, style, ends, channels_last):
    arguments = make((2, 5, 13, 11), kernel_device, channels_last=channels_last, sliced=True, **style, **ends)
    plan = kernel._plan_of(arguments["x"])
    assert plan.splits > 1
    assert plan.tiles > 1
    assert worst(arguments) <= 1.0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (1, 17), (16, 1), (17, 3), (32, 2), (8, 8), (7, 37)]
)
def test_sizes_around_the_tiles(kernel_device, small_tiles, size, channels_last):
    assert worst(make((2, 3, *size), kernel_device, channels_last=channels_last, noise=1)) <= 1.0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_large_mean_costs_nothing(kernel_device, request, split, channels_last):
    """The bound of small numbers, though the mean is 1e5 deviations: the centre takes it away exactly."""
    if split:
        request.getfixturevalue("small_tiles")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 9, 14, generator=generator, dtype=torch.float64)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    offset = (x * 0.1 + 1e4).float().to(kernel_device).contiguous(memory_format=layout)
    with use("triton"):
        got = adain(offset).double()
    near_zero = offset.double() - 1e4  # the same numbers, exactly
    (want,) = OP.exact(near_zero)
    (bound,) = OP.tolerance((want,), {"x": near_zero})
    bound = (
        bound + 8.0 * 2.0**-24 * (1.0 + want.abs()) / near_zero.std()
    )  # in float32, which near_zero is not
    assert ((got - want).abs() <= bound).all()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("value", [0.1, 1e4 + 1 / 3])
def test_constant_planes_are_zero(kernel_device, request, split, value):
    if split:
        request.getfixturevalue("small_tiles")
    x = torch.full((1, 2, 7, 9), value, device=kernel_device)
    with use("triton"):
        # A rest that rounding left of a rest: 2^-48 of the value, times 1e4.
        assert adain(x, eps=1e-8).abs().max() <= 2.0**-47 * value * 1e4


@pytest.mark.parametrize("channels_last", [False, True])
def test_first_half_unlike_the_second(kernel_device, small_tiles, channels_last):
    """Spans far from the first one's centre: what their combination adds is all there is."""
    arguments = make((1, 2, 16, 16), kernel_device, style=None, channels_last=channels_last, mean=0.0)
    arguments["x"][:, :, 8:] += 1e3
    assert worst(arguments) <= 1.0


@pytest.mark.parametrize("options", [{}, {"style": (3, 5, 9), "noise": 3}, {"channels_last": True}])
def test_bits_do_not_depend_on_the_batch(kernel_device, small_tiles, options):
    together = make((3, 3, 9, 7), kernel_device, **options)
    with use("triton"):
        outputs = adain(**together)
        for i in range(3):
            alone = {
                k: v[i : i + 1] if isinstance(v, torch.Tensor) and k != "noise_weight" else v
                for k, v in together.items()
            }
            assert torch.equal(adain(**alone), outputs[i : i + 1])


def test_expanded_arguments(kernel_device, small_tiles):
    """A stride of zero: one row, style or noise for the whole batch."""
    x = make((3, 2, 5, 6), kernel_device, style=None)["x"]
    draw = [torch.randn(size, device=kernel_device) for size in ((1, 2, 3, 3), (1, 1, 5, 6), (2,))]
    style, noise, row = draw
    with use("triton"):
        want = adain(x, style=style.repeat(3, 1, 1, 1), noise=noise.repeat(3, 1, 1, 1), noise_weight=row)
        for samples in (1, 3):
            one = {"style": style.expand(samples, -1, -1, -1), "noise": noise.expand(samples, -1, -1, -1)}
            assert torch.equal(adain(x, **one, noise_weight=row), want)
        want = adain(x, row.repeat(3, 1), row.repeat(3, 1))
        for given in (row, row[None], row.expand(3, 2)):
            assert torch.equal(adain(x, given, given), want)


def test_a_nan_stays_in_its_plane(kernel_device, small_tiles):
    arguments = make((2, 3, 5, 9), kernel_device)
    arguments["x"][1, 2, 4, 8] = float("nan")
    with use("triton"):
        found = adain(**arguments).isnan()
    assert found[1, 2].all()
    assert found.sum() == 45


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 16, 64, 512, 4096])
def test_plans(planar, channels):
    """Every plane is covered once; no span is empty; a thread holds 32 elements at most."""
    for pixels in (
        1,
        2,
        16,
        17,
        961,
        1024,
        1025,
        16384,
        16385,
        65536,
        1024 * 1024 - 7,
        1024 * 1024,
        4096 * 4096,
    ):
        plan = kernel.choose_plan(channels, pixels, planar)
        assert (plan.splits - 1) * plan.span < pixels <= plan.splits * plan.span
        assert plan.on_chip == (pixels <= plan.block_p)
        assert plan.block_c * plan.block_p <= 32 * 32 * plan.num_warps
        assert plan.splits <= 128
        for size in (plan.block_c, plan.block_p):
            assert size & (size - 1) == 0


@pytest.mark.parametrize("planar", [True, False])
def test_a_batch_of_one_fills_the_device(planar):
    """StyleGAN's large layers and the first of an image-to-image generator, on 132 multiprocessors."""
    for channels, side in ((64, 256), (32, 512), (16, 1024)):
        plan = kernel.choose_plan(channels, side * side, planar)
        programs = plan.splits * -(-channels // plan.block_c)
        # The second kernel's reading of statistics stays small beside its pixels.
        statistics = plan.splits * plan.block_c * 3 * 4
        assert statistics <= plan.span * plan.block_c * 2 / 2
        assert programs >= (128 if planar else 64), (channels, side, plan)


def test_single_pixels_are_channels_in_a_row():
    x = torch.empty(2, 512, 1, 1)
    assert reference.memory_format(x) == torch.contiguous_format
    assert kernel._plan_of(x).block_c == 64
