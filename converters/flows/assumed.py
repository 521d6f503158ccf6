"""What is assumed where a file says nothing: the default of the source's own classes, and where it stands there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Assumed:
    """A default of another project. value: in our terms.

    where: every place that has it, ``module.Class:parameter``. theirs: their value, where it is not equal to ours; of
    an object ``module.name``. source: the file, of a project that is no package.
    """

    value: Any
    where: tuple[str, ...] = ()
    theirs: Any = ...
    source: str = ""


Table = dict[str, Assumed]
# PyTorch's own, which the flows' networks are built with.
LEAKY_SLOPE = Assumed(
    0.01, ("torch.nn.LeakyReLU:negative_slope", "torch.nn.functional.leaky_relu:negative_slope")
)
