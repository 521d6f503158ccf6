"""The patch convolution's kernels, in the interpreter or on the GPU: forms, tiles, a discriminator."""

import json

import pytest
import torch

from bench import compile_gate
from fastgen_kernels import OPS, pack_weight, patch_conv, patch_score, use
from fastgen_kernels.op import UNIT_ROUNDOFF
from fastgen_kernels.patch_conv import cases, kernel, layout, plan
from fastgen_kernels.patch_score import kernel as score_kernel
from tests.refusals import refused

from .test_patch_conv import STRIDES, PatchGAN

OP, SCORE = OPS["patch_conv"], OPS["patch_score"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = ("x", "weight", "bias")
TILES = {name: getattr(plan, name) for name in ("LARGE", "LARGEST", "NARROW", "SMALL", "FULL_PRECISION")}


def make(device, shape, channels, dtype=torch.float32, **options):
    return cases.arguments(torch.Generator().manual_seed(0), device, dtype, shape, channels, **options)


def worst_rounding(arguments, got):
    """Error as a fraction of what a kernel may show, which rounds to its type only once."""
    (exact,) = OP.exact(**arguments)
    (bound,) = OP.tolerance((exact,), arguments)
    twice = torch.where(exact < 0, UNIT_ROUNDOFF[got.dtype] * exact.abs(), 0.0)  # PyTorch's second rounding
    return ((got.double() - exact).abs() / (bound - twice)).max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("form", ["descriptor", "gather"])
def test_forms(kernel_device, form, stride, dtype):
    """More patches than a tile both ways, in two images; Cout that no tile divides."""
    shape = (2, 64, 10, 18) if stride == 1 else (2, 64, 18, 34)
    arguments = make(kernel_device, shape, 72, dtype, stride=stride)
    got = kernel.convolve(*(arguments[n] for n in NAMES), stride, 0.2, form)
    fraction = worst_rounding(arguments, got)
    print(form, stride, dtype, f"{fraction:.3f}")
    assert fraction <= 1.0


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("form", ["descriptor", "gather"])
def test_every_tile(kernel_device, monkeypatch, form, name):
    monkeypatch.setattr(kernel, "choose_tile", lambda *_: TILES[name])
    arguments = make(kernel_device, (2, 64, 12, 20), 136, torch.float16)
    assert worst_rounding(arguments, kernel.convolve(*(arguments[n] for n in NAMES), 2, 0.2, form)) <= 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_largest_tile(kernel_device, monkeypatch, bias, dtype):
    """More patches than its 16 x 16 both ways; 264 channels, of which its third tile holds 8."""
    monkeypatch.setattr(kernel, "choose_tile", lambda *_: plan.LARGEST)
    arguments = make(kernel_device, (1, 64, 19, 18), 264, dtype, bias=bias)
    got = kernel.convolve(*(arguments[n] for n in NAMES), 1, 0.2, "descriptor")
    assert worst_rounding(arguments | {"stride": 1}, got) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [1, 3, 6, 8, 24, 64])
def test_sweep(kernel_device, inputs):
    worst = 0.0
    layouts = ("last", "first", "rows", "columns", "channels")
    for i, outputs in enumerate((1, 5, 16, 72)):
        for j, (batch, height, width) in enumerate(((1, 2, 3), (2, 7, 12), (3, 8, 6), (1, 2, 2))):
            for stride in (1, 2):
                how, dtype = layouts[(i + j) % 5], DTYPES[(i + j + stride) % 3]
                shape = (batch, inputs, height, width)
                arguments = make(kernel_device, shape, outputs, dtype, layout=how, stride=stride)
                with use("triton"):
                    worst = max(worst, worst_rounding(arguments, patch_conv(**arguments)))
    print(f"{worst:.3f}")
    assert worst <= 1.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chain_is_the_discriminator(kernel_device, dtype):
    """Five layers, each from the one before on the kernels; in float32 the whole against PyTorch's network too."""
    torch.manual_seed(0)
    network = PatchGAN(6, 8).to(kernel_device, dtype).requires_grad_(False)
    image = torch.randn(1, 6, 40, 32).to(kernel_device, dtype)
    x, bound, fractions = image, torch.zeros(image.shape, device=kernel_device, dtype=torch.float64), []
    for i, stride in enumerate(STRIDES):
        convolution = network[2 * i]
        arguments = {
            "x": x,
            "weight": pack_weight(convolution.weight),
            "bias": convolution.bias,
            "stride": stride,
        }
        arguments["negative_slope"] = 0.2 if i < 4 else None
        # Roundings of the layer below are independent, so squares add up; LeakyReLU enlarges nothing.
        bound = torch.nn.functional.conv2d(bound**2, convolution.weight.double() ** 2, None, stride, 1).sqrt()
        bound += OP.tolerance(OP.exact(**arguments), arguments)[0]
        with use("triton"):
            if i == 4:
                last = {name: arguments[name] for name in NAMES}
                fractions.append(SCORE.errors(last, patch_score(**last))["score"])
            x = patch_conv(**arguments)
        assert x.is_contiguous(memory_format=torch.channels_last)
        fractions.append(OP.errors(arguments, x)["y"])
    print(dtype, [f"{fraction:.3f}" for fraction in fractions])
    assert max(fractions) <= 1.0
    if dtype == torch.float32 and kernel_device.type == "cpu":  # elsewhere TF32 may take part
        want = network.double()(image.double())
        assert bound.max() < 1e-3 * want.std()  # a sharp test
        assert ((x.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("how", ["last", "first", "padded", "channels", "rows", "columns"])
@pytest.mark.parametrize("inputs", [3, 8, 72])
def test_what_is_copied(kernel_device, how, inputs):
    x = make(kernel_device, (2, inputs, 5, 7), 2, torch.float16, layout=how)["x"]
    as_it_lies = how == "padded" or (inputs % 8 == 0 and how in ("last", "channels", "rows"))
    ready = kernel.ready(x)
    assert (ready is x) == as_it_lies
    assert torch.equal(ready, x)
    assert layout.is_ready(ready)
    if not as_it_lies:
        width = layout.padded(inputs)
        memory = ready.as_strided((2, 5, 7, width), (35 * width, 7 * width, width, 1))
        assert not memory[..., inputs:].any()


def test_a_broadcast_batch(kernel_device):
    """One image for all, stride 0, which no descriptor holds."""
    arguments = make(kernel_device, (1, 64, 14, 14), 8, torch.float16)
    once = arguments["x"]
    arguments["x"] = once.expand(3, -1, -1, -1)
    y = output(arguments["x"], arguments["weight"], 2)
    assert not plan.descriptors_hold(arguments["x"], y, 2)
    assert plan.descriptors_hold(once, y, 2)
    with use("triton"):
        assert worst_rounding(arguments, patch_conv(**arguments)) <= 1.0


def output(x, weight, stride):
    shape = layout.output_shape(x, weight, stride)
    return torch.empty(shape, dtype=x.dtype, memory_format=layout.output_format(x, weight), device="meta")


def test_which_form(monkeypatch):
    def form(
        shape=(2, 64, 16, 16),
        channels=64,
        stride=2,
        dtype=torch.float16,
        precision="ieee",
        how="last",
        packed=True,
    ):
        arguments = make(torch.device("cpu"), shape, channels, dtype, layout=how, packed=packed)
        y = output(arguments["x"], arguments["weight"], stride)
        return kernel.choose_form(kernel.ready(arguments["x"]), y, stride, precision)

    for architecture, want in ((80, "gather"), (89, "gather"), (90, "descriptor"), (100, "descriptor")):
        monkeypatch.setattr(kernel, "architecture", lambda device, found=architecture: found)
        assert form() == want
        assert form(how="rows") == want
        assert form((1, 64, 9, 8), stride=1) == want
        assert form((1, 32, 16, 16), dtype=torch.float32, precision="tf32") == want
    assert form(how="first") == "descriptor"  # x is copied, and y channels-last as the weight is
    assert form(how="first", packed=False) == "gather"  # y is not
    assert form((2, 64, 17, 16)) == form((2, 64, 16, 17)) == "gather"  # odd sizes at stride 2
    assert form((2, 32, 16, 16)) == form((2, 96, 16, 16)) == "gather"  # no whole steps of 128 bytes
    assert (
        form((64, 64, 8, 8)) == form((1024, 128, 8, 8), 1) == "gather"
    )  # 4 x 4 of a block's 8 x 8 or 8 x 16 patches
    assert form(channels=12) == "gather"  # rows of the output not aligned to 16 bytes
    assert form(how="channels") == "gather"  # pixels further apart than their channels
    assert form(dtype=torch.float32, precision="ieee") == "gather"  # no tensor cores


def test_which_tile():
    def tile(shape, channels, stride, dtype=torch.bfloat16, precision="ieee", form=None, architecture=90):
        x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
        y = output(x, torch.empty(channels, shape[1], 4, 4, device="meta"), stride)
        form = form or ("gather" if shape[1] == 6 else "descriptor")
        return plan.choose_tile(y, shape[1], form, precision, architecture)

    second, third, fourth = ((64, 128, 128), 128, 2), ((128, 64, 64), 256, 2), ((256, 32, 32), 512, 1)
    for (shape, channels, stride), want in ((second, "LARGE"), (third, "LARGEST"), (fourth, "LARGEST")):
        assert tile((1, *shape), channels, stride) == plan.SMALL
        assert tile((64, *shape), channels, stride) == TILES[want]
        assert tile((64, *shape), channels, stride, form="gather") == plan.LARGE
    assert tile((16, 256, 32, 32), 512, 1) == plan.LARGEST  # 256 programs
    assert (
        tile((16, 256, 32, 32), 512, 1, architecture=120) == plan.LARGE
    )  # its blocks have less shared memory
    assert tile((8, 256, 32, 32), 512, 1) == plan.LARGE  # 128 would leave multiprocessors idle
    assert (
        tile((64, 256, 25, 32), 512, 1) == plan.LARGE
    )  # 24 rows: three blocks of 8 are two of 16, a third empty
    assert tile((64, 256, 64, 64), 64, 2) == plan.NARROW
    assert tile((64, 6, 256, 256), 64, 2) == plan.NARROW
    assert tile((64, 6, 256, 256), 64, 2, torch.float32, "ieee") == plan.FULL_PRECISION
    assert tile((64, 6, 256, 256), 64, 2, torch.float32, "tf32") == plan.NARROW
    for one in TILES.values():
        blocks = 1 if one is plan.LARGEST else 2  # that share a multiprocessor
        assert one.patches * one.channels // (32 * one.num_warps) <= 128 // blocks  # accumulators a thread
        # Both factors of every stage, on a multiprocessor of 227 KiB.
        stage = (one.patches + one.channels) * plan.STEP_BYTES["descriptor"]
        assert blocks * one.num_stages * stage <= 227 * 1024


def test_programs_are_counted_in_blocks():
    """100 images of 9 x 9 patches: 64 tiles of a gather, and 200 blocks."""
    y = torch.empty(100, 64, 9, 9, device="meta", dtype=torch.float16)
    assert plan.count_programs(y, "gather", plan.NARROW) == 64
    assert plan.count_programs(y, "descriptor", plan.NARROW) == 200
    assert plan.choose_tile(y, 64, "gather", "ieee", 90) == plan.SMALL
    assert plan.choose_tile(y, 64, "descriptor", "ieee", 90) == plan.NARROW


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cases_cover_descriptors(monkeypatch, dtype):
    """The contract's cases run on both forms, in every type and at both strides."""
    seen = set()
    monkeypatch.setattr(kernel, "_by_descriptors", lambda *a: seen.add(("descriptor", a[4])))
    monkeypatch.setattr(kernel, "_by_pointers", lambda *a: seen.add(("gather", a[4])))
    for case in OP.cases:
        if not case.production:
            OP.fused(**case.make(torch.Generator().manual_seed(0), torch.device("cpu"), dtype))
    assert seen == {(form, stride) for form in ("descriptor", "gather") for stride in (1, 2)}


@pytest.mark.slow
def test_full_precision_within_budget():
    """float32 without TF32, which no production case sets: neither spills nor local memory, on any architecture."""
    reports = compile_gate.compiled(["patch_conv", "patch_score"], module="tests.kernels.full_precision")
    assert {(r["op"], r["architecture"]) for r in reports} == {
        (name, architecture) for name in ("patch_conv", "patch_score") for architecture in (80, 90, 100)
    }
    assert any(r["full_precision_dots"] for r in reports)
    assert not any(r["dots"] for r in reports)
    assert compile_gate.judge(reports) == []


def test_two_blocks_share_a_multiprocessor():
    """By their registers and shared memory: all tiles but LARGEST, which alone may use what the budget allows."""
    recorded = json.loads(compile_gate.RESULTS.read_text())
    reports = [report for found in recorded.values() for report in found if report["op"] == "patch_conv"]
    assert reports
    largest = {("third64", 90), ("fourth64", 90), ("third64", 100), ("fourth64", 100)}
    for report in reports:
        blocks = 1 if (report["case"], report["architecture"]) in largest else 2
        assert blocks * report["registers"] * report["warps"] * 32 <= compile_gate.REGISTER_FILE, report
        # A block's own kilobyte included, of a kilobyte more than a single one may ask for.
        available = compile_gate.SHARED_BYTES[report["architecture"]] + 1024
        assert blocks * (report["shared_bytes"] + 1024) <= available, report


def test_both_launches_of_a_score(kernel_device, monkeypatch):
    arguments = make(kernel_device, (3, 40, 9, 11), 1, torch.float16)
    scores = []
    for launch in (score_kernel.SMALL, score_kernel.LARGE):
        monkeypatch.setattr(score_kernel, "choose_launch", lambda pixels, launch=launch: launch)
        with use("triton"):
            worst = SCORE.errors(arguments)
            scores.append(patch_score(**arguments))
        assert worst["score"] <= 1.0
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


def test_which_launch_of_a_score():
    assert score_kernel.choose_launch(31 * 31) == score_kernel.SMALL
    assert score_kernel.choose_launch(64 * 31 * 31) == score_kernel.LARGE


def test_a_nan_spreads_over_its_patches(kernel_device):
    arguments = make(kernel_device, (1, 8, 8, 8), 4, torch.float16)
    arguments["x"][0, 3, 4, 4] = float("nan")
    with use("triton"):
        y = patch_conv(**arguments)
    assert y.isnan().sum() == 4 * 2 * 2
    assert y[0, :, 1:3, 1:3].isnan().all()


def test_kernel_refuses_double(kernel_device):
    with use("triton"):
        with refused(ValueError, "x", "float32"):
            patch_conv(**make(kernel_device, (1, 8, 4, 4), 4, torch.float64))
        with refused(ValueError, "x", "float32"):
            patch_score(**make(kernel_device, (1, 8, 4, 4), 1, torch.float64))
