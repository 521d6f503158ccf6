"""Normal noise as a function of (seed, stream, step, element): the same in any batch, on any device.

>>> z = normals([7, 8], 0, "initial", (3, 32, 32))
>>> torch.equal(z[1:], normals([8], 0, "initial", (3, 32, 32)))
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..check import OperandError
from ..op import custom_op, select
from . import reference

# What a stream of noise is for. Numbers are part of every stored result: append, never renumber.
STREAMS: Mapping[str, int] = {
    "initial": 0,
    "step": 1,
    "dropout": 2,
    "dequantise": 3,
    "hutchinson": 4,
    "inpaint": 5,
}
MAX_ELEMENTS = 2**30  # of one sample: the kernel counts them in int32


def normals(
    seeds: Tensor | Sequence[int],
    steps: Tensor | Sequence[int] | int,
    stream: str,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal noise for a list of (seed, step) pairs; one call may serve many samples and many steps.

    Args:
        seeds: [B], a sample's seed each: any 64-bit integers (tensors: int64).
        steps: [B], the step's noise number (0 .. 2^32 - 1; tensors: int64 or int32), or one number for all.
        stream: what the noise is for, a key of `STREAMS`.
        shape: of one sample, such as (C, H, W); elements are counted in this order.
        dtype: float32, or float64 for oracles: the same words with the formula in float64, always made by
            PyTorch.
        device: where to make it; by default where `seeds` are.

    Returns:
        [B, *shape], contiguous. Row b does not depend on the other rows: in float32 on one device not in a
        single bit; across devices the words are the same and normals agree to about a unit in the last place
        (:func:`error_bound`).

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    if stream not in STREAMS:
        raise OperandError(f"expected one of {list(STREAMS)}, received {stream!r}", argument="stream")
    if dtype not in (torch.float32, torch.float64):
        raise OperandError(f"expected torch.float32 or torch.float64, received {dtype}", argument="dtype")
    if any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise OperandError(
            f"expected positive sizes of at most 2^30 elements, received {tuple(shape)}", argument="shape"
        )
    seeds = _pairs_column("seeds", seeds, signed_seeds, (torch.int64,), device)
    if isinstance(steps, int):
        steps = _host_steps([steps]).to(seeds.device).expand_as(seeds).contiguous()
    else:
        dtypes = (torch.int64, torch.int32)
        steps = _pairs_column("steps", steps, _host_steps, dtypes, seeds.device).to(torch.int64)
    if steps.shape != seeds.shape:
        raise OperandError(
            f"expected one per seed ({seeds.shape[0]}), received shape {tuple(steps.shape)}", argument="steps"
        )
    noise: Tensor = torch.ops.fastgen.normals(seeds, steps, STREAMS[stream], math.prod(shape), dtype)
    return noise.view(seeds.shape[0], *shape)


def bits(
    seeds: Tensor | Sequence[int],
    stream: str,
    count: int,
    device: torch.device | str | None = None,
) -> Tensor:
    """Fair bits, for dropout of rate 1/2: bit k of word j of a seed's step 0 is element 32 j + k.

    Args:
        seeds: [B], as for :func:`normals`.
        stream: what the bits are for, a key of `STREAMS`.
        count: of bits per seed, 1 to 2^30.
        device: where to make them; by default where `seeds` are.

    Returns:
        bool [B, count]. Row b does not depend on the other rows; all devices give the same bits.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    if stream not in STREAMS:
        raise OperandError(f"expected one of {list(STREAMS)}, received {stream!r}", argument="stream")
    if type(count) is not int or not 1 <= count <= MAX_ELEMENTS:
        raise OperandError(f"expected an int from 1 to 2^30, received {count!r}", argument="count")
    seeds = _pairs_column("seeds", seeds, signed_seeds, (torch.int64,), device)
    return reference.bits(seeds, STREAMS[stream], count)


def signed_seeds(seeds: Sequence[int]) -> Tensor:
    """Seeds in [-2^63, 2^64) as int64 [B] of the same 64 bits, on the CPU. OperandError for others."""
    for seed in seeds:
        if type(seed) is not int or not -(1 << 63) <= seed < 1 << 64:
            raise OperandError(f"expected integers of 64 bits, received {seed!r}", argument="seeds")
    return torch.tensor(
        [s - (1 << 64) if s >= 1 << 63 else s for s in seeds], dtype=torch.int64, device="cpu"
    )


def _host_steps(steps: Sequence[int]) -> Tensor:
    for step in steps:
        if type(step) is not int or not 0 <= step < 1 << 32:
            raise OperandError(f"expected integers from 0 to 2^32 - 1, received {step!r}", argument="steps")
    return torch.tensor(list(steps), dtype=torch.int64, device="cpu")


def _pairs_column(
    name: str,
    value: Tensor | Sequence[int],
    from_host: Callable[[Sequence[int]], Tensor],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | str | None,
) -> Tensor:
    if not isinstance(value, Tensor):
        value = from_host(value).to(device)
    elif device is not None:
        value = value.to(device)
    if value.dtype not in dtypes:
        raise OperandError(f"expected {' or '.join(map(str, dtypes))}, received {value.dtype}", argument=name)
    if value.dim() != 1 or value.shape[0] == 0:
        raise OperandError(f"expected shape [B] with B >= 1, received {tuple(value.shape)}", argument=name)
    return value.contiguous()


# Noise has no gradient.
@custom_op("normals", tags=(torch.Tag.needs_exact_strides,))
def _normals(seeds: Tensor, steps: Tensor, stream: int, count: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float32 and select(seeds.device.type) == "triton":
        return _fused(seeds, steps, stream, count)
    return reference.normals(seeds, steps, stream, count, dtype).contiguous()


@_normals.register_fake
def _(seeds: Tensor, steps: Tensor, stream: int, count: int, dtype: torch.dtype) -> Tensor:
    return seeds.new_empty((seeds.shape[0], count), dtype=dtype)


def _fused(seeds: Tensor, steps: Tensor, stream: int, count: int) -> Tensor:
    from . import kernel

    return kernel.normals(seeds, steps, stream, count)


def error_bound(exact: Tensor) -> Tensor:
    """How far a float32 normal may lie from its float64 value, on any device: 6 * 2^-24 * (1 + |z|).

    In units of 2^-24 of the radius, the kernel's roundings add up so: the logarithm 1, its root 2 (an
    approximate instruction), 1 for the angle, 1 for its function, 1 for the product. On CPU the work
    is done in float64 and only the last rounding remains.
    """
    return 6.0 * 2.0**-24 * (1.0 + exact.abs())
