"""Kernels with a fault each, compiled in a child as operations are: what the gate must turn red for."""

from __future__ import annotations

import json
import sys

import torch
import triton
import triton.language as tl

from bench.compile_only import compiling, report


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets, mask=offsets < n, other=0.0), mask=offsets < n)


@triton.jit
def narrow_kernel(x, y, n, stride, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets * stride, mask=offsets < n, other=0.0), mask=offsets < n)


@triton.jit
def coefficients_kernel(x, c, y, n, stride, BLOCK: tl.constexpr):
    # As many single values as narrow accesses: they must not be taken for one another.
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offsets * stride, mask=offsets < n, other=0.0)
    if tl.load(c) > 0.0:
        value = value * tl.load(c + 1) + tl.load(c + 2)
    else:
        value = value * tl.load(c + 1) - tl.load(c + 2)
    tl.store(y + offsets, value, mask=offsets < n)


@triton.jit
def sine_kernel(x, y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.sin(tl.load(x + offsets, mask=offsets < n, other=0.0)), mask=offsets < n)


@triton.jit
def dot_kernel(x, w, y, SIZE: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    i = tl.arange(0, SIZE)
    square = i[:, None] * SIZE + i[None, :]
    a, b = tl.load(x + square), tl.load(w + square)
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(y + square, tl.dot(a, b, input_precision=PRECISION))


@triton.jit
def two_dots_kernel(x, w, y, SIZE: tl.constexpr):
    # One product on the tensor cores does not excuse another.
    i = tl.arange(0, SIZE)
    square = i[:, None] * SIZE + i[None, :]
    a, b = tl.load(x + square), tl.load(w + square)
    product = tl.dot(a, b, input_precision="ieee")
    tl.store(y + square, tl.dot(product, b.to(tl.float32), input_precision="ieee"))


def launch(name: str) -> None:
    x, y = torch.zeros(1 << 16), torch.zeros(1 << 16)
    half = x.half()
    if name == "copy":
        copy_kernel[(128,)](x, y, 1 << 16, BLOCK=512, num_warps=4)
    elif name == "narrow":
        narrow_kernel[(128,)](x, y, 1 << 14, 3, BLOCK=512, num_warps=4)
    elif name == "coefficients":
        coefficients_kernel[(128,)](x, y, y, 1 << 14, 3, BLOCK=512, num_warps=4)
    elif name == "two_dots":
        two_dots_kernel[(1,)](half, half, y, SIZE=32, num_warps=4)
    elif name == "sine":
        sine_kernel[(128,)](x, y, 1 << 16, BLOCK=512, num_warps=4)
    elif name == "spill":  # every thread multiplies on its own, with whole rows in registers
        dot_kernel[(1,)](x, x, y, SIZE=64, PRECISION="ieee", WIDEN=False, num_warps=4)
    elif name == "tensor_core":
        dot_kernel[(1,)](half, half, y, SIZE=32, PRECISION="ieee", WIDEN=False, num_warps=4)
    elif name == "tf32":
        dot_kernel[(1,)](x, x, y, SIZE=32, PRECISION="tf32", WIDEN=False, num_warps=4)
    elif name == "no_mma":  # half precision, widened before the product
        dot_kernel[(1,)](half, half, y, SIZE=16, PRECISION="ieee", WIDEN=True, num_warps=1)
    else:
        raise ValueError(name)


def reports(name: str) -> list[dict]:
    found = []
    for architecture in (80, 90, 100):
        with compiling(architecture) as compiled:
            launch(name)
        dtype = "float16" if name in ("tensor_core", "no_mma", "two_dots") else "float32"
        facts = {"op": name, "case": name, "dtype": dtype, "architecture": architecture}
        found += [facts | {"programs": programs} | report(kernel) for kernel, programs in compiled]
    return found


if __name__ == "__main__":
    json.dump([found for name in sys.argv[1:] for found in reports(name)], sys.stdout)
