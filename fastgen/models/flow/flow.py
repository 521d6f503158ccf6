"""A normalising flow: scales of layers, a prior for each scale's latent, and the exact log-density they give."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .dequantise import Dequantiser
from .layers import ActNorm, Layer, Shape
from .priors import Prior


class Flow(nn.Module):
    """x -> preprocess -> scale 0 -> half its channels are a latent, the rest -> scale 1 ... -> the last latent.

    preprocess: `Layer`s before the first scale. scales: lists of `Layer`s. After each scale but the last the second
    half of the channels is factored out as that scale's latent (Dinh et al. 2017, section 3.6); of an odd number the
    half that goes on has one more. priors: one per scale.

    x: [B, *data_shape], float32 or float64; lower precision is raised to float32. Discrete data (levels is not None)
    is dequantised to [0, 1] by `dequantiser` first: level k of `levels` lies in [k, k + 1] / levels.
    condition: labels int64 [B] in [0, classes), or a context [B, context]; None for a flow that takes neither.

    Attributes: data_shape, latent_shapes (one per scale), levels, classes, context.
    """

    preprocess: nn.ModuleList
    scales: nn.ModuleList
    priors: nn.ModuleList

    def __init__(
        self,
        data_shape: Shape,
        preprocess: Iterable[Layer],
        scales: Sequence[Iterable[Layer]],
        prior: Callable[[int, Shape, Shape | None], Prior],
        *,
        levels: int | None = None,
        dequantiser: Dequantiser | None = None,
        classes: int | None = None,
        context: int = 0,
    ) -> None:
        """prior: (scale, latent shape, shape of the half that goes on or None) -> the scale's prior."""
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.levels, self.classes, self.context = levels, classes, context
        self.dequantiser = dequantiser
        self.preprocess = nn.ModuleList(preprocess)
        self.scales = nn.ModuleList(nn.ModuleList(layers) for layers in scales)
        for name, module in self.named_modules():
            if isinstance(module, Layer):
                module.name = name
        self.latent_shapes: list[Shape] = []
        priors = []
        for i, (latent, kept) in enumerate(self._shapes()):
            self.latent_shapes.append(latent)
            priors.append(prior(i, latent, kept))
        self.priors = nn.ModuleList(priors)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """The latents, one per scale, and log |det d latents / d x|, [B], preprocessing included."""
        latents, _, log_det = self._analyse(x, condition)
        return latents, log_det

    def inverse(self, latents: Sequence[Tensor], condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x, and log |det d x / d latents|, [B]."""
        x, log_det, _ = self._synthesise(latents, condition)
        return x, log_det

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p(x) in nats, [B]. Of continuous x; `Dequantiser.forward` says how discrete data gets there.

        -inf for x with a value at which there is no density (`outside`).
        """
        x, empty = self.supported(x)
        latents, kept, log_det = self._analyse(x, condition)
        log_prob = log_det + self._log_prior(latents, kept, condition)
        return log_prob if empty is None else log_prob.masked_fill(empty, -math.inf)

    def outside(self, x: Tensor) -> Tensor | None:
        """bool like x: where a value of x [B, ...] lies beyond what the first layer takes, so that the density is 0.

        None for a flow that takes every real number.
        """
        first = next(iter([*_layers(self.preprocess), *self._scales[0]]), None)
        return None if first is None else first.outside(x.to(torch.promote_types(x.dtype, torch.float32)))

    def supported(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x with harmless values where it is `outside`, and bool [B]: which samples had such; None where none can."""
        outside = self.outside(x) if x.is_floating_point() else None  # else refused where it is looked at
        if outside is None:
            return x, None
        return torch.where(outside, 0.5, x), outside.flatten(1).any(1)

    def log_prior(self, latents: Sequence[Tensor], condition: Tensor | None = None) -> Tensor:
        """log p(latents), [B]. Where a prior looks at the next scale, the flow is walked back to find it."""
        self._check_given(latents)
        self._check_condition(condition, latents[0].shape[0])
        kept: list[Tensor | None] = [None] * len(latents)
        if any(prior.needs_kept for prior in self._priors):
            _, _, kept = self._synthesise(latents, condition)
        return self._log_prior(latents, kept, condition)

    def sample(
        self,
        noise: Sequence[Tensor],
        temperature: float | Tensor = 1.0,
        condition: Tensor | None = None,
    ) -> Tensor:
        """x [B, *data_shape] from standard normal noise, one [B, *latent_shape] a scale.

        Its latents are the priors' means + temperature * their standard deviations * noise.
        """

        def latent(i: int, kept: Tensor | None) -> Tensor:
            return self._priors[i].draw(noise[i], temperature, kept, condition)

        return self._synthesise(noise, condition, latent)[0]

    @torch.no_grad()
    def initialize(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Set every `ActNorm` that no data has set yet, first to last, by what x [B, *data_shape] is there.

        Kingma & Dhariwal 2018, section 3.1. Deterministic; a flow whose layers are all set stays as it is.
        """
        fresh = [m for m in self.modules() if isinstance(m, ActNorm) and not bool(m.initialised)]
        hooks = [
            module.register_forward_pre_hook(lambda layer, arguments: layer.initialize(arguments[0]))
            for module in fresh
        ]
        try:
            if fresh:
                self._analyse(x, condition)
        finally:
            for hook in hooks:
                hook.remove()

    def check(self) -> None:
        """Raise CheckpointError, naming the layer, if the weights of one cannot be inverted."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.check()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """After a scale but the last: views of what goes on and of the latent."""
        kept, latent = x.tensor_split([(x.shape[1] + 1) // 2], dim=1)
        return kept, latent

    @property
    def _priors(self) -> list[Prior]:
        return cast(list[Prior], list(self.priors))

    @property
    def _scales(self) -> list[list[Layer]]:
        """Layers of each scale."""
        return [_layers(scale) for scale in self.scales]

    def _check_condition(self, condition: Tensor | None, batch: int) -> None:
        """Raise ConfigError for a condition that the flow cannot use; labels are read where that costs nothing."""
        if self.classes is not None:
            wanted = f"labels int64 [{batch}] in [0, {self.classes})"
            fits = (
                condition is not None
                and condition.dtype == torch.int64
                and tuple(condition.shape) == (batch,)
            )
            if fits and condition is not None and condition.is_cpu and not torch.compiler.is_compiling():
                fits = batch == 0 or bool((condition >= 0).all() and (condition < self.classes).all())
        elif self.context:
            wanted = f"a context [{batch}, {self.context}]"
            fits = condition is not None and tuple(condition.shape) == (batch, self.context)
        else:
            wanted, fits = "None, this flow takes neither labels nor a context", condition is None
        if not fits:
            got = "None" if condition is None else f"{condition.dtype} of shape {list(condition.shape)}"
            if condition is not None and condition.dim() == 1 and condition.is_cpu and condition.numel():
                got += f", values {condition.min()} to {condition.max()}"
            raise ConfigError(f"expected {wanted}, got {got}", argument="condition")

    def _shapes(self) -> Iterable[tuple[Shape, Shape | None]]:
        """For each scale the shapes of its latent and of what goes on. Raises ConfigError where layers do not fit."""
        shape = self.data_shape
        for layer in _layers(self.preprocess):
            shape = layer.out_shape(shape)
        for i, scale in enumerate(self._scales):
            for layer in scale:
                shape = layer.out_shape(shape)
            if i == len(self.scales) - 1:
                yield shape, None
            else:
                if shape[0] < 2:
                    raise ConfigError(
                        "one channel cannot be halved: squeeze before, or take one scale",
                        argument=f"scales.{i}",
                    )
                latent, shape = (shape[0] // 2, *shape[1:]), ((shape[0] + 1) // 2, *shape[1:])
                yield latent, shape

    def _analyse(
        self, x: Tensor, condition: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor | None], Tensor]:
        """Latents, what went on after each scale (None after the last), log-determinant."""
        if tuple(x.shape[1:]) != self.data_shape:
            raise ConfigError(
                f"expected shape [B, {', '.join(map(str, self.data_shape))}], got {list(x.shape)}",
                argument="x",
            )
        if not x.is_floating_point():
            raise ConfigError(
                f"expected floating point numbers, got {x.dtype}; levels become numbers by `dequantiser`",
                argument="x",
            )
        self._check_condition(condition, x.shape[0])
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        log_det = x.new_zeros(x.shape[0])
        for layer in _layers(self.preprocess):
            x, change = layer(x, condition)
            log_det = log_det + change
        latents: list[Tensor] = []
        kept: list[Tensor | None] = []
        for i, scale in enumerate(self._scales):
            for layer in scale:
                x, change = layer(x, condition)
                log_det = log_det + change
            if i == len(self.scales) - 1:
                latents.append(x)
                kept.append(None)
            else:
                x, latent = self.split(x)
                latents.append(latent)
                kept.append(x)
        return latents, kept, log_det

    def _synthesise(
        self,
        given: Sequence[Tensor],
        condition: Tensor | None,
        latent: Callable[[int, Tensor | None], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """x, log-determinant, and what went on after each scale (None after the last).

        given: latents, or else noise, of which latent(scale, what went on) makes them.
        """
        self._check_given(given)
        self._check_condition(condition, given[0].shape[0])
        kept: list[Tensor | None] = []
        x: Tensor | None = None
        dtype = functools.reduce(torch.promote_types, (z.dtype for z in given), torch.float32)
        log_det = given[0].new_zeros(given[0].shape[0], dtype=dtype)
        for i, layers in reversed(list(enumerate(self._scales))):
            z = (given[i] if latent is None else latent(i, x)).to(dtype)
            kept.insert(0, x)
            x = z if x is None else torch.cat([x, z], dim=1)
            for layer in reversed(layers):
                x, change = layer.inverse(x, condition)
                log_det = log_det + change
        assert x is not None
        for layer in reversed(_layers(self.preprocess)):
            x, change = layer.inverse(x, condition)
            log_det = log_det + change
        return x, log_det, kept

    def _check_given(self, given: Sequence[Tensor]) -> None:
        """Raise ConfigError for latents, or noise, of other shapes than the flow's."""
        wanted = [f"[B, {', '.join(map(str, shape))}]" for shape in self.latent_shapes]
        got = [list(z.shape) for z in given]
        fits = len(given) == len(wanted) and all(
            tuple(z.shape) == (given[0].shape[0], *shape)
            for z, shape in zip(given, self.latent_shapes, strict=True)
        )
        if not fits:
            raise ConfigError(
                f"expected one tensor per scale, {', '.join(wanted)}, got {', '.join(map(str, got))}",
                argument="latents or noise",
            )

    def _log_prior(
        self, latents: Sequence[Tensor], kept: Sequence[Tensor | None], condition: Tensor | None
    ) -> Tensor:
        terms = [
            prior.log_prob(z, rest, condition)
            for prior, z, rest in zip(self._priors, latents, kept, strict=True)
        ]
        return torch.stack(terms).sum(0)


def _layers(chain: nn.Module) -> list[Layer]:
    return list(cast(Iterable[Layer], chain))
