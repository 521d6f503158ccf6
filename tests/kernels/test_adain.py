"""AdaIN in PyTorch: against other people's formulas in float64, its options, its checks."""

import pytest
import torch
import torch.nn.functional as F

from fastgen_kernels import OPS, adain, use
from fastgen_kernels.adain import cases, cpu, reference
from tests.refusals import refused

OP = OPS["adain"]
CPU = torch.device("cpu")
PLAIN = [case for case in OP.cases if not case.production]


def make(shape=(2, 3, 5, 7), dtype=torch.float64, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), CPU, dtype, shape, **options)


def calc_mean_std(features, eps, unbiased):
    """Mean and deviation [N, C, 1, 1], as implementations of Huang and Belongie 2017 take them."""
    flat = features.reshape(*features.shape[:2], -1)
    std = (flat.var(dim=2, unbiased=unbiased) + eps).sqrt()
    return flat.mean(dim=2)[..., None, None], std[..., None, None]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_style_transfer(alpha, unbiased, channels_last):
    """Eq. 8 and 14 of Huang and Belongie 2017."""
    arguments = make((2, 3, 6, 5), style=(2, 4, 7), channels_last=channels_last)
    x, style = arguments["x"], arguments["style"]
    mean, std = calc_mean_std(x, 1e-5, unbiased)
    style_mean, style_std = calc_mean_std(style, 1e-5, unbiased)
    want = alpha * ((x - mean) / std * style_std + style_mean) + (1 - alpha) * x
    got = adain(x, style=style, alpha=alpha, correction=int(unbiased))
    close(got, want)
    assert got.is_contiguous(memory_format=reference.memory_format(x))
    given = {"mean": style_mean[..., 0, 0], "std": style_std[..., 0, 0]}
    close(adain(x, **given, alpha=alpha, correction=int(unbiased)), want)


def test_the_result_has_the_style():
    arguments = make((2, 3, 17, 13), style=(2, 9, 11))
    y = adain(**arguments, eps=1e-12)
    style = arguments["style"]
    close(y.mean((2, 3)), style.mean((2, 3)))
    # eps is all that keeps the variance from being exact.
    torch.testing.assert_close(
        y.var((2, 3), correction=0), style.var((2, 3), correction=0), rtol=1e-10, atol=0
    )
    # A map styled by itself comes back.
    close(adain(style, style=style), style)


@pytest.mark.parametrize("channels_last", [False, True])
def test_is_instance_norm(channels_last):
    x = make(style=None, channels_last=channels_last)["x"]
    close(adain(x), F.instance_norm(x))
    weight, bias = torch.randn(2, 3, dtype=torch.float64).unbind()
    close(adain(x, weight, bias, eps=1e-3), F.instance_norm(x, weight=weight, bias=bias, eps=1e-3))
    close(adain(x, slope_after=0.2), F.leaky_relu(F.instance_norm(x), 0.2))
    close(adain(x, slope_after=0.0), F.relu(F.instance_norm(x)))


@pytest.mark.parametrize("noise", [1, 2])
def test_is_stylegan_epilogue(noise):
    """Karras et al. 2019: noise, bias, LeakyReLU(0.2), instance norm with eps 1e-8, then x * (s + 1) + t."""
    arguments = make(noise=noise, bias=True)
    x, row = arguments["x"], lambda name: arguments[name].view(1, -1, 1, 1)
    v = F.leaky_relu(x + arguments["noise"] * row("noise_weight") + row("bias"), 0.2)
    v = v - v.mean((2, 3), keepdim=True)
    v = v * torch.rsqrt(v.square().mean((2, 3), keepdim=True) + 1e-8)
    style = torch.stack((arguments["scale"] - 1.0, arguments["shift"]), 1)[..., None, None]
    want = v * (style[:, 0] + 1.0) + style[:, 1]
    close(adain(**arguments, slope_before=0.2, eps=1e-8), want)


def test_one_pixel_has_no_variance():
    x = make((2, 3, 1, 1), style=None)["x"]
    for correction in (0, 1):
        assert torch.equal(adain(x, correction=correction), torch.zeros_like(x))
        assert torch.equal(adain(x, shift=torch.ones(3).double(), correction=correction), torch.ones_like(x))


def test_alpha_zero_is_the_content():
    arguments = make(alpha=0.0, dtype=torch.bfloat16, mean=3.0)
    assert torch.equal(adain(**arguments), arguments["x"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (31, 29)])
def test_a_large_mean_costs_no_variance(channels_last, size):
    """E[x^2] - E[x]^2 would leave nothing of it: its terms are 1e8, the variance 1e-2, float32 has 7 digits."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0)) * 0.1 + 1e4
    x = x.contiguous(memory_format=layout)
    y = adain(x).double()
    torch.testing.assert_close(y.var((2, 3), correction=0), torch.ones(1, 4).double(), rtol=1e-2, atol=0)
    # A float32 mean of 1e4 has steps of 1e-3, a hundredth of the deviation.
    assert (y - adain(x.double())).abs().max() < 0.02


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_planes(value):
    x = torch.full((1, 2, 8, 8), value)
    assert torch.equal(adain(x), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_cpu_path_is_the_reference(case, dtype):
    """In place or not, with PyTorch's own norms or not: the same function within its bound, in the same layout."""
    arguments = case.make(torch.Generator().manual_seed(3), CPU, dtype)
    plain = OP.reference(**arguments)
    assert max(OP.errors(arguments, plain).values()) <= 1.0
    with torch.no_grad():
        fast = adain(**arguments)
    assert max(OP.errors(arguments, fast).values()) <= 1.0
    assert fast.dtype == plain.dtype == dtype
    assert fast.is_contiguous(memory_format=reference.memory_format(arguments["x"]))
    kept = case.make(torch.Generator().manual_seed(3), CPU, dtype)
    for name, value in kept.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, arguments[name]), name


def test_gradients_do_not_take_the_path_in_place():
    arguments = make((1, 2, 3, 3), noise=1, bias=True, slope_before=0.2, slope_after=0.2, alpha=0.6)
    tensors = {k: v.clone().requires_grad_() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    options = {k: v for k, v in arguments.items() if k not in tensors}
    assert torch.autograd.gradcheck(
        lambda *v: adain(**dict(zip(tensors, v, strict=True)), **options), [*tensors.values()]
    )


@pytest.mark.parametrize("samples", [1, 3])
def test_expanded_arguments(samples):
    """One style, noise or row for a batch, given once or expanded."""
    x = make((3, 2, 4, 5), style=None)["x"]
    style, noise, weight = torch.randn(1, 2, 3, 3), torch.randn(1, 1, 4, 5), torch.randn(2)
    style, noise, weight = (value.double() for value in (style, noise, weight))
    want = torch.cat([adain(x[i : i + 1], style=style, noise=noise, noise_weight=weight) for i in range(3)])
    style, noise = style.expand(samples, -1, -1, -1), noise.expand(samples, -1, -1, -1)
    close(adain(x, style=style, noise=noise, noise_weight=weight), want)
    for scale in (weight, weight[None], weight.expand(3, 2)):
        close(adain(x, scale, scale), adain(x, weight.repeat(3, 1), weight.repeat(3, 1)))


def test_float64_is_float64_throughout():
    x = make((1, 1, 50, 50), mean=1e6, style=None)["x"]
    mean, std = calc_mean_std(x, 1e-5, False)
    torch.testing.assert_close(adain(x), (x - mean) / std, rtol=1e-8, atol=1e-8)


REFUSALS = {
    "no tensor": ("x", {"x": [1.0]}),
    "no tensor beside mean": ("x", {"x": [1.0], "mean": torch.zeros(3), "std": torch.zeros(3)}),
    "rank": ("x", {"x": torch.zeros(2, 3, 5)}),
    "rank beside mean": ("x", {"x": torch.zeros(3), "mean": torch.zeros(3), "std": torch.zeros(3)}),
    "integers beside mean": (
        "x",
        {"x": torch.zeros(2, 3, 5, 7, dtype=torch.int32), "mean": torch.zeros(3), "std": torch.zeros(3)},
    ),
    "empty": ("x", {"x": torch.zeros(2, 3, 0, 7)}),
    "integers": ("x", {"x": torch.zeros(2, 3, 5, 7, dtype=torch.int32)}),
    "transposed": ("x", {"x": torch.zeros(2, 3, 7, 5).transpose(2, 3)}),
    "strided pixels": ("x", {"x": torch.zeros(2, 3, 5, 14)[..., ::2]}),
    "cropped": ("x", {"x": torch.zeros(2, 3, 9, 9)[..., :5, :7]}),
    "scale's size": ("scale", {"scale": torch.zeros(2, 4)}),
    "scale's rank": ("scale", {"scale": torch.zeros(2, 3, 1, 1)}),
    "shift's type": ("shift", {"shift": torch.zeros(2, 3, dtype=torch.float64)}),
    "scale is a number": ("scale", {"scale": 2.0}),
    "scale's device": ("scale", {"scale": torch.zeros(2, 3, device="meta")}),
    "std without mean": ("mean", {"std": torch.zeros(2, 3)}),
    "mean without std": ("std", {"mean": torch.zeros(2, 3)}),
    "two names": ("mean", {"mean": torch.zeros(3), "std": torch.zeros(3), "scale": torch.zeros(3)}),
    "two styles": ("style", {"style": torch.zeros(2, 3, 4, 4), "shift": torch.zeros(2, 3)}),
    "style's channels": ("style", {"style": torch.zeros(2, 4, 4, 4)}),
    "style's batch": ("style", {"style": torch.zeros(3, 3, 4, 4)}),
    "style's type": ("style", {"style": torch.zeros(2, 3, 4, 4, dtype=torch.float16)}),
    "alpha": ("alpha", {"alpha": 1.5}),
    "alpha nan": ("alpha", {"alpha": float("nan")}),
    "alpha is text": ("alpha", {"alpha": "1"}),
    "no alpha": ("alpha", {"alpha": None}),
    "alpha is a tensor": ("alpha", {"alpha": torch.tensor(0.5)}),
    "eps": ("eps", {"eps": 0.0}),
    "eps is a tensor": ("eps", {"eps": torch.tensor(1e-5)}),
    "correction is a tensor": ("correction", {"correction": torch.tensor([0, 1])}),
    "correction": ("correction", {"correction": 2}),
    "bias": ("bias", {"bias": torch.zeros(2, 3)}),
    "strided bias": ("bias", {"bias": torch.zeros(6)[::2]}),
    "noise alone": ("noise_weight", {"noise": torch.zeros(1, 1, 5, 7)}),
    "weight alone": ("noise", {"noise_weight": torch.zeros(3)}),
    "noise's size": ("noise", {"noise": torch.zeros(1, 1, 7, 5), "noise_weight": torch.zeros(3)}),
    "noise's channels": ("noise", {"noise": torch.zeros(2, 3, 5, 7), "noise_weight": torch.zeros(3)}),
    "slope before": ("slope_before", {"slope_before": float("inf")}),
    "slope after": ("slope_after", {"slope_after": float("nan")}),
    "no slope before": ("slope_before", {"slope_before": None}),
    "no slope after": ("slope_after", {"slope_after": None}),
}


@pytest.mark.parametrize(("name", "spoilt"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(name, spoilt):
    arguments = {"x": torch.zeros(2, 3, 5, 7)} | spoilt
    with refused(ValueError, name):
        adain(**arguments)


def test_too_far_for_the_kernels_offsets():
    far = torch.empty(1, device="meta")
    with refused(ValueError, "x", "2^24"):
        adain(far.expand(1, 1, 4097, 4096))
    with refused(ValueError, "x", "2^17"):
        adain(far.expand(1, 2**18, 2, 2).contiguous(memory_format=torch.channels_last))
    with refused(ValueError, "x", "2^25"):
        adain(torch.empty(2**27, device="meta").as_strided((1, 2, 2, 2), (2**27, 2**26, 2, 1)))


def test_kernel_takes_no_float64():
    with use("triton"), refused(ValueError, "x", "float32"):
        adain(make()["x"])


def test_costs():
    arguments = make((2, 3, 4, 5), torch.bfloat16, noise=1, bias=True, slope_before=0.2)
    assert OP.bytes_moved(**arguments) == 2 * 2 * 120 + 2 * (12 + 20 + 3 + 3)
    assert OP.flops(**arguments) == 120 * (6 + 1 + 2 + 2)
    styled = make((2, 3, 4, 5), torch.bfloat16, style=(1, 2, 2))
    assert OP.bytes_moved(**styled) == 2 * 2 * 120 + 2 * 12
    assert OP.flops(**styled) == 120 * 6 + 12 * 4


def test_half_precision_is_rounded_once(monkeypatch):
    """Slopes that would round batch norm's result again take the way in float32."""
    called = []
    original = cpu._batch_norm
    monkeypatch.setattr(cpu, "_batch_norm", lambda *a: called.append(1) or original(*a))
    x = make(dtype=torch.bfloat16, style=None)["x"]
    adain(x)
    adain(x, slope_after=0.0)
    assert len(called) == 2
    adain(x, slope_after=0.2)
    assert len(called) == 2


@pytest.mark.parametrize("shape", [(3, 5, 7, 9), (5, 2, 3, 4)], ids=["planes", "samples"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("style", ["affine", (1, 8, 9)], ids=["affine", "map"])
def test_half_precision_is_widened_by_the_piece(monkeypatch, shape, channels_last, style):
    """The bits of the whole, without a float32 copy of it."""
    arguments = make(
        shape, torch.bfloat16, noise=shape[0], bias=True, slope_after=0.2, alpha=0.7,
        style=style, channels_last=channels_last,
    )  # fmt: skip
    whole = adain(**arguments)
    sizes = []
    original = cpu._planes
    monkeypatch.setattr(cpu, "_planes", lambda x, *others: sizes.append(x.numel()) or original(x, *others))
    monkeypatch.setattr(cpu, "WHOLE", 63)
    y = adain(**arguments)
    assert torch.equal(y, whole)
    assert y.stride() == whole.stride()
    assert len(sizes) > 2
    assert sum(sizes) == whole.numel()
    # A channels-last sample stays whole.
    assert max(sizes) <= (whole[0].numel() * 2 if channels_last else 63)


@pytest.mark.parametrize(
    "options", [{"alpha": 0.7}, {"style": (1, 6, 5), "alpha": 0.7}], ids=["affine", "map"]
)
def test_blending_takes_pytorchs_norm(monkeypatch, options):
    """Which hands out the statistics that blending needs: neither deviations nor squares are made."""
    for name in ("deviations", "spread"):
        monkeypatch.setattr(cpu, name, None)
    arguments = make((2, 3, 8, 8), torch.float32, **options)
    assert max(OP.errors(arguments).values()) <= 1.0


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_the_eager_rival(case):
    """Does the same work, if with PyTorch's roundings."""
    arguments = case.make(torch.Generator().manual_seed(3), CPU, torch.float64)
    want = OP.reference(**arguments)
    torch.testing.assert_close(OP.eager(**arguments), want, rtol=1e-9, atol=1e-9)
    half = case.make(torch.Generator().manual_seed(3), CPU, torch.bfloat16)
    y = OP.eager(**half)
    assert (y.shape, y.dtype) == (want.shape, torch.bfloat16)
