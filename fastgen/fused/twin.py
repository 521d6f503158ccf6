"""A module that computes what another one computes, faster, from the same parameters."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import nn

Plain = TypeVar("Plain", bound=nn.Module)


class Twin(nn.Module, Generic[Plain]):
    """Computes what `plain` computes, which takes the same arguments and holds the parameters.

    refolded: whether it multiplies by sums of weights that are rounded to the weights' type anew. joined: whether it is
    also what a reference network has behind the layer of its name, a norm or an activation.
    """

    refolded = False
    joined = False

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        self._plain = (plain,)  # in a tuple: not a module within this one

    @property
    def plain(self) -> Plain:
        return self._plain[0]
