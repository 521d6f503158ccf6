"""Training the decoder of an AdaIN network by losses of content and style (Huang & Belongie 2017, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import bounded
from ..models.style.adain import AdaINTransfer
from ..models.style.network import Signals
from .batch import Dataset
from .objective import Group, Step


@dataclass(frozen=True, kw_only=True)
class StyleLossConfig:
    """content_weight, style_weight: of the two losses; 1 and 10 are pytorch-AdaIN's (lambda of eq. 11)."""

    content_weight: float = bounded(0.0, 1e9, default=1.0)
    style_weight: float = bounded(0.0, 1e9, default=10.0)


@dataclass(frozen=True)
class StyleTransfer:
    """The objective of an AdaIN network: contents of the data set, each in a style drawn from `styles`.

    The encoder is not trained. encoder(): its weights, by name, for a new run. Pictures are RGB in [0, 1], as the
    network takes them.
    """

    config: StyleLossConfig
    styles: Dataset
    encoder: Callable[[], Mapping[str, Tensor]] = field(repr=False)
    unit: str = "loss"

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [0, 1]."""
        return batch.float() / 255

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """The encoder gets its weights."""
        network = cast(AdaINTransfer, networks["network"])
        network.encoder.load_state_dict(self.encoder())

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``. Adam, as in pytorch-AdaIN."""
        network = cast(AdaINTransfer, networks["network"])
        return {
            "loss": Group([network.decoder], betas=(0.9, 0.999), weight_decay=0.0),
            "encoder": Group([network.encoder], fixed=True),
        }

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The content loss (eq. 12) and the style loss (eq. 13), of what the encoder makes of the result."""
        network = cast(AdaINTransfer, networks["network"])
        drawn = step.integers(0, len(self.styles))
        style = self.inputs(self.styles.batch(drawn.tolist()).x).to(step.x.device)
        with step.autocast():
            with torch.no_grad():
                wanted = [network.adain.statistics(x.float()) for x in network.encoder.each(style)]
                features = network.features(step.x).float()
                target = network.modulate(features, Signals(wanted[-1][:, None]))
            found = [x.float() for x in network.encoder.each(network.decode(target))]
        content = F.mse_loss(found[-1], target)
        # Means and deviations stand behind each other: twice the mean square of both is the sum of their mean squares.
        statistics = zip(found, wanted, strict=True)
        of_style = sum(2 * F.mse_loss(network.adain.statistics(x), want) for x, want in statistics)
        yield "loss", self.config.content_weight * content + self.config.style_weight * of_style
