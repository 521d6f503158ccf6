"""The universal reverse step: one fused update that runs every linear diffusion solver from a row of its table.

`reverse_step` returns new tensors, is differentiable, compiles and exports; `reverse_step_out` writes into
the caller's buffers, for captured loops. The maths stands in `reference.py`, the meaning of a row's words in
`row.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import check
from ..check import OperandError
from ..op import Budget, Op, custom_op, differentiate_through, select
from . import cases, cpu, reference, row

__all__ = ["OP", "reverse_step", "reverse_step_out", "row"]

MAX_BATCH = 65_535  # the launch grid's second axis
# Of one sample: the kernel counts elements, twice as many where the variance is learned, in int32.
MAX_ELEMENTS = 2**30

STATE_OF_NETWORK = {
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float64: torch.float64,
}


def reverse_step(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    *,
    learned: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One reverse step of each sample, by its own row.

    Args:
        x: [B, C, H, W] float32 (float64 on the PyTorch path), contiguous: the state.
        h: [K, B, C, H, W], K = 0 .. 4, typed as x, each h[k] contiguous: history slots. May be a slice
            `full[:, :B]`.
        F: the network's output, [B or 2B, C or 2C, H, W], float32, float16 or bfloat16 (float64 with a
            float64 state), contiguous or channels-last (then H*W must be a multiple of 4). 2B samples:
            classifier-free guidance, conditional half first, weight from the row. 2C channels: `learned`
            variance V in the last C, of the conditional half where guided.
        rows: [B, 32] typed as x, contiguous: each sample's row, already gathered; its slot is below K.
        seeds: int64 [B], each sample's seed. Noise is `normals(seeds, rows' noise steps, "step", (C, H, W))`,
            made only where the row uses it.
        learned: 0: F has C channels; 1: the noise is scaled by 2^(lo + (V/2 + 1/2) * (hi - lo)), bounds from
            the row; 2: by sqrt(max(V, 0)).
        noise: [B, C, H, W] typed as x, takes the place of the made noise; only on CPU.

    Returns:
        x_next: [B, C, H, W] typed as x.
        h_next: [K, B, C, H, W] contiguous, with the slot that each row writes replaced.
        y: the next network input, [F's batch, C, H, W] in F's dtype and memory format; both halves where
            guided.

    Gradients flow to x, h, F and noise, not to rows. A history slot, or noise, whose coefficients in the row
    are zero does not touch the result.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    _check(x, h, F, rows, seeds, learned, noise)
    return torch.ops.fastgen.reverse_step(x, h, F, rows, seeds, learned, noise)


def reverse_step_out(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    y: Tensor,
    rows: Tensor,
    cursor: Tensor,
    seeds: Tensor,
    *,
    learned: int = 0,
    noise: Tensor | None = None,
) -> None:
    """One reverse step of each sample in place: x, h, y and cursor are overwritten.

    As :func:`reverse_step`, with y: next network input (shape, dtype and memory format as returned there)
    and cursor: int32 [B], which receives each row's index of the row that follows. No autograd; not for export.
    """
    _check(x, h, F, rows, seeds, learned, noise)
    if torch.is_grad_enabled() and (x.requires_grad or h.requires_grad or F.requires_grad):
        raise OperandError(
            "reverse_step_out has no gradient, expected tensors that need none: call it under "
            "torch.no_grad(), or use reverse_step"
        )
    batch, channels = x.shape[:2]
    check.tensor("y", y, (F.shape[0], channels, *x.shape[2:]), (F.dtype,), x.device)
    if not y.is_contiguous(memory_format=reference.network_format(F)):
        raise OperandError(
            f"expected F's memory format ({reference.network_format(F)}), received strides {y.stride()}",
            argument="y",
        )
    check.tensor("cursor", cursor, (batch,), (torch.int32,), x.device)
    check.contiguous("cursor", cursor)
    torch.ops.fastgen.reverse_step_out(x, h, F, y, rows, cursor, seeds, learned, noise)


def _check(
    x: Tensor, h: Tensor, F: Tensor, rows: Tensor, seeds: Tensor, learned: int, noise: Tensor | None
) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise OperandError(f"expected torch.float32 or torch.float64, received {x.dtype}", argument="x")
    if x.dim() != 4 or 0 in x.shape:
        raise OperandError(
            f"expected shape [B, C, H, W], all positive, received {tuple(x.shape)}", argument="x"
        )
    check.contiguous("x", x)
    batch, channels, height, width = x.shape
    if batch > MAX_BATCH:
        raise OperandError(f"expected at most {MAX_BATCH} samples, received {batch}", argument="x")
    if channels * height * width >= MAX_ELEMENTS:
        raise OperandError(
            f"expected fewer than 2^30 elements per sample, received shape {tuple(x.shape)}", argument="x"
        )

    if h.dim() != 5 or h.shape[0] > row.MAX_SLOTS:
        raise OperandError(
            f"expected shape [K, B, C, H, W] with K <= {row.MAX_SLOTS}, received {tuple(h.shape)}",
            argument="h",
        )
    check.tensor("h", h, (h.shape[0], *x.shape), (x.dtype,), x.device)
    if h.shape[0] and h.stride()[1:] != x.stride() and not h[0].is_contiguous():
        raise OperandError(f"expected each h[k] contiguous, received strides {h.stride()}", argument="h")

    if learned not in (0, 1, 2):
        raise OperandError(f"expected 0, 1 or 2, received {learned!r}", argument="learned")
    network_channels = channels * 2 if learned else channels
    if (
        F.dim() != 4
        or F.shape[0] not in (batch, 2 * batch)
        or F.shape[1:] != (network_channels, height, width)
    ):
        raise OperandError(
            f"expected shape [{batch} or {2 * batch}, {network_channels}, {height}, {width}] "
            f"(x has shape {tuple(x.shape)}, learned = {learned}), received {tuple(F.shape)}",
            argument="F",
        )
    if STATE_OF_NETWORK.get(F.dtype) != x.dtype:
        allowed = [str(dtype) for dtype, state in STATE_OF_NETWORK.items() if state == x.dtype]
        raise OperandError(
            f"expected {' or '.join(allowed)} with x in {x.dtype}, received {F.dtype}", argument="F"
        )
    if F.device != x.device:
        raise OperandError(
            f"expected a tensor on {x.device}, where x is, received one on {F.device}", argument="F"
        )
    if not F.is_contiguous():
        if not F.is_contiguous(memory_format=torch.channels_last):
            raise OperandError(
                f"expected a contiguous or channels-last tensor, received strides {F.stride()}", argument="F"
            )
        if height * width % 4:
            raise OperandError(
                "channels-last needs H*W to be a multiple of 4 (noise comes in blocks of 4 elements), "
                f"received {height}x{width}: pass F.contiguous()",
                argument="F",
            )

    check.tensor("rows", rows, (batch, row.ROW_WORDS), (x.dtype,), x.device)
    check.contiguous("rows", rows)
    check.tensor("seeds", seeds, (batch,), (torch.int64,), x.device)
    check.contiguous("seeds", seeds)
    if noise is not None:
        if x.device.type == "cuda":
            raise OperandError(
                "expected None on CUDA, where the kernel makes it, received a tensor", argument="noise"
            )
        check.tensor("noise", noise, tuple(x.shape), (x.dtype,), x.device)
        check.contiguous("noise", noise)


@custom_op("reverse_step")
def _reverse_step(
    x: Tensor, h: Tensor, F: Tensor, rows: Tensor, seeds: Tensor, learned: int, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return _on_copies(_run, x, h, F, rows, seeds, learned, noise)


@_reverse_step.register_fake
def _(
    x: Tensor, h: Tensor, F: Tensor, rows: Tensor, seeds: Tensor, learned: int, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), h.new_empty(h.shape), _empty_input(x, F)


def _empty_input(x: Tensor, F: Tensor) -> Tensor:
    return torch.empty(
        (F.shape[0], *x.shape[1:]), dtype=F.dtype, device=F.device, memory_format=reference.network_format(F)
    )


def _on_copies(
    step: Callable[..., None],
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The in-place `step` on copies of x and h."""
    x_next = x.clone()
    h_next = h.clone(memory_format=torch.contiguous_format)
    y = _empty_input(x, F)
    cursor = torch.empty(x.shape[0], dtype=torch.int32, device=x.device)
    step(x_next, h_next, F, y, rows, cursor, seeds, learned, noise)
    return x_next, h_next, y


differentiate_through(_reverse_step, reference.reverse_step, wrt=(0, 1, 2, 6))


def _run(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    y: Tensor,
    rows: Tensor,
    cursor: Tensor,
    seeds: Tensor,
    learned: int,
    noise: Tensor | None,
) -> None:
    """The in-place step on the selected path. Every call ends here."""
    if select(x.device.type) == "triton":
        _launch(x, h, F, y, rows, cursor, seeds, learned, noise)
    elif x.device.type == "cpu":
        cpu.reverse_step_(x, h, F, y, rows, cursor, seeds, learned, noise)
    else:
        x_next, h_next, y_next = reference.reverse_step(x, h, F, rows, seeds, learned, noise)
        x.copy_(x_next)
        h.copy_(h_next)
        y.copy_(y_next)
        cursor.copy_(reference.integer_words(rows)[:, row.NEXT])


custom_op("reverse_step_out", mutates_args=("x", "h", "y", "cursor"), tags=(torch.Tag.needs_exact_strides,))(
    _run
)


def _launch(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    y: Tensor,
    rows: Tensor,
    cursor: Tensor,
    seeds: Tensor,
    learned: int,
    noise: Tensor | None,
) -> None:
    if x.dtype != torch.float32:
        raise OperandError(
            f"the kernel takes torch.float32, received {x.dtype}: use fastgen_kernels.use('reference')",
            argument="x",
        )
    if noise is not None:
        raise OperandError(
            "the kernel makes it, expected None: use fastgen_kernels.use('reference')", argument="noise"
        )
    from . import kernel

    kernel.launch(x, h, F, y, rows, cursor, seeds, learned)


def _fused(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _on_copies(_launch, x, h, F, rows, seeds, learned, noise)


def _in_place(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> Callable[[], None]:
    x, h, y = x.clone(), h.clone(), _empty_input(x, F)
    cursor = torch.empty(x.shape[0], dtype=torch.int32, device=x.device)
    return lambda: reverse_step_out(x, h, F, y, rows, cursor, seeds, learned=learned, noise=noise)


OP = Op(
    name="reverse_step",
    outputs=("x_next", "h_next", "y"),
    function=reverse_step,
    out=reverse_step_out,
    reference=reference.reverse_step,
    fused=_fused,
    overload=torch.ops.fastgen.reverse_step.default,
    decomposition=reference.reverse_step,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    in_place=_in_place,
    # A thread owns four elements of every tensor, 16 bytes of the float32 state but 8 of a half-precision network's
    # output; with guidance and learned variance but no history, three such reads stand beside one of the state.
    # Registers: with four slots and guidance seven reads of a tensor are under way at once; seven blocks of 128 threads
    # still fit a multiprocessor, and have 100 KiB under way, four times what its share of memory's bandwidth needs.
    budget=Budget(registers=72, wide=0.4),
)
