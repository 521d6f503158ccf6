"""What a source of training data is for the training loop: a number of samples, and batches of them by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Batch(NamedTuple):
    """B samples. x: images, uint8 [B, C, H, W], or rows of numbers, float32 [B, D]. label: int64 [B], or None where the
    source has no labels. target: of paired data the image that belongs to each x, like x in type and size, else None.
    """

    x: Tensor
    label: Tensor | None = None
    target: Tensor | None = None


class Dataset(Protocol):
    """What the training loop needs of a source of samples.

    Which indices come when is the loop's business, so that an interrupted run can go on exactly where it stopped.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one x: (channels, height, width), or (columns,)."""

    @property
    def num_classes(self) -> int | None:
        """None where the source has no labels."""

    @property
    def class_names(self) -> list[str] | None:
        """Of the labels 0, 1, ..., or None where they have no names."""

    @property
    def paired(self) -> bool:
        """Whether its batches have a target."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples of these indices, each from 0 to len - 1. The tensors belong to the caller. Raises DataError."""
