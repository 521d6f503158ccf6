"""Group normalisation in PyTorch: against the paper's formula in NumPy and against other norms; its checks."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastgen_kernels import OPS, decompositions, group_norm, use
from fastgen_kernels.group_norm import cases, cpu, reference
from tests.refusals import refused

checks = sys.modules["fastgen_kernels.group_norm"]

OP = OPS["group_norm"]
CPU = torch.device("cpu")
SMALL = [case for case in OP.cases if not case.production]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(shape=(2, 8, 5, 6), num_groups=4, dtype=torch.float32, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), CPU, dtype, shape, num_groups, **options)


def everything(dtype=torch.float32, **options):
    return make((2, 5, 4, 6), 3, dtype, skip=4, add=True, scale=True, shift=True, **options)


def oracle(
    x, num_groups, weight=None, bias=None, eps=1e-5, skip=None, add=None, scale=None, shift=None, act=True
):
    """Wu & He 2018, figure 3, in float64: a sample and a group at a time."""

    def array(value):
        return value.double().numpy()

    v = array(x) if skip is None else np.concatenate((array(x), array(skip)), axis=1)
    y = np.empty_like(v)
    size = v.shape[1] // num_groups
    for n in range(v.shape[0]):
        for first in range(0, v.shape[1], size):
            group = v[n, first : first + size].copy()
            if add is not None:
                group += array(add)[n, first : first + size, None, None]
            centred = group - group.mean()
            y[n, first : first + size] = centred / np.sqrt((centred**2).mean() + eps)
        for c in range(v.shape[1]):
            if weight is not None:
                y[n, c] *= array(weight)[c]
            if bias is not None:
                y[n, c] += array(bias)[c]
            if scale is not None:
                y[n, c] *= 1.0 + array(scale)[n, c]
            if shift is not None:
                y[n, c] += array(shift)[n, c]
    return torch.from_numpy(y / (1.0 + np.exp(-y)) if act else y)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_equals_the_formula(case, dtype):
    arguments = case.make(torch.Generator().manual_seed(1), CPU, dtype)
    want = oracle(**arguments)
    (bound,) = OP.tolerance((want,), arguments)
    for function in (group_norm, OP.reference):
        error = (function(**arguments).double() - want).abs() / bound
        assert error.max() <= 1.0, function
    torch.testing.assert_close(OP.exact(**arguments)[0], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_equals_torch(dtype, memory_format):
    arguments = make(dtype=dtype, act=False)
    x = arguments["x"].contiguous(memory_format=memory_format)
    y = group_norm(**(arguments | {"x": x}))
    # Each rounds to its type, and torch in its type's working precision: one rounding and float32's few.
    unit = torch.finfo(dtype).eps
    theirs = F.group_norm(x, 4, arguments["weight"], arguments["bias"])
    torch.testing.assert_close(y, theirs, rtol=2 * unit, atol=64 * min(unit, 2.0**-24))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_special_cases(memory_format):
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(2, 6, dtype=torch.float64)
    layer = F.layer_norm(x, x.shape[1:]) * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(group_norm(x, 1, weight, bias, act=False), layer)
    instance = F.instance_norm(x, None, None, weight, bias)
    torch.testing.assert_close(group_norm(x, 6, weight, bias, act=False), instance)


def test_options_are_what_they_say():
    a = everything(torch.float64)
    joined = torch.cat((a["x"], a["skip"]), 1) + a["add"][:, :, None, None]
    y = group_norm(joined, 3, a["weight"], a["bias"], act=False)
    y = y * (1.0 + a["scale"][:, :, None, None]) + a["shift"][:, :, None, None]
    torch.testing.assert_close(group_norm(**a), F.silu(y))


def test_does_not_see_an_affine_change_of_its_input():
    """(a*v + c - mean) / deviation = (v - mean) / deviation for a > 0, where eps is nothing."""
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(group_norm(3.0 * x + 5.0, 2, eps=0.0), group_norm(x, 2, eps=0.0))
    groups = group_norm(x, 2, eps=0.0, act=False).reshape(2, 2, -1)
    torch.testing.assert_close(groups.mean(2), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(groups.var(2, correction=0), torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("function", [group_norm, OP.reference])
def test_a_large_mean(function, memory_format):
    """float32 holds 1e4 + noise to 5e-4, so that a right result is off by little more; E[x^2] - E[x]^2 by all."""
    x = torch.randn(1, 64, 32, 32, generator=torch.Generator().manual_seed(0)) + 1e4
    x = x.contiguous(memory_format=memory_format)
    error = function(x, 32, act=False).double() - oracle(x, 32, act=False)
    assert error.abs().max() < 5e-3


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_constant_image_leaves_the_bias(dtype, memory_format):
    bias = torch.randn(8).to(dtype)
    x = torch.ones(2, 8, 5, 7, dtype=dtype).contiguous(memory_format=memory_format)
    want = F.silu(bias)[None, :, None, None].expand(2, 8, 5, 7)
    # The mean of ones may be off by a rounding, and is divided by sqrt(eps) = 0.003.
    torch.testing.assert_close(group_norm(x, 2, None, bias), want, rtol=2 * torch.finfo(dtype).eps, atol=4e-4)


def test_batches_that_are_widened_a_sample_at_a_time():
    arguments = make(
        (5, 96, 24, 24), 8, torch.bfloat16, skip=32, add=True, scale=True, shift=True, channels_last=True
    )
    assert cpu.TILE < 5 * 128 * 24 * 24
    assert OP.errors(arguments)["y"] <= 1.0
    assert group_norm(**arguments).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_slices(channels_last):
    arguments = everything(sliced=3, channels_last=channels_last)
    layout = LAYOUTS[channels_last]
    whole = arguments | {name: arguments[name].contiguous(memory_format=layout) for name in ("x", "skip")}
    assert not arguments["skip"].is_contiguous(memory_format=layout)
    y = group_norm(**arguments)
    assert torch.equal(y, group_norm(**whole))
    assert y.is_contiguous(memory_format=layout)


SLICES = {
    "channels": lambda x: x[:, 2:6],
    "samples": lambda x: x[::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("pixels", [5, 40], ids=["small", "large"])
@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", SLICES)
def test_slices_without_a_skip(kind, dtype, memory_format, pixels):
    """`torch.cat` would make them dense. PyTorch's own kernel refuses what is not."""
    whole = torch.randn(4, 8, pixels, pixels, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = SLICES[kind](whole.contiguous(memory_format=memory_format))
    before = x.clone()
    arguments = {"x": x, "num_groups": 2, "eps": 1e-5, "act": True}
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = group_norm(**arguments)
        assert OP.errors(arguments, y.clone())["y"] <= 1.0
        assert y.is_contiguous(memory_format=memory_format)
    assert torch.equal(x, before)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
def test_compiles_on_slices(memory_format):
    x = torch.randn(4, 8, 5, 5).contiguous(memory_format=memory_format)[:, 2:6]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: group_norm(x, 2), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), group_norm(x, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 160, 160), (1, 256, 20, 20), (3, 64, 33, 17)])
def test_sums_on_cpu_keep_the_bound(shape, dtype):
    """Positive values in channels-last: sums that are kept one after the other lose them."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype) + 0.5
    arguments = {
        "x": x.contiguous(memory_format=torch.channels_last),
        "num_groups": 2,
        "eps": 1e-5,
        "act": False,
    }
    with torch.no_grad():
        assert OP.errors(arguments)["y"] <= 1.0
        theirs = F.group_norm(arguments["x"].float(), 2).to(dtype)
    if shape[2] == 160 and dtype == torch.float32:
        assert OP.errors(arguments, theirs)["y"] > 1.0  # PyTorch's own do not keep it


@pytest.mark.parametrize("function", [group_norm, OP.reference])
@pytest.mark.parametrize("shape", [(1, 64, 64, 1), (1, 1, 1, 64)])
def test_both_layouts_at_once(function, shape):
    """Of one channel or one pixel: strides that say channels-last must not choose PyTorch's kernel for it."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2) + 1e4
    assert x.is_contiguous()
    assert x.is_contiguous(memory_format=torch.channels_last)
    arguments = {"x": x, "num_groups": 1, "eps": 1e-5, "act": True}
    with torch.no_grad():
        assert OP.errors(arguments, function(**arguments))["y"] <= 1.0


def test_the_bound_sees_a_wrong_eps():
    arguments = make((1, 64, 96, 96), 16, channels_last=True)
    wrong = OP.reference(**(arguments | {"eps": 1e-3}))
    assert OP.errors(arguments, wrong)["y"] > 10.0


def test_scale_and_shift_are_halves_of_an_embedding():
    arguments = make((2, 6, 4, 5), 2)
    scale, shift = torch.randn(2, 12).chunk(2, 1)
    y = group_norm(**arguments, scale=scale, shift=shift)
    assert torch.equal(y, group_norm(**arguments, scale=scale.contiguous(), shift=shift.contiguous()))


def test_numbers_of_numpy():
    arguments = everything()
    y = group_norm(**arguments)
    assert torch.equal(group_norm(**(arguments | {"num_groups": np.int64(3), "eps": np.float64(1e-5)})), y)
    assert torch.equal(group_norm(**(arguments | {"eps": 0})), group_norm(**(arguments | {"eps": 0.0})))


@pytest.mark.parametrize(
    ("own", "skip", "too_large"),
    [
        (1023, 0, False),
        (1024, 0, False),
        (1024, 1023, False),
        (2047, 0, False),
        (2048, 0, True),
        (1024, 1024, True),
    ],
)
def test_the_largest_sample(own, skip, too_large):
    """2^20 pixels: 2048 channels are 2^31 elements."""
    x = torch.empty(1, own, 1024, 1024, dtype=torch.bfloat16, device="meta")
    other = torch.empty(1, skip, 1024, 1024, dtype=torch.bfloat16, device="meta") if skip else None
    if too_large:
        with refused(ValueError, "x", "2^31"):
            checks._check_sizes(x, other)
    else:
        checks._check_sizes(x, other)
    wide = torch.empty(1, 1024, 1024, 2049, dtype=torch.bfloat16, device="meta").permute(0, 3, 1, 2)[:, :8]
    with refused(ValueError, "skip"):
        checks._check_sizes(x[:, :8], wide)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.empty(2, 3, 4, 5), (True, False)),
        (torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), (False, True)),
        (torch.empty(2, 1, 4, 5), (True, True)),
        (torch.empty(2, 3, 1, 1), (True, True)),
        (torch.empty(2, 3, 1, 5), (True, False)),
        (torch.empty(2, 5, 1, 3).transpose(1, 3), (False, True)),
        (torch.empty(2, 3, 4, 1), (True, False)),
        (torch.empty(2, 6, 4, 5)[:, 1:4], (True, False)),
        (torch.empty(4, 3, 4, 5)[::2], (True, False)),
        (torch.empty(2, 4, 5, 6).permute(0, 3, 1, 2)[:, 1:3], (False, True)),
        (torch.empty(2, 3, 4, 6)[..., ::2], (False, False)),
        (torch.empty(2, 3, 4, 6)[..., :5], (False, False)),
        (torch.empty(2, 3, 5, 4).transpose(2, 3), (False, False)),
        (torch.empty(2, 4, 6, 3).permute(0, 3, 1, 2)[..., :5], (False, False)),
    ],
)
def test_layouts(x, expected):
    assert reference.layouts(x) == expected


def test_gradients():
    arguments = everything(torch.float64)
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    leaves = [arguments[name].clone().requires_grad_() for name in names]

    def function(*values):
        return group_norm(**(arguments | dict(zip(names, values, strict=True))))

    assert torch.autograd.gradcheck(function, leaves)
    # Weights of a network need gradients; under no_grad that must not stop the quick path.
    with torch.no_grad():
        assert torch.equal(function(*leaves), group_norm(**arguments))


@pytest.mark.parametrize("channels_last", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export_with_dynamic_sizes(channels_last):
    class Block(torch.nn.Module):
        def forward(self, x, skip, add):
            return group_norm(x, 3, skip=skip, add=add)

    def inputs(batch, height, width, seed):
        a = make((batch, 5, height, width), 3, seed=seed, skip=4, add=True, channels_last=channels_last)
        return a["x"], a["skip"], a["add"]

    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    image = {0: batch, 2: height, 3: width}
    program = torch.export.export(Block(), inputs(2, 4, 6, 0), dynamic_shapes=(image, image, {0: batch}))
    plain = program.run_decompositions(decompositions())
    other = inputs(5, 7, 3, 1)
    for exported in (program, plain):
        torch.testing.assert_close(exported.module()(*other), Block()(*other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("x", lambda a: a["x"][0]),
        ("x", lambda a: a["x"][:0]),
        ("x", lambda a: a["x"].int()),
        ("x", lambda a: a["x"].numpy()),
        ("x", lambda a: a["x"][..., ::2]),
        ("x", lambda a: a["x"].transpose(2, 3)),
        ("num_groups", lambda a: 4),
        ("num_groups", lambda a: 0),
        ("num_groups", lambda a: 3.0),
        ("num_groups", lambda a: True),
        ("num_groups", lambda a: None),
        ("eps", lambda a: None),
        ("eps", lambda a: True),
        ("eps", lambda a: "1e-5"),
        ("eps", lambda a: float("inf")),
        ("eps", lambda a: -1e-5),
        ("eps", lambda a: float("nan")),
        ("skip", lambda a: a["skip"][:1]),
        ("skip", lambda a: a["skip"][..., :5]),
        ("skip", lambda a: a["skip"].half()),
        ("skip", lambda a: a["skip"].to("meta")),
        ("skip", lambda a: a["skip"].contiguous(memory_format=torch.channels_last)),
        ("weight", lambda a: a["weight"][:5]),
        ("weight", lambda a: a["weight"].half()),
        ("bias", lambda a: a["bias"][:, None]),
        ("bias", lambda a: a["bias"].repeat(2)[::2]),
        ("add", lambda a: a["add"][:1]),
        ("add", lambda a: a["add"][:, :5]),
        ("scale", lambda a: a["scale"].double()),
        ("scale", lambda a: a["scale"].repeat(1, 2)[:, ::2]),
        ("add", lambda a: a["add"].t().contiguous().t()),
        ("shift", lambda a: a["shift"][:, :, None, None]),
    ],
)
def test_refusals(name, spoil):
    arguments = everything()
    with refused(ValueError, name):
        group_norm(**(arguments | {name: spoil(arguments)}))


def test_mixed_layouts_are_named():
    arguments = everything()
    arguments["x"] = arguments["x"].contiguous(memory_format=torch.channels_last)
    with refused(ValueError, "skip"):
        group_norm(**arguments)


def test_kernel_refuses_float64():
    with use("triton"), refused(ValueError, "x", "float32", "float64"):
        group_norm(**make(dtype=torch.float64))


def test_what_a_weight_of_another_type_is_told():
    arguments = everything(torch.bfloat16)
    arguments["weight"] = arguments["weight"].double()
    with refused(ValueError, "weight", "torch.bfloat16", "torch.float32", "torch.float64"):
        group_norm(**arguments)


def test_costs():
    arguments = everything(torch.bfloat16)
    elements, channels = 2 * 9 * 4 * 6, 9
    # x and skip in, y out, 2 bytes each; weight and bias once, add, scale and shift a sample.
    assert OP.bytes_moved(**arguments) == 2 * (2 * elements + 2 * channels + 3 * 2 * channels)
    wide = {name: arguments[name].float() for name in ("weight", "bias")}
    assert OP.bytes_moved(**(arguments | wide)) == OP.bytes_moved(**arguments) + 2 * 2 * channels
    assert OP.flops(**arguments) == 11 * elements
    assert OP.flops(**(arguments | {"act": False})) == 7 * elements
