"""The affine coupling of normalising flows, forward and inverse, with its log-determinant.

`affine_coupling` returns new tensors, is differentiable, compiles and exports; `affine_coupling_out` changes x where
it lies and adds to a running log-determinant. The maths stands in `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import check
from ..op import Op, custom_op, differentiate_through, direct, select
from . import cases, checks, cpu, reference

__all__ = ["OP", "affine_coupling", "affine_coupling_out"]

MAX_ELEMENTS = 2**30  # of one sample: the kernel counts elements, and offsets within a sample, in int32


def affine_coupling(
    x: Tensor,
    network: Tensor,
    *,
    scale: str = "exp",
    eps: float = 0.0,
    bound: float = 1.0,
    slope: float = 1e-3,
    rescale: Tensor | None = None,
    mask: Tensor | None = None,
    parity: int | None = None,
    parameters: str = "scale_shift",
    inverse: bool = False,
    shift_first: bool = False,
    log_det: bool = True,
) -> tuple[Tensor, Tensor]:
    """Change x by y = x * a + t, or back, where a network says a and t (Dinh et al. 2017, eq. 4-8).

    Without mask and parity all of x changes: hand over the half that does, as the view `x[:, C // 2:]`.

    Args:
        x: [B, C, H, W] or [B, D], float32 (float64 on the PyTorch path). Contiguous, channels-last, or a slice of
            such a tensor's samples or channels.
        network: [B, 2C, H, W] or [B, 2D]: raw scale s and shift t; [B, C, H, W] or [B, D] where additive.
            float32, float16 or bfloat16, or x's type; strides as for x, its layout may differ from x's.
        scale: the scale a from s. "exp": exp(s). "sigmoid": sigmoid(s + 2) + eps (Glow; nflows with eps = 1e-3).
            "tanh": exp(bound * rescale * tanh(s)). "soft_clip": exp(s / (1 + |s / log(slope)|)) (zuko).
            "additive": 1 (NICE).
        eps: at least 0 and finite. For "sigmoid"; as it stands with other maps, like bound and slope with theirs.
        bound: a finite number. For "tanh".
        slope: the least scale, between 0 and 1. For "soft_clip".
        rescale: [C] or [D] typed as x, contiguous: a factor for each channel, or None for 1. For "tanh".
        mask: bool, contiguous, [C, H, W], [1, H, W] or [C, 1, 1]; [D] for vectors. True where x changes.
        parity: 0 or 1: x changes where (row + column) % 2 == parity; for vectors where the index is so.
        parameters: where s and t lie on the network's second axis. "scale_shift": s in the first half, t in the
            second; "shift_scale": the other way; with "_interleaved" behind: in turn, s (or t) first.
        inverse: undo the change: (x - t) / a.
        shift_first: y = (x + t) * a, as Glow's own code has it; the inverse is x / a - t.
        log_det: whether it is wanted. Without, sampling saves a launch.

    Returns:
        y: as x, dense: x's order of axes, without gaps. What does not change is a copy.
        log_det: [B] typed as x: log |det dy/dx|, accumulated in x's type. Empty [0] if not wanted.

    What mask or parity leave unchanged does not touch log_det, nor does the network's output there, whatever they
    hold. Scales are not clamped: exp(s) is infinite from s = 89 on in float32, and so is y. Gradients flow to
    x, network and rescale.

    Raises:
        OperandError: naming the argument, what was expected and what was received.
    """
    checks.arguments(x, network, scale, eps, bound, slope, rescale, mask, parity, parameters)
    function: Callable[..., tuple[Tensor, Tensor]]
    if not direct("cpu" if x.is_cpu else x.device.type):
        function = torch.ops.fastgen.affine_coupling
    elif x.is_cpu and not (torch.is_grad_enabled() and _wants_gradient(x, network, rescale)):
        function = cpu.affine_coupling
    else:
        function = reference.affine_coupling
    return function(
        x,
        network,
        scale,
        eps,
        bound,
        slope,
        rescale,
        mask,
        parity,
        parameters,
        inverse,
        shift_first,
        log_det,
    )


def affine_coupling_out(
    x: Tensor,
    network: Tensor,
    log_det: Tensor | None = None,
    *,
    scale: str = "exp",
    eps: float = 0.0,
    bound: float = 1.0,
    slope: float = 1e-3,
    rescale: Tensor | None = None,
    mask: Tensor | None = None,
    parity: int | None = None,
    parameters: str = "scale_shift",
    inverse: bool = False,
    shift_first: bool = False,
) -> None:
    """Change x where it lies, and add to log_det. No autograd; not for export.

    As :func:`affine_coupling`, with x: no two elements in one place, network: its memory apart from x's (slices of
    one buffer's channels or samples are apart), log_det: [B] typed as x, contiguous, apart from x's memory
    too, or None. In traced code, whether memory is shared is not checked. What lies outside the view x is neither
    read nor written; what mask or parity leave unchanged keeps its bits.
    """
    checks.arguments(x, network, scale, eps, bound, slope, rescale, mask, parity, parameters)
    if not x.is_contiguous() and checks.overlaps_itself(x):
        check.fail("x", "no two elements in one place", f"strides {x.stride()}: pass x.clone()")
    if log_det is not None and not (
        isinstance(log_det, Tensor)
        and log_det.shape == x.shape[:1]
        and log_det.dtype == x.dtype
        and log_det.device == x.device
        and log_det.is_contiguous()
    ):
        check.tensor("log_det", log_det, x.shape[:1], (x.dtype,), x.device, "[B]")
        check.contiguous("log_det", log_det)
    if not torch.compiler.is_compiling():
        checks.apart(x, "network", network)
        if log_det is not None:
            checks.apart(x, "log_det", log_det)
    if torch.is_grad_enabled() and _wants_gradient(x, network, rescale, log_det):
        check.fail(
            "affine_coupling_out",
            "tensors that need no gradient",
            "one that does: call it under torch.no_grad(), or use affine_coupling",
        )
    here = direct("cpu" if x.is_cpu else x.device.type)
    function = _run if here else torch.ops.fastgen.affine_coupling_out
    function(
        x, network, log_det, scale, eps, bound, slope, rescale, mask, parity, parameters, inverse, shift_first
    )


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return any(value is not None and value.requires_grad for value in tensors)


@custom_op("affine_coupling", tags=(torch.Tag.needs_exact_strides,))
def _affine_coupling(
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
    inverse: bool,
    shift_first: bool,
    log_det: bool,
) -> tuple[Tensor, Tensor]:
    options = (scale, eps, bound, slope, rescale, mask, parity, parameters, inverse, shift_first, log_det)
    if select(x.device.type) == "triton":
        return _fused(x, network, *options)
    plain = cpu.affine_coupling if x.is_cpu else reference.affine_coupling
    y, total = plain(x, network, *options)
    return torch.empty_like(x).copy_(y), total


@_affine_coupling.register_fake
def _(
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
    inverse: bool,
    shift_first: bool,
    log_det: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0] if log_det else 0)


differentiate_through(_affine_coupling, reference.affine_coupling, wrt=(0, 1, 6))


def _fused(
    x: Tensor,
    network: Tensor,
    scale: str = "exp",
    eps: float = 0.0,
    bound: float = 1.0,
    slope: float = 1e-3,
    rescale: Tensor | None = None,
    mask: Tensor | None = None,
    parity: int | None = None,
    parameters: str = "scale_shift",
    inverse: bool = False,
    shift_first: bool = False,
    log_det: bool = True,
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    if scale == "additive":
        total = x.new_zeros(x.shape[0] if log_det else 0)
    else:
        total = x.new_empty(x.shape[0] if log_det else 0)
    options = (scale, eps, bound, slope, rescale, mask, parity, parameters, inverse, shift_first)
    _launch(x, y, network, total if log_det else None, False, *options)
    return y, total


def _run(
    x: Tensor,
    network: Tensor,
    log_det: Tensor | None,
    scale: str,
    eps: float,
    bound: float,
    slope: float,
    rescale: Tensor | None,
    mask: Tensor | None,
    parity: int | None,
    parameters: str,
    inverse: bool,
    shift_first: bool,
) -> None:
    """The in-place form on the selected path. Every call ends here."""
    options = (scale, eps, bound, slope, rescale, mask, parity, parameters, inverse, shift_first)
    if select(x.device.type) == "triton":
        _launch(x, x, network, log_det, True, *options)
    elif x.is_cpu:
        cpu.affine_coupling_(x, network, log_det, *options)
    else:
        y, total = reference.affine_coupling(x, network, *options, log_det is not None)
        x.copy_(y)
        if log_det is not None:
            log_det.add_(total)


custom_op("affine_coupling_out", mutates_args=("x", "log_det"), tags=(torch.Tag.needs_exact_strides,))(_run)


def _launch(
    x: Tensor,
    y: Tensor,
    network: Tensor,
    log_det: Tensor | None,
    add: bool,
    scale: str,
    *options: Any,
) -> None:
    if x.dtype != torch.float32:
        check.fail("x", "torch.float32 for the kernel", f"{x.dtype}: use fastgen_kernels.use('reference')")
    for name, value in (("x", x), ("network", network)):
        reach = sum(
            (size - 1) * stride for size, stride in zip(value.shape[1:], value.stride()[1:], strict=True)
        )
        if reach >= MAX_ELEMENTS:
            check.fail(name, "a sample that spans fewer than 2^30 elements", f"one of {reach + 1}")
    from . import kernel

    # An additive coupling preserves volume: there is nothing to write or to add.
    kernel.launch(x, y, network, None if scale == "additive" else log_det, add, scale, *options)


def _in_place(x: Tensor, network: Tensor, log_det: bool = True, **options: Any) -> Callable[[], None]:
    # x's strides too: the half of an image stays one.
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
    total = x.new_zeros(x.shape[0]) if log_det else None
    return lambda: affine_coupling_out(copy, network, total, **options)


OP = Op(
    name="affine_coupling",
    outputs=("y", "log_det"),
    function=affine_coupling,
    out=affine_coupling_out,
    reference=reference.affine_coupling,
    fused=_fused,
    overload=torch.ops.fastgen.affine_coupling.default,
    decomposition=reference.affine_coupling,
    cases=cases.CASES,
    exact=cases.exact,
    tolerance=cases.tolerance,
    bytes_moved=cases.bytes_moved,
    flops=cases.flops,
    eager=cpu.affine_coupling,
    in_place=_in_place,
)
