"""The modulated convolution beside weights made for each sample and a grouped convolution, as the paper has it."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastgen_kernels import OPS, modulated_conv, upfirdn, use, weight_energy
from fastgen_kernels.modulated_conv import eager
from fastgen_kernels.modulated_conv.cases import arguments
from tests.refusals import refused

OP = OPS["modulated_conv"]
CPU = torch.device("cpu")
PLAIN = [case for case in OP.cases if not case.production]


def made(shape=(3, 5, 4, 6), channels=7, size=3, dtype=torch.float64, **options):
    return arguments(torch.Generator().manual_seed(0), CPU, dtype, shape, channels, size, **options)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def grouped(x, weight, style, demodulate=True, eps=1e-8, up=1, filter=None):
    """Weights of each sample, each a group; the filter by upfirdn, which is tested by itself."""
    batch, inputs, height, width = x.shape
    outputs, size = weight.shape[0], weight.shape[2]
    weights = weight[None] * style[:, None, :, None, None]
    if demodulate:
        weights = weights / torch.sqrt(weights.square().sum((2, 3, 4), keepdim=True) + eps)
    joined = x.reshape(1, batch * inputs, height, width)
    if up == 1:
        y = F.conv2d(joined, weights.flatten(0, 1), padding=size // 2, groups=batch)
        return y.view(batch, outputs, height, width)
    weights = weights.transpose(1, 2).flatten(0, 1)
    y = F.conv_transpose2d(joined, weights, stride=2, groups=batch)
    y = y.view(batch, outputs, *y.shape[2:])
    rest = len(filter) - 2 - (size - 1)
    return upfirdn(y, filter, padding=((rest + 1) // 2 + 1, rest // 2 + 1), gain=4.0)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("up", [1, 2])
def test_grouped(up, size, demodulate):
    given = made(size=size, up=up, demodulate=demodulate, eps=0.1)
    close(modulated_conv(**given), grouped(**given))


def test_epilogue():
    given = made(noise=3, each=True, vectors=("bias", "post_scale"), slope=0.2, act_gain=1.4)
    y = grouped(given["x"], given["weight"], given["style"])
    y = y + given["noise"] * given["noise_weight"][:, None, None] + given["bias"][:, None, None]
    y = F.leaky_relu(y, 0.2) * 1.4 * given["post_scale"][:, :, None, None]
    close(modulated_conv(**given), y)


def test_the_next_layers_style():
    """Multiplied in by the layer before, or by the layer itself."""
    first = made(channels=5, vectors=("bias", "post_scale"), slope=0.2)
    second = made(channels=4)
    style = first.pop("post_scale")
    x = modulated_conv(**first)
    want = modulated_conv(x, second["weight"], style)
    got = modulated_conv(modulated_conv(**first, post_scale=style), second["weight"], style, scaled=True)
    close(got, want)


def test_energy():
    given = made()
    weight = given["weight"]
    want = (weight**2).sum(dim=(2, 3))
    close(weight_energy(weight), want)
    close(modulated_conv(**given, energy=want), modulated_conv(**given))
    assert weight_energy(weight.to(torch.bfloat16)).dtype == torch.float32


def test_demodulated_layers_keep_variance():
    """What demodulation is for: unit normals stay of unit deviation, whatever the style's size."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 32, 32, generator=generator)
    weight, style = (
        torch.randn(32, 64, 3, 3, generator=generator),
        torch.rand(4, 64, generator=generator) * 50,
    )
    inner = modulated_conv(x, weight, style)[:, :, 1:-1, 1:-1]
    assert abs(float(inner.std()) - 1.0) < 0.02


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_eager(case):
    """What benchmarks compare with computes the same."""
    given = case.make(torch.Generator().manual_seed(0), CPU, torch.float64)
    close(eager.modulated_conv(**given), modulated_conv(**given))


@pytest.mark.parametrize("up", [1, 2])
def test_gradients(up):
    """Against differences, to the second order."""
    given = made((2, 2, 2, 3), 2, up=up, vectors=("bias", "post_scale"), noise=1, slope=0.2)
    names = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
    others = {name: value for name, value in given.items() if name not in names}
    tensors = [given[name].clone().requires_grad_() for name in names]

    def function(*values):
        return modulated_conv(**dict(zip(names, values, strict=True)), **others)

    assert torch.autograd.gradcheck(function, tensors)


def test_gradients_are_those_of_grouped_weights():
    results = []
    for function in (modulated_conv, grouped):
        given = made(up=2)
        leaves = [given[name].clone().requires_grad_() for name in ("x", "weight", "style")]
        function(*leaves, up=2, filter=given["filter"]).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for a, b in zip(*results, strict=True):
        close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_factors(kernel_device, dtype):
    """The kernel of demodulation, with more inputs than a step and outputs that no program's four divide."""
    from fastgen_kernels.modulated_conv import kernel

    generator = torch.Generator().manual_seed(0)
    style = torch.randn(2, 530, generator=generator).to(kernel_device, dtype)[:, 3:]
    energy = torch.rand(7, 527, generator=generator).to(kernel_device)
    got = kernel.demodulation(style, energy, 1e-8)
    want = (style.double().square() @ energy.double().t() + 1e-8).rsqrt()
    # Half of the roundings of a tree of positive terms, squares among them, and the root's own.
    assert got.dtype == torch.float32
    assert ((got.double() - want).abs() <= 8 * 2.0**-24 * want).all()


REFUSED = [
    ("x", {"x": torch.zeros(2, 4, 4)}),
    ("weight", {"weight": torch.zeros(3, 2, 2, 2)}),
    ("weight", {"weight": torch.zeros(3, 5, 3, 3)}),
    ("weight", {"weight": torch.zeros(3, 2, 3, 3, dtype=torch.float64)}),
    ("style", {"style": torch.zeros(1, 3)}),
    ("style", {"style": torch.zeros(1, 4)[:, ::2]}),
    ("eps", {"eps": 0.0}),
    ("eps", {"eps": torch.ones(())}),
    ("energy", {"energy": torch.zeros(2, 3)}),
    ("energy", {"energy": torch.zeros(3, 2), "demodulate": False}),
    ("up", {"up": 3}),
    ("filter", {"up": 2}),
    ("filter", {"filter": torch.ones(4)}),
    ("filter", {"filter": torch.ones(40), "up": 2}),
    ("noise", {"noise": torch.ones(1, 1, 2, 2), "noise_weight": torch.ones(1)}),
    ("bias", {"bias": torch.ones(2)}),
    ("post_scale", {"post_scale": torch.ones(1, 2)}),
    ("slope", {"slope": math.inf}),
]


@pytest.mark.parametrize(("argument", "wrong"), REFUSED, ids=lambda value: str(value)[:30])
def test_refused(argument, wrong):
    right = {"x": torch.zeros(1, 2, 4, 4), "weight": torch.zeros(3, 2, 3, 3), "style": torch.zeros(1, 2)}
    with refused(ValueError, argument):
        modulated_conv(**right | wrong)


def test_float64_has_no_kernel():
    given = made((1, 2, 2, 2), 2)
    with use("triton"), refused(ValueError, "x"):
        OP.fused(**given)


def test_costs():
    given = made((2, 8, 4, 4), 6, dtype=torch.float32, demodulate=False, scaled=True)
    assert OP.flops(**given) == 2 * 6 * 8 * 9 * 2 * 16
    assert OP.bytes_moved(**given) == 4 * (2 * 8 * 16 + 6 * 8 * 9 + 2 * 8 + 2 * 6 * 16)
