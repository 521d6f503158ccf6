"""The patch convolution and score in PyTorch: against the formula, as a discriminator, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen_kernels import OPS, pack_weight, patch_conv, patch_score
from fastgen_kernels.patch_conv import cases, eager, layout
from tests.refusals import refused

OP, SCORE = OPS["patch_conv"], OPS["patch_score"]
CPU = torch.device("cpu")
STRIDES = (2, 2, 2, 1, 1)  # of the 70x70 discriminator


def make(shape=(2, 3, 6, 8), channels=5, dtype=torch.float64, **options):
    return cases.arguments(torch.Generator().manual_seed(0), CPU, dtype, shape, channels, **options)


def by_the_formula(x, weight, bias=None, stride=2, negative_slope=0.2):
    """Sum over the 16 taps, written out."""
    height, width = ((size - 2) // stride + 1 for size in x.shape[2:])
    surrounded = x.new_zeros(*x.shape[:2], x.shape[2] + 4, x.shape[3] + 4)
    surrounded[:, :, 1:-3, 1:-3] = x
    y = x.new_zeros(len(x), len(weight), height, width)
    for kh in range(4):
        for kw in range(4):
            pixels = surrounded[:, :, kh : kh + stride * height : stride, kw : kw + stride * width : stride]
            y += torch.einsum("bchw,oc->bohw", pixels, weight[:, :, kh, kw])
    if bias is not None:
        y += bias[:, None, None]
    return y if negative_slope is None else torch.where(y > 0, y, y * negative_slope)


@pytest.mark.parametrize("case", [c for c in OP.cases if not c.production], ids=lambda case: case.name)
def test_equals_the_formula(case):
    arguments = case.make(torch.Generator().manual_seed(1), CPU, torch.float64)
    want = by_the_formula(**arguments)
    for got in (patch_conv(**arguments), OP.reference(**arguments), *OP.exact(**arguments)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in SCORE.cases if not c.production], ids=lambda case: case.name)
def test_score_is_the_mean_of_the_patches(case):
    arguments = case.make(torch.Generator().manual_seed(1), CPU, torch.float64)
    want = by_the_formula(**({"stride": 1} | arguments), negative_slope=None).mean((1, 2, 3))
    for got in (patch_score(**arguments), *SCORE.exact(**arguments)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_score_is_not_rounded_to_sixteen_bits():
    arguments = make((1, 8, 9, 9), 1, torch.bfloat16)
    score = patch_score(**arguments)
    assert score.dtype == torch.float32
    assert score != score.bfloat16()


@pytest.mark.parametrize("negative_slope", [None, 0.0, 0.2, 1.5])
def test_slopes(negative_slope):
    arguments = make(negative_slope=negative_slope)
    y = patch_conv(**arguments)
    torch.testing.assert_close(y, by_the_formula(**arguments), rtol=1e-12, atol=1e-12)
    assert (y > 0).any()
    assert (y < 0).any() == (negative_slope != 0.0)


def test_receptive_field_is_seventy():
    """Isola et al. 2017, appendix 6.1.2: what one output of the five layers sees, by its gradient."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 160, 160, generator=generator, dtype=torch.float64, requires_grad=True)
    x = image
    for i, stride in enumerate(STRIDES):
        weight = torch.randn(2 if i < 4 else 1, x.shape[1], 4, 4, generator=generator, dtype=torch.float64)
        x = patch_conv(x, weight, stride=stride, negative_slope=0.2 if i < 4 else None)
    assert x.shape == (1, 1, 18, 18)
    x[0, 0, 9, 9].backward()
    for axis in (0, 1):
        seen = image.grad[0].abs().sum((0, axis + 1)).nonzero().flatten()
        assert seen.tolist() == list(range(int(seen[0]), int(seen[0]) + 70))


@pytest.mark.parametrize("negative_slope", [None, 0.0, 0.2])
def test_gradients_of_both_orders(negative_slope):
    """Gradient penalties differentiate twice; the activation in place must not stand in the way."""
    arguments = make((1, 2, 4, 4), 2, layout="first", packed=False)
    inputs = [arguments[name].requires_grad_() for name in ("x", "weight", "bias")]
    call = lambda x, w, b: patch_conv(x, w, b, negative_slope=negative_slope)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("channels", [1, 3, 8, 24])
@pytest.mark.parametrize("outputs", [1, 5])
def test_packed_weight(channels, outputs):
    weight = torch.randn(outputs, channels, 4, 4, requires_grad=True)
    packed = pack_weight(weight)
    assert torch.equal(packed, weight)
    assert pack_weight(packed) is packed
    width = layout.padded(channels)
    memory = packed.detach().as_strided((outputs, 4, 4, width), (16 * width, 4 * width, width, 1))
    assert torch.equal(memory[..., :channels], weight.detach().permute(0, 2, 3, 1))
    assert not memory[..., channels:].any()
    (gradient,) = torch.autograd.grad(packed.sum(), weight)
    assert torch.equal(gradient, torch.ones_like(weight))
    x = torch.randn(1, channels, 6, 6).double()
    convolved = [F.conv2d(x, w.double(), padding=1) for w in (packed, weight)]
    torch.testing.assert_close(*convolved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("last_x", [False, True])
@pytest.mark.parametrize("last_weight", [False, True])
def test_memory_format_is_that_of_a_convolution(last_x, last_weight):
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    x = torch.randn(2, 3, 6, 8).to(memory_format=formats[last_x])
    weight = torch.randn(5, 3, 4, 4).to(memory_format=formats[last_weight])
    assert patch_conv(x, weight).stride() == F.conv2d(x, weight, stride=2, padding=1).stride()


def test_precision_follows_torch():
    setting = torch.backends.cudnn.conv
    before = setting.fp32_precision
    try:
        for value, want in (("ieee", "ieee"), ("tf32", "tf32")):
            setting.fp32_precision = value
            assert layout.input_precision(torch.float32) == want
            assert layout.input_precision(torch.bfloat16) == "ieee"
    finally:
        setting.fp32_precision = before


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("x", lambda a: [1.0]),
        ("x", lambda a: a["x"][0]),
        ("x", lambda a: a["x"][:0]),
        ("x", lambda a: a["x"][:, :, :1]),
        ("x", lambda a: a["x"].long()),
        ("weight", lambda a: a["weight"][:, :2]),
        ("weight", lambda a: a["weight"][..., :3]),
        ("weight", lambda a: a["weight"][0]),
        ("weight", lambda a: a["weight"].float()),
        ("weight", lambda a: a["weight"].to("meta")),
        ("weight", lambda a: None),
        ("bias", lambda a: a["bias"][:4]),
        ("bias", lambda a: a["bias"].float()),
        ("bias", lambda a: a["bias"].repeat(2)[::2]),
        ("bias", lambda a: 0.0),
        ("stride", lambda a: 3),
        ("stride", lambda a: (2, 2)),
        ("stride", lambda a: 2.0),
        ("stride", lambda a: True),
        ("negative_slope", lambda a: -0.1),
        ("negative_slope", lambda a: float("nan")),
        ("negative_slope", lambda a: float("inf")),
        ("negative_slope", lambda a: "a"),
        ("negative_slope", lambda a: True),
    ],
)
def test_refusals(name, spoil):
    arguments = make()
    with refused(ValueError, name):
        patch_conv(**(arguments | {name: spoil(arguments)}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.zeros(2, 3, 6)),
        ("weight", torch.zeros(1, 3, 4, 4)),
        ("bias", torch.zeros(1)),
        ("stride", 0),
    ],
)
def test_score_refusals(name, value):
    with refused(ValueError, name):
        patch_score(**(make(channels=1) | {name: value}))


class PatchGAN(nn.Sequential):
    """The 70x70 discriminator as everybody writes it, without batch norm, which is folded."""

    def __init__(self, channels: int, width: int) -> None:
        sizes = (channels, width, 2 * width, 4 * width, 8 * width, 1)
        layers: list[nn.Module] = []
        for i, stride in enumerate(STRIDES):
            layers += [nn.Conv2d(sizes[i], sizes[i + 1], 4, stride, 1), nn.LeakyReLU(0.2)]
        super().__init__(*layers[:-1])


def test_chain_is_the_discriminator():
    torch.manual_seed(0)
    network = PatchGAN(6, 4).double()
    image = torch.randn(2, 6, 72, 64, dtype=torch.float64)
    x = image
    for i, stride in enumerate(STRIDES):
        convolution = network[2 * i]
        below = x
        slope = 0.2 if i < 4 else None
        x = patch_conv(x, convolution.weight, convolution.bias, stride=stride, negative_slope=slope)
    torch.testing.assert_close(x, network(image), rtol=1e-12, atol=1e-12)
    score = patch_score(below, network[8].weight, network[8].bias)
    torch.testing.assert_close(score, network(image).mean((1, 2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_changes_nothing(dtype):
    """The result has x's type and bits, and gradients their inputs' types, as on the kernels."""
    arguments = make(channels=1, dtype=dtype)
    traced = (arguments["x"], arguments["weight"], arguments["bias"])
    calls = (
        lambda: patch_conv(**arguments),
        lambda: patch_score(**arguments),
        lambda: torch.ops.fastgen.patch_conv(*traced, 2, 0.2),
        lambda: torch.ops.fastgen.patch_score(*traced, 1),
    )
    for call in calls:
        want = call()
        with torch.autocast("cpu", torch.bfloat16):
            got = call()
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    weight = arguments["weight"].detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.ops.fastgen.patch_conv(arguments["x"], weight, None, 2, 0.2)
        (gradient,) = torch.autograd.grad(y.sum(), weight)
    (want,) = torch.autograd.grad(patch_conv(arguments["x"], weight).sum(), weight)
    assert gradient.dtype == want.dtype
    assert torch.equal(gradient, want)


@pytest.mark.parametrize(("function", "channels"), [(patch_conv, 5), (patch_score, 1)])
def test_exports_any_batch(function, channels):
    arguments = make(channels=channels, dtype=torch.float32)
    x, weight, bias = (arguments[name] for name in ("x", "weight", "bias"))

    class Layer(nn.Module):
        def forward(self, x):
            return function(x, weight, bias)

    program = torch.export.export(Layer(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("b")}})
    more = torch.cat([x, x, x])
    torch.testing.assert_close(program.module()(more), function(more, weight, bias))


def test_the_kernels_limits_are_not_those_of_pytorch():
    huge = torch.empty(1, 3, 2**14, 2**14, device="meta")
    weight = torch.empty(2, 3, 4, 4, device="meta")
    assert patch_conv(huge, weight).shape == (1, 2, 2**13, 2**13)
    for name, x, kernels in (
        ("x", huge, weight),
        ("x", torch.empty(2**10, 3, 2**10, 2**10, device="meta"), weight),
        (
            "weight",
            torch.empty(1, 2**13, 2, 2, device="meta"),
            torch.empty(2**13, 2**13, 4, 4, device="meta"),
        ),
    ):
        with refused(ValueError, name):
            OP.fused(x, kernels)


def test_a_sample_too_long_for_the_kernel_is_not_read_as_it_lies():
    """8 channels of 1024: a row is 2^20 elements, and its rows more than 2^30."""
    sample = torch.empty(1, 1024, 1025, 1024, device="meta").to(memory_format=torch.channels_last)
    assert layout.is_ready(sample[:, 8:16, :1024])
    assert not layout.is_ready(sample[:, 8:16])


@pytest.mark.parametrize("last_x", [False, True])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("op", [OP, SCORE], ids=lambda op: op.name)
def test_the_eager_baseline(op, channels, last_x):
    """As good as the reference, and it converts a weight once."""
    arguments = make(
        (2, channels, 6, 8), 1 if op is SCORE else 5, torch.float32, layout="last" if last_x else "first"
    )
    assert max(op.errors(arguments, op.eager(**arguments)).values()) <= 1.0
    x, weight = arguments["x"], arguments["weight"]
    dense = eager.dense_weight(x, weight)
    assert eager.dense_weight(x, weight) is dense
    assert dense.is_contiguous(memory_format=torch.channels_last if last_x else torch.contiguous_format)
    assert torch.equal(dense, weight)


class Copies(TorchDispatchMode):
    """Counts what writes a new tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (
            torch.ops.aten.clone,
            torch.ops.aten.copy_,
            torch.ops.aten.constant_pad_nd,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [3, 8])
def test_a_weight_is_packed_in_one_copy(channels):
    with Copies() as copies:
        packed = pack_weight(torch.randn(5, channels, 4, 4))
    assert copies.count == 1
    assert layout.is_packed(packed)


def test_a_weight_in_order_but_not_aligned_is_copied():
    memory = torch.randn(5 * 128 + 8).half()
    start = next(i for i in range(8) if memory[i:].data_ptr() % 16)
    weight = memory[start:].as_strided((5, 8, 4, 4), (128, 1, 32, 8))
    packed = pack_weight(weight)
    assert torch.equal(packed, weight)
    assert layout.is_packed(packed)


@pytest.mark.parametrize("channels", [64, 512])
def test_the_bound_holds_what_tensor_cores_cut_off(channels):
    """A sum of 16 * channels products in steps of 8, each cut off to 24 bits; 8 roundings would not hold it."""
    terms, samples = 16 * channels, 4000
    generator = torch.Generator().manual_seed(0)
    cut, exact = torch.zeros(samples, dtype=torch.float64), torch.zeros(samples, dtype=torch.float64)
    for _ in range(terms // 8):
        step = torch.randn(8, samples, 2, generator=generator, dtype=torch.float64).prod(2).sum(0)
        exact += step
        fraction, exponent = torch.frexp(cut + step)
        cut = torch.ldexp(torch.trunc(fraction * 2**24), exponent - 24)
    with FakeTensorMode():
        x = torch.empty(1, channels, 4, 4, device="cuda", dtype=torch.float16)
        bound = cases.accumulated(x)
        assert cases.accumulated(x.cpu()) == 8.0
    worst = ((cut - exact).abs() / (2.0**-24 * 0.637 * terms)).max()
    print(f"{worst:.1f} of {bound:.1f}")
    assert 8.0 < worst <= bound


def test_costs():
    arguments = make((2, 3, 6, 8), 5, torch.bfloat16)
    patches = 2 * 3 * 4
    assert OP.bytes_moved(**arguments) == 2 * (2 * 3 * 48 + 5 * 3 * 16 + 5 + patches * 5)
    # 48 products, 47 sums of them, one for the bias, one product for the activation; for a score a sum over patches.
    assert OP.flops(**arguments) == patches * 5 * (48 + 47 + 2)
    arguments = make((2, 3, 6, 8), 1, torch.bfloat16)
    assert SCORE.bytes_moved(**arguments) == 2 * (2 * 3 * 48 + 3 * 16 + 1) + 2 * 4
    assert SCORE.flops(**arguments) == 2 * 5 * 7 * (48 + 47 + 1)
