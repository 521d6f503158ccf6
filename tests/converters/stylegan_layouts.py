"""Files of style-based generators of other projects: their layouts, and the same images by other means.

The functions that draw take the tensors as they stand in the files. Of `persistent` pickles the modules that they name
do not exist: they are made up for the time of writing.
"""

from __future__ import annotations

import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]


def _filter(*taps: float) -> Tensor:
    row = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(row, row) / row.sum() ** 2


def _zoom(x: Tensor) -> Tensor:
    """Zeros behind every pixel but the last."""
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    spread[..., ::2, ::2] = x
    return spread


def _fir(x: Tensor, kernel: Tensor, before: int, after: int) -> Tensor:
    x = F.pad(x, (before, after, before, after))
    return F.conv2d(x, kernel.to(x.dtype).flip(0, 1).expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


# rosinality/style-based-gan-pytorch

W1, MLP1 = 12, 2


def style_based(
    seed: int, widths: Sequence[int] = (8, 8, 6, 4, 4), trained: int = 3, fused: int = 3
) -> State:
    """The generator, with blocks for resolutions that were not trained; of block `fused` on one layer does both."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    state: State = {}
    for i, width in enumerate(widths):
        name, before = f"generator.progression.{i}", widths[max(i - 1, 0)]
        if i == 0:
            state[f"{name}.conv1.input"] = draw(1, width, 4, 4)
        elif i >= fused:
            state[f"{name}.conv1.0.weight"] = draw(before, width, 3, 3)
            state[f"{name}.conv1.0.bias"] = draw(width)
        else:
            state[f"{name}.conv1.1.conv.weight_orig"] = draw(width, before, 3, 3)
            state[f"{name}.conv1.1.conv.bias"] = draw(width)
        if i:
            for part in ("weight", "weight_flip"):
                blur = f"{name}.conv1.{1 if i >= fused else 2}.{part}"
                state[blur] = _filter(1, 2, 1).expand(width, 1, 3, 3).clone()
        state[f"{name}.conv2.conv.weight_orig"] = draw(width, width, 3, 3)
        state[f"{name}.conv2.conv.bias"] = draw(width)
        for n in (1, 2):
            strength = draw(1, width, 1, 1)
            state[f"{name}.noise{n}.weight_orig"] = strength if i <= trained else torch.zeros_like(strength)
            state[f"{name}.adain{n}.style.linear.weight_orig"] = draw(2 * width, W1)
            state[f"{name}.adain{n}.style.linear.bias"] = draw(2 * width)
        state[f"generator.to_rgb.{i}.conv.weight_orig"] = draw(3, width, 1, 1)
        state[f"generator.to_rgb.{i}.conv.bias"] = draw(3)
    for i in range(MLP1):
        state[f"style.{1 + 2 * i}.linear.weight_orig"] = draw(W1, W1)
        state[f"style.{1 + 2 * i}.linear.bias"] = draw(W1)
    return state


def style_of(s: State, z: Tensor) -> Tensor:
    """w of z."""
    x = _rms(z)
    for i in range(MLP1):
        weight = s[f"style.{1 + 2 * i}.linear.weight_orig"].to(z.dtype) * math.sqrt(2 / W1)
        x = F.leaky_relu(x @ weight.t() + s[f"style.{1 + 2 * i}.linear.bias"].to(z.dtype), 0.2)
    return x


def draw_style_based(s: State, styles: Sequence[Tensor], noise: Sequence[Tensor], last: int) -> Tensor:
    """Images of a style for each block, [B, W1], and of noise for each block."""
    s = {name: value.to(noise[0].dtype) for name, value in s.items()}

    def conv(x: Tensor, name: str) -> Tensor:
        weight = s[f"{name}.conv.weight_orig"]
        weight = weight * math.sqrt(2 / weight[0].numel())
        return F.conv2d(x, weight, s[f"{name}.conv.bias"], padding=weight.shape[-1] // 2)

    def epilogue(x: Tensor, name: str, n: int, i: int) -> Tensor:
        strength = s[f"{name}.noise{n}.weight_orig"] * math.sqrt(2 / x.shape[1])
        x = F.leaky_relu(x + strength * noise[i], 0.2)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        linear = f"{name}.adain{n}.style.linear"
        style = styles[i] @ (s[f"{linear}.weight_orig"] * math.sqrt(2 / W1)).t() + s[f"{linear}.bias"]
        scale, shift = style[..., None, None].chunk(2, 1)
        return scale * x + shift

    x = s["generator.progression.0.conv1.input"].repeat(len(styles[0]), 1, 1, 1)
    for i in range(last + 1):
        name = f"generator.progression.{i}"
        if f"{name}.conv1.0.weight" in s:
            weight = s[f"{name}.conv1.0.weight"]
            weight = weight * math.sqrt(2 / (weight.shape[0] * 9))
            # Every pixel writes four shifted copies of the filter, a quarter of each.
            shifted = [F.pad(weight, (a, 1 - a, b, 1 - b)) for a in (0, 1) for b in (0, 1)]
            wide: Tensor = sum(shifted[1:], shifted[0]) / 4
            x = F.conv_transpose2d(x, wide, s[f"{name}.conv1.0.bias"], stride=2, padding=1)
            x = _fir(x, _filter(1, 2, 1), 1, 1)
        elif i:
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"{name}.conv1.1")
            x = _fir(x, _filter(1, 2, 1), 1, 1)
        x = epilogue(x, name, 1, i)
        x = epilogue(conv(x, f"{name}.conv2"), name, 2, i)
    return conv(x, f"generator.to_rgb.{last}")


# rosinality/stylegan2-pytorch

W2, MLP2, LR2 = 10, 3, 0.01


def stylegan2(seed: int, widths: Sequence[int] = (8, 8, 6)) -> State:
    """The generator, with the filter 1, 3, 3, 1."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    state: State = {"input.input": draw(1, widths[0], 4, 4)}
    for i in range(1, MLP2 + 1):
        state[f"style.{i}.weight"], state[f"style.{i}.bias"] = draw(W2, W2) / LR2, draw(W2) / LR2
    before, count = widths[0], 0
    for i, width in enumerate(widths):
        for up in (True, False) if i else (False,):
            name = f"convs.{count - 1}" if count else "conv1"
            _modulated(state, name, draw, before, width, 3)
            state[f"{name}.noise.weight"], state[f"{name}.activate.bias"] = draw(1), draw(width)
            if up:
                state[f"{name}.conv.blur.kernel"] = 4 * _filter(1, 3, 3, 1)
            state[f"noises.noise_{count}"] = draw(1, 1, 4 << i, 4 << i)
            before, count = width, count + 1
        name = f"to_rgbs.{i - 1}" if i else "to_rgb1"
        _modulated(state, name, draw, width, 3, 1)
        state[f"{name}.bias"] = draw(1, 3, 1, 1)
        if i:
            state[f"{name}.upsample.kernel"] = 4 * _filter(1, 3, 3, 1)
    return state


def _modulated(state: State, name: str, draw: Callable, before: int, after: int, size: int) -> None:
    state[f"{name}.conv.weight"] = draw(1, after, before, size, size)
    state[f"{name}.conv.modulation.weight"] = draw(before, W2)
    state[f"{name}.conv.modulation.bias"] = 1 + draw(before)


def _perceptron(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], lr: float) -> Tensor:
    for weight, bias in layers:
        y = x @ (weight.to(x.dtype) * (lr / math.sqrt(weight.shape[1]))).t() + bias.to(x.dtype) * lr
        x = math.sqrt(2) * F.leaky_relu(y, 0.2)
    return x


def w_of(s: State, z: Tensor) -> Tensor:
    """w of z."""
    return _perceptron(
        _rms(z), [(s[f"style.{i}.weight"], s[f"style.{i}.bias"]) for i in range(1, MLP2 + 1)], LR2
    )


def _own_filters(x: Tensor, weight: Tensor, style: Tensor, kernel: Tensor | None, demodulate: bool) -> Tensor:
    """A filter for each sample, used on that sample alone. kernel: of an upsampling."""
    images = []
    for image, own in zip(x, style, strict=True):
        w = weight * own[None, :, None, None]
        if demodulate:
            w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if kernel is None:
            images.append(F.conv2d(image[None], w, padding=w.shape[-1] // 2))
        else:
            wide = F.conv2d(F.pad(_zoom(image[None]), (2, 2, 2, 2)), w.flip(2, 3))
            images.append(_fir(wide, kernel, 1, 1))
    return torch.cat(images)


def draw_stylegan2(s: State, ws: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Images of styles [B, layers + 1, W2] and noise for each layer."""
    s = {name: value.to(ws.dtype) for name, value in s.items()}

    def style(name: str, i: int) -> Tensor:
        weight = s[f"{name}.conv.modulation.weight"] / math.sqrt(W2)
        return ws[:, i] @ weight.t() + s[f"{name}.conv.modulation.bias"]

    def weight(name: str) -> Tensor:
        value = s[f"{name}.conv.weight"][0]
        return value / math.sqrt(value[0].numel())

    names = ["conv1"] + [f"convs.{i}" for i in range(len(noise) - 1)]
    x, image = s["input.input"].repeat(len(ws), 1, 1, 1), None
    for i, name in enumerate(names):
        x = _own_filters(x, weight(name), style(name, i), s.get(f"{name}.conv.blur.kernel"), True)
        x = x + s[f"{name}.noise.weight"] * noise[i] + s[f"{name}.activate.bias"][:, None, None]
        x = math.sqrt(2) * F.leaky_relu(x, 0.2)
        if i % 2 == 0:
            rgb = f"to_rgbs.{i // 2 - 1}" if i else "to_rgb1"
            shown = _own_filters(x, weight(rgb), style(rgb, i + 1), None, False) + s[f"{rgb}.bias"]
            if image is not None:
                shown = shown + _fir(_zoom(image), s[f"{rgb}.upsample.kernel"], 2, 2)
            image = shown
    assert image is not None
    return image


# NVlabs' persistent classes

SOURCE = "import os\nopen(os.environ['FASTGEN_TEST_MARK'], 'w').write('executed')\nclass Generator: pass\n"


def _never(meta: Any) -> Any:
    raise AssertionError("a pickle called it")


class EasyDict(dict):
    """A dictionary whose class is named in the pickle."""


class Saved:
    """An object that a pickle describes by its class's name, its module's source text and its attributes."""

    def __init__(self, kind: str, **state: Any) -> None:
        self.kind, self.state = kind, state

    def __reduce__(self) -> tuple:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE,
            "class_name": self.kind,
            "state": self.state,
        }
        return _never, (meta,)


def layer(
    kind: str,
    tensors: Mapping[str, Tensor] | None = None,
    children: Mapping[str, Saved] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    **attributes: Any,
) -> Saved:
    """What a layer of theirs becomes in a pickle."""
    parameters = {name: nn.Parameter(value) for name, value in (tensors or {}).items()}
    return Saved(
        kind,
        training=False,
        _parameters=OrderedDict(parameters),
        _buffers=OrderedDict(buffers or {}),
        _non_persistent_buffers_set=set(),
        _backward_hooks=OrderedDict(),
        _modules=OrderedDict(children or {}),
        _init_args=(),
        _init_kwargs=EasyDict(attributes),
        **attributes,
    )


def persistent(
    seed: int,
    widths: Sequence[int] = (8, 8, 6),
    classes: int = 0,
    clamp: float | None = None,
    noise: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> Saved:
    """A generator of StyleGAN2-ADA. changes: attributes of layers, "activation of SynthesisLayer" and so on."""
    g = torch.Generator().manual_seed(seed)
    changed = dict(changes or {})

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    def given(kind: str, **attributes: Any) -> dict[str, Any]:
        return {name: changed.get(f"{name} of {kind}", value) for name, value in attributes.items()}

    def linear(
        before: int, after: int, activation: str = "linear", lr: float = 1.0, shift: float = 0.0
    ) -> Saved:
        tensors = {"weight": draw(after, before) / lr, "bias": (draw(after) + shift) / lr}
        own = given("FullyConnectedLayer", activation=activation)
        return layer("FullyConnectedLayer", tensors, weight_gain=lr / np.sqrt(before), bias_gain=lr, **own)

    def conv(before: int, after: int, side: int, up: int) -> Saved:
        tensors = {"weight": draw(after, before, 3, 3), "bias": draw(after)}
        buffers = {"resample_filter": _filter(1, 3, 3, 1)}
        if noise:
            tensors["noise_strength"] = draw()
            buffers["noise_const"] = draw(side, side)
        own = given(
            "SynthesisLayer", activation="lrelu", conv_clamp=clamp, resolution=side, up=up, use_noise=noise
        )
        return layer("SynthesisLayer", tensors, {"affine": linear(W2, before, shift=1.0)}, buffers, **own)

    blocks = {}
    for i, width in enumerate(widths):
        before, side = widths[max(i - 1, 0)], 4 << i
        children = {} if i == 0 else {"conv0": conv(before, width, side, 2)}
        children["conv1"] = conv(width, width, side, 1)
        rgb = {"weight": draw(3, width, 1, 1), "bias": draw(3)}
        children["torgb"] = layer(
            "ToRGBLayer", rgb, {"affine": linear(W2, width, shift=1.0)}, conv_clamp=clamp
        )
        own = given("SynthesisBlock", architecture="skip", use_fp16=i > 0, resolution=side)
        constants = {"const": draw(width, 4, 4)} if i == 0 else {}
        buffers = {"resample_filter": _filter(1, 3, 3, 1)}
        blocks[f"b{side}"] = layer("SynthesisBlock", constants, children, buffers, **own)
    size = 4 << (len(widths) - 1)
    synthesis = layer("SynthesisNetwork", {}, blocks, w_dim=W2, img_resolution=size, img_channels=3)
    layers = {} if not classes else {"embed": linear(classes, W2)}
    for i in range(MLP2):
        inputs = 7 + W2 * bool(classes) if i == 0 else W2
        layers[f"fc{i}"] = linear(inputs, W2, "lrelu", LR2)
    own = given("MappingNetwork", z_dim=7, c_dim=classes, w_dim=W2, num_layers=MLP2)
    mapping = layer("MappingNetwork", {}, layers, {"w_avg": draw(W2)}, **own)
    return layer("Generator", {}, {"synthesis": synthesis, "mapping": mapping}, z_dim=7, img_resolution=size)


def write_persistent(path: Path, content: Mapping[str, Any], protocol: int = 4) -> Path:
    """A pickle of such objects. The modules that it names exist while it is written."""
    made = {
        name: types.ModuleType(name)
        for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    _never.__module__, _never.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    _never.__name__ = "_reconstruct_persistent_obj"
    EasyDict.__module__ = "dnnlib.util"
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _never  # type: ignore[attr-defined]
    made["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        path.write_bytes(pickle.dumps(dict(content), protocol=protocol))
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return path


def flat(saved: Saved, prefix: str = "") -> State:
    """Its tensors, by names with dots."""
    state = saved.state
    found = {prefix + n: t.detach() for group in ("_parameters", "_buffers") for n, t in state[group].items()}
    for name, child in state["_modules"].items():
        found |= flat(child, f"{prefix}{name}.")
    return found


def persistent_w(s: State, z: Tensor, labels: Tensor | None) -> Tensor:
    """w of z and labels."""
    x = _rms(z)
    if labels is not None:
        weight, bias = (s[f"mapping.embed.{part}"].to(z.dtype) for part in ("weight", "bias"))
        x = torch.cat([x, _rms(weight.t()[labels] / math.sqrt(weight.shape[1]) + bias)], 1)
    return _perceptron(x, [(s[f"mapping.fc{i}.weight"], s[f"mapping.fc{i}.bias"]) for i in range(MLP2)], LR2)


def draw_persistent(s: State, ws: Tensor, noise: bool, clamp: float | None) -> Tensor:
    """Images of styles [B, layers + 1, W2], with the fixed noise of the layers."""
    s = {name.removeprefix("synthesis."): value.to(ws.dtype) for name, value in s.items()}
    limit = math.inf if clamp is None else clamp

    def style(name: str, i: int) -> Tensor:
        return ws[:, i] @ (s[f"{name}.affine.weight"] / math.sqrt(W2)).t() + s[f"{name}.affine.bias"]

    x, image, i, side = s["b4.const"].repeat(len(ws), 1, 1, 1), None, 0, 4
    while f"b{side}.conv1.weight" in s:
        for name in (f"b{side}.conv0", f"b{side}.conv1"):
            if f"{name}.weight" not in s:
                continue
            kernel = 4 * s[f"{name}.resample_filter"] if name.endswith("0") else None
            x = _own_filters(x, s[f"{name}.weight"], style(name, i), kernel, True)
            if noise:
                x = x + s[f"{name}.noise_strength"] * s[f"{name}.noise_const"]
            x = math.sqrt(2) * F.leaky_relu(x + s[f"{name}.bias"][:, None, None], 0.2)
            x, i = x.clamp(-limit, limit), i + 1
        rgb = f"b{side}.torgb"
        shown = _own_filters(x, s[f"{rgb}.weight"], style(rgb, i) / math.sqrt(x.shape[1]), None, False)
        shown = (shown + s[f"{rgb}.bias"][:, None, None]).clamp(-limit, limit)
        if image is not None:
            shown = shown + _fir(_zoom(image), 4 * s[f"b{side}.resample_filter"], 2, 2)
        image, side = shown, 2 * side
    assert image is not None
    return image
