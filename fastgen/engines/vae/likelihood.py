"""How likely a VAE finds data, bounded; and what each of its latents tells of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastgen_kernels import normals, signed_seeds

from ...config import shown
from ...errors import ConfigError
from ...models.flow.dequantise import Dequantiser
from ...models.vae.likelihoods import Likelihood
from ..arguments import as_index, sample_seeds
from ..flow.bits import BitsPerDim, to_levels
from ..flow.data import check_shape
from .results import ELBO, KLReport, LatentKL, LogProb

if TYPE_CHECKING:
    from .engine import VAEEngine

MAX_DRAWS = 100_000


def elbo(engine: VAEEngine, x: Tensor, labels: Any, seed: int) -> ELBO:
    """See ``VAEEngine.elbo``."""
    said = _likelihood(engine)
    x = _on_levels(engine, x) if said.discrete and said.levels != 2 else engine.data("x", x)
    numbers = _seeds(engine, len(x), seed)
    found = engine.call("elbo", x, numbers, torch.zeros_like(numbers), *engine.condition(len(x), labels))
    log_likelihood = found[0].double().cpu() + _slope(engine)
    kl = torch.cat(found[2:], dim=1).double().cpu().sum(1)
    return ELBO(log_likelihood - kl, log_likelihood, kl)


def log_prob(engine: VAEEngine, x: Tensor, samples: int, labels: Any, seed: int) -> LogProb:
    """See ``VAEEngine.log_prob``."""
    said, samples = _likelihood(engine), _checked(samples)
    x = _on_levels(engine, x) if said.discrete else engine.data("x", x)
    condition = engine.condition(len(x), labels)
    numbers = _seeds(engine, len(x), seed)
    terms = [_weight(engine, x, numbers, draw, condition) for draw in range(samples)]
    return LogProb(_mean(terms) + _slope(engine), _kind(samples), samples)


def bits_per_dim(engine: VAEEngine, x: Tensor, samples: int, labels: Any, seed: int) -> BitsPerDim:
    """See ``VAEEngine.bits_per_dim``."""
    said, dimensions = _likelihood(engine), math.prod(engine.vae.data_shape)
    if said.levels is None or said.discrete:
        found = log_prob(engine, x, samples, labels, seed)
        return BitsPerDim(found.values / (-math.log(2) * dimensions), found.kind, found.samples)
    samples = _checked(samples)
    k = _levels(engine, x)
    condition = engine.condition(len(k), labels)
    numbers, dequantiser = _seeds(engine, len(k), seed), Dequantiser(said.levels)
    terms = []
    for draw in range(samples):
        noise = normals(numbers, torch.full_like(numbers, draw), "dequantise", k.shape[1:])
        x = engine.vae.outward(dequantiser(k, noise.to(engine.state_dtype))[0])
        terms.append(_weight(engine, x, numbers, draw, condition))
    values = math.log2(said.levels) - _mean(terms) / (math.log(2) * dimensions)
    return BitsPerDim(values, _kind(samples), samples)


def report(engine: VAEEngine, x: Tensor, labels: Any, seed: int) -> KLReport:
    """See ``VAEEngine.report``."""
    vae = engine.vae
    x = engine.data("x", x)
    condition = engine.condition(len(x), labels)
    moments = engine.call("encode", x, *condition)
    means, log_vars = moments[::2], moments[1::2]
    if vae.groups == 1:
        kls = [0.5 * (means[0].double().square() + torch.expm1(log_vars[0].double()) - log_vars[0].double())]
    else:  # a group's prior is known once those above are drawn
        numbers = _seeds(engine, len(x), seed)
        kls = [
            kl.double() for kl in engine.call("elbo", x, numbers, torch.zeros_like(numbers), *condition)[2:]
        ]
    found = []
    for group, (kl, mean) in enumerate(zip(kls, means, strict=True)):
        by_latent = (kl.flatten(2).sum(2) if kl.dim() > 2 else kl).mean(0)
        spread = mean.double().var(0, unbiased=False)
        activity = spread.flatten(1).mean(1) if spread.dim() > 1 else spread
        found += [
            LatentKL(group, latent, float(value), float(activity[latent]))
            for latent, value in enumerate(by_latent)
        ]
    return KLReport(tuple(found), len(x))


def _likelihood(engine: VAEEngine) -> Likelihood:
    said = engine.vae.likelihood
    if said is None:
        raise ConfigError(
            "this decoder gives an image, and no distribution of it: there is no likelihood", argument="x"
        )
    return said


def _levels(engine: VAEEngine, x: Any) -> Tensor:
    """The levels of images, int32 on the device. Raises ConfigError."""
    said = _likelihood(engine)
    assert said.levels is not None
    k = to_levels(x, said.levels)
    check_shape("x", k, engine.vae.data_shape)
    return k.to(engine.device)


def _on_levels(engine: VAEEngine, x: Any) -> Tensor:
    """Images whose values are levels, exactly so. Raises ConfigError."""
    levels = _likelihood(engine).levels
    assert levels is not None
    return _levels(engine, x).to(engine.state_dtype) * (2 / (levels - 1)) - 1


def _seeds(engine: VAEEngine, count: int, seed: int) -> Tensor:
    return signed_seeds(sample_seeds(count, seed, None)).to(engine.device)


def _weight(
    engine: VAEEngine, x: Tensor, numbers: Tensor, draw: int, condition: tuple[Tensor, ...]
) -> Tensor:
    """log p(x, z) - log q(z | x) of one draw, float64 on the CPU: they are sums over thousands of pixels."""
    found = engine.call("elbo", x, numbers, torch.full_like(numbers, draw), *condition)
    return (found[0].double() + found[1].double()).cpu()


def _mean(terms: list[Tensor]) -> Tensor:
    """The logarithm of the mean weight."""
    return torch.stack(terms).logsumexp(0) - math.log(len(terms))


def _kind(samples: int) -> str:
    return "bound" if samples == 1 else "importance-weighted bound"


def _checked(samples: Any) -> int:
    count = as_index(samples)
    if type(count) is not int or not 1 <= count <= MAX_DRAWS:
        raise ConfigError(f"expected an int from 1 to {MAX_DRAWS}, got {shown(samples)}", argument="samples")
    return count


def _slope(engine: VAEEngine) -> float:
    """What a density in the network's units is short of one in the engine's, in logarithms; 0 of probabilities."""
    return 0.0 if _likelihood(engine).discrete else float(engine.vae.log_slope())
