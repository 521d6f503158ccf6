"""Layers of a network, each alone: what it was given, what float64 makes of that, and what rounding explains."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastgen_kernels import OPS
from fastgen_kernels.op import UNIT_ROUNDOFF

from ..fused.activated import ActConvolution
from ..fused.blocks import SILU, PlainNorm
from ..fused.onednn import OneDNNConv
from ..fused.small import PlainHalf
from ..fused.translate import Normed, Patches, Score
from ..fused.twin import Twin
from ..fused.winograd import Winograd
from ..models.blocks import NormAct
from ..models.embeddings import FourierFeatures
from ..models.resample import Upsample
from ..models.translate.layers import BatchNorm
from .closeness import deviation
from .verb import Networks

WORKING = 2.0**-24  # unit roundoff of the sums inside a layer
TF32 = 2.0**-10  # of a factor: tensor cores cut off what its 10 bits of fraction do not hold
Name = tuple[str, str]  # of a network, and of a layer in it


@dataclass
class Call:
    """What a layer was given and returned, the first time it was called."""

    module: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: Tensor


@contextmanager
def watching(networks: Networks) -> Iterator[dict[Name, Call]]:
    """Within the block, the calls of every module of `networks` that has no modules in it."""
    seen: dict[Name, Call] = {}
    given: dict[Name, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []

    def copied(value: Any) -> Any:  # this layer, or a later one, may work in place
        return value.clone() if isinstance(value, Tensor) else value

    def before(name: Name, module: nn.Module, inputs: Any, named: Any) -> None:
        given[name] = tuple(map(copied, inputs)), {key: copied(value) for key, value in named.items()}

    def after(name: Name, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and name not in seen:
            seen[name] = Call(module, *given[name], output.clone())

    for name, module in leaves(networks):
        handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def leaves(networks: Networks) -> Iterator[tuple[Name, nn.Module]]:
    """The modules that have no modules in them, by their names in the network that the user knows."""
    for part, network in networks.items():
        for name, module in network.get_submodule(getattr(network, "WRAPS", "")).named_modules():
            if next(module.children(), None) is None:
                yield (part, name), module


@contextmanager
def jittering(
    networks: Networks,
    known: Mapping[Name, Tensor | None],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Iterator[None]:
    """Within the block, results of the layers of `networks` (on the CPU) are off by random amounts, as by rounding.

    known: by layer, the most that rounding explains of each element. Else it is that of `dtype`, see `rounded_off`.
    """
    handles = []

    def after(name: Name, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        size = known.get(name)
        if size is None or size.shape != output.shape:
            return rounded_off(output, 4.0 * UNIT_ROUNDOFF[dtype], generator)
        return output + (size * _uniform(output, generator)).to(output.dtype)

    for name, module in leaves(networks):
        handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded_off(value: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """`value`, on the CPU, with each element off by at most `unit` of itself at random; integers as they are."""
    if not value.is_floating_point():
        return value
    size = (unit * value.abs()).nan_to_num(nan=0.0, posinf=0.0)
    return value + (size * _uniform(value, generator)).to(value.dtype)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu") * 2.0 - 1.0


def judge_layer(call: Call, dtype: torch.dtype) -> tuple[float, float | None, Tensor | None] | None:
    """The layer alone, on the very inputs that the engine gave it, against float64; None where it has no such form.

    Its error as `deviation` has it; the same as a fraction of what rounding explains, and that for each element, None
    for kinds of layers whose arithmetic is not known here.
    """
    own = call.module.plain if isinstance(call.module, Twin) else call.module
    module = copy.deepcopy(own).to("cpu", torch.float64)
    inputs = [_exactly(value) for value in call.inputs]
    named = {key: _exactly(value) for key, value in call.named.items()}
    try:
        exact = module(*inputs, **named)
    except Exception:  # a layer that cannot work in float64 is judged by the network as a whole
        return None
    bound = None
    refolded = isinstance(call.module, Twin) and call.module.refolded
    minimal = call.module.winograd_of(call.inputs[0]) if isinstance(call.module, OneDNNConv) else None
    if minimal is not None:
        allowed: Tensor | None = _of_winograd(minimal, inputs, named, exact)
    else:
        allowed = _allowed(module, inputs, named, exact, dtype, _products(module, call), refolded)
    if allowed is not None:
        difference = (call.output.double().cpu() - exact).abs()
        fraction = torch.where(difference == 0, 0.0, difference / allowed).nan_to_num(nan=float("inf"))
        bound = float(fraction.max())
    return deviation(call.output, exact), bound, allowed


def _exactly(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return value.double().contiguous() if value.is_floating_point() else value


def _products(module: nn.Module, call: Call) -> float:
    """Relative error of a layer's products beyond float32's, by what PyTorch allows itself."""
    if not call.output.is_cuda:
        if isinstance(module, nn.ConvTranspose2d) and not isinstance(call.module, Twin):
            # PyTorch adds the taps that meet in a pixel, and the bias, in the result's type.
            taps = math.prod(-(-k // s) for k, s in zip(module.kernel_size, module.stride, strict=True))
            half = call.output.dtype in (torch.bfloat16, torch.float16)
            return 1.01 * (taps + 1) * UNIT_ROUNDOFF[call.output.dtype] if half else 0.0
        # PyTorch adds a linear layer's bias to its rounded product where the input is not contiguous.
        apart = (
            isinstance(module, nn.Linear) and module.bias is not None and not call.inputs[0].is_contiguous()
        )
        return 1.01 * UNIT_ROUNDOFF[call.output.dtype] if apart else 0.0
    if call.output.dtype == torch.float32:
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        backend = (
            convolutions
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, PlainHalf))
            else torch.backends.cuda.matmul
        )
        return 2.0 * TF32 if backend.fp32_precision == "tf32" else 0.0
    # Products of half precision that are divided among programs are added in it.
    return UNIT_ROUNDOFF[call.output.dtype] if isinstance(module, nn.Linear) else 0.0


def summed(terms: int) -> float:
    """Relative rounding of a sum of `terms` products in float32, in whatever order.

    n u is never exceeded (Higham 2002, eq. 3.5), 6 sqrt(n) u with probability 3e-8 an element (Higham & Mary 2019,
    theorem 3.1, lambda = 6).
    """
    return min(terms, 6.0 * math.sqrt(terms)) * WORKING


def _allowed(
    module: nn.Module,
    inputs: list[Any],
    named: dict[str, Any],
    exact: Tensor,
    dtype: torch.dtype,
    products: float = 0.0,
    refolded: bool = False,
) -> Tensor | None:
    """What rounding explains of a deviation: to the layer's type, and in the float32 sums inside it.

    refolded: weights are sums that are rounded, too. None for kinds of layers whose arithmetic is not known here.
    """
    u = UNIT_ROUNDOFF[dtype]
    # Below the smallest normal number (6e-5 in float16) rounding is absolute; a layer may round twice.
    rounded = 1.01 * u * exact.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    if isinstance(module, Patches):
        # An activation's slope is at most 1, and it rounds once more.
        conv = module.conv(inputs[0])
        inner = _allowed(module.conv, inputs, {}, conv, dtype, products)
        return None if inner is None else inner + rounded
    if isinstance(module, Score):
        logits = module.conv(inputs[0])
        inner = _allowed(module.conv, inputs, {}, logits, torch.float32, products)
        if inner is None:
            return None
        count = logits[0].numel()
        return (
            1.01 * WORKING * exact.abs()
            + inner.mean((1, 2, 3))
            + summed(count) * logits.abs().mean((1, 2, 3))
        )
    if isinstance(module, (Normed, nn.InstanceNorm2d, BatchNorm)):
        return _of_images(module, inputs, named, exact, dtype)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Upsample)):
        # A sum of products, and perhaps of something more: on absolute values, as all of it is linear.
        twin = copy.deepcopy(module)
        for parameter in twin.parameters():
            parameter.data.abs_()
        weight = twin.conv.weight if isinstance(twin, Upsample) else twin.weight
        # Of a transposed convolution filters lie [in, out, ...], and at most all taps meet in a pixel.
        inputs_first = isinstance(twin, nn.ConvTranspose2d)
        terms = weight[:, 0].numel() if inputs_first else weight[0].numel()
        relative = summed(terms + 2) + products + (1.01 * u if refolded else 0.0)
        # Where a second tensor is added in a pass of its own, the first sum is rounded to the type by itself.
        relative += 1.01 * u if len(inputs) > 1 or named else 0.0
        if isinstance(module, ActConvolution) and module.slope is not None:
            # The sum may be rounded before its activation, which may be steep.
            relative = (relative + 1.01 * u) * max(1.0, float(module.slope.abs().max()))
        return rounded + relative * twin(*map(_magnitude, inputs), **_magnitudes(named))
    if isinstance(module, PlainHalf):
        given = module.arguments(*inputs, **named)
        op, index = OPS["conv_norm"], 0 if module.norm is None else 1
        if products:  # how far TF32's reach behind the norm is not known here
            return None
        outputs = op.exact(**given)
        return op.tolerance(outputs, given | {"x": given["x"].to(dtype)})[index]
    if isinstance(module, PlainNorm):
        return _of_norm(module, inputs, named, exact, dtype)
    if isinstance(module, nn.GroupNorm) and len(inputs) == 1:  # not scaled and shifted by an embedding
        x = inputs[0]
        statistics = _of_statistics(x, x.reshape(len(x), module.num_groups, -1), module.eps)
        size = (1, -1, *[1] * (x.dim() - 2))
        weight, bias = (1.0 if p is None else p.abs().reshape(size) for p in (module.weight, module.bias))
        sums = weight * statistics + 8.0 * WORKING * bias
        if not (isinstance(module, NormAct) and module.act):
            return rounded + sums
        plain = nn.GroupNorm.forward(module, x).abs()
        # No activation's slope is above 1.13, GELU's.
        return rounded + 1.13 * (sums + 1.01 * u * plain) + 8.0 * WORKING * plain
    if isinstance(module, (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Mish)):
        return rounded + 8.0 * WORKING * (exact.abs() + inputs[0].abs())
    if isinstance(module, FourierFeatures):
        # The logarithm and three products are off by parts of the angle, which is some hundreds.
        angle = (torch.log(inputs[0])[:, None] * module.weight[None] * 2 * math.pi).abs()
        return rounded + 8.0 * WORKING * (1.0 + torch.cat([angle, angle], dim=1))
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Embedding, nn.Flatten, nn.Unflatten)):
        return rounded
    return None


def _of_statistics(x: Tensor, groups: Tensor, eps: float) -> Tensor:
    """Of x - mean over its deviation, which are those of `groups` [B, G, n]: x's values in another shape."""
    mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
    rstd = (var + eps).rsqrt()
    # Libraries take the variance as E[x^2] - E[x]^2: its relative error grows with the mean's share.
    condition = 1.0 + mean.square() * rstd.square()
    scaled = (
        groups.abs() + groups.abs().mean(2, keepdim=True)
    ) * rstd  # as a sum's error, the mean's goes by sizes
    return (scaled * (summed(groups.shape[2]) * condition + 8.0 * WORKING)).reshape(x.shape)


def _of_images(
    module: Normed | nn.InstanceNorm2d | BatchNorm,
    inputs: list[Any],
    named: dict[str, Any],
    exact: Tensor,
    dtype: torch.dtype,
) -> Tensor | None:
    """Of norms by the statistics of images, and of a batch norm by those of training; with a LeakyReLU or none."""
    norm: Any = module.norm if isinstance(module, Normed) else module
    x, u = inputs[0], UNIT_ROUNDOFF[dtype]
    weight, bias = (1.0 if p is None else p.abs()[:, None, None] for p in (norm.weight, norm.bias))
    given = [*inputs[1:], *named.values()]
    mode = "instance" if isinstance(module, Normed) else (given or ["running"])[0]
    if isinstance(module, BatchNorm) and mode == "running":
        rstd = (norm.running_var + norm.eps).rsqrt()[:, None, None]
        statistics = 8.0 * WORKING * (x.abs() + norm.running_mean.abs()[:, None, None]) * rstd
    elif mode == "batch":
        return None
    else:
        statistics = _of_statistics(x, x.flatten(2), norm.eps)
    plain = norm(x, mode) if isinstance(norm, BatchNorm) else norm(x)
    # PyTorch rounds before a LeakyReLU that has a pass of its own, whose slope is at most 1.
    return 2.02 * u * (exact.abs() + plain.abs()) + weight * statistics + 8.0 * WORKING * (bias + plain.abs())


def _of_winograd(minimal: Winograd, inputs: list[Any], named: dict[str, Any], exact: Tensor) -> Tensor:
    """Of a float32 convolution by minimal filtering: filters are rounded, then there are three sums in a row."""
    terms = minimal.before.shape[1], minimal.filters.shape[1], minimal.after.shape[1]
    relative = sum(map(summed, terms)) + 4.0 * WORKING
    sums = minimal.magnitudes()(inputs[0].abs().float()).double()
    residual = [value.abs() for value in (*inputs[1:], *named.values()) if isinstance(value, Tensor)]
    return 1.01 * WORKING * (exact.abs() + sum(residual)) + relative * sums


def _of_norm(
    module: PlainNorm, inputs: list[Any], named: dict[str, Any], exact: Tensor, dtype: torch.dtype
) -> Tensor:
    """Of the fused norm: what the operation says of itself, and the activation where that is another one."""
    values = dict(zip(("x", "scale", "shift"), inputs, strict=False)) | named
    act = module.act in SILU
    given = {
        "num_groups": module.num_groups,
        "weight": module.weight,
        "bias": module.bias,
        "eps": module.eps,
        "act": act,
        **values,
    }
    op = OPS["group_norm"]
    plain = exact if act or module.act is None else op.exact(**given)[0]
    # The bound goes by the type of x as the engine has it; its values are the same here.
    (bound,) = op.tolerance((plain,), given | {"x": given["x"].to(dtype)})
    if act or module.act is None:
        return bound
    # No activation's slope is above 1.13, GELU's.
    return 1.13 * bound + 1.01 * UNIT_ROUNDOFF[dtype] * exact.abs() + 8.0 * WORKING * plain.abs()


def _magnitude(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) else value


def _magnitudes(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _magnitude(value) for name, value in named.items()}
