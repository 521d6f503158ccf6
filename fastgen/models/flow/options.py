"""Options that several flows share, with their bounds, and what they build."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ...config import bounded, one_of
from ...errors import ConfigError
from .coupling import Coupling, network_channels
from .dequantise import Dequantiser, VariationalDequantiser
from .flow import Flow
from .layers import Affine, Layer, Logit, Shape
from .networks import ACTIVATIONS, ConvNet, GatedNet, ResNet
from .priors import ConvNormal, DiagonalNormal, Prior, StandardLogistic, StandardNormal

MAX_BLOCKS = 4096  # of residual blocks in all couplings' networks: building them takes seconds
MAX_CHANNELS = 4096  # at any scale: a 1x1 convolution has their square as weights


def check_read(config: Any, rows: Iterable[tuple[bool, str, tuple[str, ...]]]) -> None:
    """Raise ConfigError for an option that was set and that nothing would read.

    rows: whether options are read, who reads them, their names. An option may have its default wherever it stands.
    """
    defaults = {field.name: field.default for field in fields(config)}
    for read, reader, names in rows:
        for name in names:
            value = getattr(config, name)
            if not read and value != defaults[name]:
                raise ConfigError(
                    f"{value} would change nothing, only {reader} reads it; leave it {defaults[name]}",
                    argument=name,
                )


@dataclass(frozen=True, kw_only=True)
class CouplingOptions:
    """How a coupling scales and shifts; see :class:`~fastgen.models.flow.coupling.Coupling`.

    scale: the map of the raw scale. scale_eps: for sigmoid. bound, rescale: for tanh. slope: for soft_clip.
    parameters: where scale and shift lie among the network's outputs. shift_first: y = (x + t) a. reverse: the formula
    goes from latents to data.
    """

    scale: str = one_of("exp", "sigmoid", "tanh", "soft_clip", "additive", default="sigmoid")
    scale_eps: float = bounded(0.0, 1.0, default=0.0)
    bound: float = bounded(-100.0, 100.0, default=1.0)
    slope: float = bounded(1e-30, 0.999, default=1e-3)
    rescale: bool = False
    parameters: str = one_of(
        "scale_shift",
        "shift_scale",
        "scale_shift_interleaved",
        "shift_scale_interleaved",
        default="scale_shift",
    )
    shift_first: bool = False
    reverse: bool = False

    def check_coupling(self) -> None:
        """Raise ConfigError for an option that the scale map does not have."""
        for name, value, default, user in (
            ("scale_eps", self.scale_eps, 0.0, "sigmoid"),
            ("bound", self.bound, 1.0, "tanh"),
            ("rescale", self.rescale, False, "tanh"),
            ("slope", self.slope, 1e-3, "soft_clip"),
        ):
            if value != default and self.scale != user:
                raise ConfigError(
                    f"only the scale map {user} has it; scale is {self.scale}, leave it {default}",
                    argument=name,
                )

    def coupling(
        self, network: nn.Module, channels: int, split: str, changes: int, mask: Tensor | None = None
    ) -> Coupling:
        """A coupling with these options; the mask counts where split is "mask"."""
        return Coupling(
            network,
            channels=channels,
            split=split,
            changes=changes,
            scale=self.scale,
            eps=self.scale_eps,
            bound=self.bound,
            slope=self.slope,
            rescale=self.rescale,
            parameters=self.parameters,
            shift_first=self.shift_first,
            reverse=self.reverse,
            mask=mask if split == "mask" else None,
        )


@dataclass(frozen=True, kw_only=True)
class ImageOptions(CouplingOptions):
    """What flows on images have in common.

    sample_size: (height, width). in_channels: of the image. levels: of each channel, such as 256, whose
        dequantised values fill [0, 1]; None for continuous images of any range.
    preprocessing: none; centre, x - 1/2 (Glow's code); logit of alpha + (1 - 2 alpha) x (RealNVP). Continuous images
        must lie in [0, 1] for logit: beyond it (and alpha) nothing has a density, and log_prob is -inf.
    dequantisation: uniform, or variational with `dequantisation_layers` couplings on gated networks of
        `dequantisation_channels`, from logistic or normal noise (`dequantisation_base`). For levels alone.
    network: of the couplings: conv, three convolutions (Glow); resnet with weight norm (RealNVP); gated (UvA tutorial
        11). hidden_channels: one number or one per scale. blocks: residual blocks of resnet and gated.
    act_fn, leaky_slope: activation of conv and resnet; the slope is leaky_relu's.
    conv_actnorm: an ActNorm after each inner convolution of conv, which then has no bias (Glow's own code).
    conv_scaled: exp(3 log_scale) on the last convolution of conv. conv_border: what surrounds its input, 0 or 1.
    prior: standard; logistic; channel or element, a learned mean and deviation for each; conv, as Glow's code has it.
    prior_border: what surrounds the image in the prior's convolution: 0, or 1 (rosinality).
    num_classes: of labels; None for a flow without. class_priors: the priors that know the label: none of them, the
        last (Glow's code) or all (normflows); channel, element and conv can. class_couplings: the coupling networks
        do too.
    squeeze_order: see :class:`~fastgen.models.flow.layers.Squeeze`.
    """

    sample_size: tuple[int, ...] = bounded(1, 4096, max_items=2)
    in_channels: int = bounded(1, 64, default=3)
    levels: int | None = bounded(2, 65_536, default=256)
    preprocessing: str = one_of("none", "centre", "logit", default="centre")
    alpha: float = bounded(1e-7, 0.49, default=0.05)
    dequantisation: str = one_of("uniform", "variational", default="uniform")
    dequantisation_layers: int = bounded(1, 32, default=4)
    dequantisation_channels: int = bounded(1, 4096, default=32)
    dequantisation_blocks: int = bounded(1, 32, default=2)
    dequantisation_base: str = one_of("logistic", "normal", default="logistic")
    network: str = one_of("conv", "resnet", "gated", default="conv")
    hidden_channels: tuple[int, ...] = bounded(1, 4096, default=(512,), max_items=8)
    blocks: int = bounded(1, 32, default=2)
    conv_actnorm: bool = False
    conv_scaled: bool = True
    conv_border: float = bounded(0.0, 1.0, default=0.0)
    act_fn: str = one_of(*ACTIVATIONS, default="relu")
    leaky_slope: float = bounded(0.0, 1.0, default=0.01)
    prior: str = one_of("standard", "logistic", "channel", "element", "conv", default="standard")
    prior_border: float = bounded(0.0, 1.0, default=0.0)
    num_classes: int | None = bounded(1, 100_000, default=None)
    class_priors: str = one_of("none", "last", "all", default="last")
    class_couplings: bool = False
    squeeze_order: str = one_of("channel_major", "pixel_major", default="channel_major")

    def check_image(self, squeezes: tuple[int, ...], couplings: int) -> None:
        """squeezes: in each scale; couplings: in all. Raises ConfigError for what does not fit."""
        self.check_coupling()
        check_read(self, self._readers(squeezes))
        if self.network != "conv" and couplings * self.blocks > MAX_BLOCKS:
            raise ConfigError(
                f"{couplings} couplings of {self.blocks} blocks are more than {MAX_BLOCKS} blocks; take fewer",
                argument="blocks",
            )
        if len(self.sample_size) != 2:
            raise ConfigError(
                f"expected (height, width), got {len(self.sample_size)} numbers", argument="sample_size"
            )
        if len(self.hidden_channels) not in (1, len(squeezes)):
            raise ConfigError(
                f"expected one number or one for each of the {len(squeezes)} scales, "
                f"got {len(self.hidden_channels)}",
                argument="hidden_channels",
            )
        of_conv = (self.conv_actnorm, self.conv_scaled, self.conv_border)
        if self.network != "conv" and of_conv != (False, True, 0):
            raise ConfigError(
                f"the network is {self.network}, leave them out",
                argument="conv_actnorm, conv_scaled, conv_border",
            )
        if self.num_classes is None and self.class_couplings:
            raise ConfigError(
                "num_classes is null: say how many labels there are", argument="class_couplings"
            )
        known = self.class_priors != "none" and self.prior in ("channel", "element", "conv")
        if self.num_classes is not None and not (self.class_couplings or known):
            raise ConfigError(
                "nothing would look at the labels: take class_couplings, or a prior that is learned "
                "(channel, element, conv) with class_priors last or all",
                argument="num_classes",
            )
        if self.dequantisation == "variational" and self.levels is None:
            raise ConfigError(
                "variational needs levels; continuous data (levels null) has none", argument="dequantisation"
            )
        channels, sides = self.in_channels, self.sample_size
        for i, count in enumerate(squeezes):
            for _ in range(count):
                if sides[0] % 2 or sides[1] % 2:
                    raise ConfigError(
                        f"{self.sample_size[0]}x{self.sample_size[1]} cannot be squeezed {sum(squeezes)} "
                        f"times: scale {i} has {sides[0]}x{sides[1]}, and both sides must be even; pad the images or "
                        "take fewer scales",
                        argument="sample_size",
                    )
                channels, sides = 4 * channels, (sides[0] // 2, sides[1] // 2)
            if channels > MAX_CHANNELS:
                raise ConfigError(
                    f"{channels} channels at scale {i}, at most {MAX_CHANNELS} are built",
                    argument="in_channels",
                )
            if i < len(squeezes) - 1:
                if channels < 2:
                    raise ConfigError(
                        f"scale {i} has one channel, which cannot be halved without a squeeze",
                        argument="in_channels",
                    )
                channels = (channels + 1) // 2

    def _readers(self, squeezes: tuple[int, ...]) -> list[tuple[bool, str, tuple[str, ...]]]:
        """The rows of `check_read`."""
        of_variational = tuple(f"dequantisation_{name}" for name in ("layers", "channels", "blocks", "base"))
        by_label = self.num_classes is not None and self.prior in ("channel", "element", "conv")
        return [
            (self.preprocessing == "logit", "preprocessing logit", ("alpha",)),
            (self.dequantisation == "variational", "dequantisation variational", of_variational),
            (self.network != "conv", "network resnet or gated", ("blocks",)),
            (self.network != "gated", "network conv or resnet", ("act_fn",)),
            (self.act_fn == "leaky_relu", "act_fn leaky_relu", ("leaky_slope",)),
            (self.prior == "conv", "prior conv", ("prior_border",)),
            (by_label, "a learned prior (channel, element, conv) with num_classes", ("class_priors",)),
            (sum(squeezes) > 0, "a squeeze", ("squeeze_order",)),
        ]

    @property
    def data_shape(self) -> Shape:
        return (self.in_channels, *self.sample_size)

    def image_coupling(self, scale: int, channels: int, split: str, changes: int) -> Coupling:
        """A coupling with a network of its own, at a scale where x has `channels`."""
        inputs, outputs = network_channels(channels, split, changes, self.scale)
        hidden = self.hidden_channels[scale if len(self.hidden_channels) > 1 else 0]
        classes = self.num_classes if self.class_couplings else None
        network: nn.Module
        if self.network == "conv":
            network = ConvNet(
                inputs,
                outputs,
                hidden,
                self.act_fn,
                self.leaky_slope,
                self.conv_actnorm,
                self.conv_border,
                self.conv_scaled,
                classes,
            )
        elif self.network == "resnet":
            network = ResNet(inputs, outputs, hidden, self.blocks, self.act_fn, self.leaky_slope, classes)
        else:
            network = GatedNet(inputs, outputs, hidden, self.blocks, classes)
        return self.coupling(network, channels, split, changes, half_mask(channels, changes))

    def dequantiser(self) -> Dequantiser | None:
        if self.levels is None:
            return None
        if self.dequantisation == "uniform":
            return Dequantiser(self.levels)
        layers = [
            Coupling(
                GatedNet(
                    self.in_channels,
                    2 * self.in_channels,
                    self.dequantisation_channels,
                    self.dequantisation_blocks,
                    context=self.in_channels,
                ),
                channels=self.in_channels,
                split="checkerboard",
                changes=i % 2,
                scale="tanh",
                rescale=True,
                shift_first=True,
            )
            for i in range(self.dequantisation_layers)
        ]
        return VariationalDequantiser(self.levels, layers, self.dequantisation_base)

    def prior_of(self, scale: int, latent: Shape, kept: Shape | None) -> Prior:
        """The prior of a scale; kept is None for the last."""
        knows = self.class_priors == "all" or (self.class_priors == "last" and kept is None)
        classes = self.num_classes if knows else None
        if self.prior == "logistic":
            return StandardLogistic(latent)
        if self.prior == "conv":
            return ConvNormal(latent, None if kept is None else kept[0], self.prior_border, classes)
        if self.prior in ("channel", "element"):
            return DiagonalNormal(latent, self.prior == "channel", classes)
        return StandardNormal(latent)


def half_mask(channels: int, changes: int) -> Tensor:
    """A mask [C, 1, 1] of the half that a coupling with split "half" would change."""
    first = (channels + 1) // 2
    values = [1 - changes] * first + [changes] * (channels - first)
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1)


def preprocessing(kind: str, alpha: float) -> list[Layer]:
    """Layers before the first scale: none; centre, x - 1/2; logit."""
    if kind == "logit":
        return [Logit(alpha)]
    return [Affine(1.0, -0.5)] if kind == "centre" else []


class ImageFlow(Flow):
    """A flow on images, of the scales that a model makes of its `config`."""

    def __init__(self, config: ImageOptions, scales: Sequence[Iterable[Layer]]) -> None:
        super().__init__(
            config.data_shape,
            preprocessing(config.preprocessing, config.alpha),
            scales,
            config.prior_of,
            levels=config.levels,
            dequantiser=config.dequantiser(),
            classes=config.num_classes,
        )
        self.config = config
