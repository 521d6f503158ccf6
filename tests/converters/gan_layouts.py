"""Networks of other projects' layouts, as functions of state dicts with random values: what conversions must equal.

Written from the papers and the layouts' names alone; everything is float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Values:
    """Random tensors by name, of a trained network's size."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def normal(self, name: str, *shape: int, size: float = 1.0) -> None:
        self.state[name] = size * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def statistics(self, mean: str, var: str, *shape: int) -> None:
        self.normal(mean, *shape, size=0.3)
        self.state[var] = 0.5 + torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def weight(self, name: str, *shape: int, bias: bool = True) -> None:
        self.normal(f"{name}.weight", *shape, size=1 / math.prod(shape[1:]) ** 0.5)
        if bias:
            self.normal(f"{name}.bias", shape[0], size=0.1)


def ajbrock(
    seed: int, *, deep: bool, shared: bool, hierarchical: bool, norms: str = "", spectral: bool = True
) -> State:
    """A generator for 16x16 pixels, two stages, attention behind the first. norms: "", "bn.stored" or "bn.running"."""
    v, classes, embedded, latent, ch = Values(seed), 5, 6, 12, 8
    widths = [4 * ch, 2 * ch, ch]
    part = latent // 3 if hierarchical and not deep else latent
    inputs = embedded + (part if hierarchical or deep else 0)

    def layer(name: str, *shape: int, bias: bool = True, on: bool = spectral) -> None:
        v.weight(name, *shape, bias=bias)
        if on:
            v.normal(f"{name}.u0", 1, shape[0])
            v.state[f"{name}.sv0"] = torch.ones(1)

    def norm(name: str, channels: int) -> None:
        if shared:
            layer(f"{name}.gain", channels, inputs, bias=False)
            layer(f"{name}.bias", channels, inputs, bias=False)
        else:
            v.normal(f"{name}.gain.weight", classes, channels, size=0.3)
            v.normal(f"{name}.bias.weight", classes, channels, size=0.3)
        statistics(name, channels)

    def statistics(name: str, channels: int) -> None:
        kind = {"": "stored", "bn.stored": "bn.stored", "bn.running": "bn.running"}[norms]
        v.statistics(f"{name}.{kind}_mean", f"{name}.{kind}_var", channels)
        if norms == "bn.stored":
            v.state[f"{name}.bn.accumulation_counter"] = torch.zeros(1)

    if shared:
        v.normal("shared.weight", classes, embedded)
    layer("linear", 16 * widths[0], (latent + embedded) if deep else part)
    number = 0
    for before, after in itertools.pairwise(widths):
        for i in range(2 if deep else 1):
            name, out = f"blocks.{number}.0", after if not deep or i else before
            if deep:
                middle = before // 4
                sizes = [(middle, before, 1), (middle, middle, 3), (middle, middle, 3), (out, middle, 1)]
                inward = [before, middle, middle, middle]
            else:
                sizes = [(after, before, 3), (after, after, 3)]
                inward = [before, after]
                layer(f"{name}.conv_sc", after, before, 1, 1)
            for n, (size, channels) in enumerate(zip(sizes, inward, strict=True), 1):
                layer(f"{name}.conv{n}", size[0], size[1], size[2], size[2])
                norm(f"{name}.bn{n}", channels)
            number += 1
        if before == widths[0]:
            place, c = f"blocks.{number - 1}.1", after
            for conv, shape in {
                "theta": (c // 8, c),
                "phi": (c // 8, c),
                "g": (c // 2, c),
                "o": (c, c // 2),
            }.items():
                layer(f"{place}.{conv}", *shape, 1, 1, bias=False)
            v.state[f"{place}.gamma"] = torch.tensor(0.7, dtype=torch.float64)
    v.normal("output_layer.0.gain", ch)
    v.normal("output_layer.0.bias", ch)
    statistics("output_layer.0", ch)
    layer("output_layer.2", 3, ch, 3, 3)
    return v.state


def run_ajbrock(
    s: Mapping[str, Tensor], z: Tensor, labels: Tensor, *, deep: bool, hierarchical: bool
) -> Tensor:
    """Its images, in evaluation mode."""

    def normed(name: str, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        known = [s[k] for kind in ("mean", "var") for k in s if k.startswith(name) and k.endswith(f"_{kind}")]
        y = F.batch_norm(x, known[0], known[1], eps=1e-5)
        return F.relu(y * gain.reshape(-1, y.shape[1], 1, 1) + bias.reshape(-1, y.shape[1], 1, 1))

    def norm(name: str, x: Tensor, y: Tensor) -> Tensor:
        gain, bias = (
            F.embedding(y, s[f"{name}.{n}.weight"])
            if y.dtype == torch.int64
            else y @ _weight(s, f"{name}.{n}").t()
            for n in ("gain", "bias")
        )
        return normed(name, x, 1 + gain, bias)

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    embedded = F.embedding(labels, s["shared.weight"]) if "shared.weight" in s else labels
    blocks = 1 + max(int(name.split(".")[1]) for name in s if name.startswith("blocks."))
    if deep:
        z = torch.cat([embedded, z], 1)
        conditions: Sequence[Tensor] = [z] * blocks
    elif hierarchical:
        z, *rest = z.chunk(blocks + 1, 1)
        conditions = [torch.cat([embedded, part], 1) for part in rest]
    else:
        conditions = [embedded] * blocks
    x = (z @ _weight(s, "linear").t() + s["linear.bias"]).reshape(len(z), -1, 4, 4)
    for i, y in enumerate(conditions):
        name = f"blocks.{i}.0"
        h = norm(f"{name}.bn1", x, y)
        if deep:
            h = norm(f"{name}.bn2", _conv(s, f"{name}.conv1", h), y)
            x = x[:, : s[f"{name}.conv4.weight"].shape[0]]
            if i % 2:
                h, x = up(h), up(x)
            h = norm(f"{name}.bn3", _conv(s, f"{name}.conv2", h), y)
            x = x + _conv(s, f"{name}.conv4", norm(f"{name}.bn4", _conv(s, f"{name}.conv3", h), y))
        else:
            h = norm(f"{name}.bn2", _conv(s, f"{name}.conv1", up(h)), y)
            x = _conv(s, f"{name}.conv_sc", up(x)) + _conv(s, f"{name}.conv2", h)
        if f"blocks.{i}.1.gamma" in s:
            x = _attended(s, f"blocks.{i}.1", x)
    x = normed("output_layer.0", x, s["output_layer.0.gain"], s["output_layer.0.bias"])
    return torch.tanh(_conv(s, "output_layer.2", x))


def ajbrock_discriminator(seed: int, *, deep: bool, small: bool, depth: int = 1) -> State:
    """A discriminator, attention behind the second stage. small: of 32x32 pixels, else of 64x64."""
    v, classes, ch = Values(seed), 5, 8
    widths = [4 * ch] * 4 if small else [ch, 2 * ch, 4 * ch, 8 * ch, 16 * ch]

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        v.weight(name, *shape, bias=bias)
        v.normal(f"{name}.u0", 1, shape[0])
        v.state[f"{name}.sv0"] = torch.ones(1)

    before = 3
    if deep:
        before, *widths = widths
        layer("input_conv", before, 3, 3, 3)
    for i, width in enumerate(widths):
        for j in range(depth):
            name = f"blocks.{i}.{j}"
            if deep:
                middle = width // 4
                sizes = [(middle, before, 1), (middle, middle, 3), (middle, middle, 3), (width, middle, 1)]
            else:
                sizes = [(width, before, 3), (width, width, 3)]
            for n, (rows, columns, side) in enumerate(sizes, 1):
                layer(f"{name}.conv{n}", rows, columns, side, side)
            halves = i < 2 if small else deep or i < len(widths) - 1
            if before != width or (halves and not deep):
                layer(f"{name}.conv_sc", width - before * deep, before, 1, 1)
            before = width
        if i == 1:
            place = f"blocks.{i}.{depth}"
            c = width
            for conv, shape in {
                "theta": (c // 8, c),
                "phi": (c // 8, c),
                "g": (c // 2, c),
                "o": (c, c // 2),
            }.items():
                layer(f"{place}.{conv}", *shape, 1, 1, bias=False)
            v.state[f"{place}.gamma"] = torch.tensor(0.7, dtype=torch.float64)
    layer("linear", 1, before)
    layer("embed", classes, before, bias=False)
    return v.state


def run_ajbrock_discriminator(
    s: Mapping[str, Tensor], x: Tensor, labels: Tensor, *, deep: bool, halvings: int
) -> Tensor:
    """Its logits [B], in evaluation mode. halvings: how many stages halve the image's sides."""
    x = _conv(s, "input_conv", x) if deep else x
    for i in range(1 + max(int(name.split(".")[1]) for name in s if name.startswith("blocks."))):
        j = 0
        while f"blocks.{i}.{j}.conv1.weight" in s:
            name, halves = f"blocks.{i}.{j}", i < halvings and j == 0
            h = x if i == 0 and not deep else F.relu(x)
            for conv in ("conv1", "conv2", "conv3") if deep else ("conv1",):
                h = F.relu(_conv(s, f"{name}.{conv}", h))
            if deep:
                h, x = (_halved(t) if halves else t for t in (h, x))
                h = _conv(s, f"{name}.conv4", h)
                if f"{name}.conv_sc.weight" in s:
                    x = torch.cat([x, _conv(s, f"{name}.conv_sc", x)], 1)
            else:
                h = _conv(s, f"{name}.conv2", h)
                if f"{name}.conv_sc.weight" in s:
                    x = _conv(s, f"{name}.conv_sc", x)
                h, x = (_halved(t) if halves else t for t in (h, x))
            x = h + x
            j += 1
        if f"blocks.{i}.{j}.gamma" in s:
            x = _attended(s, f"blocks.{i}.{j}", x)
    features = F.relu(x).sum((2, 3))
    rows = _weight(s, "embed")[labels] + _weight(s, "linear")
    return (features * rows).sum(1) + s["linear.bias"]


def _halved(x: Tensor) -> Tensor:
    """Means of four pixels."""
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _weight(s: Mapping[str, Tensor], name: str) -> Tensor:
    w = s[f"{name}.weight"]
    if f"{name}.u0" not in s:
        return w
    matrix = w.flatten(1)
    right = F.normalize(s[f"{name}.u0"] @ matrix)
    return w / (right @ matrix.t()).norm()


def _conv(s: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    w = _weight(s, name)
    return F.conv2d(x, w, s.get(f"{name}.bias"), padding=w.shape[2] // 2)


def _attended(s: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    query, key, value = (_conv(s, f"{name}.{n}", x) for n in ("theta", "phi", "g"))
    key, value = F.max_pool2d(key, 2).flatten(2), F.max_pool2d(value, 2).flatten(2)
    beta = torch.einsum("bcq,bck->bqk", query.flatten(2), key).softmax(-1)
    found = torch.einsum("bqk,bck->bcq", beta, value).reshape(len(x), -1, *x.shape[2:])
    return x + s[f"{name}.gamma"] * _conv(s, f"{name}.o", found)


def pretrained(seed: int, levels: int = 6) -> State:
    """pytorch-pretrained-BigGAN for 64x64 pixels: four stages of two blocks, attention behind the second."""
    v, classes, z_dim, ch = Values(seed), 5, 6, 8
    widths = [16, 8, 4, 2, 1]

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        v.weight(name, *shape, bias=bias)
        v.state[f"{name}.weight_orig"] = v.state.pop(f"{name}.weight")
        matrix = v.state[f"{name}.weight_orig"].flatten(1)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        v.state[f"{name}.weight_u"], v.state[f"{name}.weight_v"] = u[:, 0], vh[0]

    def norm(name: str, channels: int) -> None:
        v.statistics(f"{name}.running_means", f"{name}.running_vars", levels, channels)

    v.normal("embeddings.weight", z_dim, classes)
    layer("generator.gen_z", 16 * 16 * ch, 2 * z_dim)
    number = 0
    for stage, (before, after) in enumerate(itertools.pairwise(widths)):
        if stage == 2:
            name, c = f"generator.layers.{number}", before * ch
            for conv, shape in {
                "theta": (c // 8, c),
                "phi": (c // 8, c),
                "g": (c // 2, c),
                "o_conv": (c, c // 2),
            }.items():
                layer(f"{name}.snconv1x1_{conv}", *shape, 1, 1, bias=False)
            v.state[f"{name}.gamma"] = torch.full((1,), 0.7, dtype=torch.float64)
            number += 1
        for out in (before, after):
            name, c, middle = f"generator.layers.{number}", before * ch, before * ch // 4
            sizes = [(middle, c, 1), (middle, middle, 3), (middle, middle, 3), (out * ch, middle, 1)]
            for n, (rows, columns, side) in enumerate(sizes):
                layer(f"{name}.conv_{n}", rows, columns, side, side)
                norm(f"{name}.bn_{n}", columns)
                for kind in ("scale", "offset"):
                    layer(f"{name}.bn_{n}.{kind}", columns, 2 * z_dim, bias=False)
            number += 1
    norm("generator.bn", ch)
    v.normal("generator.bn.weight", ch)
    v.normal("generator.bn.bias", ch)
    layer("generator.conv_to_rgb", ch, ch, 3, 3)
    return v.state


def run_pretrained(
    s: Mapping[str, Tensor], z: Tensor, labels: Tensor, truncation: float, eps: float
) -> Tensor:
    """Its images. Between two sets of statistics the farther one has the larger weight, as in the project's code."""

    def weight(name: str) -> Tensor:
        w = s[f"{name}.weight_orig"]
        return w / (s[f"{name}.weight_u"] @ w.flatten(1) @ s[f"{name}.weight_v"])

    def conv(name: str, x: Tensor) -> Tensor:
        w = weight(name)
        return F.conv2d(x, w, s.get(f"{name}.bias"), padding=w.shape[2] // 2)

    def at(known: Tensor) -> Tensor:
        share, low = math.modf(truncation / (1.0 / (len(known) - 1)))
        row = known[int(low)]
        return row if share == 0 else row * share + known[int(low) + 1] * (1 - share)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = at(s[f"{name}.running_means"]), at(s[f"{name}.running_vars"])
        if f"{name}.weight" in s:
            gain, bias = s[f"{name}.weight"][None], s[f"{name}.bias"][None]
        else:
            gain, bias = (condition @ weight(f"{name}.{kind}").t() for kind in ("scale", "offset"))
            gain = 1 + gain
        x = (x - mean[:, None, None]) / torch.sqrt(var + eps)[:, None, None]
        return F.relu(x * gain[..., None, None] + bias[..., None, None])

    condition = torch.cat([z, s["embeddings.weight"].t()[labels]], 1)
    x = condition @ weight("generator.gen_z").t() + s["generator.gen_z.bias"]
    x = x.reshape(len(z), 4, 4, -1).permute(0, 3, 1, 2)
    count = 1 + max(int(name.split(".")[2]) for name in s if name.startswith("generator.layers."))
    second = False
    for i in range(count):
        name = f"generator.layers.{i}"
        if f"{name}.gamma" in s:
            query, key, value = (conv(f"{name}.snconv1x1_{n}", x) for n in ("theta", "phi", "g"))
            key, value = F.max_pool2d(key, 2).flatten(2), F.max_pool2d(value, 2).flatten(2)
            beta = (query.flatten(2).transpose(1, 2) @ key).softmax(-1)
            found = (value @ beta.transpose(1, 2)).reshape(len(x), -1, *x.shape[2:])
            x = x + s[f"{name}.gamma"] * conv(f"{name}.snconv1x1_o_conv", found)
            continue
        h = norm(f"{name}.bn_1", conv(f"{name}.conv_0", norm(f"{name}.bn_0", x)))
        beside = x[:, : s[f"{name}.conv_3.bias"].shape[0]]
        if second:
            h, beside = (t.repeat_interleave(2, 2).repeat_interleave(2, 3) for t in (h, beside))
        h = norm(f"{name}.bn_2", conv(f"{name}.conv_1", h))
        x = conv(f"{name}.conv_3", norm(f"{name}.bn_3", conv(f"{name}.conv_2", h))) + beside
        second = not second
    return torch.tanh(conv("generator.conv_to_rgb", norm("generator.bn", x))[:, :3])
