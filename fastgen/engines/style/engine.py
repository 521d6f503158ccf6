"""The style engine: pictures in the style of others, of any size, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config import shown
from ...errors import ConfigError
from ...fused.style import fused
from ...images import PICTURES, Range, to_output
from ...models.style.network import Signals, StyleNetwork
from ..arguments import as_index
from ..base import Engine
from ..finished import check_finite
from ..verb import Verb
from .arguments import MAX_STYLES, masks, pictures, shares, strength
from .colour import with_colours_of
from .styles import Style
from .tiles import Tiles
from .verbs import StyleVerbs

TILE = 1024
# Pixels that are worked on together on a CPU. Pictures of up to 64 x 64 are up to twice as fast together, those from
# 256 x 256 on are slower than one after the other, and take memory for all of them.
TOGETHER = 1 << 16


class StyleEngine(Engine):
    """Gives pictures the style of others. Made by :func:`fastgen.load`. Threads, forks: see ``Engine``.

    Pictures are RGB, float in [-1, 1]: a batch [n, 3, H, W], or a list of [3, H, W] of unlike sizes. Content and style
    need not be of one size; both sides of each have at least ``describe()["minimum"]`` pixels.

    A picture of more than `tile` x `tile` pixels passes through the network tile by tile, while means and deviations
    are those of the whole picture: the result is the same but for rounding, without seams.
    """

    kind = "style"
    one_network = True
    operation = "adain"

    def __init__(
        self,
        networks: Mapping[str, nn.Module] | nn.ModuleDict,
        settings: Any = None,
        *,
        tile: int = TILE,
        **options: Any,
    ) -> None:
        """See ``Engine``. tile: pixels of a side, at least 64: what is larger is worked on in tiles."""
        size = as_index(tile)
        if type(size) is not int or size < 64:
            raise ConfigError(f"expected an int of at least 64, got {shown(tile)}", argument="tile")
        self.tile = size
        super().__init__(networks, settings, **options)

    def _prepare(self) -> None:
        network = self.network
        assert isinstance(network, StyleNetwork)
        self.fused = fused(network)
        self._work = StyleVerbs(self)

    def verbs(self) -> dict[str, Verb]:
        """See ``Engine``."""
        return self._work.verbs()

    def running(self) -> Mapping[str, nn.Module]:
        """See ``Engine``."""
        return dict.fromkeys(self.networks, self.fused)

    @property
    def value_range(self) -> Range:
        """See ``Engine``."""
        return PICTURES

    def encode_style(self, style: Tensor | Sequence[Tensor]) -> Style:
        """Styles to be used many times: of a batch [K, 3, H, W] or a list of [3, H, W].

        Raises ConfigError, for a picture that is too small, or whose code is not finite, too.
        """
        found = pictures(style, "style", self.network.minimum)  # type: ignore[arg-type]
        if len(found) > MAX_STYLES:
            raise ConfigError(f"expected at most {MAX_STYLES} styles, got {len(found)}", argument="style")
        with self._working(), torch.inference_mode():
            codes = torch.cat([self._code(picture) for picture in found])
            sha256 = self._sha256()
        check_finite(list(codes), "style", "encoded")
        # Tensors of inference mode cannot be changed by their owner outside of it: hand out ordinary ones.
        return Style(codes.clone(), sha256)

    def stylize(
        self,
        content: Tensor | Sequence[Tensor],
        style: Style | Tensor | Sequence[Tensor] | Sequence[Style],
        alpha: float = 1.0,
        weights: Sequence[float] | None = None,
        preserve_color: bool = False,
        mask: Tensor | Sequence[Tensor] | None = None,
        output_type: str = "pt",
    ) -> Any:
        """Pictures in a style.

        content: [n, 3, H, W], or a list of [3, H, W]; floats in [-1, 1].
        style: what ``encode_style`` takes or returns, or a list of what it returns. Several styles are blended.
        alpha: strength of the style, in [0, 1]: the share of its code, beside the content's own one (of an AdaIN
            network that is eq. 14 of Huang & Belongie 2017). 0 is the autoencoded content.
        weights: of several styles, relative to each other; by default they are equal.
        preserve_color: the colours of the content under the lightness of the result (Gatys et al. 2016, section 3.2).
        mask: where each style is used: [K, H, W] in [0, 1], or [H, W] for one style; of contents of unlike sizes a list
            with one for each. Where masks overlap, shares are divided by their sum; where their sum is below 1, the
            rest is the content's own style. A weight multiplies its mask, by K times its share. Features are normalised
            over the whole picture.
        output_type: "pt", "np" or "pil".

        Returns float32 [n, 3, H, W] in [-1, 1], or a list where `content` is one; as "np" [n, H, W, 3] in [0, 1].
        Raises ConfigError that names the argument, for a result that is not finite, too.
        """
        to_output(None, output_type)
        if type(preserve_color) is not bool:
            raise ConfigError(f"expected a bool, got {shown(preserve_color)}", argument="preserve_color")
        found = pictures(content, "content", self.network.minimum)  # type: ignore[arg-type]
        alpha = strength(alpha)
        encoded = self._encoded(style).on(self.device, self.network.code_size)  # type: ignore[arg-type]
        by_style = shares(weights, len(encoded))
        sizes = [(int(picture.shape[1]), int(picture.shape[2])) for picture in found]
        given = None if mask is None else masks(mask, len(encoded), sizes)
        with self._working(), torch.inference_mode():
            self._check(encoded)
            made = self._in_batches(found, sizes, encoded.codes, by_style, alpha, given, preserve_color)
        check_finite(made, "content", "stylised")
        # Ordinary tensors, as in `encode_style`.
        if isinstance(content, Tensor):
            whole = torch.stack(made)
            return to_output(whole, output_type)
        return [to_output(one[None].clone(), output_type)[0] for one in made]

    def _encoded(self, style: Any) -> Style:
        if isinstance(style, Style):
            return style
        if (
            isinstance(style, Sequence)
            and not isinstance(style, str)
            and style
            and all(isinstance(one, Style) for one in style)
        ):
            return Style.joined(style)
        return self.encode_style(style)

    def _check(self, style: Style) -> None:
        """Whether these weights have made the style's codes. Raises ConfigError."""
        if style.sha256 != self._sha256():
            raise ConfigError(
                "was encoded by other weights than this engine's as they are now; encode it here",
                argument="style",
            )

    def _in_batches(
        self,
        found: list[Tensor],
        sizes: list[tuple[int, int]],
        codes: Tensor,
        weights: list[float],
        alpha: float,
        given: list[Tensor] | None,
        preserve_color: bool,
    ) -> list[Tensor]:
        """The results, [3, H, W] each; pictures of one size together, as many as `_at_once` says."""
        made: dict[int, Tensor] = {}
        for size in dict.fromkeys(sizes):
            same = [i for i, other in enumerate(sizes) if other == size]
            count = self._at_once(size)
            for part in (same[start : start + count] for start in range(0, len(same), count)):
                contents = torch.stack([found[i].to(self.device, torch.float32) for i in part])
                if given is None:
                    results = self._blended(contents, codes, weights, alpha)
                else:
                    masked = torch.stack([given[i].to(self.device) for i in part])
                    results = self._masked(contents, codes, weights, alpha, masked)
                if preserve_color:
                    with_colours_of(contents, results)
                made |= dict(zip(part, results, strict=True))
        return [made[i] for i in range(len(found))]

    def _blended(self, contents: Tensor, codes: Tensor, weights: list[float], alpha: float) -> Tensor:
        # In float64, and a style with all the weight is not multiplied: weights (1, 0) give one style's bits.
        code = (codes.double() * torch.tensor(weights, dtype=torch.float64, device=self.device)[:, None]).sum(
            0
        )
        rows = code.float().expand(len(contents), -1).contiguous()
        if self._large(contents.shape[2:]):
            return self._in_tiles(
                contents, lambda own: Signals(torch.lerp(own, rows, alpha)[:, None]), alpha < 1
            )
        if alpha == 1:
            return self._call("stylize", contents, rows)[0]
        return self._call("blend", contents, rows, contents.new_full((len(contents),), alpha))[0]

    def _masked(
        self, contents: Tensor, codes: Tensor, weights: list[float], alpha: float, given: Tensor
    ) -> Tensor:
        """given: [n, K, H, W]."""
        relative = torch.tensor(weights, dtype=torch.float32, device=self.device).view(1, -1, 1, 1) * len(
            codes
        )
        share = given * relative
        share = share * (alpha / share.sum(1, keepdim=True).clamp(min=1.0))
        mix = torch.cat([share, (1 - share.sum(1, keepdim=True)).clamp(min=0.0)], dim=1)
        every = codes.expand(len(contents), -1, -1).contiguous()
        if self._large(contents.shape[2:]):
            return self._in_tiles(
                contents, lambda own: StyleVerbs.by_pixel(self.fused, every, own, mix), True
            )
        return self._call("mask", contents, every, mix)[0]

    def _large(self, size: Sequence[int]) -> bool:
        return size[0] * size[1] > self.tile**2

    def _at_once(self, size: Sequence[int]) -> int:
        """How many pictures of a size are given to the network together."""
        if self._large(size):
            return 1
        most = self.batches.max_batch
        return most if self.device.type != "cpu" else max(1, min(most, TOGETHER // (size[0] * size[1])))

    def _tiles(self, size: Sequence[int]) -> Tiles:
        return Tiles(size[0], size[1], self.tile, self.fused.stride, self.fused.reach)

    def _in_tiles(self, content: Tensor, signals: Callable[[Tensor], Signals], with_own: bool) -> Tensor:
        """content: [1, 3, H, W]. signals(own): what modulates, from the content's own code if that is needed."""
        tiles, work, network = self._tiles(content.shape[2:]), self._work, self.fused
        features = tiles.shrink(lambda part: network.features(work.inward(part)), content)
        own = content.new_zeros(1, network.code_size)
        if with_own:
            own = (
                network.code(features) if network.one_encoder else self._code_in_tiles(tiles, content)
            ).float()
        features = network.modulate(features, signals(own))
        return tiles.enlarge(lambda part: work.outward(network.decode(part)), features)

    def _code(self, style: Tensor) -> Tensor:
        """float32 [1, D] of a picture [3, H, W]."""
        picture = style[None].to(self.device, torch.float32)
        if not self._large(style.shape[1:]):
            return self._call("encode_style", picture)[0]
        return self._code_in_tiles(self._tiles(style.shape[1:]), picture).float()

    def _code_in_tiles(self, tiles: Tiles, picture: Tensor) -> Tensor:
        work, network = self._work, self.fused
        return network.code(tiles.shrink(lambda part: network.style_features(work.inward(part)), picture))

    def _facts(self) -> dict[str, Any]:
        return {"minimum": self.fused.minimum, "tile": self.tile}
