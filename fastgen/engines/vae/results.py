"""What a VAE says of data: bounds of its likelihood, and how much each latent tells of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..estimates import Estimates

# Nats of its KL, averaged over the data, below which a latent is called collapsed: its posterior is its prior.
COLLAPSED = 0.01


@dataclass(frozen=True)
class LogProb(Estimates):
    """Bounds of log p(x), float64 [n], in nats, on the CPU. kind: what they are.

    "bound": log p(x, z) - log q(z | x) of one z drawn from q(z | x), whose expectation is a lower bound.
    "importance-weighted bound": the logarithm of the mean of p(x, z) / q(z | x) over `samples` of them (Burda et al.
        2016), a tighter one, which tends to the exact value as they grow.
    """

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" +- {self.standard_error:.4f}"
        return (
            f"{self.mean:.4f}{spread} nats ({self.kind}, {self.samples} samples, {len(self.values)} of data)"
        )


@dataclass(frozen=True)
class ELBO:
    """A lower bound of log p(x) in its parts, float64 [n] each, in nats, on the CPU: values = log_likelihood - kl.

    log_likelihood: log p(x | z) of one z drawn from q(z | x). kl: KL(q(z | x) | p(z)) in closed form; of hierarchical
    models each group's given that draw of the groups above.
    """

    values: Tensor
    log_likelihood: Tensor
    kl: Tensor
    kind: str = "bound"


@dataclass(frozen=True)
class LatentKL:
    """What a latent tells of the data. group, latent: which; of latents that are maps, a channel, summed over its
    pixels.

    kl: KL(q | p) in nats, averaged over the data. activity: the variance, over the data, of its posterior's mean (Burda
    et al. 2016, section 5.2), of maps averaged over pixels.
    """

    group: int
    latent: int
    kl: float
    activity: float

    @property
    def collapsed(self) -> bool:
        """Whether its posterior is its prior, whatever x is: the decoder learns nothing from it."""
        return self.kl < COLLAPSED


@dataclass(frozen=True)
class KLReport:
    """The KL of every latent; ``print`` it for a table. count: samples of data that it is averaged over."""

    latents: tuple[LatentKL, ...]
    count: int

    @property
    def collapsed(self) -> tuple[LatentKL, ...]:
        """Those that tell nothing."""
        return tuple(latent for latent in self.latents if latent.collapsed)

    @property
    def total(self) -> float:
        """Nats of all of them."""
        return math.fsum(latent.kl for latent in self.latents)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        rows = [
            {
                "group": v.group,
                "latent": v.latent,
                "kl": v.kl,
                "activity": v.activity,
                "collapsed": v.collapsed,
            }
            for v in self.latents
        ]
        return {"count": self.count, "total": self.total, "latents": rows}

    def __str__(self) -> str:
        lines = ["group  latent      nats  activity"]
        for v in sorted(self.latents, key=lambda v: (v.group, -v.kl)):
            mark = "  collapsed" if v.collapsed else ""
            lines.append(f"{v.group:5d}  {v.latent:6d}  {v.kl:8.4f}  {v.activity:8.4f}{mark}")
        names = ", ".join(
            f"{v.group}.{v.latent}" if any(w.group for w in self.latents) else str(v.latent)
            for v in self.collapsed
        )
        lines.append(f"{self.total:.4f} nats in all, over {self.count} samples")
        if self.collapsed:
            lines.append(f"collapsed ({len(self.collapsed)} of {len(self.latents)}): {names}")
        return "\n".join(lines)
