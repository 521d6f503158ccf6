"""What a fused operation is, and the one place where the path that runs it is chosen.

An :class:`Op` is plain data: everything that tests, the compile gate, the roofline and the documentation need
to know about one operation, said once. Nothing here imports triton.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .check import OperandError

Path = Literal["triton", "reference"]
Arguments = dict[str, Any]

# Unit roundoff: the largest relative error of rounding to the type once.
UNIT_ROUNDOFF: Mapping[torch.dtype, float] = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


@dataclass(frozen=True)
class Case:
    """One set of arguments worth testing.

    `make(generator, device, dtype)` returns the public function's arguments by name; `dtype` is the
    network's. `production` marks shapes that a shipped engine launches: the compile gate and the roofline
    take those. `large`: so large that a CPU takes seconds for them, and only GPUs are timed on them.
    """

    name: str
    make: Callable[[torch.Generator, torch.device, torch.dtype], Arguments]
    reason: str
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    production: bool = False
    large: bool = False


@dataclass(frozen=True)
class Budget:
    """What the compile gate allows an operation's kernels in their production launches.

    Spills, local memory, slow-path sines and half-precision products without tensor cores are never allowed.
    """

    registers: int = (
        64  # leaves room for 32 warps of 32 on a multiprocessor: enough loads in flight to hide memory
    )
    wide: float = (
        0.5  # least share of the bytes loaded, and of those stored, in accesses of 16 bytes or by TMA
    )


@dataclass(frozen=True)
class Op:
    """Everything about one operation. Callables take `function`'s arguments by name, save where noted."""

    name: str
    outputs: tuple[str, ...]
    function: Callable[..., Any]  # public and checked; returns new tensors
    out: Callable[..., None] | None  # public and checked; writes into the caller's buffers
    reference: Callable[..., Any]  # plain PyTorch, any device, differentiable
    fused: Callable[..., Any]  # `function` on the Triton path, unchecked; imports kernel.py when called
    overload: torch._ops.OpOverload  # what `function` calls, and what a traced graph shows
    decomposition: Callable[..., Any]  # stands in for `overload` (positional arguments) in an exported graph
    cases: tuple[Case, ...]
    exact: Callable[..., tuple[Tensor, ...]]  # float64 outputs computed from the arguments as rounded
    # (exact outputs, arguments) -> bounds
    tolerance: Callable[[tuple[Tensor, ...], Arguments], tuple[Tensor, ...]]
    bytes_moved: Callable[..., int]  # least traffic to and from device memory
    flops: Callable[..., int]  # additions and multiplications
    budget: Budget = Budget()
    eager: Callable[..., Any] | None = (
        None  # the fastest plain PyTorch formula, where that is not the reference
    )
    # Copies the arguments and returns a call of `out` on the copies, for whoever times it.
    in_place: Callable[..., Callable[[], None]] | None = None

    def case(self, name: str) -> Case:
        """The case called `name`; KeyError names the known ones."""
        for case in self.cases:
            if case.name == name:
                return case
        raise KeyError(f"{self.name} has no case {name!r}; it has {[case.name for case in self.cases]}")

    def errors(
        self, arguments: Arguments, outputs: Sequence[Tensor] | Tensor | None = None
    ) -> dict[str, float]:
        """Worst error of each output as a fraction of its bound: at most 1 when right, inf for an unexpected NaN.

        `outputs` are judged if given, else those of `function(**arguments)` on the path that is selected.
        """
        got = self.function(**arguments) if outputs is None else outputs
        got = (got,) if isinstance(got, Tensor) else tuple(got)
        exact = self.exact(**arguments)
        bounds = self.tolerance(exact, arguments)
        worst: dict[str, float] = {}
        for name, value, want, bound in zip(self.outputs, got, exact, bounds, strict=True):
            error = ((value.double() - want).abs() / bound).nan_to_num(nan=float("inf"))
            # A NaN in both is memory that the operation hands on untouched.
            error = error.masked_fill(value.isnan() & want.isnan(), 0.0)
            worst[name] = error.max().item() if error.numel() else 0.0
        return worst


def rounding_bound(exact: Tensor, magnitude: Tensor, dtype: torch.dtype, accumulated: float = 8.0) -> Tensor:
    """Largest error that correct code may show: one rounding to `dtype`, and `accumulated` fp32 ones on the way.

    `exact` is the float64 result from the already rounded inputs, `magnitude` the same operation on absolute
    values.
    """
    working = UNIT_ROUNDOFF[torch.float64 if dtype == torch.float64 else torch.float32]
    # 1.01 covers the rounding of a value that is itself slightly off; the last term underflow to subnormals.
    tiny = torch.finfo(dtype).smallest_normal * UNIT_ROUNDOFF[dtype]
    return 1.01 * UNIT_ROUNDOFF[dtype] * exact.abs() + accumulated * working * magnitude + tiny


_requested: ContextVar[Path | None] = ContextVar("fastgen_kernels_path", default=None)


@functools.cache
def triton_version() -> str | None:
    """Version of the installed triton, or None. Does not import it."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        return "unknown"


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors (slow; for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def select(device_type: str) -> Path:
    """The path that runs an operation on `device_type` ("cpu", "cuda", ...).

    Triton on CUDA and PyTorch elsewhere, unless :func:`use` asks for one. A path that cannot run is a
    RuntimeError that says what to do; no other path takes its place.
    """
    path: Path = _requested.get() or ("triton" if device_type == "cuda" else "reference")
    if path == "triton":
        if triton_version() is None:
            raise RuntimeError(
                f"fused kernels on {device_type!r} need triton, which is not installed: run "
                "`pip install 'triton>=3.6'`, or ask for the PyTorch path with "
                "`fastgen_kernels.use('reference')`"
            )
        if device_type != "cuda" and not interpreted():
            raise RuntimeError(
                f"the Triton path was asked for on {device_type!r}, where it runs only in Triton's "
                "interpreter: set TRITON_INTERPRET=1 before triton is imported, or leave out `use('triton')`"
            )
    return path


def direct(device_type: str) -> bool:
    """Whether a checked function should call its reference without going through the dispatcher.

    True in eager code on the PyTorch path: the custom op there would add microseconds, and the reference's own
    autograd needs no second forward pass. Traced code (torch.compile, torch.export) gets the custom op's node.
    """
    return not torch.compiler.is_compiling() and select(device_type) == "reference"


@contextmanager
def use(path: Path) -> Iterator[None]:
    """Within the block, run every operation of this thread (or task) on `path`: "triton" or "reference".

    >>> with use("reference"):
    ...     select("cuda")
    'reference'
    """
    if path not in get_args(Path):
        raise OperandError(f"expected one of {get_args(Path)}, received {path!r}", argument="path")
    token = _requested.set(path)
    try:
        yield
    finally:
        _requested.reset(token)


def loaded_kernels() -> list[Any]:
    """Every compiled kernel of this package that is loaded now.

    Whoever captures a CUDA graph keeps the list as long as the graph: it launches their machine code by address.
    """
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("fastgen_kernels.") and name.endswith(".kernel")
    ]
    # Triton's JITFunction: device -> (its compiled kernels by signature, ...). The interpreter's has none.
    caches = [
        getattr(value, "device_caches", None) or {}
        for module in modules
        for value in list(vars(module).values())
    ]
    return [
        kernel for cache in caches for entry in list(cache.values()) for kernel in list(entry[0].values())
    ]


LIBRARY = torch.library.Library("fastgen", "FRAGMENT")


class CustomOp:
    """An operation at the dispatcher, ``torch.ops.fastgen.NAME``, made by `custom_op`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """A decorator: `fake` makes results without values, of their shapes, types and strides, for traces."""
        LIBRARY.impl(self.name, fake, "Meta")
        return fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As ``torch.library.register_autograd``."""
        torch.library.register_autograd(
            f"fastgen::{self.name}", backward, setup_context=setup_context, lib=LIBRARY
        )


def custom_op(
    name: str, *, mutates_args: Sequence[str] = (), tags: Sequence[torch.Tag] = ()
) -> Callable[[Callable[..., Any]], CustomOp]:
    """Make a function, with its arguments' types annotated, the operation ``fastgen::NAME`` on all devices.

    As ``torch.library.custom_op``, but defined at the dispatcher itself: the first call of one of those imports
    torch._dynamo, which takes longer than all else that a process's first image needs, every call some 20 us of
    Python, and each definition a search through all modules. What results alias is not watched here.
    """

    def define(function: Callable[..., Any]) -> CustomOp:
        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        made = CustomOp(name)
        if mutates_args:
            made.register_fake(lambda *args: None)
        return made

    return define


def differentiate_through(op: CustomOp, reference: Callable[..., Any], wrt: tuple[int, ...]) -> None:
    """Give a functional operation its reference's gradient, for the inputs at the positions `wrt`.

    The forward pass keeps the inputs only; the backward pass runs the reference again and differentiates it.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del output
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        wanted = [i for i in wrt if ctx.needs_input_grad[i]]
        if not wanted:  # only an input that has no gradient asks for one
            return (None,) * len(inputs)
        second_order = torch.is_grad_enabled()
        with torch.enable_grad():
            for i in wanted:
                if not (second_order and inputs[i].requires_grad):
                    inputs[i] = inputs[i].detach().requires_grad_()
            outputs = reference(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            pairs = [
                (value, gradient)
                for value, gradient in zip(outputs, gradients, strict=True)
                if gradient is not None and value.requires_grad
            ]
            found = torch.autograd.grad(
                [value for value, _ in pairs],
                [inputs[i] for i in wanted],
                [gradient for _, gradient in pairs],
                allow_unused=True,
                create_graph=second_order,
            )
        result: list[Tensor | None] = [None] * len(inputs)
        for i, gradient in zip(wanted, found, strict=True):
            result[i] = gradient
        return tuple(result)

    op.register_autograd(backward, setup_context=setup_context)
