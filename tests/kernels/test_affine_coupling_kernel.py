"""The affine coupling's kernel, in the interpreter or on the GPU: options, layouts, sums cut in any way, in place."""

import itertools

import pytest
import torch

from fastgen_kernels import OPS, affine_coupling, affine_coupling_out, use
from fastgen_kernels.affine_coupling import cases, plan
from tests.refusals import refused

from .guards import guarded, outside

OP = OPS["affine_coupling"]
SMALL = [case for case in OP.cases if not case.production]
SCALES = [
    {"scale": "exp"},
    {"scale": "sigmoid"},
    {"scale": "sigmoid", "eps": 1e-3},
    {"scale": "tanh", "rescaled": True},
    {"scale": "soft_clip"},
    {"scale": "additive"},
]


def make(device, shape, dtype=torch.float32, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), device, dtype, shape, **options)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("changed", [{}, {"parity": 1}, {"masked": "hw"}], ids=str)
def test_options(kernel_device, scale, changed):
    parameters = ("scale_shift", "shift_scale", "scale_shift_interleaved", "shift_scale_interleaved")
    formats = ("", "x", "network", "x network")
    for i, (inverse, shift_first) in enumerate(itertools.product([False, True], repeat=2)):
        options = {"inverse": inverse, "shift_first": shift_first, "parameters": parameters[i]}
        for channels_last in formats:
            arguments = make(
                kernel_device,
                (2, 3, 4, 6),
                torch.bfloat16,
                seed=i,
                channels_last=channels_last,
                **options,
                **scale,
                **changed,
            )
            with use("triton"):
                worst = OP.errors(arguments)
            assert max(worst.values()) <= 1.0, (options, channels_last, worst)


@pytest.mark.parametrize(
    ("scale", "error"),
    [
        # As multiples of 2^-24 |log a|. Exact, and the sign.
        ({"scale": "exp"}, lambda s: 0.0 * s),
        # exp(-|v|) is 2^(-|v| log2 e) on a GPU: v = s + 2 is rounded (1), log2 e too (0.224), and their product (1),
        # each times |v|; 2^x is off by 2 ulp, each up to 2 units (4). log(1 + e) passes that on, and adds a sum (1)
        # and a division (2 ulp: 4) in the series' argument, the series' last sum (1), its remainder (0.34) and its
        # other terms, which are 4 % of it (0.4). In all 10.8 + 2.224 |v|, and the second order.
        ({"scale": "sigmoid"}, lambda s: 11.0 + 2.25 * (s + 2.0).abs()),
        # From |s| = 0.625 on it is 1 - 2 / (E + 1) with E = exp(2 |s|), off by 1.224 * 2 |s| + 4 as above. A sum (1)
        # and a division (4) follow; at |s| = 0.625, where it is most, 0.8 of all that reaches the result. The last
        # difference and the amplitude add 2: 9.5 in all. Below, the polynomial is better.
        ({"scale": "tanh"}, lambda s: 10.0 + 0.0 * s),
        # In units of 2^-24: 1 / |log slope| rounded (1) and multiplied by |s| and added to 1, fused or not (2) make
        # the denominator; a GPU's division (div.full.f32) is off by 2 ulp, each up to 2 units (4). In all 7,
        # less what the denominator's 1 does not carry; 8 with the second order.
        ({"scale": "soft_clip"}, lambda s: 8.0 + 0.0 * s),
    ],
    ids=lambda value: value["scale"] if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("inverse", [False, True])
def test_maps_keep_relative_accuracy(kernel_device, monkeypatch, scale, error, inverse):
    """Of log a, for small and large raw scales: samples of one element, whose log_det is no sum."""
    monkeypatch.setattr(plan, "ENOUGH", 1)
    tiny = torch.logspace(-9, 0, 100)
    s = torch.cat((torch.linspace(-40, 40, 801), tiny, -tiny, -2.0 + tiny, torch.linspace(-1, 1, 301)))
    network = torch.stack((s, torch.zeros_like(s)), 1).to(kernel_device)
    x = torch.ones(len(s), 1, device=kernel_device)
    with use("triton"):
        y, log_a = affine_coupling(x, network, inverse=inverse, **scale)
    exact_y, exact = OP.exact(x, network, inverse=inverse, **scale)
    bound = 2.0**-24 * error(s.double().to(kernel_device)) * exact.abs()
    assert ((log_a.double() - exact).abs() <= bound).all()
    # a is e / (1 + e) or 1 / (1 + e) at worst: the exponential's error as above, a sum (1) and a division (4).
    carried = 2.0**-24 * (9.0 + 2.25 * (s.double().abs() + 2.0)).to(kernel_device)
    assert ((y.double() / exact_y)[:, 0] - 1.0).abs().le(carried).all()


def test_overflow_is_not_hidden(kernel_device):
    x = torch.full((1, 2), 3.0, device=kernel_device)
    network = torch.tensor([[100.0, -1.0, 0.0, 0.0]], device=kernel_device)
    with use("triton"):
        y, log_det = affine_coupling(x, network)
        sigmoid, _ = affine_coupling(x, network * -2.0, scale="sigmoid", inverse=True)
    assert y[0, 0] == torch.inf
    assert log_det.item() == 99.0
    assert sigmoid[0, 0] == torch.inf


CUTS = [
    {},
    {"WHOLE": 16, "LARGE": 32, "SMALL": 16, "ENOUGH": 1},
    {"WHOLE": 16, "LARGE": 32, "SMALL": 32, "ENOUGH": 4, "MOST_TILES": 2},
    {"WHOLE": 16, "LARGE": 16, "SMALL": 16, "ENOUGH": 10**9, "SUM_BLOCK": 2},
]
# The tile of a plane sets the order of its elements in the sum: it stays.
PLANE_CUTS = [
    {"WHOLE": 16, "LARGE": 16} | cut for cut in ({"ENOUGH": 10**9, "SUM_BLOCK": 2}, {"ENOUGH": 1}, {})
]


@pytest.mark.parametrize(
    ("options", "cuts"), [({"scale": "sigmoid"}, CUTS), ({"parity": 0}, PLANE_CUTS)], ids=["flat", "planes"]
)
def test_sums_do_not_depend_on_the_cut(kernel_device, monkeypatch, options, cuts):
    """Tiles, tiles a program and launches may differ; the bits may not. So neither does the batch change them."""
    whole = make(kernel_device, (2, 3, 5, 7), torch.float16, **options)
    alone = whole | {name: whole[name][1:2] for name in ("x", "network")}
    results, launches = [], set()
    for cut in cuts:
        for name, value in cut.items():
            monkeypatch.setattr(plan, name, value)
        launch = plan.plane_launch(2, 3, 35, True) if "parity" in options else plan.flat_launch(2, 105)
        launches.add((launch, plan.SUM_BLOCK))
        with use("triton"):
            results.append(affine_coupling(**whole))
            one = affine_coupling(**alone)
        monkeypatch.undo()
        for a, b, first in zip(one, results[-1], results[0], strict=True):
            assert torch.equal(a.nan_to_num(), b[1:2].nan_to_num())
            assert torch.equal(b.nan_to_num(), first.nan_to_num())
    assert len(launches) == len(cuts)


def test_samples_share_a_program(kernel_device, monkeypatch):
    """Tabular batches: as many samples a tile as there are, and the same bits."""
    arguments = make(kernel_device, (19, 10), part=slice(5, None), scale="sigmoid", shift_first=True)
    results = []
    for enough in (plan.ENOUGH, 1):
        monkeypatch.setattr(plan, "ENOUGH", enough)
        results.append(plan.flat_launch(19, 5))
        with use("triton"):
            results += affine_coupling(**arguments)
    assert results[0].rows == 1
    assert results[3].rows == 4
    assert torch.equal(results[1], results[4])
    assert torch.equal(results[2], results[5])


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_in_place_form(kernel_device, case):
    """The functional form's bits, x's surroundings as they were, and a log_det that is added to."""
    arguments = case.make(torch.Generator().manual_seed(2), kernel_device, torch.float16)
    arguments.pop("log_det", None)
    with use("triton"):
        y, log_det = affine_coupling(**arguments)
        for running in (torch.full_like(log_det, 3.0), None):
            x, buffer = guarded(arguments["x"], 777.0)
            if running is not None:
                running, sums = guarded(running, 777.0)
            affine_coupling_out(**(arguments | {"x": x}), log_det=running)
            assert torch.equal(x.nan_to_num(nan=9e9), y.nan_to_num(nan=9e9))
            assert (outside(buffer, x) == 777.0).all()
            if running is not None:
                assert torch.equal(running, log_det + 3.0)
                assert (outside(sums, running) == 777.0).all()


def test_what_stays_keeps_its_bits(kernel_device):
    arguments = make(kernel_device, (2, 2, 4, 8), parity=1)
    still = ~cases.changed(arguments["x"], None, 1).expand(2, 2, 4, 8)
    payloads = torch.arange(int(still.sum()), dtype=torch.int32, device=kernel_device) + 0x7FC12345
    arguments["x"][still] = payloads.view(torch.float32)
    with use("triton"):
        y, log_det = affine_coupling(**arguments)
    assert torch.equal(y[still].view(torch.int32), payloads)
    assert y[~still].isfinite().all()
    assert log_det.isfinite().all()


def test_launches():
    powers = {1 << i for i in range(13)}
    shapes = itertools.product([1, 3, 64, 5000], [1, 3, 6, 24, 100], [1, 49, 256, 4096])
    for batch, channels, pixels in shapes:
        found = [plan.flat_launch(batch, channels * pixels)]
        found += [plan.plane_launch(batch, channels, pixels, first) for first in (False, True)]
        for launch in found:
            assert {launch.rows, launch.columns, launch.tiles} <= powers
            assert launch.rows * launch.columns <= plan.WHOLE
            assert launch.tiles <= plan.MOST_TILES
        # What sets the order of a plane's sum must not depend on the batch.
        for first in (False, True):
            one = plan.plane_launch(1, channels, pixels, first)
            many = plan.plane_launch(batch, channels, pixels, first)
            assert (one.rows, one.columns) == (many.rows, many.columns)
    # One image is spread over the machine; a long batch leaves nothing to add up.
    one, many = plan.flat_launch(1, 6 * 128 * 128), plan.flat_launch(512, 6 * 64 * 64)
    assert 6 * 128 * 128 // (one.columns * one.tiles) >= 132
    assert many.columns * many.tiles >= 6 * 64 * 64


def test_refusals(kernel_device):
    x = torch.zeros(2, 3, dtype=torch.float64, device=kernel_device)
    far = torch.empty(1, 2, 2, 2, device="meta").as_strided((1, 2, 2, 2), (2**31, 2**30, 2, 1))
    with use("triton"):
        with refused(ValueError, "x", "torch.float32", "reference"):
            affine_coupling(x, torch.cat((x, x), 1))
        with refused(ValueError, "x", "2^30"):
            OP.fused(far, torch.empty(1, 4, 2, 2, device="meta"))
