"""The patch convolution and score in PyTorch: against the formula, as a discriminator, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen_kernels import OPS, pack_weight, patch_conv, patch_score
from fastgen_kernels.patch_conv import cases, layout

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
    picture = torch.randn(1, 3, 160, 160, generator=generator, dtype=torch.float64, requires_grad=True)
    x = picture
    for i, stride in enumerate(STRIDES):
        weight = torch.randn(2 if i < 4 else 1, x.shape[1], 4, 4, generator=generator, dtype=torch.float64)
        x = patch_conv(x, weight, stride=stride, negative_slope=0.2 if i < 4 else None)
    assert x.shape == (1, 1, 18, 18)
    x[0, 0, 9, 9].backward()
    for axis in (0, 1):
        seen = picture.grad[0].abs().sum((0, axis + 1)).nonzero().flatten()
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
        ("x", lambda a: torch.empty(1, 3, 2**14, 2**14, device="meta")),
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
        ("negative_slope", lambda a: -0.1),
        ("negative_slope", lambda a: float("nan")),
        ("negative_slope", lambda a: float("inf")),
    ],
)
def test_refusals(name, spoil):
    arguments = make()
    with pytest.raises(ValueError, match=rf"^{name}: expected .*received"):
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
    with pytest.raises(ValueError, match=rf"^{name}: expected .*received"):
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
    picture = torch.randn(2, 6, 72, 64, dtype=torch.float64)
    x = picture
    for i, stride in enumerate(STRIDES):
        convolution = network[2 * i]
        below = x
        slope = 0.2 if i < 4 else None
        x = patch_conv(x, convolution.weight, convolution.bias, stride=stride, negative_slope=slope)
    torch.testing.assert_close(x, network(picture), rtol=1e-12, atol=1e-12)
    score = patch_score(below, network[8].weight, network[8].bias)
    torch.testing.assert_close(score, network(picture).mean((1, 2, 3)), rtol=1e-12, atol=1e-12)


def test_costs():
    arguments = make((2, 3, 6, 8), 5, torch.bfloat16)
    patches = 2 * 3 * 4
    assert OP.bytes_moved(**arguments) == 2 * (2 * 3 * 48 + 5 * 3 * 16 + 5 + patches * 5)
    # 48 products, 47 sums of them, one for the bias, one product for the activation; for a score a sum over patches.
    assert OP.flops(**arguments) == patches * 5 * (48 + 47 + 2)
    arguments = make((2, 3, 6, 8), 1, torch.bfloat16)
    assert SCORE.bytes_moved(**arguments) == 2 * (2 * 3 * 48 + 3 * 16 + 1) + 2 * 4
    assert SCORE.flops(**arguments) == 2 * 5 * 7 * (48 + 47 + 1)
