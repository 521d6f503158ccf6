"""RealNVP on images (Dinh et al. 2017), and the flows of the UvA tutorial 11, which are made alike."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import bounded, one_of
from ...errors import ConfigError
from .layers import ActNorm, Layer, Squeeze
from .options import ImageFlow, ImageOptions, check_read

__all__ = ["RealNVP", "RealNVPConfig"]


@dataclass(frozen=True, kw_only=True)
class RealNVPConfig(ImageOptions):
    """Options of :class:`RealNVP`; those of every flow on images are in `ImageOptions`.

    checkerboard: couplings with checkerboard masks, for each scale. channelwise: couplings that change half of the
        channels, for each scale; a scale that has any squeezes first. Of each scale but the last half of the channels
        is factored out. The paper: (3, 3, 4) and (3, 3, 0).
    channel_split: "half", the network sees the half that stays; "mask", all channels, with zeros where they change.
    checkerboard_changes, channel_changes: what the first coupling of a run changes, pixels with (row + column) % 2
        equal to it, and the first (0) or second (1) half; the next changes the other, and so on.
    actnorm: an ActNorm before each coupling. The paper's batch norms, between couplings and in the networks, are left
        out: with them the density of an image depends on the batch it is trained in.

    The UvA tutorial's MNISTFlow_simple: checkerboard (8,), channelwise (0,), network gated, blocks 3, hidden_channels
    32, actnorm false, scale tanh, rescale = exp(scaling_factor) with the network's outputs for s divided by it,
    shift_first, checkerboard_changes 0, preprocessing logit, alpha 5e-6 (half of its own), levels 256. Its multi-scale
    flow: checkerboard (2, 0), channelwise (2, 4), channel_split mask, channel_changes 1.
    """

    checkerboard: tuple[int, ...] = bounded(0, 64, default=(3, 4), max_items=8)
    channelwise: tuple[int, ...] = bounded(0, 64, default=(3, 0), max_items=8)
    channel_split: str = one_of("half", "mask", default="half")
    checkerboard_changes: int = bounded(0, 1, default=0)
    channel_changes: int = bounded(0, 1, default=1)
    network: str = one_of("conv", "resnet", "gated", default="resnet")
    blocks: int = bounded(1, 32, default=4)
    actnorm: bool = True
    scale: str = one_of("exp", "sigmoid", "tanh", "soft_clip", "additive", default="tanh")
    rescale: bool = True
    preprocessing: str = one_of("none", "centre", "logit", default="logit")
    hidden_channels: tuple[int, ...] = bounded(1, 4096, default=(64,), max_items=8)

    def __post_init__(self) -> None:
        if not self.checkerboard or len(self.checkerboard) != len(self.channelwise):
            raise ConfigError(
                "expected one number per scale in both, at least one, "
                f"got {len(self.checkerboard)} and {len(self.channelwise)}",
                argument="checkerboard, channelwise",
            )
        checkerboards, channels = any(self.checkerboard), any(self.channelwise)
        check_read(
            self,
            [
                (checkerboards, "a checkerboard coupling", ("checkerboard_changes",)),
                (channels, "a channelwise coupling", ("channel_split", "channel_changes")),
            ],
        )
        couplings = sum(self.checkerboard) + sum(self.channelwise)
        self.check_image(tuple(int(count > 0) for count in self.channelwise), couplings)


class RealNVP(ImageFlow):
    """x [B, C, H, W] in [0, 1] where it has levels."""

    def __init__(self, config: RealNVPConfig) -> None:
        channels, scales = config.in_channels, []
        for i, (checkerboard, channelwise) in enumerate(
            zip(config.checkerboard, config.channelwise, strict=True)
        ):
            layers: list[Layer] = []
            for k in range(checkerboard):
                layers += _step(config, i, channels, "checkerboard", (config.checkerboard_changes + k) % 2)
            if channelwise:
                layers.append(Squeeze(config.squeeze_order))
                channels *= 4
            for k in range(channelwise):
                layers += _step(config, i, channels, config.channel_split, (config.channel_changes + k) % 2)
            scales.append(layers)
            channels = (channels + 1) // 2
        super().__init__(config, scales)


def _step(config: RealNVPConfig, scale: int, channels: int, split: str, changes: int) -> list[Layer]:
    coupling = config.image_coupling(scale, channels, split, changes)
    return [ActNorm(channels), coupling] if config.actnorm else [coupling]
