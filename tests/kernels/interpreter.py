"""Corrections to Triton's interpreter (3.6 to 3.9), without which kernels that are right give wrong numbers.

bfloat16 lives in uint16 arrays there: casts truncate or reinterpret, arithmetic and comparisons work on the
bit patterns, and `tl.dot` multiplies them. A scalar comparison is tagged with its operands' type, so
splatting it into a mask turns booleans into that type. And 3.6 makes Python integers of arrays of one element, which
numpy refuses from 2.4 on. `install()` repairs these; it must run before a kernel does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_EXTREMES = {np.minimum, np.maximum, np.fmin, np.fmax}
_FLOAT_OPERATIONS = {np.add, np.subtract, np.multiply, np.divide, np.fmod} | _EXTREMES
_COMPARISONS = {np.less, np.greater, np.less_equal, np.greater_equal, np.equal, np.not_equal}


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 rounded to nearest even bfloat16, as bit patterns (uint16); NaN becomes 0x7FFF, as on a GPU."""
    values = np.asarray(values, dtype=np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded).astype(np.uint16)


def install() -> None:
    """Patch the interpreter in this process, once."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    handle: Any = interpreter.TensorHandle
    if hasattr(builder, "fastgen_original_cast"):
        return
    original_cast, original_dot = builder.cast_impl, builder.create_dot
    original_fp_to_fp, original_binary = builder.create_fp_to_fp, builder.binary_op
    original_splat = builder.create_splat
    builder.fastgen_original_cast = original_cast

    def cast(self: Any, source: Any, target: Any) -> Any:
        have, want = source.dtype.scalar, target.scalar
        if tl.bfloat16 not in (have, want) or have == want:
            return original_cast(self, source, target)
        if have == tl.bfloat16:
            wide = handle(widen(source.data), tl.float32)
            return wide if want == tl.float32 else original_cast(self, wide, target)
        wide = source if have == tl.float32 else original_cast(self, source, tl.float32)
        return handle(narrow(wide.data), tl.bfloat16)

    def fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return cast(self, source, target)
        return original_fp_to_fp(self, source, target, rounding)

    def dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        a, b = (cast(self, v, tl.float32) if v.dtype.scalar == tl.bfloat16 else v for v in (a, b))
        return original_dot(self, a, b, accumulator, *rest)

    def binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if left.dtype.scalar == tl.bfloat16 and operation in _FLOAT_OPERATIONS | _COMPARISONS:
            value = operation(widen(left.data), widen(right.data))
            return handle(value, tl.int1) if operation in _COMPARISONS else handle(narrow(value), tl.bfloat16)
        return original_binary(self, left, right, operation)

    def splat(self: Any, target: Any, value: Any) -> Any:
        if value.data.dtype == np.bool_:
            return handle(np.full(target.shape, value.data.reshape(-1)[0], dtype=np.bool_), tl.int1)
        return original_splat(self, target, value)

    original_patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        original_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = cast, fp_to_fp, dot
    builder.binary_op, builder.create_splat = binary, splat
