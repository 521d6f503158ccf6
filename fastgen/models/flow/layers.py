"""Layers of a normalising flow: each knows its inverse and its log-determinant.

`forward` goes from data to latents, `inverse` from latents to data; both return the log-determinant of the direction
that was asked for. Everything is computed in x's type, whatever the type of the parameters; a `Flow` gives its layers
float32 or float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, ConfigError

Shape = tuple[int, ...]

EPS = 1e-6  # what an ActNorm's first deviations are taken to be above
FLOAT32_ROUNDING = 2.0**-20  # of a value that a few operations have rounded


class Layer(nn.Module):
    """An invertible map of [B, C, H, W] or [B, D].

    name: where the layer stands in its flow, such as ``scales.0.3``; errors say it.
    """

    name = "layer"

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Towards the latents: y and log |det dy/dx|, [B], typed as x.

        condition: labels int64 [B] or a context [B, D_c] (for some networks [B, C_c, H, W]), where the layer uses one.
        """
        raise NotImplementedError

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Towards the data: x and log |det dx/dy|, [B], typed as y."""
        raise NotImplementedError

    def outside(self, x: Tensor) -> Tensor | None:
        """bool like x: where `forward` has no value. None for a layer that takes every real number."""
        return None

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of one sample after `forward`. Raises ConfigError where the layer cannot take `shape`."""
        return shape

    def check(self) -> None:
        """Raise CheckpointError, naming the layer, if its weights cannot be inverted."""


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] as a factor of x [B, C, ...], in x's type."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def pixels(x: Tensor) -> int:
    """Elements of one channel of one sample."""
    return math.prod(x.shape[2:])


def zeros(x: Tensor) -> Tensor:
    """The log-determinant of a layer that preserves volume: [B]."""
    return x.new_zeros(x.shape[0])


def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel of x [B, C, ...]: float64 [C]."""
    channels = x.detach().double().transpose(0, 1).flatten(1)
    std, mean = torch.std_mean(channels, dim=1, correction=0)
    return std, mean


class ActNorm(Layer):
    """y = scale * (x + loc), a number for each channel (Kingma & Dhariwal 2018, section 3.1).

    loc, scale: [C]; the scale may be negative, but not 0. initialised: uint8, 0 until `initialize` has seen data; until
    then the layer is the identity, unless weights were loaded.

    Elsewhere: exp(s) x + t has scale = exp(s), loc = t exp(-s) (nflows); its inverse (x - t) exp(-s), as in normflows,
    has scale = exp(-s), loc = -t. A batch norm at inference is one too.
    """

    loc: nn.Parameter
    scale: nn.Parameter
    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.ones(channels))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.uint8))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Choose loc and scale so that y has mean 0 and standard deviation 1 in each channel of x [B, C, ...].

        A channel that is constant there, but for rounding, keeps scale 1: it may vary elsewhere, by any amount.
        """
        std, mean = _spread(x)
        constant = std <= EPS + FLOAT32_ROUNDING * mean.abs()
        self.loc.copy_(-mean)
        self.scale.copy_(torch.where(constant, 1.0, 1 / (std + EPS)))
        self.initialised.fill_(1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = per_channel(self.scale, x) * (x + per_channel(self.loc, x))
        return y, self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y / per_channel(self.scale, y) - per_channel(self.loc, y), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (pixels(x) * self.scale.to(x.dtype).abs().log().sum()).expand(x.shape[0])

    def check(self) -> None:
        zero = self.scale.detach() == 0
        if bool(zero.any()):
            raise CheckpointError(
                f"the scale of channel {int(zero.nonzero()[0])} is 0, so that nothing can be inverted; "
                "were the weights trained?",
                argument=self.name,
            )


class Standardise(ActNorm):
    """y = (x - mean) / std, fixed by the training data and not learned: `loc` is -mean, `scale` 1 / std.

    `initialize` takes them from any number of rows: all of the training data, if that was not done by
    `Flow.initialize` with the first batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        for name in ("loc", "scale"):
            value = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, value)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Whatever the unit of a channel: y has mean 0 and standard deviation 1, but where x is constant, scale 1."""
        std, mean = _spread(x)
        self.loc.copy_(-mean)
        self.scale.copy_(torch.where(std > 0, 1 / std, 1.0))
        self.initialised.fill_(1)


class Scaling(Layer):
    """y = exp(log_scale) x, a number for each channel, 1 to begin with (Dinh et al. 2015, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * per_channel(self.log_scale.exp(), x), self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y * per_channel((-self.log_scale).exp(), y), -self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return (pixels(x) * self.log_scale.to(x.dtype).sum()).expand(x.shape[0])


class Affine(Layer):
    """y = scale * x + shift, the same two numbers everywhere: x - 1/2 for images in [0, 1] (Glow's code)."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.scale * x + self.shift, self._log_det(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (y - self.shift) / self.scale, -self._log_det(y)

    def check(self) -> None:
        if self.scale == 0 or not math.isfinite(self.scale) or not math.isfinite(self.shift):
            raise CheckpointError(
                f"expected a finite shift and a finite scale other than 0, so that it can be undone, "
                f"got scale {self.scale}, shift {self.shift}",
                argument=self.name,
            )

    def _log_det(self, x: Tensor) -> Tensor:
        return x.new_full((x.shape[0],), math.log(abs(self.scale)) * math.prod(x.shape[1:]))


class Logit(Layer):
    """y = logit(alpha + (1 - 2 alpha) x), which takes [0, 1] to the real line (Dinh et al. 2017, section 4.1).

    Written so that x close to 1 loses no more than x close to 0. The inverse of any y lies in
    (-alpha, 1 - alpha) / (1 - 2 alpha), a little more than [0, 1]; outside of it y is infinite or NaN.
    Elsewhere: the logit of x (1 - a) + a / 2 has alpha = a / 2.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def outside(self, x: Tensor) -> Tensor:
        span = 1 - 2 * self.alpha
        return (self.alpha + span * x <= 0) | (self.alpha + span * (1 - x) <= 0)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        span = 1 - 2 * self.alpha
        log_u = torch.log(self.alpha + span * x)
        log_rest = torch.log(self.alpha + span * (1 - x))
        log_det = (math.log(span) - log_u - log_rest).flatten(1).sum(1)
        return log_u - log_rest, log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        span = 1 - 2 * self.alpha
        x = (torch.sigmoid(y) - self.alpha) / span
        slopes = nn.functional.logsigmoid(y) + nn.functional.logsigmoid(-y) - math.log(span)
        return x, slopes.flatten(1).sum(1)


class Permutation(Layer):
    """y[:, i] = x[:, index[i]]: a fixed order of the channels. index: int64 [C], a permutation of 0 .. C - 1."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.to(torch.int64))

    @classmethod
    def random(cls, channels: int) -> Permutation:
        return cls(torch.randperm(channels))

    @classmethod
    def reverse(cls, channels: int) -> Permutation:
        """The last channel first (RealNVP's alternation, as a layer)."""
        return cls(torch.arange(channels - 1, -1, -1))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.index], zeros(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y[:, torch.argsort(self.index)], zeros(y)

    def check(self) -> None:
        if sorted(self.index.tolist()) != list(range(len(self.index))):
            raise CheckpointError(
                f"its index must hold each of 0 to {len(self.index) - 1} once, so that it can be undone",
                argument=self.name,
            )


class Squeeze(Layer):
    """Four pixels become four channels: [B, C, H, W] <-> [B, 4C, H/2, W/2] (Dinh et al. 2017, section 3.6).

    order: which channel a pixel (row dy, column dx of its 2x2 square) of channel c becomes. "channel_major":
    4c + 2dy + dx (Glow's code and all that follow it). "pixel_major": (2dy + dx) C + c (space-to-depth).
    """

    def __init__(self, order: str = "channel_major") -> None:
        super().__init__()
        self.channel_major = order == "channel_major"

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        squares = x.reshape(batch, channels, height // 2, 2, width // 2, 2)  # b c y dy x dx
        axes = (0, 1, 3, 5, 2, 4) if self.channel_major else (0, 3, 5, 1, 2, 4)
        return squares.permute(axes).reshape(batch, 4 * channels, height // 2, width // 2), zeros(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = y.shape
        if self.channel_major:
            squares = y.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        else:
            squares = y.reshape(batch, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
        return squares.reshape(batch, channels // 4, 2 * height, 2 * width), zeros(y)

    def out_shape(self, shape: Shape) -> Shape:
        channels, height, width = shape
        if height % 2 or width % 2:
            raise ConfigError(
                f"cannot squeeze {height}x{width}, both sides must be even: an image's sides must be "
                "divisible by 2 for each squeeze; pad it, or take fewer scales",
                argument=self.name,
            )
        return 4 * channels, height // 2, width // 2


class Flatten(Layer):
    """[B, C, H, W] <-> [B, C H W], for vector flows on images. shape: (C, H, W)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), zeros(x)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y.view(-1, *self.shape), zeros(y)

    def out_shape(self, shape: Shape) -> Shape:
        return (math.prod(shape),)
