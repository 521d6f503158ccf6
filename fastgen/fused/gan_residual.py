"""Twins of SAGAN, BigGAN and BigGAN-deep: norms as one scale and shift per sample, attention in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.building import without_values
from ..models.gan.layers import (
    ConditionalNorm,
    DeepDiscriminatorBlock,
    DeepGeneratorBlock,
    DiscriminatorBlock,
    GeneratorBlock,
    SelfAttention,
    doubled,
)
from ..models.gan.residual import ResidualDiscriminator, ResidualGenerator
from ..models.resample import Upsample
from .folding import baked
from .onednn import OneDNNConv, OneDNNUp, takes, takes_up

TABLE = 1 << 24  # elements up to which scales and shifts of all classes are a table


class FusedResidualGenerator(nn.Module):
    """`ResidualGenerator`; labels and latents become the scales and shifts of all norms of a stage in one product."""

    def __init__(self, network: ResidualGenerator) -> None:
        super().__init__()
        config = self.config = network.config
        self.per_stage = max(config.depth, 1)
        self.first = baked(network.first)
        blocks: list[Any] = list(network.blocks)
        stages = [blocks[i : i + self.per_stage] for i in range(0, len(blocks), self.per_stage)]
        self.norms = nn.ModuleList(
            Affine([n for block in stage for n in norms_of(block)], network) for stage in stages
        )
        self.blocks = nn.ModuleList(FusedGeneratorBlock(block) for block in blocks)
        self.attention = nn.ModuleDict(
            {stage: FusedAttention(attention) for stage, attention in network.attention.items()}  # type: ignore[arg-type]
        )
        self.norm = Affine([network.norm], network)
        self.last = convolution(network.last)
        # Where the table is of labels, latents alone are handed to the norms.
        embedded = config.shared > 0 and (
            config.depth > 0 or not all(norm.table is not None for norm in self.norms)
        )
        self.embedding = network.embedding if embedded else None

    def forward(self, z: Tensor, labels: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """See ``ResidualGenerator``."""
        config, side = self.config, self.config.bottom
        embedded = None if self.embedding is None or labels is None else self.embedding(labels)
        if config.depth:
            assert embedded is not None
            first, parts = torch.cat([embedded, z], dim=1), [z] * config.stages
        elif config.shared and config.hierarchical:
            first, *parts = z.split(config.part, dim=1)
        else:
            first, parts = z, []
        x = self.first(first).unflatten(1, (-1, side, side)).contiguous(memory_format=torch.channels_last)
        affine: list[tuple[Tensor, Tensor]] = []
        every: list[Any] = list(self.blocks)
        for i, block in enumerate(every):
            stage = i // self.per_stage
            if i % self.per_stage == 0:
                part = parts[stage] if parts else None
                affine = self.norms[stage](labels, embedded, part, level)
            count = block.count
            x = block(x, affine[:count])
            affine = affine[count:]
            if (i + 1) % self.per_stage == 0 and str(stage) in self.attention:
                x = self.attention[str(stage)](x)
        (found,) = self.norm(labels, None, None, level)
        return self.last(normed(x, found, x)).tanh_()


class Affine(nn.Module):
    """Scale and shift [B, C, 1, 1] of each of `norms`, which share a condition: its map as one product.

    Standing statistics of one set are folded into it. table: by label, what does not depend on latents; None: the
    classes are too many, and the product is of [embedding, latents].
    """

    constant: Tensor
    means: Tensor | None
    variances: Tensor | None

    def __init__(self, norms: Sequence[ConditionalNorm], network: ResidualGenerator) -> None:
        super().__init__()
        config = network.config
        self.sizes = [norm.running_mean.shape[1] for norm in norms]
        self.eps = [norm.eps for norm in norms]
        self.reference = (norms[0],)  # for its way with levels
        dtype = norms[0].running_mean.dtype
        several = len(norms[0].running_mean) > 1
        gains, shifts, ones = [], [], []
        for norm in norms:
            gain, shift, one = _maps(norm)  # [C, inputs]
            if not several:
                mean, scale = norm.running_mean[0].double(), (norm.running_var[0].double() + norm.eps).rsqrt()
                gain, one = gain * scale[:, None], one * scale
                shift = shift - mean[:, None] * gain
                ones.append(torch.cat([one, (norm.bias.double() if norm.gain is None else 0.0) - mean * one]))
            else:
                ones.append(
                    torch.cat([one, norm.bias.double() if norm.gain is None else torch.zeros_like(one)])
                )
            gains.append(gain)
            shifts.append(shift)
        constant = torch.cat(ones)
        rows = torch.cat(
            [part for pair in zip(gains, shifts, strict=True) for part in pair]
        )  # [sum 2C, inputs]
        self.table = self.linear = None
        conditioned = norms[0].gain is not None
        if conditioned:
            shared, classes = config.shared, config.num_classes
            assert classes is not None
            of_label = rows[:, :shared] if shared else rows
            if shared and classes * len(rows) > TABLE:
                self.linear = _linear(rows, constant, dtype)
            else:
                embedding = network.embedding
                known = of_label.t() if embedding is None else embedding.weight.double() @ of_label.t()
                with without_values():
                    self.table = nn.Embedding(classes, len(rows))
                self.table.weight = _frozen((known + constant).to(dtype))
                if shared and rows.shape[1] > shared:
                    self.linear = _linear(rows[:, shared:], None, dtype)
        self.register_buffer("constant", constant.to(dtype))
        kinds = ("means", "running_mean"), ("variances", "running_var")
        for name, theirs in kinds:
            standing = [getattr(norm, theirs) for norm in norms]
            self.register_buffer(name, torch.cat(standing, dim=1) if several else None)

    def forward(
        self, labels: Tensor | None, embedded: Tensor | None, latents: Tensor | None, level: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """For each norm scale and shift."""
        if self.table is None and self.linear is None:
            found = self.constant[None]
        elif self.table is None:
            assert self.linear is not None
            assert embedded is not None
            found = self.linear(embedded if latents is None else torch.cat([embedded, latents], dim=1))
        else:
            found = self.table(labels)
            if self.linear is not None:
                found += self.linear(latents)
        pieces = found[..., None, None].split([size for size in self.sizes for _ in range(2)], dim=1)
        pairs = list(zip(pieces[::2], pieces[1::2], strict=True))
        if self.means is None or self.variances is None:
            return pairs
        norm = self.reference[0]
        mean, variance = (
            norm.at(known, level)[..., None, None].split(self.sizes, dim=1)
            for known in (self.means, self.variances)
        )
        made = []
        for (scale, shift), mu, var, eps in zip(pairs, mean, variance, self.eps, strict=True):
            scale = scale * torch.rsqrt(var + eps)
            made.append((scale, shift - mu * scale))
        return made


class FusedGeneratorBlock(nn.Module):
    """`GeneratorBlock` and `DeepGeneratorBlock`: what is doubled is doubled as late as it can be."""

    def __init__(self, block: GeneratorBlock | DeepGeneratorBlock) -> None:
        super().__init__()
        self.deep = isinstance(block, DeepGeneratorBlock)
        self.count = len(norms_of(block))
        self.after = block.conv4.out_channels if isinstance(block, DeepGeneratorBlock) else 0
        self.up = getattr(block, "up", True)
        if isinstance(block, DeepGeneratorBlock):
            middle = up_convolution(block.conv2) if block.up else convolution(block.conv2)
            convs = [convolution(block.conv1), middle, convolution(block.conv3), convolution(block.conv4)]
            self.shortcut = None
        else:
            convs = [up_convolution(block.conv1), convolution(block.conv2)]
            self.shortcut = convolution(block.shortcut)
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, affine: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """x is not changed: the shortcut sees it."""
        if self.shortcut is not None:
            beside = doubled(self.shortcut(x))
        else:
            beside = x[:, : self.after]
            beside = doubled(beside) if self.up else beside
        hidden = self.convs[0](normed(x, affine[0]))
        for conv, pair in zip(self.convs[1:], affine[1:], strict=True):
            hidden = conv(normed(hidden, pair, hidden))
        return hidden.add_(beside)


class FusedAttention(nn.Module):
    """`SelfAttention`: queries, keys and values by one convolution, gamma within the last one's filters."""

    def __init__(self, block: SelfAttention) -> None:
        super().__init__()
        convs: list[Any] = [baked(conv) for conv in (block.theta, block.phi, block.g)]
        self.sizes = [conv.weight.shape[0] for conv in convs]
        weight = torch.cat([conv.weight.detach() for conv in convs])
        self.inward = convolution(_pointwise(weight))
        last: Any = baked(block.o)
        self.outward = convolution(_pointwise((last.weight.double() * block.gamma.double()).to(weight.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inward(x).split(self.sizes, dim=1)
        key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        # As one head: the CPU's fast kernel wants four dimensions.
        query, key, value = (part.flatten(2).transpose(1, 2)[:, None] for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
        pixels = found.transpose(1, 2).unflatten(2, x.shape[2:])
        return self.outward(pixels.contiguous(memory_format=torch.channels_last)).add_(x)


class FusedResidualDiscriminator(nn.Module):
    """`ResidualDiscriminator` with its norms baked and activations in place."""

    def __init__(self, network: ResidualDiscriminator) -> None:
        super().__init__()
        self.per_stage = max(network.config.depth, 1)
        self.first = None if network.first is None else convolution(network.first)
        self.blocks = nn.ModuleList(FusedDiscriminatorBlock(block) for block in network.blocks)  # type: ignore[arg-type]
        self.attention = nn.ModuleDict(
            {stage: FusedAttention(attention) for stage, attention in network.attention.items()}  # type: ignore[arg-type]
        )
        self.head = baked(network.head)
        self.embedding = None if network.embedding is None else baked(network.embedding)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """See ``ResidualDiscriminator``."""
        if self.first is not None:
            x = self.first(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            stage = str(i // self.per_stage)
            if (i + 1) % self.per_stage == 0 and stage in self.attention:
                x = self.attention[stage](x)
        features = F.relu(x).sum((2, 3))
        logits: Tensor = self.head(features).flatten(0)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * features).sum(1)
        return logits


class FusedDiscriminatorBlock(nn.Module):
    """`DiscriminatorBlock` and `DeepDiscriminatorBlock`: ReLUs within the convolutions before them."""

    def __init__(self, block: DiscriminatorBlock | DeepDiscriminatorBlock) -> None:
        super().__init__()
        self.down, self.deep = block.down, isinstance(block, DeepDiscriminatorBlock)
        self.first = getattr(block, "first", False)
        names = ["conv1", "conv2", "conv3", "conv4"] if self.deep else ["conv1", "conv2"]
        last = len(names) - 1
        self.convs = nn.ModuleList(
            convolution(getattr(block, name), i < last) for i, name in enumerate(names)
        )
        shortcut = block.shortcut
        self.shortcut = (
            None if shortcut is None or isinstance(shortcut, nn.Identity) else convolution(shortcut)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x is not changed."""
        hidden = x if self.first else F.relu(x)
        if self.deep:
            *others, last = self.convs
            for conv in others:
                hidden = conv(hidden)
            if self.down:
                hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)
            if self.shortcut is not None:
                x = torch.cat([x, self.shortcut(x)], dim=1)
            return last(hidden).add_(x)
        for conv in self.convs:
            hidden = conv(hidden)
        if self.down:
            # The mean of pixels and a map of single pixels go in either order: fewer pixels are mapped.
            hidden, x = F.avg_pool2d(hidden, 2), F.avg_pool2d(x, 2)
        return hidden.add_(x if self.shortcut is None else self.shortcut(x))


def norms_of(block: nn.Module) -> list[ConditionalNorm]:
    """In their order."""
    return [module for module in block.children() if isinstance(module, ConditionalNorm)]


def normed(x: Tensor, affine: tuple[Tensor, Tensor], out: Tensor | None = None) -> Tensor:
    """relu(x * scale + shift), into `out`."""
    scale, shift = affine
    return torch.addcmul(shift, x, scale, out=out).relu_()


def convolution(conv: nn.Module, rectified: bool = False) -> nn.Module:
    """The fast form of a convolution here, its spectral norm baked; with a ReLU behind it if `rectified`."""
    plain = baked(conv)
    if takes(plain):
        return OneDNNConv(plain, rectified, prepacked=True)  # type: ignore[arg-type]
    return nn.Sequential(plain, nn.ReLU(inplace=True)) if rectified else plain


def up_convolution(conv: nn.Module) -> nn.Module:
    """A 3x3 convolution of a doubled image."""
    plain: Any = baked(conv)
    with without_values():
        block = Upsample(1)
    block.conv = plain
    return OneDNNUp(block) if takes_up(block) else block


def _maps(norm: ConditionalNorm) -> tuple[Tensor, Tensor, Tensor]:
    """float64: the maps of gain and shift [C, inputs], and what is added to the gain; of a table inputs are classes."""
    if norm.gain is None or norm.shift is None:
        one = norm.weight.detach().double()
        return one.new_zeros(len(one), 0), one.new_zeros(len(one), 0), one
    both = []
    for module in (norm.gain, norm.shift):
        plain: Any = baked(module)
        weight: Tensor = plain.weight.detach().double()
        both.append(weight.t() if isinstance(module, nn.Embedding) else weight)
    return both[0], both[1], torch.ones_like(both[0][:, 0])


def _linear(rows: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    with without_values():
        made = nn.Linear(rows.shape[1], len(rows), bias=bias is not None)
    made.weight = _frozen(rows.to(dtype).contiguous())
    if bias is not None:
        made.bias = _frozen(bias.to(dtype))
    return made


def _pointwise(weight: Tensor) -> nn.Conv2d:
    with without_values():
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight = _frozen(weight)
    return conv


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
