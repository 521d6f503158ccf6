"""Checks of the affine coupling's arguments; each failure is an OperandError that names the argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import check

SCALES = ("exp", "sigmoid", "tanh", "soft_clip", "additive")
PARAMETERS = ("scale_shift", "shift_scale", "scale_shift_interleaved", "shift_scale_interleaved")
DEFAULTS = {"eps": 0.0, "bound": 1.0, "slope": 1e-3}
NETWORK_DTYPES = {
    torch.float32: (torch.float32, torch.float16, torch.bfloat16),
    torch.float64: (torch.float64, torch.float32, torch.float16, torch.bfloat16),
}


def arguments(
    x: Tensor,
    network: Tensor,
    scale: str,
    eps: float,
    bound: float,
    slope: float,
    rescale: Tensor | None,
    mask: Tensor | None,
    parity: int | None,
    parameters: str,
) -> None:
    """Of `affine_coupling`, all but the flags."""
    # Written for the call that is right: 1.5 us, where the coupling of a small image takes 8.
    if not isinstance(x, Tensor):
        check.fail("x", "a tensor [B, C, H, W] or [B, D]", type(x).__name__)
    shape = x.shape
    rank = len(shape)
    if rank not in (2, 4) or not x.numel():
        check.fail("x", "a tensor [B, C, H, W] or [B, D], all sizes positive", list(shape))
    allowed = NETWORK_DTYPES.get(x.dtype, ())
    if not allowed:
        check.dtype("x", x, tuple(NETWORK_DTYPES))
    if scale not in SCALES:
        check.fail("scale", f"one of {SCALES}", repr(scale))
    if parameters not in PARAMETERS:
        check.fail("parameters", f"one of {PARAMETERS}", repr(parameters))
    channels = shape[1] if scale == "additive" else 2 * shape[1]
    outputs = (shape[0], channels, *shape[2:])
    if (
        not isinstance(network, Tensor)
        or network.shape != outputs
        or network.dtype not in allowed
        or network.device != x.device
    ):
        letters = ("" if scale == "additive" else "2") + ("D" if rank == 2 else "C, H, W")
        check.tensor("network", network, outputs, allowed, x.device, f"[B, {letters}]")
    if rank == 4:
        if not x.is_contiguous():
            _rows("x", x)
        if not network.is_contiguous():
            _rows("network", network)
    if type(eps) is not float or eps != 0.0:
        _number("eps", eps, 0.0, scale, "sigmoid", math.inf, "a finite number of at least 0")
    if type(bound) is not float or bound != 1.0:
        _number("bound", bound, -math.inf, scale, "tanh", math.inf, "a finite number")
    if type(slope) is not float or slope != 1e-3:
        _number("slope", slope, 0.0, scale, "soft_clip", 1.0, "a number between 0 and 1")
    if rescale is not None:
        if scale != "tanh":
            check.fail("rescale", f'None where scale is "{scale}"', "a tensor")
        check.tensor("rescale", rescale, shape[1:2], (x.dtype,), x.device, "[D]" if rank == 2 else "[C]")
        check.contiguous("rescale", rescale)
    if parity is not None:
        if not isinstance(parity, int) or parity not in (0, 1):
            check.fail("parity", "0, 1 or None", repr(parity))
        if mask is not None:
            check.fail("mask", "None where parity is given", "a tensor")
    if mask is not None:
        wanted = _mask_shape(mask, x) if isinstance(mask, Tensor) else ()
        check.tensor("mask", mask, wanted, (torch.bool,), x.device)
        check.contiguous("mask", mask)


def _number(name: str, value: float, low: float, scale: str, user: str, high: float, expected: str) -> None:
    """An option that is not its default: a number that the map uses."""
    if not isinstance(value, int | float):
        check.fail(name, expected, repr(value))
    if value == DEFAULTS[name]:
        return
    if not low < value < high:
        check.fail(name, expected, value)
    if scale != user:
        check.fail(name, f'{DEFAULTS[name]} where scale is "{scale}", which has no {name}', value)


def _mask_shape(mask: Tensor, x: Tensor) -> tuple[int, ...]:
    """The shape that a mask for x may have which is likest the one it has."""
    if x.dim() == 2:
        return (x.shape[1],)
    _, channels, height, width = x.shape
    if mask.shape == (1, height, width):
        return (1, height, width)
    return (channels, 1, 1) if mask.shape == (channels, 1, 1) else (channels, height, width)


def _rows(name: str, value: Tensor) -> None:
    """The rows of images lie at even distances, so that a plane is one axis."""
    _, _, row, column = value.stride()
    _, _, height, width = value.shape
    if row != width * column and height > 1 and width > 1:
        check.fail(
            name,
            "rows of an image one after the other (contiguous, channels-last, or slices of samples or channels)",
            f"strides {value.stride()} for shape {list(value.shape)}: pass {name}.contiguous()",
        )


def overlaps_itself(x: Tensor) -> bool:
    """Whether elements may lie in one place: no, where each axis steps over all that the finer ones reach."""
    axes = list(zip(x.stride(), x.shape, strict=True))
    return not _nested(axes[::-1]) and not _nested(sorted(axes))


def _nested(axes: list[tuple[int, int]]) -> bool:
    reach = 0
    for stride, size in axes:
        if size > 1:
            if stride <= reach:
                return False
            reach += (size - 1) * stride
    return True


def apart(x: Tensor, name: str, other: Tensor) -> None:
    """No memory of x, which does not overlap itself, is other's too."""
    if type(x) is not Tensor or type(other) is not Tensor or x.is_meta:  # fake ones have no memory to share
        return
    if x.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return
    spans = [_span(value) for value in (x, other)]  # bytes that a sample reaches over
    steps = [value.stride(0) * value.element_size() for value in (x, other)]
    starts = [value.data_ptr() for value in (x, other)]
    ends = [
        start + (x.shape[0] - 1) * step + span for start, step, span in zip(starts, steps, spans, strict=True)
    ]
    if ends[0] <= starts[1] or ends[1] <= starts[0]:
        return
    if steps[0] == steps[1] > 0:  # slices of one buffer's samples: is each apart within?
        distance = (starts[1] - starts[0]) % steps[0]
        if spans[0] <= distance and distance + spans[1] <= steps[0]:
            return
    check.fail(name, "memory apart from x's", f"a tensor that shares it: pass {name}.clone()")


def _span(value: Tensor) -> int:
    """Bytes from a sample's first element to its last."""
    sizes, strides = value.shape[1:], value.stride()[1:]
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return (last + 1) * value.element_size()
