"""The coupling layer: a network that sees one part of x says how the other part is scaled and shifted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastgen_kernels.affine_coupling.reference import affine_coupling

from .layers import Layer, Shape

SPLITS = ("half", "alternate", "checkerboard", "mask")


class Coupling(Layer):
    """One part of x changes by y = x a + t; a network that sees the rest says a and t (Dinh et al. 2017, eq. 4-8).

    Args:
        network: (kept, condition) -> raw scale s and shift t, [B, 2 C', ...] (additive: t alone, [B, C', ...]) where
            C' is the channels that change. It may run in another type than x's.
        split: which part changes, and what the network sees.
            "half": the first (changes = 0) or second half (1) of the channels; the first has one more if their number
                is odd. The network sees the other half.
            "alternate": channels whose index is even (changes = 0) or odd (1). The network sees the others.
            "checkerboard": pixels with (row + column) % 2 == changes. The network sees all of x, 0 where it changes,
                and gives s and t for all of x.
            "mask": where `mask` is not 0; the network sees and gives as with a checkerboard.
        mask: uint8 [C, 1, 1], [1, H, W] or [C, H, W]; [D] for vectors. With split "mask" alone. Stored with the
            weights; any mask can be inverted.
        scale, eps, bound, slope, parameters, shift_first: as in `fastgen_kernels.affine_coupling`.
        rescale: whether the tanh map has a learned factor for each changed channel (all channels where the network
            sees all), 1 to begin with.
        reverse: the roles of the directions swapped: `forward` undoes what the formula says. For models whose authors
            write the formula from latents to data.

    Overflow: "sigmoid", "tanh" and "soft_clip" are bounded above by 1 + eps, exp(|bound rescale|) and 1 / slope. "exp"
    is not: from |s| = 89 in float32 (710 in float64) a is infinite or 0, x and log_det become infinite or NaN, and
    stay so up to log_prob: nothing is clamped in silence. "sigmoid" with eps = 0 gets as small as exp(s + 2).
    """

    mask: Tensor | None
    rescale: nn.Parameter | None

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int,
        split: str = "half",
        changes: int = 1,
        mask: Tensor | None = None,
        scale: str = "sigmoid",
        eps: float = 0.0,
        bound: float = 1.0,
        slope: float = 1e-3,
        rescale: bool = False,
        parameters: str = "scale_shift",
        shift_first: bool = False,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        assert split in SPLITS
        assert (mask is not None) == (split == "mask")
        self.network, self.channels, self.split, self.changes = network, channels, split, changes
        self.reverse = reverse
        self.register_buffer("mask", mask)
        width = changed_channels(channels, split, changes)
        self.rescale = nn.Parameter(torch.ones(width)) if rescale else None
        self.maps: dict[str, Any] = {
            "scale": scale,
            "eps": eps,
            "bound": bound,
            "slope": slope,
            "parameters": parameters,
            "shift_first": shift_first,
        }

    def options(self, x: Tensor) -> dict[str, Any]:
        """Keyword arguments for `fastgen_kernels.affine_coupling` and its in-place form on state x, all but `inverse`.

        They go with the part that `parts` calls changed.
        """
        rescale = None if self.rescale is None else self.rescale.to(x.dtype)
        parity = self.changes if self.split == "checkerboard" else None
        mask = None if self.mask is None else self.mask != 0
        return {**self.maps, "rescale": rescale, "mask": mask, "parity": parity}

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees, and what changes: views of x where the split allows it."""
        if self.split == "half":
            first, second = x.tensor_split([(self.channels + 1) // 2], dim=1)
            return (first, second) if self.changes else (second, first)
        if self.split == "alternate":
            return x[:, 1 - self.changes :: 2], x[:, self.changes :: 2]
        return torch.where(self.changing(x), 0.0, x), x

    def changing(self, x: Tensor) -> Tensor:
        """Bool, broadcasts with x: where it changes, for the splits whose network sees all of x."""
        if self.mask is not None:
            return self.mask != 0
        rows = torch.arange(x.shape[2], device=x.device)[:, None]
        return (rows + torch.arange(x.shape[3], device=x.device)) % 2 == self.changes

    def raw(self, kept: Tensor, condition: Tensor | None) -> Tensor:
        """The network's output, in the network's type."""
        parameter = next(self.network.parameters(), kept)
        return self.network(kept.to(parameter.dtype), condition)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, condition, inverse=self.reverse)

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, condition, inverse=not self.reverse)

    def _couple(self, x: Tensor, condition: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, changed = self.parts(x)
        network = self.raw(kept, condition)
        changed, log_det = affine_coupling(changed, network, **self.options(x), inverse=inverse)
        if self.split == "half":
            return torch.cat([kept, changed] if self.changes else [changed, kept], dim=1), log_det
        if self.split == "alternate":
            y = x.clone()
            y[:, self.changes :: 2] = changed
            return y, log_det
        return changed, log_det

    def out_shape(self, shape: Shape) -> Shape:
        assert shape[0] == self.channels, f"{self.name}: {self.channels} channels expected, got {shape}"
        return shape


def changed_channels(channels: int, split: str, changes: int) -> int:
    """Channels that a coupling's s and t are for."""
    if split in ("half", "alternate"):
        return channels // 2 if changes else (channels + 1) // 2
    return channels


def network_channels(channels: int, split: str, changes: int, scale: str) -> tuple[int, int]:
    """Channels that a coupling's network takes and gives."""
    changed = changed_channels(channels, split, changes)
    kept = channels - changed if split in ("half", "alternate") else channels
    return kept, changed if scale == "additive" else 2 * changed
