"""Group normalisation's kernels, in the interpreter or on the GPU, and how they divide an image."""

import itertools
import math

import pytest
import torch

from fastgen_kernels import OPS, group_norm, use
from fastgen_kernels.group_norm import cases, plan
from fastgen_kernels.rows import wide_rows

OP = OPS["group_norm"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(device, shape, num_groups, dtype=torch.float32, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), device, dtype, shape, num_groups, **options)


@pytest.fixture
def divide(monkeypatch):
    """Makes small images take the launches of large ones."""

    def apply(**constants):
        constants.setdefault("PROGRAMS", 6)
        for name, value in constants.items():
            monkeypatch.setattr(plan, name, value)
        plan.plan.cache_clear()

    yield apply
    monkeypatch.undo()
    plan.plan.cache_clear()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act": False, "affine": False},
        {"add": True},
        {"scale": True},
        {"shift": True, "affine": False},
        {"skip": 7, "add": True},
        {"skip": 4, "sliced": 2, "scale": True, "shift": True},
        {"skip": 16, "add": True, "scale": True, "shift": True, "act": False},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_options(kernel_device, options, channels_last):
    own = 20 if options.get("skip") == 4 else 8
    groups = 3 if options.get("skip") in (4, 7, 16) else 4
    arguments = make(
        kernel_device, (2, own, 5, 7), groups, torch.bfloat16, channels_last=channels_last, **options
    )
    with use("triton"):
        assert OP.errors(arguments)["y"] <= 1.0
        y = group_norm(**arguments)
    assert y.is_contiguous(memory_format=LAYOUTS[channels_last])


SPLIT = plan.Launch(row=16, column=0, num_warps=1, unroll=2)
WIDE = plan.Launch(row=64, column=64 << 10, num_warps=4, unroll=4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("launch", [SPLIT, WIDE], ids=["two", "one"])
@pytest.mark.parametrize(
    ("shape", "skip", "groups"), [((2, 6, 9, 11), 3, 3), ((1, 10, 11, 9), 10, 1), ((1, 12, 9, 10), 0, 12)]
)
def test_every_way_to_divide(kernel_device, divide, shape, skip, groups, launch, channels_last):
    """Splits, groups cut into parts, idle lanes, rows shorter than a tile: all of a large image's on a small one."""
    divide(LATENCY=(launch, SPLIT), THROUGHPUT=(launch, SPLIT), PLANES=4, MAX_PLANES=8)
    for dtype in (torch.float32, torch.float16):
        arguments = make(
            kernel_device,
            shape,
            groups,
            dtype,
            skip=skip,
            add=True,
            scale=True,
            shift=True,
            channels_last=channels_last,
        )
        with use("triton"):
            assert OP.errors(arguments)["y"] <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups", "options"),
    [
        ((2, 70, 23, 29), 10, {"sliced": 8}),
        ((1, 55, 31, 19), 8, {"skip": 33, "add": True, "scale": True, "shift": True}),
        ((1, 150, 5, 7), 1, {"affine": False, "act": False}),  # a group of more channels than a row
    ],
    ids=["sliced", "seam", "cut"],
)
def test_wide_rows(kernel_device, divide, shape, groups, options, dtype):
    """Channels and pixels divide by nothing; with the launch of real batches, only what fills the machine is less."""
    divide(MANY_PROGRAMS=1, PROGRAMS=264)
    arguments = make(kernel_device, shape, groups, dtype, channels_last=True, **options)
    channels, pixels = shape[1] + options.get("skip", 0), shape[2] * shape[3]
    way = plan.plan(shape[0], groups, channels // groups, pixels, dtype.itemsize, True, wide=True)
    assert not way.one_launch
    assert way.lanes * dtype.itemsize == 128
    assert way.splits == math.ceil(pixels / 512)
    with use("triton"), wide_rows():
        assert OP.errors(arguments)["y"] <= 1.0


def test_wide_rows_are_for_channels_last_batches_that_fill_the_machine():
    for shape in SHAPES:
        batch, groups, size, pixels, element, channels_last = shape
        wide, usual = plan.plan(*shape, wide=True), plan.plan(*shape)
        if wide != usual:
            assert channels_last
            assert not wide.one_launch
            assert batch * wide.blocks * wide.splits >= 132
            assert wide.splits == 1 or wide.run * wide.lanes * element >= 48 << 10
            assert wide == plan.plan(2 * batch, groups, size, pixels, element, channels_last, wide=True)
    for pixels in (32 * 32, 64 * 64):  # those that it is for
        assert plan.plan(256, 32, 8, pixels, 2, True, wide=True).width * 2 == 128
        assert plan.plan(1, 32, 8, pixels, 2, False, wide=True) == plan.plan(1, 32, 8, pixels, 2, False)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("launch", [SPLIT, WIDE], ids=["two", "one"])
def test_a_large_mean(kernel_device, divide, launch, memory_format):
    divide(LATENCY=(launch, SPLIT))
    x = torch.randn(1, 8, 19, 17, generator=torch.Generator().manual_seed(0)) + 1e4
    x = x.to(kernel_device).contiguous(memory_format=memory_format)
    with use("triton"):
        y = group_norm(x, 2, act=False)
    exact = OP.exact(x=x, num_groups=2, eps=1e-5, act=False)[0]
    assert (y.double() - exact).abs().max() < 5e-3  # float32 holds 1e4 to 5e-4


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("fills", "batches"), [(10**9, (1, 3)), (6, (2, 3))], ids=["small", "large"])
def test_bits_of_batches_of_one_kind(kernel_device, monkeypatch, fills, batches, channels_last):
    """With the launches of real images; only what fills the machine is less."""
    monkeypatch.setattr(plan, "MANY_PROGRAMS", fills)
    plan.plan.cache_clear()
    shape, groups, skip = (max(batches), 30, 7, 9), 12, 6
    together = make(kernel_device, shape, groups, skip=skip, add=True, channels_last=channels_last)
    ways = [plan.plan(batch, groups, 3, 63, 4, channels_last) for batch in batches]
    wanted = plan.THROUGHPUT if fills == 6 else plan.LATENCY
    assert set(ways) == {plan._plan(wanted, groups, 3, 63, 4, channels_last)}
    with use("triton"):
        all_of_them = group_norm(**together)
        few = min(batches)
        some = together | {name: together[name][:few] for name in ("x", "skip", "add")}
        assert torch.equal(group_norm(**some), all_of_them[:few])
    plan.plan.cache_clear()


def test_a_nan_stays_in_its_group(kernel_device):
    arguments = make(kernel_device, (2, 8, 4, 5), 4, channels_last=True)
    arguments["x"][1, 2, 3, 3] = float("nan")
    with use("triton"):
        y = group_norm(**arguments).isnan()
    assert y[1, 2:4].all()
    assert y.sum() == y[1, 2:4].numel()


SHAPES = [
    (batch, groups, size, pixels, element, channels_last)
    for batch, (groups, size), pixels, element, channels_last in itertools.product(
        (1, 64), ((32, 4), (32, 12), (32, 32), (8, 20), (1, 3), (1, 1000), (40, 1)),
        (1, 49, 784, 1024, 4096, 65536), (2, 4), (False, True),
    )
]  # fmt: skip


def test_plans_cover_every_element_once_and_fit():
    for shape in SHAPES:
        _, groups, size, pixels, element, _ = shape
        way = plan.plan(*shape)
        own = [
            (block // way.parts * size + block % way.parts * way.width, size - block % way.parts * way.width)
            if way.parts > 1
            else (block * way.width, groups * size - block * way.width)
            for block in range(way.blocks)
        ]
        covered = [c for first, left in own for c in range(first, first + min(way.width, left))]
        assert covered == list(range(groups * size)), shape
        assert (way.splits - 1) * way.run < pixels <= way.splits * way.run, shape
        assert way.lanes >= way.width
        assert way.groups * size >= way.width or way.parts > 1
        if way.one_launch:
            assert way.splits == way.parts == 1
            assert way.width * pixels * element <= 128 << 10
        else:
            assert way.run % (way.rows * way.unroll) == 0
            assert way.groups * way.partials <= 2 * plan.MAX_PARTIALS
        assert way.rows * way.lanes <= max(32 * way.num_warps * plan.VECTOR // element, way.lanes)


def test_plans_differ_between_batches_only_where_the_words_say():
    """At most two plans a shape, the second from some batch on; one where a sample takes two launches in both."""
    changed = 0
    for shape in SHAPES:
        _, _, size, pixels, element, channels_last = shape
        ways = [plan.plan(batch, *shape[1:]) for batch in (1, 2, 3, 8, 17, 64, 132, 500, 4096)]
        first = next((i for i, way in enumerate(ways) if way != ways[0]), len(ways))
        assert len(set(ways[first:])) <= 1, shape
        if first < len(ways):
            changed += 1
            assert ways[-1].one_launch, shape
            assert channels_last or 48 << 10 < size * pixels * element <= 128 << 10, shape
            assert ways[-1].width * pixels * element <= 128 << 10, shape
    assert changed


def test_silu_of_any_number(kernel_device):
    """Its exponential may overflow, and must not spoil the result: y = silu(bias) where the image is constant."""
    finite = [
        -3e38,
        -1e4,
        -104.0,
        -100.0,
        -88.8,
        -87.0,
        -20.0,
        -1.3,
        -1e-30,
        0.0,
        1e-30,
        1.3,
        20.0,
        88.8,
        1e4,
        3e38,
    ]
    bias = torch.tensor([*finite, float("inf"), float("nan")], device=kernel_device)
    arguments = {"x": torch.zeros(1, len(bias), 2, 2, device=kernel_device), "num_groups": 1, "eps": 1e-5}
    arguments |= {"weight": torch.ones_like(bias), "act": True}
    with use("triton"):
        y = group_norm(**arguments, bias=bias)
        few = {name: value[:, :16] if name == "x" else value for name, value in arguments.items()}
        few |= {"weight": arguments["weight"][:16], "bias": bias[:16]}
        assert OP.errors(few)["y"] <= 1.0
    assert (y[0, 16] == float("inf")).all()
    assert y[0, 17].isnan().all()


def test_silu_is_as_exact_as_a_division(kernel_device):
    bias = torch.linspace(-100.0, 100.0, 2048, device=kernel_device)
    arguments = {"x": torch.zeros(1, 2048, 1, 1, device=kernel_device), "num_groups": 1, "eps": 1e-5}
    with use("triton"):
        y = group_norm(**arguments, bias=bias, act=True)[0, :, 0, 0].double()
    z = bias.double()
    # In units of 2^-24. exp(-z) is 2^(-z log2 e): log2 e is rounded (0.224) and the product (1), each times |z|, and
    # 2^x is off by 2 ulp, each up to 2 units (4). The sum 1 + exp(-z) adds 1, the inverse root 2^-22.9 twice, for it
    # is squared (4.3), and two products 2. In all 11.3 + 1.224 |z|, and the second order.
    rounding = 2.0**-24 * (12.0 + 1.25 * z.abs())
    want = z * torch.sigmoid(z)
    # Where exp(-z) overflows y is 0, which it is less than 89 * 2^-128 from.
    assert ((y - want).abs() <= rounding * want.abs() + 89 * 2.0**-128).all()


def test_plans_of_the_shapes_that_matter():
    """What the docstring of a launch promises for U-Nets, in bfloat16 and channels-last."""
    wide = plan.plan(256, 32, 8, 32 * 32, 2, True)
    assert wide.one_launch
    assert wide.width * 2 == 64
    narrow = plan.plan(1, 32, 8, 32 * 32, 2, True)
    assert narrow.one_launch
    assert narrow.blocks == 32
    for batch in (1, 16):  # too large for one launch in any batch: the same work for a sample
        large = plan.plan(batch, 32, 4, 256 * 256, 2, True)
        assert not large.one_launch
        assert large.blocks * large.splits >= 132
        assert large == plan.plan(1, 32, 4, 256 * 256, 2, True)
    for size in (4, 8, 12, 16, 20, 24):
        for batch in (1, 256):
            way = plan.plan(batch, 32, size, 14 * 14, 2, True)
            assert way.width * 2 % plan.VECTOR == 0
    assert math.prod((wide.rows, wide.lanes)) == 32 * wide.num_warps * 8
