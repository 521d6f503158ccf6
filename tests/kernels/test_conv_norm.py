"""conv_norm against the networks' own blocks, what it refuses, what it costs. The kernels: test_conv_norm_kernel.py."""

import pytest
import torch
from torch.nn import functional as F

from fastgen.models.blocks import Attention, NormAct, ResidualBlock
from fastgen.models.resample import Downsample, Upsample
from fastgen_kernels import OPS, conv_norm, conv_norm_out, group_norm, pack_weight, use
from fastgen_kernels.conv_norm import cases, checks
from tests.refusals import refused

OP = OPS["conv_norm"]
CPU = torch.device("cpu")


def make(shape=(2, 16, 5, 6), channels=8, size=3, dtype=torch.float32, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), CPU, dtype, shape, channels, size, **options)


def everything(dtype=torch.float32):
    vectors = ("add", "scale", "shift")
    shortcut = {"shortcut": (8, 16), "skip": 4, "residual": True, "beside": 8}
    return make(
        dtype=dtype, groups=3, vectors=vectors, output_scale=1.5, stride=2, padding=(0, 1), **shortcut
    )


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inputs", [8, 12], ids=["residual", "shortcut"])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_two_calls_are_a_residual_block(inputs, scale_shift):
    """The next block's first norm, with a skip, comes with the second call."""
    torch.manual_seed(0)
    options = {"scale_shift": scale_shift, "output_scale": 2.0**0.5}
    block = ResidualBlock(inputs, 8, 10, (4, 2), 1e-6, 0.0, **options).double().requires_grad_(False)
    after = NormAct(3, 12, 1e-5).double().requires_grad_(False)
    for norm in (block.norm1, block.norm2, after):
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(2, inputs, 5, 3, dtype=torch.float64)
    emb = torch.randn(2, 10, dtype=torch.float64)
    skip = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    want = block(x, emb)

    hidden = group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6)
    projected = block.time_emb_proj(F.silu(emb))
    if scale_shift:
        scale, shift = projected.chunk(2, 1)
        embedding = {"scale": scale, "shift": shift}
    else:
        embedding = {"add": projected}
    norm = {"num_groups": 2, "norm_weight": block.norm2.weight, "norm_bias": block.norm2.bias, "eps": 1e-6}
    first, hidden = conv_norm(hidden, block.conv1.weight, block.conv1.bias, **norm, **embedding)
    close(first, block.conv1(group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6))
          + (0.0 if scale_shift else projected[:, :, None, None]))  # fmt: skip
    if inputs == 8:
        short, bias = {"residual": x}, block.conv2.bias
    else:
        short = {
            "shortcut": x[:, :5],
            "shortcut_beside": x[:, 5:],
            "shortcut_weight": block.conv_shortcut.weight,
        }
        bias = block.conv2.bias + block.conv_shortcut.bias
    raw, normed = conv_norm(
        hidden, block.conv2.weight, bias, **short, output_scale=2.0**0.5,
        num_groups=3, norm_weight=after.weight, norm_bias=after.bias, skip=skip,
    )  # fmt: skip
    close(raw, want)
    close(normed, after(torch.cat((want, skip), 1)))


@pytest.mark.parametrize("padding", [1, 0])
def test_halving(padding):
    down = Downsample(6, padding).double()
    x = torch.randn(2, 6, 8, 6, dtype=torch.float64)
    raw, normed = conv_norm(x, down.conv.weight, down.conv.bias, stride=2, padding=1 if padding else (0, 1))
    close(raw, down(x))
    assert normed.shape == (0,)


def test_doubling():
    up = Upsample(6).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    close(conv_norm(x, up.conv.weight, up.conv.bias, upsample=True)[0], up(x))


def test_attention():
    """Its three products as one, and the last one with the residual."""
    torch.manual_seed(0)
    block = Attention(8, 8, 2, 1e-5).double().requires_grad_(False)
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    normed = block.group_norm(x)
    projections = (block.to_q, block.to_k, block.to_v)
    weight = torch.cat([one.weight for one in projections])[:, :, None, None]
    bias = torch.cat([one.bias for one in projections])
    tokens = conv_norm(normed, weight, bias)[0].flatten(2).transpose(1, 2)
    q, k, v = (part[:, None] for part in tokens.chunk(3, 2))
    attended = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
    raw, _ = conv_norm(attended, block.to_out.weight[:, :, None, None], block.to_out.bias, residual=x)
    close(raw, block(x))


def test_beside_is_a_concatenation():
    a = everything(torch.float64)
    joined = a | {"x": torch.cat((a["x"], a.pop("beside")), 1)}
    joined["shortcut"] = torch.cat((a["shortcut"], joined.pop("shortcut_beside")), 1)
    for got, want in zip(conv_norm(**joined), conv_norm(**everything(torch.float64)), strict=True):
        close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_is_that_of_the_rounded_map(dtype):
    a = everything(dtype)
    raw, normed = conv_norm(**a)
    names = ("num_groups", "norm_weight", "norm_bias", "skip", "scale", "shift")
    groups, weight, bias, skip, scale, shift = (a[name] for name in names)
    torch.testing.assert_close(
        normed, group_norm(raw, groups, weight, bias, skip=skip, scale=scale, shift=shift)
    )


@pytest.mark.parametrize("path", ["reference", "triton"])
def test_into_buffers(path):
    if path == "triton":
        pytest.importorskip("triton")
    a = make((2, 16, 3, 4), 16, groups=4, residual=True)
    with use(path), torch.no_grad():
        want = conv_norm(**a)
        buffers = [torch.full_like(value, float("nan")) for value in want]
        conv_norm_out(*buffers, **a)
        for got, value in zip(buffers, want, strict=True):
            assert torch.equal(got, value)
        residual = a["residual"].clone()
        conv_norm_out(
            residual, buffers[1], **(a | {"residual": residual})
        )  # the sum takes the residual's place
    assert torch.equal(residual, want[0])


def test_refusals_of_buffers():
    a = make((2, 16, 3, 4), 16, groups=4)
    raw, normed = conv_norm(**a)
    for name, wrong in (
        ("raw", (raw[:, :8], normed)),
        ("raw", (raw.contiguous(), normed)),
        ("raw", (raw.double(), normed)),
        ("normed", (raw, None)),
        ("normed", (raw, normed[1:])),
        ("conv_norm_out", (raw.clone().requires_grad_(), normed)),
    ):
        with refused(ValueError, name):
            conv_norm_out(*wrong, **a)
    plain = make((2, 16, 3, 4), 16)
    with refused(ValueError, "normed"):
        conv_norm_out(raw, normed, **plain)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("x", lambda a: a["x"][0]),
        ("x", lambda a: a["x"].int()),
        ("x", lambda a: a["x"][:0]),
        ("weight", lambda a: a["weight"][:, :-1]),
        ("weight", lambda a: a["weight"].half()),
        ("weight", lambda a: a["weight"].new_zeros(8, 24, 5, 5)),
        ("bias", lambda a: a["bias"][:-1]),
        ("bias", lambda a: a["bias"].double()),
        ("stride", lambda a: 3),
        ("stride", lambda a: True),
        ("padding", lambda a: 3),
        ("padding", lambda a: -1),
        ("padding", lambda a: (0, 1, 0)),
        ("padding", lambda a: "same"),
        ("beside", lambda a: a["beside"][:, :, 1:]),
        ("shortcut", lambda a: a["x"]),
        ("shortcut_weight", lambda a: None),
        ("shortcut_weight", lambda a: a["shortcut_weight"][:, 1:]),
        ("shortcut_beside", lambda a: a["shortcut_beside"][:1]),
        ("shortcut_weight", lambda a: a["shortcut_weight"].to("meta")),
        ("add", lambda a: a["add"][:, 1:]),
        ("add", lambda a: a["add"].t().contiguous().t()),
        ("residual", lambda a: a["residual"][..., 1:]),
        ("output_scale", lambda a: 0.0),
        ("output_scale", lambda a: float("nan")),
        ("num_groups", lambda a: 5),
        ("num_groups", lambda a: 0),
        ("num_groups", lambda a: 3.0),
        ("norm_weight", lambda a: a["norm_weight"][:8]),
        ("norm_bias", lambda a: a["norm_bias"].repeat(2)[::2]),
        ("eps", lambda a: -1e-5),
        ("eps", lambda a: None),
        ("skip", lambda a: a["skip"].half()),
        ("scale", lambda a: a["scale"][:, :8]),
        ("shift", lambda a: a["shift"][:1]),
    ],
)
def test_refusals(name, spoil):
    arguments = everything()
    with refused(ValueError, name):
        conv_norm(**(arguments | {name: spoil(arguments)}))


def test_what_needs_a_norm_or_a_shortcut():
    a = everything()
    for name in ("skip", "scale", "shift", "norm_weight", "norm_bias"):
        with refused(ValueError, name, "num_groups"):
            conv_norm(a["x"][:, :16], a["weight"][:, :16], **{name: a[name]})
    for name in ("shortcut_weight", "shortcut_beside"):
        with refused(ValueError, name, "shortcut"):
            conv_norm(a["x"][:, :16], a["weight"][:, :16], **{name: a[name]})


def test_images_that_a_kernel_does_not_fit():
    a = make((1, 8, 2, 4), 8)
    with refused(ValueError, "x", "3x3"):
        conv_norm(a["x"], a["weight"], padding=0)


def test_kernel_refuses_what_it_does_not_hold():
    with use("triton"), refused(ValueError, "x", "float64"):
        conv_norm(**make(dtype=torch.float64))
    huge = torch.empty(1, 8, 2**14, 2**14, device="meta", dtype=torch.bfloat16)
    weight = torch.empty(8, 8, 3, 3, device="meta", dtype=torch.bfloat16)
    with refused(ValueError, "x", "2^30"):
        checks.kernel(huge, weight, None, (1, 8, 2**14, 2**14))
    with refused(ValueError, "x", "result"):
        checks.kernel(huge[..., :64], weight, None, (1, 1024, 2**14, 64))


def test_weights_of_all_sizes_pack():
    for size in (1, 3, 4):
        weight = torch.randn(5, 12, size, size)
        packed = pack_weight(weight)
        assert torch.equal(packed, weight)
        assert pack_weight(packed) is packed
        assert packed.stride() == (16 * size * size, 1, 16 * size, 16)


def test_gradients():
    a = everything(torch.float64)
    names = [name for name, value in a.items() if isinstance(value, torch.Tensor)]
    leaves = [a[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *values: conv_norm(**(a | dict(zip(names, values, strict=True)))), leaves
    )


def test_costs():
    a = make((2, 16, 4, 6), 8, groups=3, skip=4, residual=True, dtype=torch.bfloat16)
    results, normed = 2 * 8 * 24, 2 * 12 * 24
    read = a["x"].numel() + a["weight"].numel() + 8 + 2 * 12 + results + 2 * 4 * 24
    assert OP.bytes_moved(**a) == 2 * (read + results + normed)
    assert OP.flops(**a) == results * (2 * 9 * 16 - 1 + 2) + 11 * normed
