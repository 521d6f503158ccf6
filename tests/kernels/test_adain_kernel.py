"""AdaIN's kernels, in the interpreter or on the GPU: options by layouts against float64; plans and bits."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen_kernels import OPS, adain, use
from fastgen_kernels.adain import cases, kernel, plan, reference
from fastgen_kernels.rows import wide_rows

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
    """Planes of more than 16 pixels are split, into two spans of several steps."""
    for name in ("PLANAR", "CHANNELS_LAST"):
        monkeypatch.setattr(plan, name, (plan.Tile(4, 16, 1),))
        monkeypatch.setattr(plan, f"{name}_SPLIT", plan.Split(1, programs=12, most=2))
    monkeypatch.setattr(plan, "THREAD", 1)
    monkeypatch.setattr(plan, "STEP_BYTES", 8)
    monkeypatch.setattr(plan, "COLUMN_PIXELS", 0)


@pytest.fixture
def columns(monkeypatch, small_tiles):
    """... or, channels-last, read twice by one program."""
    monkeypatch.setattr(plan, "COLUMN_PIXELS", 4096)
    monkeypatch.setattr(plan, "COLUMN_WARPS", 1)


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
    way = kernel._Map.of(arguments["x"]).plan
    assert way.splits > 1
    assert way.steps > 1
    assert way.unroll > 1
    assert worst(arguments) <= 1.0


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
@pytest.mark.parametrize("style", [{}, {"style": (2, 9, 11)}], ids=["affine", "map"])
def test_options_of_columns(kernel_device, columns, style, ends):
    arguments = make((2, 19, 13, 11), kernel_device, channels_last=True, sliced=True, **style, **ends)
    way = kernel._Map.of(arguments["x"]).plan
    assert not way.on_chip
    assert (way.splits, way.programs(19)) == (1, 3)
    assert way.steps > 1
    assert worst(arguments) <= 1.0


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 70, 23, 29), {"sliced": True, "style": None, "slope_after": 0.2}),
        ((1, 67, 31, 37), ENDS["all"]),
        ((2, 66, 5, 23), {"sliced": True}),  # a span: one launch
        ((1, 69, 3, 5), {"sliced": True, "style": (1, 27, 29), "noise": 1}),  # the style alone is in spans
        ((2, 72, 23, 27), {"style": (1, 25, 31), "alpha": 0.3}),
    ],
    ids=["sliced", "all", "span", "style", "both"],
)
def test_wide_rows(kernel_device, shape, options, dtype):
    """Channels and pixels divide by nothing; with the plans of real tensors."""
    arguments = make(shape, kernel_device, dtype, channels_last=True, **options)
    with wide_rows():
        assert worst(arguments) <= 1.0
        ways = [kernel._Map.of(arguments[name]).plan for name in ("x", "style") if name in arguments]
    for way, pixels in zip(ways, (shape[2] * shape[3], 25 * 31), strict=False):
        assert way.block_c * dtype.itemsize >= 128
        assert (way.splits > 1) == (pixels > 512)


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("channels", [3, 16, 64, 70, 512, 4096])
def test_plans_of_wide_rows(channels, element):
    """Every plane is covered once, in rows of 128 bytes or as without; contiguous planes as without."""
    for pixels in (1, 16, 17, 256, 257, 961, 1024, 1025, 4096, 4097, 65536, 2**24):
        way = plan.choose_plan(channels, pixels, False, element, wide=True)
        assert (way.splits - 1) * way.span < pixels <= way.splits * way.span
        if channels * element >= 128:
            assert way.block_c * element >= 128
            assert way.block_c * way.block_p * way.unroll <= 32 * 32 * way.num_warps
            assert way.splits <= 64
            assert way.splits == 1 or way.span * way.block_c * element >= 48 << 10
        else:
            assert way == plan.choose_plan(channels, pixels, False, element)
        planar = plan.choose_plan(channels, pixels, True, element, wide=True)
        assert planar == plan.choose_plan(channels, pixels, True, element)


def launches(arguments, monkeypatch):
    """The kernels that a call launches."""
    found = []
    for name in ("statistics_kernel", "adain_kernel"):
        original = getattr(kernel, name)

        class Counted:
            def __getitem__(self, grid, original=original, name=name):
                found.append(name)
                return original[grid]

        monkeypatch.setattr(kernel, name, Counted())
    assert worst(arguments) <= 1.0
    return found


def test_wide_rows_are_two_launches(kernel_device, monkeypatch):
    """Of a style too, and only within the block."""
    bare, styled = (
        make((1, 66, 21, 25), kernel_device, channels_last=True, style=style) for style in (None, (1, 23, 23))
    )
    with wide_rows():
        for arguments in (bare, styled):
            assert launches(arguments, monkeypatch) == ["statistics_kernel", "adain_kernel"]
    assert launches(bare, monkeypatch) == ["adain_kernel"]


def test_both_statistics_are_one_launch(kernel_device, small_tiles, monkeypatch):
    """Of unlike layouts, sizes and types too."""
    arguments = make((2, 5, 13, 11), kernel_device, torch.bfloat16, style=None, noise=2)
    arguments["style"] = make((1, 5, 3, 3), kernel_device, channels_last=True)["x"]
    assert launches(arguments, monkeypatch) == ["statistics_kernel", "adain_kernel"]


def test_columns_keep_a_large_mean_and_other_planes(kernel_device, columns):
    """Constant channels come out as 0, a NaN stays where it is."""
    x = make((1, 9, 13, 11), kernel_device, style=None, channels_last=True)["x"]
    x[:, 0] = 1e4 + 1 / 3
    x[:, 3, 4, 5] = float("nan")
    x[:, 5] += 2000.0
    with use("triton"):
        y = adain(x, eps=1e-8)
    assert y[:, 0].abs().max() <= 2.0**-47 * 1e4 * 1e4
    assert y.isnan().sum() == 13 * 11
    assert worst({"x": x[:, 4:].contiguous(memory_format=torch.channels_last)}) <= 1.0


def test_a_column_is_one_launch(kernel_device, columns, monkeypatch):
    arguments = make((2, 19, 13, 11), kernel_device, channels_last=True)
    assert launches(arguments, monkeypatch) == ["adain_kernel"]


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
@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("channels", [1, 3, 16, 64, 512, 4096])
def test_plans(planar, channels, element):
    """Every plane is covered once; no span is empty; a thread holds 32 elements at most."""
    sides = (1, 4, 31, 32, 64, 128, 256, 1024, 4096)
    for pixels in sorted({side * side + more for side in sides for more in (-1, 0, 1)} - {0, 4096**2 + 1}):
        for column in (False, True):
            way = plan.choose_plan(channels, pixels, planar, element, column)
            assert (way.splits - 1) * way.span < pixels <= way.splits * way.span
            assert way.on_chip == (pixels <= (16384 if planar else 1024))
            assert way.block_c * way.block_p * way.unroll <= 32 * 32 * way.num_warps
            assert way.splits <= (128 if planar else 256)
            if not planar and column and pixels <= 4096:
                assert way.splits == 1
            for size in (way.block_c, way.block_p):
                assert size & (size - 1) == 0


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("element", [2, 4])
def test_a_batch_of_one_fills_the_device(planar, element):
    """StyleGAN's large layers and the first of an image-to-image generator, on 132 multiprocessors."""
    for channels, side in ((64, 256), (32, 512), (16, 1024)):
        way = plan.choose_plan(channels, side * side, planar, element)
        # The second kernel's reading of statistics stays small beside its pixels.
        assert way.splits * 3 * 4 <= way.span * element / 2
        assert way.programs(channels) >= 132, (channels, side, way)


def test_every_tile_has_a_production_case():
    """So that the compile gate sees it."""
    met = set()
    with FakeTensorMode():
        for case in OP.cases:
            if case.production:
                x = case.make(torch.Generator().manual_seed(0), torch.device("cpu"), torch.bfloat16)["x"]
                content = kernel._Map.of(x)
                way = content.plan
                met.add((content.planar, way.block_c, way.block_p, way.num_warps, way.splits > 1))
    for planar, tiles in ((True, plan.PLANAR), (False, plan.CHANNELS_LAST)):
        for tile in tiles:
            assert (planar, tile.channels, tile.pixels, tile.num_warps, False) in met, tile
    assert (True, 1, 2048, plan.PLANAR_SPLIT.num_warps, True) in met
    assert (False, 16, 128, plan.CHANNELS_LAST_SPLIT.num_warps, True) in met
    assert (False, 16, 256, plan.COLUMN_WARPS, False) in met


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_units(dtype):
    """What divides everything that an address depends on, up to 16 bytes; noise between samples too."""
    x = torch.empty(2, 3, 90, 90, dtype=dtype)
    assert kernel._Map.of(x).unit == 4
    assert kernel._Map.of(x, noise_b=90).unit == 2
    assert kernel._Map.of(torch.empty(2, 3, 9, 9, dtype=dtype)).unit == 1
    last = torch.empty(2, 36, 9, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert kernel._Map.of(last).unit == 4
    assert kernel._Map.of(last[:, :6]).unit == 2


def test_single_pixels_are_channels_in_a_row():
    x = torch.empty(2, 512, 1, 1)
    assert reference.memory_format(x) == torch.contiguous_format
    assert kernel._Map.of(x).plan.block_c == 64
