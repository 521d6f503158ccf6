"""Divergences of discrete distributions, by their definitions: what adversarial losses are compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p | q) = sum p log(p / q), infinite where q is 0 and p is not. p, q: probabilities [n], float64."""
    there = p > 0
    terms = torch.where(there, p * (p.clamp(min=1e-300).log() - q.log()), 0.0)
    return terms.sum()


def js(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence, at most log 2."""
    middle = (p + q) / 2
    return (kl(p, middle) + kl(q, middle)) / 2


def wasserstein1(places: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """W1 on a line: the integral of the difference of both distribution functions. places: [n], any order."""
    order = places.argsort()
    gaps = places[order].diff()
    difference = (p - q)[order].cumsum(0)[:-1]
    return (difference.abs() * gaps).sum()


LOG2 = math.log(2)
