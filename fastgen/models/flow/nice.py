"""NICE (Dinh et al. 2015): additive couplings over perceptrons, and one scaling at the end."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import bounded, one_of
from ...errors import ConfigError
from .coupling import Coupling, network_channels
from .dequantise import Dequantiser
from .flow import Flow
from .layers import Flatten, Scaling, Shape
from .networks import ACTIVATIONS
from .options import check_read, preprocessing
from .priors import Prior, StandardLogistic, StandardNormal
from .vector_networks import MLP

__all__ = ["NICE", "NICEConfig"]

MAX_FEATURES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class NICEConfig:
    """Options of :class:`NICE`; the defaults are the paper's for MNIST (section 5.1).

    sample_size, in_channels, levels, preprocessing, alpha: as in `ImageOptions`; the paper leaves x in [0, 1].
    couplings: they change the elements of odd index (changes 1) or even index (0) first, and then the others in turn.
    hidden_features: widths of the perceptrons. prior: logistic or standard, the normal one.
    """

    sample_size: tuple[int, ...] = bounded(1, 256, max_items=2)
    in_channels: int = bounded(1, 4, default=1)
    levels: int | None = bounded(2, 65_536, default=256)
    preprocessing: str = one_of("none", "centre", "logit", default="none")
    alpha: float = bounded(1e-7, 0.49, default=0.05)
    couplings: int = bounded(1, 64, default=4)
    changes: int = bounded(0, 1, default=1)
    hidden_features: tuple[int, ...] = bounded(1, 8192, default=(1000,) * 5, max_items=16)
    act_fn: str = one_of(*ACTIVATIONS, default="relu")
    prior: str = one_of("logistic", "standard", default="logistic")

    def __post_init__(self) -> None:
        check_read(self, [(self.preprocessing == "logit", "preprocessing logit", ("alpha",))])
        if len(self.sample_size) != 2:
            raise ConfigError(
                f"expected (height, width), got {len(self.sample_size)} numbers", argument="sample_size"
            )
        if not 2 <= self.features <= MAX_FEATURES:
            raise ConfigError(
                f"expected images of 2 to {MAX_FEATURES} elements, got {self.features}",
                argument="sample_size",
            )

    @property
    def features(self) -> int:
        """Elements of an image."""
        return self.in_channels * self.sample_size[0] * self.sample_size[1]


class NICE(Flow):
    """x [B, C, H, W], in [0, 1] where it has levels. One latent, [B, C H W]."""

    def __init__(self, config: NICEConfig) -> None:
        shape = (config.in_channels, *config.sample_size)
        features, layers = config.features, []
        for i in range(config.couplings):
            changes = (config.changes + i) % 2
            inputs, outputs = network_channels(features, "alternate", changes, "additive")
            network = MLP(inputs, outputs, config.hidden_features, config.act_fn)
            layers.append(
                Coupling(network, channels=features, split="alternate", changes=changes, scale="additive")
            )

        def prior(scale: int, latent: Shape, kept: Shape | None) -> Prior:
            return StandardLogistic(latent) if config.prior == "logistic" else StandardNormal(latent)

        super().__init__(
            shape,
            [*preprocessing(config.preprocessing, config.alpha), Flatten(shape)],
            [[*layers, Scaling(features)]],
            prior,
            levels=config.levels,
            dequantiser=None if config.levels is None else Dequantiser(config.levels),
        )
        self.config = config
