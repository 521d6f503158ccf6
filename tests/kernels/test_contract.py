"""What every operation in `OPS` must do: nothing here names one, save where it says why."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen_kernels import OPS, Case, Op, decompositions, use

from .guards import Fences, fenced

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SMALL = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in OPS.values()
    for case in op.cases
    if not case.production
    for dtype in DTYPES
    if dtype in case.dtypes
]
QUICK = [
    pytest.param(op, case, id=f"{op.name}-{case.name}")
    for op in OPS.values()
    for case in [c for c in op.cases if not c.production][:3]
]
# The reverse step's table rows carry integers in float words, which ONNX has no operation to read: the export of
# samplers passes them as tensors of their own.
IN_ONNX = [param for param in QUICK if param.values[0].name != "reverse_step"]


def made(case: Case, dtype: torch.dtype, device: torch.device | None = None) -> dict[str, Any]:
    return case.make(torch.Generator().manual_seed(5), device or torch.device("cpu"), dtype)


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@pytest.fixture
def dispatched(monkeypatch):
    """Eager calls go through the custom op, as traced ones do."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps the arguments that an overload is called with."""

    def __init__(self, overload: Any) -> None:
        super().__init__()
        self.overload = overload
        self.calls: list[tuple[tuple, dict]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self.overload:
            self.calls.append((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def positional(op: Op, arguments: dict[str, Any]) -> tuple:
    """What `op.function(**arguments)` hands to the custom op. Needs `dispatched`."""
    with Seen(op.overload) as seen, torch.no_grad():
        op.function(**arguments)
    ((args, kwargs),) = seen.calls
    assert not kwargs
    return args


class Wrapped(nn.Module):
    def __init__(self, op: Op, options: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.options = op, options

    def forward(self, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return as_tuple(self.op.function(**tensors, **self.options))


def split(arguments: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and everything else."""
    tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor)}
    return tensors, {k: v for k, v in arguments.items() if k not in tensors}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_there_are_cases_enough(op):
    assert len([case for case in op.cases if not case.production]) >= 10


@pytest.mark.parametrize(("op", "case", "dtype"), SMALL)
def test_parity(kernel_device, op, case, dtype):
    """The kernel is within the derived bound of float64, writes all of its outputs and nothing around them."""
    arguments = made(case, dtype, kernel_device)
    inputs = fenced(arguments)
    with use("triton"), Fences() as fences:
        outputs = op.fused(**inputs)
    worst = op.errors(arguments, [value.clone() for value in as_tuple(outputs)])
    print(op.name, case.name, dtype, {name: f"{value:.3f}" for name, value in worst.items()})
    assert max(worst.values()) <= 1.0
    assert fences.allocations
    assert all(allocation.intact() for allocation in fences.allocations)
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(nan=9e9), arguments[name].nan_to_num(nan=9e9)), name


@pytest.mark.parametrize(("op", "case", "dtype"), SMALL)
def test_reference_parity(op, case, dtype):
    """So is the PyTorch path."""
    arguments = made(case, dtype)
    with use("reference"):
        worst = op.errors(arguments)
    assert max(worst.values()) <= 1.0


@pytest.mark.parametrize(("op", "case"), QUICK)
def test_same_bits_twice(kernel_device, op, case):
    arguments = made(case, torch.float16, kernel_device)
    with use("triton"):
        first, second = as_tuple(op.function(**arguments)), as_tuple(op.function(**arguments))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.nan_to_num(nan=9e9), b.nan_to_num(nan=9e9))


@pytest.mark.parametrize(("op", "case"), QUICK)
def test_opcheck(op, case, dispatched):
    """Schema, fake implementation and autograd registration hold what they promise, on both paths."""
    arguments = positional(op, made(case, torch.float32))
    torch.library.opcheck(op.overload, arguments, test_utils=("test_schema", "test_faketensor"))
    wanted = [
        a.clone().requires_grad_() if isinstance(a, Tensor) and a.dtype.is_floating_point else a
        for a in arguments
    ]
    torch.library.opcheck(op.overload, tuple(wanted), test_utils=("test_autograd_registration",))


@pytest.mark.parametrize(("op", "case"), QUICK)
def test_fake_has_the_strides_of_the_kernel(kernel_device, op, case):
    """Compiled code is planned for the fake outputs' layout."""
    arguments = made(case, torch.float16, kernel_device)
    with use("triton"):
        real = as_tuple(op.fused(**arguments))
    mode = torch._subclasses.FakeTensorMode()
    with mode, use("triton"):
        fakes = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        planned = as_tuple(op.function(**fakes))
    for a, b in zip(real, planned, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize(("op", "case"), QUICK)
def test_compiles_whole(op, case):
    tensors, options = split(made(case, torch.float32))
    module = Wrapped(op, options)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(tensors), module(tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("op", "case"), QUICK)
def test_exports_and_decomposes(op, case):
    tensors, options = split(made(case, torch.float32))
    module = Wrapped(op, options)
    program = torch.export.export(module, (tensors,))
    assert op.overload in {node.target for node in program.graph.nodes}
    plain = program.run_decompositions(decompositions())
    assert not [node for node in plain.graph.nodes if "fastgen" in str(node.target)]
    worst = op.errors(tensors | options, plain.module()(tensors))
    assert max(worst.values()) <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case"), IN_ONNX)
def test_onnx(op, case, tmp_path):
    """Plain nodes that onnxruntime runs, within the same bound."""
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    tensors, options = split(made(case, torch.float32))
    program = torch.export.export(Wrapped(op, options), (tensors,)).run_decompositions(decompositions())
    path = tmp_path / "op.onnx"
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(path))
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    assert len(names) == len(tensors)
    fed = dict(zip(names, (value.numpy() for value in tensors.values()), strict=True))
    outputs = [torch.from_numpy(value) for value in session.run(None, fed)]
    worst = op.errors(tensors | options, outputs)
    assert max(worst.values()) <= 1.0, worst


@pytest.mark.parametrize(("op", "case"), QUICK)
def test_gradients(op, case, dispatched):
    """The custom op's gradients are those of its reference, in float64."""
    arguments = positional(op, made(case, torch.float64))
    results = []
    for function in (op.overload, op.reference):
        leaves = [
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.dtype.is_floating_point else a
            for a in arguments
        ]
        outputs = [o for o in as_tuple(function(*leaves)) if o.requires_grad]
        total = functools.reduce(
            torch.add, [(o.nan_to_num() * (1.0 + i)).square().sum() for i, o in enumerate(outputs)]
        )
        floats = [a for a in leaves if isinstance(a, Tensor) and a.requires_grad]
        results.append(torch.autograd.grad(total, floats, allow_unused=True))
    reached = 0
    for a, b in zip(*results, strict=True):
        if a is not None:  # not every input has a gradient: solver rows and masks have none
            torch.testing.assert_close(a.nan_to_num(), b.nan_to_num(), rtol=1e-12, atol=1e-12)
            reached += int(bool(a.nan_to_num().abs().sum() > 0))
    assert reached
