"""Known pixels put into a noisy state: what inpainting and colourisation do after a reverse step.

`known_region` returns new tensors, is differentiable, compiles and exports; `known_region_out` writes into the caller's
buffers, for captured loops. The maths stands in `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import check
from ..op import Budget, Op, custom_op, differentiate_through, select
from . import cases, reference

__all__ = ["OP", "known_region", "known_region_out"]

MAX_BATCH = 65_535  # the launch grid's second axis
MAX_ELEMENTS = 2**30  # of one sample: the kernel counts them in int32
INPUTS = (torch.float32, torch.float16, torch.bfloat16)


def known_region(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    *,
    direction: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Put what is known of each sample into its state, as noisy as the state is.

    Args:
        x: [B, C, H, W] float32 (float64 on the PyTorch path), contiguous: the state.
        y: [B or 2B, C, H, W], float32, float16 or bfloat16 (float64 with a float64 state), contiguous or channels-last:
            the network's input, of which type and layout are taken, and values where a sample has no level.
        known: typed and shaped as x, contiguous: the known image.
        keep: likewise: 1 where it is known, 0 where not, between them the share of it.
        noise: likewise: standard normal.
        levels: [B, 3] typed as x, contiguous: alpha and sigma of the state, and the scale of the network's input. A
            sample whose alpha is NaN is left alone.
        direction: [B, C] typed as x, contiguous, each of unit length: only this combination of channels is known (the
            grey of a colour image); a row of zeros: all channels are. None: all are, of all samples.

    Returns:
        x_next: [B, C, H, W] typed as x: x where keep is 0, alpha * known + sigma * noise where it is 1.
        y_next: as y: scale * x_next; both halves where it holds 2B samples.

    Gradients flow to x, known, keep and noise.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    _check(x, y, known, keep, noise, levels, direction)
    return torch.ops.fastgen.known_region(x, y, known, keep, noise, levels, direction)


def known_region_out(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    *,
    direction: Tensor | None = None,
) -> None:
    """As :func:`known_region`, in place: x and y are overwritten. No autograd; not for export."""
    _check(x, y, known, keep, noise, levels, direction)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, known, keep, noise)):
        check.fail(
            "known_region_out",
            "tensors that need no gradient",
            "one that does: call it under torch.no_grad(), or use known_region",
        )
    torch.ops.fastgen.known_region_out(x, y, known, keep, noise, levels, direction)


def _check(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None,
) -> None:
    check.rank("x", x, 4, "[B, C, H, W]")
    check.dtype("x", x, (torch.float32, torch.float64))
    check.contiguous("x", x)
    batch = x.shape[0]
    if batch > MAX_BATCH:
        check.fail("x", f"at most {MAX_BATCH} samples", batch)
    if x[0].numel() >= MAX_ELEMENTS:
        check.fail("x", "fewer than 2^30 elements per sample", f"shape {list(x.shape)}")
    check.rank("y", y, 4, "[B or 2B, C, H, W]")
    if y.shape[0] not in (batch, 2 * batch):
        check.fail("y", f"{batch} or {2 * batch} samples", y.shape[0])
    dtypes = (torch.float64,) if x.dtype == torch.float64 else INPUTS
    check.tensor("y", y, (y.shape[0], *x.shape[1:]), dtypes, x.device)
    if not (y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)):
        check.fail("y", "a contiguous or channels-last tensor", f"strides {y.stride()}")
    for name, value in (("known", known), ("keep", keep), ("noise", noise)):
        check.tensor(name, value, x.shape, (x.dtype,), x.device, "[B, C, H, W]")
        check.contiguous(name, value)
    check.tensor("levels", levels, (batch, 3), (x.dtype,), x.device, "[B, 3]")
    check.contiguous("levels", levels)
    if direction is not None:
        check.tensor("direction", direction, x.shape[:2], (x.dtype,), x.device, "[B, C]")
        check.contiguous("direction", direction)


@custom_op("known_region")
def _known_region(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _on_copies(_run, x, y, known, keep, noise, levels, direction)


@_known_region.register_fake
def _(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y, memory_format=reference.network_format(y))


def _on_copies(
    step: Callable[..., None], x: Tensor, y: Tensor, *others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The in-place `step` on copies of x and y."""
    x_next, y_next = x.clone(), y.clone(memory_format=reference.network_format(y))
    step(x_next, y_next, *others)
    return x_next, y_next


differentiate_through(_known_region, reference.known_region, wrt=(0, 2, 3, 4))


def _run(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None,
) -> None:
    """The in-place form on the selected path. Every call ends here."""
    if select(x.device.type) == "triton":
        _launch(x, y, known, keep, noise, levels, direction)
        return
    x_next, y_next = reference.known_region(x, y, known, keep, noise, levels, direction)
    x.copy_(x_next)
    y.copy_(y_next)


custom_op("known_region_out", mutates_args=("x", "y"), tags=(torch.Tag.needs_exact_strides,))(_run)


def _launch(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None,
) -> None:
    if x.dtype != torch.float32:
        check.fail("x", "torch.float32 for the kernel", f"{x.dtype}: use fastgen_kernels.use('reference')")
    from . import kernel

    kernel.launch(x, y, known, keep, noise, levels, direction)


def _fused(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _on_copies(_launch, x, y, known, keep, noise, levels, direction)


def _in_place(
    x: Tensor,
    y: Tensor,
    known: Tensor,
    keep: Tensor,
    noise: Tensor,
    levels: Tensor,
    direction: Tensor | None = None,
) -> Callable[[], None]:
    x, y = x.clone(), y.clone(memory_format=reference.network_format(y))
    return lambda: known_region_out(x, y, known, keep, noise, levels, direction=direction)


OP = Op(
    name="known_region",
    outputs=("x_next", "y_next"),
    function=known_region,
    out=known_region_out,
    reference=reference.known_region,
    fused=_fused,
    overload=torch.ops.fastgen.known_region.default,
    decomposition=reference.known_region,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    in_place=_in_place,
    # Of a channels-last input every value is stored by itself, for guidance twice: two thirds of the bytes stored.
    budget=Budget(wide=0.3),
)
