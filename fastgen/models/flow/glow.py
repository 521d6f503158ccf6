"""Glow (Kingma & Dhariwal 2018), with the options of the codes in circulation."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import bounded, one_of
from .layers import ActNorm, Layer, Permutation, Squeeze
from .linear import LUConv, PlainConv
from .options import ImageFlow, ImageOptions

__all__ = ["Glow", "GlowConfig"]


@dataclass(frozen=True, kw_only=True)
class GlowConfig(ImageOptions):
    """Options of :class:`Glow`; those of every flow on images are in `ImageOptions`.

    num_scales: each squeezes and, but for the last, factors half of the channels out. steps_per_scale: ActNorm,
        linear, coupling, so often.
    linear: lu or plain 1x1 convolution, or shuffle or reverse, a fixed order of the channels.
    changes: which half a coupling changes, 0 the first, 1 the second.

    Elsewhere, each a renaming of tensors:
        rosinality/glow-pytorch: shift_first, changes 1, scale sigmoid (additive where affine is false), prior conv,
            prior_border 1, conv_border 1, preprocessing centre, levels 2^n_bits, linear lu or plain.
        normflows: parameters shift_scale_interleaved; scale_map exp or sigmoid_inv is scale exp or sigmoid with
            reverse, scale_map sigmoid is scale sigmoid with shift_first, the last convolution's weights for the shift
            negated; changes 1 (split_mode channel) or 0 (channel_inv); conv_scaled false; act_fn leaky_relu with
            leaky_slope; conv_actnorm (net_actnorm); linear lu or plain; prior element (DiagGaussian) or channel
            (GlowBase), with classes class_priors all. Its scale i is our num_scales - 1 - i.
    """

    num_scales: int = bounded(1, 8, default=3)
    steps_per_scale: int = bounded(1, 128, default=8)
    linear: str = one_of("lu", "plain", "shuffle", "reverse", default="lu")
    changes: int = bounded(0, 1, default=1)

    def __post_init__(self) -> None:
        self.check_image((1,) * self.num_scales, self.num_scales * self.steps_per_scale)


class Glow(ImageFlow):
    """x [B, C, H, W] in [0, 1] where it has levels. Latents: [B, C_i, H / 2^(i + 1), W / 2^(i + 1)], one per scale."""

    def __init__(self, config: GlowConfig) -> None:
        channels, scales = config.in_channels, []
        for i in range(config.num_scales):
            channels *= 4
            layers: list[Layer] = [Squeeze(config.squeeze_order)]
            for _ in range(config.steps_per_scale):
                layers += [ActNorm(channels), _linear(config.linear, channels)]
                layers.append(config.image_coupling(i, channels, "half", config.changes))
            scales.append(layers)
            channels = (channels + 1) // 2
        super().__init__(config, scales)


def _linear(kind: str, channels: int) -> Layer:
    if kind in ("lu", "plain"):
        return (LUConv if kind == "lu" else PlainConv)(channels)
    return Permutation.random(channels) if kind == "shuffle" else Permutation.reverse(channels)
