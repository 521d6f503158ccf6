"""The reverse step in PyTorch: against the formula, in any batch, as a registered operation; its checks."""

import pytest
import torch

from fastgen_kernels import OPS, decompositions, reverse_step, reverse_step_out, use
from fastgen_kernels.reverse_step import cases, reference, row
from tests.refusals import refused

from . import step_oracle

OP = OPS["reverse_step"]
CPU = torch.device("cpu")
SMALL = [case for case in OP.cases if not case.production]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make(shape=(3, 2, 4, 6), dtype=torch.float32, seed=0, **options):
    return cases.arguments(torch.Generator().manual_seed(seed), CPU, dtype, shape, **options)


def buffers(arguments):
    """Copies of the state, and empty buffers, for the in-place form."""
    x, F = arguments["x"].clone(), arguments["F"]
    y = torch.full((F.shape[0], *x.shape[1:]), float("nan"), dtype=F.dtype)
    y = y.contiguous(memory_format=reference.network_format(F))
    cursor = torch.full((x.shape[0],), -7, dtype=torch.int32)
    return arguments | {"x": x, "h": arguments["h"].clone(), "y": y, "cursor": cursor}


def equal(a, b):
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_equals_the_formula(case, dtype):
    arguments = case.make(torch.Generator().manual_seed(1), CPU, dtype)
    *want, cursors = step_oracle.reverse_step(**arguments)
    bounds = OP.tolerance(tuple(want), arguments)
    in_place = buffers(arguments)
    reverse_step_out(**in_place)
    functional = reverse_step(**arguments)
    plain = OP.reference(**arguments)
    assert in_place["cursor"].tolist() == cursors
    worst = {}
    for name, got, value, bound in zip(OP.outputs, functional, want, bounds, strict=True):
        error = ((got.double() - value).abs() / bound).nan_to_num(nan=torch.inf)
        error[got.isnan() & value.isnan()] = 0.0
        worst[name] = error.max().item() if error.numel() else 0.0
    print(case.name, dtype, {name: f"{value:.3f}" for name, value in worst.items()})
    assert max(worst.values()) <= 1.0
    for name, a, b in zip(("x", "h", "y"), functional, plain, strict=True):
        assert equal(a, b), name
        assert equal(a.contiguous(), in_place[name].contiguous()), name
    # The package's own float64 judgement, which benchmarks and GPU tests use, agrees with the formula.
    for a, b in zip(OP.exact(**arguments), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_noise_given():
    arguments = make(slots=2, learned=1, noise="all")
    made = reference.step_noise(arguments["rows"], arguments["seeds"], arguments["x"])
    for a, b in zip(reverse_step(**arguments, noise=made), reverse_step(**arguments), strict=True):
        assert torch.equal(a, b)
    # Where a row does not use it, its memory may hold anything.
    arguments = make(slots=1, noise="some")
    made = reference.step_noise(arguments["rows"], arguments["seeds"], arguments["x"])
    made[2] = float("nan")
    for a, b in zip(reverse_step(**arguments, noise=made), reverse_step(**arguments), strict=True):
        assert torch.equal(a, b)


def test_idle_row():
    arguments = make((2, 1, 3, 3), slots=3)
    idle = torch.zeros(2, row.ROW_WORDS)
    idle[:, row.A + row.X], idle[:, row.CLIP], idle[:, row.NEXT_SCALE] = 1.0, float("inf"), 1.0
    reference.integer_words(idle)[:, row.SLOT] = -1
    buffer = buffers(arguments | {"rows": idle})
    buffer["h"].fill_(float("nan"))
    reverse_step_out(**buffer)
    assert torch.equal(buffer["x"], arguments["x"])
    assert torch.equal(buffer["y"], arguments["x"])
    assert buffer["h"].isnan().all()
    assert buffer["cursor"].tolist() == [0, 0]


def test_a_nan_is_not_clipped_away():
    arguments = make((1, 1, 2, 2))
    arguments["F"][0, 0, 0, 0] = float("nan")
    assert reverse_step(**arguments)[0].isnan().sum() == 1


@pytest.mark.parametrize(
    "options", [{"slots": 4}, {"slots": 2, "guided": True, "learned": 1}, {"channels_last": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_batch(options, dtype):
    batch, shape = 7, (3, 4, 5)
    together = make((batch, *shape), dtype, **options)
    outputs = reverse_step(**together)
    for first, last in ((0, 1), (2, 3), (1, 4), (6, 7)):
        part = slice(first, last)
        network = together["F"][part]
        if options.get("guided"):
            network = torch.cat((network, together["F"][batch:][part]))
        alone = together | {"x": together["x"][part], "h": together["h"][:, part], "F": network}
        alone |= {name: together[name][part] for name in ("rows", "seeds")}
        x_next, h_next, y = reverse_step(**alone)
        assert torch.equal(x_next, outputs[0][part])
        assert torch.equal(h_next, outputs[1][:, part])
        assert torch.equal(y[: last - first], outputs[2][part])


def test_slices_of_larger_buffers():
    arguments = make((2, 1, 3, 5), slots=3, sliced=True)
    assert not arguments["h"].is_contiguous()
    whole = reverse_step(**(arguments | {"h": arguments["h"].contiguous()}))
    for a, b in zip(reverse_step(**arguments), whole, strict=True):
        assert torch.equal(a, b)
    full = torch.full((3, 4, 1, 3, 5), float("nan"))
    full[:, :2] = arguments["h"]
    buffer = buffers(arguments) | {"h": full[:, :2]}
    reverse_step_out(**buffer)
    assert torch.equal(full[:, :2], whole[1])
    assert full[:, 2:].isnan().all()


@pytest.mark.parametrize(
    "options", [{"slots": 2}, {"guided": True, "learned": 1}, {"slots": 1, "channels_last": True}]
)
def test_opcheck(options):
    arguments = make(**options)
    ordered = (*(arguments[name] for name in ("x", "h", "F", "rows", "seeds", "learned")), None)
    torch.library.opcheck(torch.ops.fastgen.reverse_step.default, ordered)
    wanting = tuple(v.clone().requires_grad_() if i < 3 else v for i, v in enumerate(ordered))
    torch.library.opcheck(torch.ops.fastgen.reverse_step.default, wanting)
    buffer = buffers(arguments)
    names = ("x", "h", "F", "y", "rows", "cursor", "seeds", "learned")
    torch.library.opcheck(torch.ops.fastgen.reverse_step_out.default, (*(buffer[n] for n in names), None))


@pytest.mark.parametrize("learned", [0, 1])
def test_gradients(learned):
    arguments = make((2, 1, 2, 3), torch.float64, slots=2, guided=True, learned=learned, noise="all")
    inputs = [arguments[name].requires_grad_() for name in ("x", "h", "F")]
    rest = (arguments["rows"], arguments["seeds"])

    def step(x, h, F):
        return reverse_step(x, h, F, *rest, learned=learned)

    assert torch.autograd.gradcheck(step, inputs)
    weights = [torch.randn_like(output) for output in step(*inputs)]
    for function in (step, lambda x, h, F: OP.reference(x, h, F, *rest, learned)):
        loss = sum((w * o).sum() for w, o in zip(weights, function(*inputs), strict=True))
        gradients = torch.autograd.grad(loss, inputs)
        if function is step:
            first = gradients
    for a, b in zip(first, gradients, strict=True):
        assert torch.equal(a, b)


class Step(torch.nn.Module):
    """A network's call and the step behind it."""

    def __init__(self, guided: bool = False) -> None:
        super().__init__()
        self.network = torch.nn.Conv2d(2, 2, 3, padding=1)
        self.guided = guided

    def forward(self, x, h, rows, seeds):
        both = torch.cat((x, x)) if self.guided else x
        return reverse_step(x, h, self.network(both), rows, seeds)


@pytest.mark.parametrize("guided", [False, True])
def test_export(guided):
    module = Step(guided)
    arguments = make(slots=2)
    inputs = tuple(arguments[name] for name in ("x", "h", "rows", "seeds"))
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = ({0: batch}, {1: batch}, {0: batch}, {0: batch})
    program = torch.export.export(module, inputs, dynamic_shapes=dynamic)
    assert "fastgen.reverse_step" in program.graph_module.code
    table = torch.export.default_decompositions() | decompositions()
    plain = program.run_decompositions(table)
    assert "fastgen" not in plain.graph_module.code
    other = make((5, 2, 4, 6), slots=2, seed=3)
    inputs = tuple(other[name] for name in ("x", "h", "rows", "seeds"))
    for exported in (program, plain):
        for a, b in zip(exported.module()(*inputs), module(*inputs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_compile():
    module = Step()
    arguments = make(slots=2)
    inputs = tuple(arguments[name] for name in ("x", "h", "rows", "seeds"))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for a, b in zip(compiled(*inputs), module(*inputs), strict=True):
        torch.testing.assert_close(a, b)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def in_place(buffer):
        reverse_step_out(**buffer)
        return buffer["y"] * 2.0

    buffer, expected = buffers(arguments), buffers(arguments)
    with torch.no_grad():
        doubled = in_place(buffer)
    reverse_step_out(**expected)
    assert torch.equal(doubled, expected["y"] * 2.0)
    for name in ("x", "h", "y", "cursor"):
        assert torch.equal(buffer[name], expected[name]), name


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("x", lambda a: a["x"].half()),
        ("x", lambda a: a["x"][0]),
        ("x", lambda a: a["x"].transpose(2, 3)),
        ("x", lambda a: a["x"][:0]),
        ("h", lambda a: a["h"][0]),
        ("h", lambda a: a["h"][:1].expand(5, *a["x"].shape)),
        ("h", lambda a: a["h"][..., :5]),
        ("h", lambda a: a["h"].double()),
        ("h", lambda a: a["h"].transpose(3, 4).contiguous().transpose(3, 4)),
        ("F", lambda a: a["F"][:2]),
        ("F", lambda a: torch.cat((a["F"], a["F"]), 1)),
        ("F", lambda a: a["F"].double()),
        ("F", lambda a: a["F"].transpose(2, 3).contiguous().transpose(2, 3)),
        ("F", lambda a: a["F"].to("meta")),
        ("rows", lambda a: a["rows"][:, :31]),
        ("rows", lambda a: a["rows"].double()),
        ("seeds", lambda a: a["seeds"].int()),
        ("seeds", lambda a: a["seeds"][:1]),
        ("noise", lambda a: a["x"][:1]),
        ("noise", lambda a: a["x"].double()),
        ("learned", lambda a: 3),
        ("y", lambda a: a["y"].to(torch.bfloat16)),
        ("y", lambda a: a["y"][:1]),
        ("y", lambda a: a["y"].contiguous(memory_format=torch.channels_last)),
        ("cursor", lambda a: a["cursor"].long()),
        ("cursor", lambda a: a["cursor"].repeat(2)[::2]),
    ],
)
def test_refusals(name, spoil):
    arguments = buffers(make(slots=2))
    with refused(ValueError, name):
        reverse_step_out(**(arguments | {name: spoil(arguments)}))


def test_channels_last_needs_blocks_of_four():
    arguments = make((1, 2, 3, 5), channels_last=True)
    with refused(ValueError, "F"):
        reverse_step(**arguments)
    # A single channel is both layouts, and needs nothing.
    reverse_step(**make((1, 1, 3, 5), channels_last=True))


def test_in_place_form_has_no_gradient():
    arguments = buffers(make())
    arguments["F"].requires_grad_()
    with refused(ValueError, None, "no_grad"):
        reverse_step_out(**arguments)
    with torch.no_grad():
        reverse_step_out(**arguments)


def test_kernel_refusals():
    with use("triton"):
        with refused(ValueError, "x", "float32"):
            reverse_step(**make(dtype=torch.float64))
        arguments = make()
        with refused(ValueError, "noise"):
            reverse_step(**arguments, noise=arguments["x"])


def test_costs():
    arguments = make((2, 1, 4, 4), torch.bfloat16, slots=2, noise="none")
    # State 4 + 4, F 2, y 2, two slots read and one written 4 each, for each of 32 elements; rows, seeds, cursor.
    assert OP.bytes_moved(**arguments) == 32 * (8 + 4 + 12) + 2 * (128 + 8 + 4)
    # Guided: two halves of F and y. The variance (2 bytes, of one half) is read where there is noise to scale.
    for noise, variance in (("none", 0), ("all", 2)):
        guided = make((2, 1, 4, 4), torch.bfloat16, slots=2, noise=noise, guided=True, learned=1)
        assert OP.bytes_moved(**guided) == 32 * (8 + 8 + variance + 12) + 2 * (128 + 8 + 4)
    assert OP.flops(**arguments) == 32 * (4 + 2 * (2 * 5 - 1))
