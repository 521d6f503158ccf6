"""The verbs of a style engine: what is captured, verified and timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...images import PICTURES, within
from ...models.style.network import Signals, StyleNetwork
from ..verb import Tensors, Verb

if TYPE_CHECKING:
    from .engine import StyleEngine

TRIAL = (53, 70)  # pixels of a trial's pictures: no multiples of a stride
STYLES = 2  # of a trial with masks


class StyleVerbs:
    """Functions of pictures float32 [B, 3, H, W] in [-1, 1], codes float32 [B, D] and what says how they are mixed.

    No value is read on the host.
    """

    def __init__(self, engine: StyleEngine) -> None:
        self.engine, self.fused = engine, engine.fused

    def verbs(self) -> dict[str, Verb]:
        """All of them by name. The strength of "stylize" is 1."""
        code = ("code",)
        made = [
            Verb("stylize", ("content", "code"), ("x",), self.stylize, self._stylize, self._trial),
            Verb("encode_style", ("style",), code, self.encode_style, self._encode_style, self._trial_style),
            Verb(
                *("blend", ("content", "code", "alpha"), ("x",), self.blend, self._blend),
                trial=self._trial_blend,
            ),
            Verb(
                *("mask", ("content", "codes", "mix"), ("x",), self.mask, self._mask),
                trial=self._trial_mask,
            ),
        ]
        return {verb.name: verb for verb in made}

    # Fast.

    def encode_style(self, style: Tensor) -> Tensors:
        """(code,) of pictures."""
        return (self.fused.encode_style(self.inward(style)).float(),)

    def stylize(self, content: Tensor, code: Tensor) -> Tensors:
        """(x,) of contents, each in the style of its code."""
        return (self._outward(self._made(self.fused, self.inward(content), code), content),)

    def blend(self, content: Tensor, code: Tensor, alpha: Tensor) -> Tensors:
        """The same with a strength for each, [B]: means of the code and the content's own one."""
        return (self._outward(self._weaker(self.fused, self.inward(content), code, alpha), content),)

    def mask(self, content: Tensor, codes: Tensor, mix: Tensor) -> Tensors:
        """The same of codes [B, K, D] with shares [B, K + 1, H, W] for each pixel; the last is the content's own."""
        return (self._outward(self._by_pixel(self.fused, self.inward(content), codes, mix), content),)

    def inward(self, pictures: Tensor) -> Tensor:
        """In [0, 1], in the network's type."""
        made = pictures.add(1).mul_(0.5).to(self.engine.dtype)
        return made.contiguous(memory_format=torch.channels_last) if self.engine.channels_last else made

    def outward(self, made: Tensor) -> Tensor:
        """What the network has made, as pictures float32."""
        return within(made.float().mul_(2).sub_(1), PICTURES)

    def _outward(self, made: Tensor, content: Tensor) -> Tensor:
        return self.outward(made[:, :, : content.shape[2], : content.shape[3]]).contiguous()

    @staticmethod
    def by_pixel(network: StyleNetwork, codes: Tensor, own: Tensor, mix: Tensor) -> Signals:
        """Shares [B, K + 1, H, W] of a picture's pixels as those of its features, of codes and the content's own."""
        # The mean of the pixels that there are.
        shrunk = F.avg_pool2d(mix, network.stride, ceil_mode=True, count_include_pad=False)
        return Signals(torch.cat([codes, own[:, None]], dim=1), shrunk)

    # Of any network, the fused or the reference; pictures as it takes them.

    @staticmethod
    def _made(network: StyleNetwork, content: Tensor, code: Tensor) -> Tensor:
        return network.decode(network.modulate(network.features(content), Signals(code[:, None])))

    def _weaker(self, network: StyleNetwork, content: Tensor, code: Tensor, alpha: Tensor) -> Tensor:
        features = network.features(content)
        own = self._own(network, content, features).to(code.dtype)
        signals = Signals(torch.lerp(own, code, alpha[:, None])[:, None])
        return network.decode(network.modulate(features, signals))

    def _by_pixel(self, network: StyleNetwork, content: Tensor, codes: Tensor, mix: Tensor) -> Tensor:
        features = network.features(content)
        own = self._own(network, content, features).to(codes.dtype)
        return network.decode(network.modulate(features, self.by_pixel(network, codes, own, mix)))

    @staticmethod
    def _own(network: StyleNetwork, content: Tensor, features: Tensor) -> Tensor:
        """The content's own code."""
        return network.code(features if network.one_encoder else network.style_features(content))

    # Reference.

    def _plain(self, made: Tensor, content: Tensor) -> Tensors:
        cut = made[:, :, : content.shape[2], : content.shape[3]]
        return (within(2 * cut.to(content.dtype) - 1, PICTURES),)

    def _encode_style(self, networks: nn.ModuleDict, style: Tensor) -> Tensors:
        return (_only(networks).encode_style(_weights_type(networks, (style + 1) / 2)).to(style.dtype),)

    def _stylize(self, networks: nn.ModuleDict, content: Tensor, code: Tensor) -> Tensors:
        given = (_weights_type(networks, value) for value in ((content + 1) / 2, code))
        return self._plain(self._made(_only(networks), *given), content)

    def _blend(self, networks: nn.ModuleDict, content: Tensor, code: Tensor, alpha: Tensor) -> Tensors:
        given = (_weights_type(networks, value) for value in ((content + 1) / 2, code, alpha))
        return self._plain(self._weaker(_only(networks), *given), content)

    def _mask(self, networks: nn.ModuleDict, content: Tensor, codes: Tensor, mix: Tensor) -> Tensors:
        given = (_weights_type(networks, value) for value in ((content + 1) / 2, codes, mix))
        return self._plain(self._by_pixel(_only(networks), *given), content)

    # Random trials.

    def _picture(self, batch: int, generator: torch.Generator, smooth: int = 8) -> Tensor:
        """Random colours that change over some pixels, as those of photographs do, and noise."""
        height, width = TRIAL
        size = -(-height // smooth), -(-width // smooth)
        coarse = torch.rand(batch, 3, *size, generator=generator, dtype=torch.float32, device="cpu")
        fine = torch.rand(batch, 3, *TRIAL, generator=generator, dtype=torch.float32, device="cpu")
        drawn = F.interpolate(coarse, TRIAL, mode="bilinear") * 1.6 - 0.8 + 0.4 * fine - 0.2
        return drawn.to(self.engine.device)

    def _trial_style(self, batch: int, generator: torch.Generator) -> Tensors:
        return (self._picture(batch, generator),)

    def _trial(self, batch: int, generator: torch.Generator) -> Tensors:
        """Contents, and the codes of styles."""
        return self._picture(batch, generator), *self.encode_style(self._picture(batch, generator))

    def _trial_blend(self, batch: int, generator: torch.Generator) -> Tensors:
        alpha = torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu")
        return (*self._trial(batch, generator), alpha.to(self.engine.device))

    def _trial_mask(self, batch: int, generator: torch.Generator) -> Tensors:
        content, *codes = self._trial(batch, generator)
        codes += [self._trial(batch, generator)[1] for _ in range(STYLES - 1)]
        drawn = torch.rand(batch, STYLES + 1, *TRIAL, generator=generator, dtype=torch.float32, device="cpu")
        mix = drawn / drawn.sum(1, keepdim=True)
        return content, torch.stack(codes, 1), mix.to(self.engine.device)


def _only(networks: nn.ModuleDict) -> StyleNetwork:
    (network,) = networks.values()
    assert isinstance(network, StyleNetwork)
    return network


def _weights_type(networks: nn.ModuleDict, value: Tensor) -> Tensor:
    return value.to(next(networks.parameters()).dtype)
