"""The affine coupling in PyTorch: against the formula and autograd's Jacobian, in any batch; in place; its checks."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastgen_kernels import OPS, affine_coupling, affine_coupling_out
from fastgen_kernels.affine_coupling import cases, cpu
from tests.refusals import refused

from . import coupling_oracle

OP = OPS["affine_coupling"]
CPU = torch.device("cpu")
SMALL = [case for case in OP.cases if not case.production and case.name != "divided"]
SCALES = [
    {"scale": "exp"},
    {"scale": "sigmoid"},
    {"scale": "sigmoid", "eps": 1e-3},
    {"scale": "tanh", "bound": 1.7},
    {"scale": "soft_clip", "slope": 1e-2},
    {"scale": "additive"},
]
KINDS = ["half", "every_other", "checkerboard", "mask", "vectors", "alternate"]
IN_PLACE = ("x", "network", "log_det")


def make(shape=(3, 4, 5, 6), dtype=torch.float64, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), CPU, dtype, shape, **options)


def equal_bits(a, b):
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_equals_the_formula(case):
    arguments = case.make(torch.Generator().manual_seed(1), CPU, torch.float64)
    want = coupling_oracle.affine_coupling(**arguments)
    for got in (affine_coupling(**arguments), OP.exact(**arguments)):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13, equal_nan=True)


def layer(kind, scale, inverse, shift_first):
    """A coupling layer on samples of one size, whose network sees what the layer leaves unchanged."""
    vectors = kind in ("vectors", "alternate")
    shape = (1, 6) if vectors else (1, 4, 2, 3)
    generator = torch.Generator().manual_seed(3)
    options = dict(scale, inverse=inverse, shift_first=shift_first)
    if kind in ("half", "every_other", "vectors"):
        part = slice(1, None, 2) if kind == "every_other" else slice(shape[1] // 2, None)
        changed = torch.zeros(shape[1:], dtype=torch.bool)
        changed[part] = True
    else:
        part = slice(None)
        if kind == "mask":
            changed = options["mask"] = torch.rand(shape[1:], generator=generator) < 0.5
        else:
            index = torch.arange(shape[-1]) + (0 if vectors else torch.arange(shape[-2])[:, None])
            options["parity"] = 1
            changed = (index % 2 == 1).expand(shape[1:])
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    channels = x[:, part].shape[1] * (1 if scale["scale"] == "additive" else 2)
    outputs = channels * x[0, 0].numel()
    weight = torch.randn(outputs, x.numel(), generator=generator, dtype=torch.float64) * 0.5

    def function(x):
        seen = torch.where(changed, 0.0, x).flatten()
        network = torch.sin(weight @ seen).view(1, channels, *shape[2:])
        y, log_det = affine_coupling(x[:, part], network, **options)
        whole = x.clone()
        whole[:, part] = y
        return whole, log_det

    return function, x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_log_det_is_that_of_the_jacobian(kind, scale):
    for inverse, shift_first in itertools.product([False, True], repeat=2):
        function, x = layer(kind, scale, inverse, shift_first)
        jacobian = torch.autograd.functional.jacobian(lambda x, function=function: function(x)[0], x)
        sign, want = torch.linalg.slogdet(jacobian.view(x.numel(), x.numel()))
        assert sign == 1
        torch.testing.assert_close(function(x)[1], want.view(1), rtol=0, atol=1e-10)
        # A layer is undone by its inverse, which sees the same unchanged part.
        other, _ = layer(kind, scale, not inverse, shift_first)
        torch.testing.assert_close(other(function(x)[0])[0], x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("shift_first", [False, True])
def test_round_trip_in_float32(scale, shift_first):
    options = dict(scale, shift_first=shift_first)
    there = make((2, 3, 7, 5), torch.float32) | options
    if scale["scale"] == "additive":
        there["network"] = there["network"][:, :3]
    y, forward = affine_coupling(**there)
    back = there | {"x": y, "inverse": True}
    x, backward = affine_coupling(**back)
    assert torch.equal(forward, -backward)
    # The forward error, through the inverse's derivative 1 / a, and the inverse's own.
    error, _ = OP.tolerance(OP.exact(**there), there)
    own, _ = OP.tolerance(OP.exact(**back), back)
    ones, zeros = torch.ones_like(y), torch.zeros_like(y)
    shifted = [OP.exact(**(back | {"x": value}))[0] for value in (ones, zeros)]
    bound = error * (shifted[0] - shifted[1]) + own
    assert ((x.double() - there["x"].double()).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_log_det_keeps_float32(dtype):
    """Whatever the network's type: 4 roundings of the sum of |s|, where summing in bfloat16 would cost thousands."""
    arguments = make((4, 12, 32, 32), dtype)
    s = arguments["network"][:, :12].double()
    _, log_det = affine_coupling(**arguments)
    error = (log_det.double() - s.sum((1, 2, 3))).abs()
    assert (error <= 4 * 2.0**-24 * s.abs().sum((1, 2, 3))).all()


@pytest.mark.parametrize(
    "options", [{"parity": 0}, {"parity": 1}, {"masked": "chw"}, {"masked": "c"}], ids=str
)
@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_what_stays_is_not_touched(options, scale):
    """Its bits stay, whatever they are, and neither they nor the network's output there reach anything."""
    arguments = make((2, 5, 4, 6), torch.float32, **options, **scale)
    still = ~cases.changed(arguments["x"], arguments.get("mask"), arguments.get("parity")).expand(2, 5, 4, 6)
    assert arguments["network"].isnan().any()
    x = arguments["x"].clone()
    payloads = torch.arange(int(still.sum()), dtype=torch.int32) + 0x7FC12345  # NaNs that differ
    x[still] = payloads.view(torch.float32)
    y, log_det = affine_coupling(**(arguments | {"x": x}))
    assert equal_bits(y[still], x[still])
    assert y[~still].isfinite().all()
    assert log_det.isfinite().all()
    in_place = x.clone()
    affine_coupling_out(**(arguments | {"x": in_place}))
    assert equal_bits(in_place, y)


def test_half_of_a_buffer():
    whole = torch.full((2, 6, 3, 3), torch.nan)
    arguments = make((2, 3, 3, 3), torch.float32)
    whole[:, 1:4] = arguments["x"]
    affine_coupling_out(whole[:, 1:4], arguments["network"])
    assert torch.equal(whole[:, 1:4], affine_coupling(**arguments)[0])
    assert whole[:, [0, 4, 5]].isnan().all()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_in_place_form(case):
    arguments = case.make(torch.Generator().manual_seed(1), CPU, torch.float32)
    y, log_det = affine_coupling(**(arguments | {"log_det": True}))
    options = {name: value for name, value in arguments.items() if name != "log_det"}
    x, running = arguments["x"].clone(), torch.randn(len(y))
    affine_coupling_out(**(options | {"x": x}), log_det=(total := running.clone()))
    assert equal_bits(x, y)
    assert torch.equal(total, running + log_det)
    x = arguments["x"].clone()
    affine_coupling_out(**(options | {"x": x}))
    assert equal_bits(x, y)


@pytest.mark.parametrize("part", [slice(4, None), slice(None, None, 2)], ids=str)
def test_layouts_agree(part):
    """Whatever the strides, the same values; the result has x's order of axes, without gaps."""
    whole = make((3, 8, 4, 6), torch.float32)["x"]
    network = make((3, 4, 4, 6), torch.bfloat16)["network"]
    want = affine_coupling(whole[:, part].contiguous(), network)
    for x_format, format_ in itertools.product([torch.contiguous_format, torch.channels_last], repeat=2):
        x = whole.contiguous(memory_format=x_format)[:, part]
        y, log_det = affine_coupling(x, network.contiguous(memory_format=format_))
        assert torch.equal(y, want[0])
        assert y.is_contiguous(memory_format=x_format)
        torch.testing.assert_close(log_det, want[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES[:-1], ids=str)
@pytest.mark.parametrize("options", [{}, {"parity": 1}, {"part": slice(2, None)}], ids=str)
def test_bits_do_not_depend_on_the_batch(scale, options):
    whole = make((7, 4, 5, 3), torch.bfloat16, **scale, **options)
    y, log_det = affine_coupling(**whole)
    again = affine_coupling(**whole)
    assert equal_bits(again[0], y)
    assert torch.equal(again[1], log_det)
    for first, last in ((0, 1), (2, 3), (1, 4), (6, 7)):
        alone = whole | {name: whole[name][first:last] for name in ("x", "network")}
        got = affine_coupling(**alone)
        assert equal_bits(got[0], y[first:last])
        assert torch.equal(got[1], log_det[first:last])


def test_additive_preserves_volume():
    arguments = make((3, 6), torch.float32, scale="additive")
    y, log_det = affine_coupling(**arguments)
    assert torch.equal(y, arguments["x"] + arguments["network"])
    assert torch.equal(log_det, torch.zeros(3))


def test_log_det_not_wanted():
    arguments = make(torch.Size((2, 4)), torch.float32, scale="sigmoid")
    y, none = affine_coupling(**arguments, log_det=False)
    assert none.shape == (0,)
    assert torch.equal(y, affine_coupling(**arguments)[0])


def test_overflow_is_not_hidden():
    x, network = torch.full((1, 2), 3.0), torch.tensor([[100.0, -1.0, 0.0, 0.0]])
    y, log_det = affine_coupling(x, network)
    assert y[0].tolist() == [float("inf"), pytest.approx(3.0 / 2.718281828)]
    assert log_det.item() == 99.0
    y, log_det = affine_coupling(x, network, scale="soft_clip")
    assert y.isfinite().all()
    assert y[0, 0] < 3e3


def test_gradients_where_nothing_changes_are_zero():
    """Even if the exponential of what the network says there overflows."""
    network = torch.zeros(1, 4)
    network[0, 0] = 1000.0
    network.requires_grad_()
    x = torch.ones(1, 2, requires_grad=True)
    y, log_det = affine_coupling(x, network, parity=1)
    (y.sum() + log_det.sum()).backward()
    assert network.grad.tolist() == [[0.0, 2.0, 0.0, 1.0]]
    assert x.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_gradients(scale):
    arguments = make((2, 3, 2, 2), rescaled=scale["scale"] == "tanh", parity=0, **scale)
    names = [name for name in ("x", "network", "rescale") if name in arguments]
    inputs = tuple(arguments[name].nan_to_num().requires_grad_() for name in names)
    rest = {name: value for name, value in arguments.items() if name not in names}

    def function(*values):
        return affine_coupling(**dict(zip(names, values, strict=True)), **rest)

    assert torch.autograd.gradcheck(function, inputs)


def test_in_place_form_compiles():
    arguments = make((2, 4, 3, 3), torch.float32, scale="sigmoid")
    other = {name: value for name, value in arguments.items() if name not in IN_PLACE}

    @torch.compile(backend="aot_eager", fullgraph=True)
    def chain(x, network, log_det):
        affine_coupling_out(x[:, 2:], network[:, :4], log_det, **other)
        affine_coupling_out(x[:, :2], network[:, 4:], log_det, **other)
        return x * 2.0, log_det * 2.0

    x, log_det = arguments["x"].clone(), torch.ones(2)
    plain_x, plain = arguments["x"].clone(), torch.ones(2)
    with torch.no_grad():
        doubled = chain(x, arguments["network"], log_det)
        for half, part in ((slice(2, None), slice(4)), (slice(2), slice(4, None))):
            affine_coupling_out(plain_x[:, half], arguments["network"][:, part], plain, **other)
    assert torch.equal(x, plain_x)
    assert torch.equal(log_det, plain)
    assert torch.equal(doubled[0], plain_x * 2.0)
    assert torch.equal(doubled[1], plain * 2.0)


def test_in_place_form_has_no_gradient():
    arguments = make(dtype=torch.float32)
    arguments["network"].requires_grad_()
    with refused(ValueError, "affine_coupling_out", "no_grad"):
        affine_coupling_out(**arguments)
    with torch.no_grad():
        affine_coupling_out(**arguments)


IMAGES = make((2, 3, 4, 5), torch.float32)


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("x", [1.0]),
        ("x", IMAGES["x"][0]),
        ("x", IMAGES["x"][:0]),
        ("x", IMAGES["x"].half()),
        ("x", torch.zeros(2, 3, 8, 5)[:, :, ::2]),
        ("x", torch.zeros(2, 3, 5, 4).mT),
        ("x", torch.zeros(2, 1, 4, 5).expand(2, 3, 4, 5)),
        ("network", None),
        ("network", IMAGES["network"][:, :3]),
        ("network", IMAGES["network"].double()),
        ("network", IMAGES["network"].to("meta")),
        ("network", torch.zeros(2, 6, 4, 6)[..., :5]),
        ("scale", "softplus"),
        ("parameters", "interleaved"),
        ("scale", ["exp"]),
        ("eps", -1e-3),
        ("eps", float("inf")),
        ("eps", float("nan")),
        ("eps", None),
        ("eps", "a"),
        ("bound", float("inf")),
        ("bound", None),
        ("slope", 1.0),
        ("slope", "a"),
        ("rescale", torch.ones(3)),
        ("parity", 2),
        ("parity", 1.0),
        ("parity", torch.tensor(1)),
        ("mask", [True]),
        ("mask", torch.ones(3, 4, 5)),
        ("mask", torch.ones(3, 4, dtype=torch.bool)),
        ("mask", torch.ones(3, 4, 1, dtype=torch.bool)),
        ("mask", torch.ones(3, 5, 4, dtype=torch.bool).mT),
        ("x", torch.zeros(40).as_strided((2, 3, 4, 5), (12, 4, 5, 1))),
        ("x", torch.zeros(200).as_strided((2, 3, 4, 5), (59, 20, 5, 1))),
        ("log_det", 5),
        ("log_det", torch.zeros(3)),
        ("log_det", torch.zeros(2, dtype=torch.float64)),
        ("log_det", torch.zeros(4)[::2]),
    ],
    ids=lambda value: str(value) if isinstance(value, str | float | int) else None,
)
def test_refusals(name, spoilt):
    with refused(ValueError, name):
        affine_coupling_out(**(IMAGES | {name: spoilt}))


@pytest.mark.parametrize("rescale", [torch.ones(2), torch.ones(3).double(), torch.ones(6)[::2]], ids=str)
def test_rescale_refusals(rescale):
    with refused(ValueError, "rescale"):
        affine_coupling(**(IMAGES | {"scale": "tanh", "rescale": rescale}))


@pytest.mark.parametrize(
    ("name", "value", "user"), [("eps", 0.5, "sigmoid"), ("bound", 3.0, "tanh"), ("slope", 0.5, "soft_clip")]
)
def test_no_option_is_ignored(name, value, user):
    default = {"eps": 0.0, "bound": 1.0, "slope": 1e-3}[name]
    for scale in ("exp", "sigmoid", "tanh", "soft_clip"):
        arguments = IMAGES | {"scale": scale}
        affine_coupling(**(arguments | {name: default}))
        if scale == user:
            affine_coupling(**(arguments | {name: value}))
        else:
            with refused(ValueError, name, value):
                affine_coupling(**(arguments | {name: value}))
    affine_coupling(**IMAGES, eps=0, bound=1)  # the defaults, as integers


def test_memory_in_place_is_not_shared():
    """A program would read what another has changed."""
    buffer = torch.randn(4, 9, 4, 5)
    shared = [  # of x's memory: all, its channels' neighbours, half of its samples, its own log_det
        (buffer[:, :3], buffer[:, 2:8], None),
        (buffer[:2, :3], buffer[:2, :6], None),
        (buffer[1:3, :3], buffer[:2, 2:8], None),
        (buffer[:2, :3], buffer[2:, :6].clone(), buffer.view(-1)[58:60]),
    ]
    for x, network, log_det in shared:
        name = "network" if log_det is None else "log_det"
        with refused(ValueError, name):
            affine_coupling_out(x, network, log_det)
    apart = [  # other channels, other samples, both sides
        (buffer[:, :3], buffer[:, 3:9], None),
        (buffer[:, 6:], buffer[:, :6], None),
        (buffer[:2, :3], buffer[2:, :6], buffer.view(-1)[-2:]),
        (buffer[2:, :3], buffer[:2, :6], None),
        (buffer[1:3, :3], buffer[:2, 3:9], None),
    ]
    for x, network, log_det in apart:
        want, total = affine_coupling(x, network)
        total = total if log_det is None else total + log_det
        affine_coupling_out(x, network, log_det)
        assert torch.equal(x, want)
        assert log_det is None or torch.equal(log_det, total)


@pytest.mark.parametrize("make_mode", [FakeTensorMode, lambda: torch.device("meta")], ids=["fake", "meta"])
def test_tensors_without_memory_share_none(make_mode):
    with make_mode(), torch.no_grad():
        affine_coupling_out(torch.zeros(2, 4, 3, 3)[:, 2:], torch.zeros(2, 4, 3, 3), torch.zeros(2))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_without_gradient(case, dtype):
    """The formula of fewest passes: as near as the reference's, and laid out as it promises."""
    arguments = case.make(torch.Generator().manual_seed(4), CPU, dtype)
    y, log_det = OP.eager(**arguments)
    assert max(OP.errors(arguments, (y, log_det)).values()) <= 1.0
    assert y.dtype == log_det.dtype == arguments["x"].dtype
    assert y.stride() == torch.empty_like(arguments["x"]).stride()
    got = affine_coupling(**arguments)
    assert equal_bits(got[0], y)
    assert equal_bits(got[1], log_det)


def test_log_det_has_digits_where_the_sigmoid_is_near_one():
    s = torch.linspace(-60.0, 60.0, 241)
    network = torch.stack((s, torch.zeros_like(s)), 1)
    _, log_a = affine_coupling(torch.ones(241, 1), network, scale="sigmoid")
    exact = torch.nn.functional.logsigmoid(s.double() + 2.0)
    # exp carries its argument's error, log1p passes it on.
    bound = 2.0**-24 * (8.0 + (s.double() + 2.0).abs()) * exact.abs()
    assert ((log_a.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 5, 4), (1, 1, 1, 1), (2, 1, 1, 6), (3, 5), (3, 1)])
@pytest.mark.parametrize("parity", [0, 1])
def test_boards_agree(shape, parity):
    x = torch.zeros(shape)
    want = cases.changed(x, None, parity)
    assert torch.equal(cpu._board(x, parity), want.expand(cpu._board(x, parity).shape))


@pytest.mark.parametrize("options", [{}, {"scale": "sigmoid"}, {"parity": 1}], ids=str)
def test_forward_mode_and_vmap(options):
    """torch.func's transforms pass no sign of a gradient to the formula that asks for none."""
    arguments = make((3, 4, 2, 2), **options)
    x, network = arguments["x"].nan_to_num(), arguments["network"].nan_to_num()
    options = {"scale": options.get("scale", "exp"), "parity": options.get("parity")}
    forward = torch.func.jacfwd(lambda x: affine_coupling(x, network, **options)[0])(x)
    backward = torch.func.jacrev(lambda x: affine_coupling(x, network, **options)[0])(x)
    torch.testing.assert_close(forward, backward)
    mapped = torch.func.vmap(lambda x: affine_coupling(x, network, **options)[0])(torch.stack((x, 2.0 * x)))
    torch.testing.assert_close(mapped[1], affine_coupling(2.0 * x, network, **options)[0])


def test_one_choice_of_what_changes():
    mask = torch.ones(3, 4, 5, dtype=torch.bool)
    with refused(ValueError, "mask"):
        affine_coupling(**IMAGES, mask=mask, parity=0)


def test_costs():
    arguments = make((2, 4, 3, 5), torch.bfloat16, part=slice(2, None))
    # 60 elements: x in and out, s and t in half precision; 2 values of log_det.
    assert OP.bytes_moved(**arguments) == 60 * (4 + 4 + 2 + 2) + 2 * 4
    # An exponential, a product, a sum, and one more for log_det.
    assert OP.flops(**arguments) == 60 * 4
    board = make((1, 1, 3, 3), torch.float32, parity=0)
    assert OP.flops(**board) == 5 * 4
    assert OP.bytes_moved(**board, log_det=False) == 9 * 16
