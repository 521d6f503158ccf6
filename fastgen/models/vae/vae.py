"""What every variational autoencoder is: latents in groups, each with a prior and a posterior, and a decoder.

    p(x, z) = p(x | z) prod_l p(z_l | z_<l),    q(z | x) = prod_l q(z_l | z_<l, x)

with normal distributions whose covariances are diagonal. A flat VAE (Kingma & Welling 2014) has one group, whose prior
is N(0, 1); hierarchical ones go top-down through several (Sonderby et al. 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .likelihoods import Likelihood

LOG_2_PI = math.log(2 * math.pi)


class Normal(NamedTuple):
    """Independent normal distributions: means and logarithms of variances, of one shape."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + torch.exp(0.5 * self.log_var) * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Summed over a sample's elements: [B]."""
        squared = (z - self.mean).square() * torch.exp(-self.log_var)
        return (-0.5 * (squared + self.log_var + LOG_2_PI)).flatten(1).sum(1)


def kl(q: Normal, p: Normal) -> Tensor:
    """KL(q | p) of each element, in nats."""
    ratio = q.log_var - p.log_var
    distance = (q.mean - p.mean).square() * torch.exp(-p.log_var)
    return 0.5 * (distance + torch.expm1(ratio) - ratio)


class Inferred(NamedTuple):
    """A walk through the groups. latents: as drawn. posteriors, priors: of each group. output: the decoder's."""

    latents: list[Tensor]
    posteriors: list[Normal]
    priors: list[Normal]
    output: Tensor

    def log_weight(self) -> Tensor:
        """log p(z) - log q(z | x) of the latents: [B]."""
        groups = zip(self.latents, self.priors, self.posteriors, strict=True)
        return torch.stack([p.log_prob(z) - q.log_prob(z) for z, p, q in groups]).sum(0)

    def kl(self) -> list[Tensor]:
        """Of each group, element by element, given the latents of the groups above."""
        return [kl(q, p) for q, p in zip(self.posteriors, self.priors, strict=True)]


class VAE(nn.Module):
    """A subclass writes `features`, `begin`, `prior`, `posterior`, `absorb`, `output`.

    data_shape: (C, H, W) or (D,). latent_shapes: of each group, the top one first. likelihood: p(x | z); None where the
    decoder gives an image and no distribution. classes: of labels int64 [B]; None takes none. multiple: images of
    other sizes are taken, too, whose sides are multiples of it.

    x is in the network's units, see `inward`; distributions are float32, or float64 where the parameters are.
    """

    data_shape: tuple[int, ...]
    latent_shapes: tuple[tuple[int, ...], ...]
    likelihood: Likelihood | None
    classes: int | None = None
    multiple: int | None = None
    # Of a fast twin, whose layers do not show their parameters: what it runs on, and the type of its networks.
    place: tuple[torch.device, torch.dtype] | None = None

    def features(self, x: Tensor, label: Tensor | None) -> Any:
        """What posteriors need of x."""
        raise NotImplementedError

    def begin(self, count: int, label: Tensor | None) -> Any:
        """The state before the first group, of `count` samples."""
        raise NotImplementedError

    def prior(self, group: int, state: Any) -> Normal:
        """p(z_group | groups above)."""
        raise NotImplementedError

    def posterior(self, group: int, state: Any, prior: Normal, features: Any) -> Normal:
        """q(z_group | groups above, x)."""
        raise NotImplementedError

    def absorb(self, group: int, state: Any, z: Tensor) -> Any:
        """The state with the group's latents, which have the type of the parameters."""
        raise NotImplementedError

    def output(self, state: Any) -> Tensor:
        """The decoder's output, once all groups are absorbed."""
        raise NotImplementedError

    # What follows from these.

    @property
    def groups(self) -> int:
        return len(self.latent_shapes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters of encoder and decoder."""
        return self.placed[1]

    @property
    def placed(self) -> tuple[torch.device, torch.dtype]:
        if self.place is not None:
            return self.place
        first = next(self.parameters())
        return first.device, first.dtype

    @property
    def wide(self) -> torch.dtype:
        """Of distributions and likelihoods."""
        return torch.promote_types(self.dtype, torch.float32)

    def inward(self, x: Tensor) -> Tensor:
        """x, images in [-1, 1] or rows in the data's units, in the network's: images in [0, 1], standardised rows."""
        return x.add(1).mul_(0.5)

    def outward(self, x: Tensor) -> Tensor:
        """The inverse of `inward`."""
        return x.mul(2).sub_(1)

    def log_slope(self) -> Tensor | float:
        """The sum over a sample's elements of log |d inward / dx|."""
        return -math.log(2) * math.prod(self.data_shape)

    def infer(self, x: Tensor, noise: Sequence[Tensor] | None, label: Tensor | None = None) -> Inferred:
        """Down through the posteriors of x. noise: standard normal, of each group; None: latents are the means."""
        features = self.features(x.to(self.dtype), label)
        state = self.begin(x.shape[0], label)
        latents, posteriors, priors = [], [], []
        for group in range(self.groups):
            p = self._wide(self.prior(group, state))
            q = self._wide(self.posterior(group, state, p, features))
            z = q.mean if noise is None else q.sample(noise[group].to(q.mean.dtype))
            state = self.absorb(group, state, z.to(self.dtype))
            latents.append(z)
            posteriors.append(q)
            priors.append(p)
        return Inferred(latents, posteriors, priors, self.output(state).to(self.wide))

    def encode(self, x: Tensor, label: Tensor | None = None) -> list[Normal]:
        """The posterior of each group, those above it being at their means."""
        features = self.features(x.to(self.dtype), label)
        state = self.begin(x.shape[0], label)
        posteriors: list[Normal] = []
        for group in range(self.groups):
            posteriors.append(self._wide(self.posterior(group, state, self._prior(group, state), features)))
            if group + 1 < self.groups:
                state = self.absorb(group, state, posteriors[-1].mean.to(self.dtype))
        return posteriors

    def decode(self, latents: Sequence[Tensor], label: Tensor | None = None) -> Tensor:
        """The decoder's output for latents of every group."""
        state = self.begin(latents[0].shape[0], label)
        for group, z in enumerate(latents):
            state = self.absorb(group, state, z.to(self.dtype))
        return self.output(state).to(self.wide)

    def generate(
        self, count: int, choose: Callable[[int, Normal], Tensor], label: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Latents and the decoder's output of `count` samples. choose: (group, its prior) -> its latents."""
        state, latents = self.begin(count, label), []
        for group in range(self.groups):
            latents.append(choose(group, self._prior(group, state)))
            state = self.absorb(group, state, latents[-1].to(self.dtype))
        return latents, self.output(state).to(self.wide)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of x that a decoder's output says, in the network's units."""
        return output if self.likelihood is None else self.likelihood.mean(output)

    def _prior(self, group: int, state: Any) -> Normal:
        return self._wide(self.prior(group, state))

    def _wide(self, normal: Normal) -> Normal:
        return Normal(normal.mean.to(self.wide), normal.log_var.to(self.wide))


class FlatVAE(VAE):
    """One group of latents, of prior N(0, 1): `moments` of x, and `decoded` of latents."""

    def moments(self, x: Tensor, label: Tensor | None) -> Normal:
        """Mean and log-variance of q(z | x)."""
        raise NotImplementedError

    def decoded(self, z: Tensor, label: Tensor | None) -> Tensor:
        """The decoder's output."""
        raise NotImplementedError

    def encode(self, x: Tensor, label: Tensor | None = None) -> list[Normal]:
        return [self._wide(self.moments(x.to(self.dtype), label))]

    def decode(self, latents: Sequence[Tensor], label: Tensor | None = None) -> Tensor:
        return self.decoded(latents[0].to(self.dtype), label).to(self.wide)

    def features(self, x: Tensor, label: Tensor | None) -> Normal:
        return self.moments(x, label)

    def begin(self, count: int, label: Tensor | None) -> tuple[int, Tensor | None]:
        return count, label

    def prior(self, group: int, state: tuple[int, Tensor | None]) -> Normal:
        device, dtype = self.placed
        zeros = torch.zeros(state[0], *self.latent_shapes[0], device=device, dtype=dtype)
        return Normal(zeros, zeros)

    def posterior(self, group: int, state: Any, prior: Normal, features: Normal) -> Normal:
        return features

    def absorb(self, group: int, state: tuple[int, Tensor | None], z: Tensor) -> tuple[Tensor, Tensor | None]:
        return z, state[1]

    def output(self, state: tuple[Tensor, Tensor | None]) -> Tensor:
        return self.decoded(*state)
