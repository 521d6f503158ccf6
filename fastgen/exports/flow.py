"""The export forms of normalising flows: data to latents with its log-density, latents to data, samples, a bound.

Tensors are in the engine's units: images in [-1, 1] where the flow models levels, else the data's own. Everything but
the networks inside couplings is float32 in a file of half precision too, as in an engine of half precision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fastgen_kernels import normals

from ..errors import ConfigError
from ..models.flow.dequantise import Dequantiser, VariationalDequantiser
from ..models.flow.flow import Flow
from ..models.flow.layers import Affine, Layer
from ..models.flow.priors import Prior
from .accurate import log_sigmoid, logistic, normal_cdf
from .flow_layers import Coupled, Piece, pieces
from .flow_priors import Latent, exported
from .form import BATCH, ExportForm, Interface, Port, Tensors
from .noise import export_normals


class _Flow(nn.Module):
    """The scales of a flow in one direction.

    outer: whether x is in the engine's units; else it is as the flow sees it.
    """

    def __init__(self, flow: Flow, inverse: bool, outer: bool = True) -> None:
        super().__init__()
        self.shapes = flow.latent_shapes
        self.discrete = flow.levels is not None
        inward: list[Layer] = [Affine(0.5, 0.5)] if self.discrete and outer else []
        inward += cast(list[Layer], list(flow.preprocess))
        shape, scales = flow.data_shape, []
        for i, scale in enumerate(flow.scales):
            layers = cast(list[Layer], list(cast(nn.ModuleList, scale)))
            made, shape = pieces([*inward, *layers] if i == 0 else layers, shape, inverse)
            scales.append(nn.ModuleList(made))
            shape = ((shape[0] + 1) // 2, *shape[1:])
        self.scales = nn.ModuleList(scales)
        self.priors = nn.ModuleList(exported(cast(Prior, prior)) for prior in flow.priors)
        self.volume = math.fsum(piece.volume for scale in scales for piece in cast(list[Piece], list(scale)))

    def analyse(self, x: Tensor, condition: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Latents, log |det d latents / d x| and log p(x)."""
        latents: list[Tensor] = []
        changes: list[Tensor] = []
        terms: list[Tensor] = []
        for i, (scale, prior) in enumerate(zip(self.scales, self._priors, strict=True)):
            for piece in cast(nn.ModuleList, scale):
                x, change = piece(x, condition)
                changes += [] if change is None else [change]
            border = x.shape[1] if i == len(self.scales) - 1 else (x.shape[1] + 1) // 2
            x, latent = (x, x) if border == x.shape[1] else (x[:, :border], x[:, border:])
            latents.append(latent)
            terms.append(prior.log_prob(latent, x, condition))
        log_prior = functools.reduce(torch.add, terms)
        log_det = functools.reduce(torch.add, changes, torch.full_like(log_prior, self.volume))
        return latents, log_det, log_det + log_prior

    def synthesise(self, latents: Tensors, condition: Tensor | None, temperature: Tensor | None) -> Tensor:
        """x; with a temperature `latents` are noise of which the priors make latents."""
        x: Tensor | None = None
        for i in reversed(range(len(self.scales))):
            z = latents[i]
            if temperature is not None:
                z = self._priors[i].draw(z, temperature, x, condition)
            x = z if x is None else torch.cat([x, z], dim=1)
            for piece in cast(nn.ModuleList, self.scales[i]):
                x, _ = piece(x, condition)
        assert x is not None
        return x

    @property
    def _priors(self) -> list[Latent]:
        return cast(list[Latent], list(self.priors))


class _Encode(_Flow):
    def __init__(self, flow: Flow) -> None:
        super().__init__(flow, inverse=False)
        self.outside = None if support(flow) is None else flow.outside

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensors:
        latents, log_det, log_prob = self.analyse(x, condition)
        if self.outside is not None:  # there latents are not finite either
            outside = self.outside((x + 1) / 2 if self.discrete else x)
            assert outside is not None
            log_prob = torch.where(outside.flatten(1).any(1), -math.inf, log_prob)
        return (*latents, log_det, log_prob)


class _Decode(_Flow):
    def __init__(self, flow: Flow) -> None:
        super().__init__(flow, inverse=True)

    def forward(self, *tensors: Tensor) -> Tensors:
        count = len(self.shapes)
        return (self.synthesise(tensors[:count], tensors[count] if len(tensors) > count else None, None),)


class _Sample(_Flow):
    def __init__(self, flow: Flow) -> None:
        super().__init__(flow, inverse=True)

    def forward(self, seeds: Tensor, temperature: Tensor, condition: Tensor | None = None) -> Tensors:
        sizes = [math.prod(shape) for shape in self.shapes]
        noise = export_normals(seeds, torch.zeros_like(seeds), "initial", sum(sizes))
        parts = noise.split(sizes, 1)
        by_scale = [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        spread = temperature.view(-1, *[1] * len(self.shapes[0]))
        x = self.synthesise(tuple(by_scale), condition, spread)
        return (x.clamp(-1, 1) if self.discrete else x,)


class _Bound(_Flow):
    def __init__(self, flow: Flow) -> None:
        super().__init__(flow, inverse=False, outer=False)
        dequantiser = _dequantiser(flow)
        self.levels, self.shape = dequantiser.levels, flow.data_shape
        self.offsets: nn.ModuleList | None = None
        if isinstance(dequantiser, VariationalDequantiser):
            layers = cast(list[Layer], list(dequantiser.layers))
            self.base = dequantiser.base
            self.offsets = nn.ModuleList(pieces(layers, flow.data_shape, inverse=False)[0])

    def forward(
        self, levels: Tensor, seeds: Tensor, draws: Tensor, condition: Tensor | None = None
    ) -> Tensors:
        noise = export_normals(seeds, draws, "dequantise", math.prod(self.shape)).view(-1, *self.shape)
        k = levels.to(noise.dtype)
        if self.offsets is None:
            return (self.analyse((k + normal_cdf(noise)) / self.levels, condition)[2],)
        # As `VariationalDequantiser.offsets`.
        image = k * (2 / (self.levels - 1)) - 1
        if self.base == "logistic":
            v = logistic(noise)
            log_q = _log_slope(v)
        else:
            v = noise
            log_q = (-0.5 * noise * noise - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
        for piece in cast(list[Piece], list(self.offsets)):
            v, change = piece(v, image)
            log_q = log_q if change is None else log_q - change
            log_q = log_q - piece.volume
        log_q = log_q - _log_slope(v)
        x = (k + torch.exp(log_sigmoid(v))) / self.levels
        return (self.analyse(x, condition)[2] - log_q,)


def _log_slope(v: Tensor) -> Tensor:
    """Sum of log d sigmoid(v) / dv over a sample."""
    return (log_sigmoid(v) + log_sigmoid(-v)).flatten(1).sum(1)


# Tensors.


def _x(flow: Flow) -> Port:
    units = "images in [-1, 1]" if flow.levels is not None else "the data's own units"
    return Port("x", (BATCH, *flow.data_shape), units)


def _latents(flow: Flow) -> tuple[Port, ...]:
    return tuple(
        Port(f"latents_{i}", (BATCH, *shape), f"the latent of scale {i}, the finest first")
        for i, shape in enumerate(flow.latent_shapes)
    )


def _condition(flow: Flow) -> tuple[Port, ...]:
    if flow.classes is not None:
        return (Port("labels", (BATCH,), f"class numbers, 0 to {flow.classes - 1}", torch.int64),)
    return (Port("context", (BATCH, flow.context), "what x depends on"),) if flow.context else ()


SEEDS = Port("seeds", (BATCH,), "of each sample's noise; 64 bits", torch.int64)


def _encode_tensors(flow: Flow) -> Interface:
    outputs = (
        *_latents(flow),
        Port("log_det", (BATCH,), "log |det d latents / d x|, in nats"),
        Port("log_prob", (BATCH,), "log p(x), in nats; -inf where there is no density"),
    )
    return Interface((_x(flow), *_condition(flow)), outputs)


def _decode_tensors(flow: Flow) -> Interface:
    return Interface((*_latents(flow), *_condition(flow)), (_x(flow),))


def _sample_tensors(flow: Flow) -> Interface:
    temperature = Port(
        "temperature", (BATCH,), "1 for the model's own distribution, less for likelier samples"
    )
    return Interface((SEEDS, temperature, *_condition(flow)), (_x(flow),))


def _bound_tensors(flow: Flow) -> Interface:
    last = _dequantiser(flow).levels - 1
    levels = Port("levels", (BATCH, *flow.data_shape), f"integers, 0 to {last}", torch.int64)
    draws = Port("draws", (BATCH,), "numbers of the seeds' noise, from 0: a draw each", torch.int64)
    bound = Port(
        "elbo",
        (BATCH,),
        "log p(x) - log q(x | levels) of dequantised x in [0, 1], in nats: less D log(number of levels) it bounds "
        "the log-probability of the levels from below",
    )
    return Interface((levels, SEEDS, draws, *_condition(flow)), (bound,))


def _no_bound(flow: Flow) -> str:
    return (
        ""
        if flow.levels is not None
        else "data without levels has no bound; log_prob of encode.onnx is exact"
    )


def _dequantiser(flow: Flow) -> Dequantiser:
    if flow.dequantiser is None:
        raise ConfigError(f"is null: {_no_bound(flow)}", argument="levels")
    return flow.dequantiser


def support(flow: Flow) -> tuple[float, float] | None:
    """The least and the greatest float32 value, in the engine's units, at which `flow` has a density.

    None for a flow of all real numbers. Found by bisection of what the flow itself says (`Flow.outside`), so that both
    agree to the last bit.
    """

    def outside(value: Tensor) -> bool:
        x = value.expand(1, *flow.data_shape)
        found = flow.outside((x + 1) / 2 if flow.levels is not None else x)
        return found is not None and bool(found.any())

    bounds = []
    number = functools.partial(torch.tensor, dtype=torch.float32, device="cpu")
    for beyond in (number(-math.inf), number(math.inf)):
        if not outside(beyond):
            return None
        inside, far = number(0.5), beyond.nan_to_num()  # the largest float32 of its sign
        while not torch.equal(middle := inside / 2 + far / 2, inside) and not torch.equal(middle, far):
            inside, far = (inside, middle) if outside(middle) else (middle, far)
        bounds.append(inside.item())
    return bounds[0], bounds[1]


# References and examples.


def _outward(flow: Flow, x: Tensor) -> Tensor:
    return 2 * x - 1 if flow.levels is not None else x


def _reference_encode(flow: Flow, x: Tensor, *condition: Tensor) -> Tensors:
    halved = math.log(2) * math.prod(flow.data_shape) if flow.levels is not None else 0.0
    inner = (x + 1) / 2 if flow.levels is not None else x
    latents, log_det = flow(inner, *condition)
    return (*latents, log_det - halved, flow.log_prob(inner, *condition) - halved)


def _reference_decode(flow: Flow, *tensors: Tensor) -> Tensors:
    count = len(flow.latent_shapes)
    return (_outward(flow, flow.inverse(tensors[:count], *tensors[count:])[0]),)


def _reference_sample(flow: Flow, seeds: Tensor, temperature: Tensor, *condition: Tensor) -> Tensors:
    shapes = flow.latent_shapes
    sizes = [math.prod(shape) for shape in shapes]
    noise = normals(seeds, 0, "initial", (sum(sizes),)).to(temperature.dtype)
    parts = noise.split(sizes, 1)
    by_scale = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    x = flow.sample(by_scale, temperature.view(-1, *[1] * len(shapes[0])), *condition)
    return (_outward(flow, x).clamp(-1, 1) if flow.levels is not None else x,)


def _reference_bound(flow: Flow, levels: Tensor, seeds: Tensor, draws: Tensor, *condition: Tensor) -> Tensors:
    noise = normals(seeds, draws, "dequantise", flow.data_shape)
    x, log_q = _dequantiser(flow)(levels, noise)
    return (flow.log_prob(x, *condition) - log_q,)


def _example_condition(flow: Flow, batch: int, generator: torch.Generator) -> Tensors:
    if flow.classes is not None:
        return (torch.randint(flow.classes, (batch,), generator=generator, device="cpu"),)
    return (
        (torch.randn(batch, flow.context, generator=generator, dtype=torch.float32, device="cpu"),)
        if flow.context
        else ()
    )


def _example_sample(flow: Flow, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    temperature = 0.5 + 0.5 * torch.rand(batch, generator=generator, dtype=torch.float32, device="cpu")
    return _random_seeds(batch, generator), temperature, *_example_condition(flow, batch, generator)


@torch.no_grad()
def _example_encode(flow: Flow, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    seeds, temperature, *condition = _example_sample(flow, batch, generator, sizes)
    return (*_reference_sample(flow, seeds, temperature, *condition), *condition)


@torch.no_grad()
def _example_decode(flow: Flow, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    x, *condition = _example_encode(flow, batch, generator, sizes)
    return (*_reference_encode(flow, x, *condition)[: len(flow.latent_shapes)], *condition)


def _example_bound(flow: Flow, batch: int, generator: torch.Generator, sizes: Mapping[str, int]) -> Tensors:
    last = _dequantiser(flow).levels - 1
    x, *condition = _example_encode(flow, batch, generator, sizes)
    levels = ((x + 1) * (last / 2)).round().to(torch.int64)
    draws = torch.randint(1000, (batch,), generator=generator, device="cpu")
    return levels, _random_seeds(batch, generator), draws, *condition


def _random_seeds(batch: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-(1 << 63), (1 << 63) - 1, (batch,), generator=generator, device="cpu")


def _rounded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    for piece in module.modules():
        if isinstance(piece, Coupled):
            piece.network.to(dtype)
    return module


_form = functools.partial(ExportForm, rounded=_rounded)
ENCODE = _form(
    name="encode",
    about="the latents of data, the log-determinant and log p(x)",
    interface=_encode_tensors,
    make=lambda flow: _Encode(flow).eval(),
    reference=_reference_encode,
    example=_example_encode,
)
DECODE = _form(
    name="decode",
    about="data of latents",
    interface=_decode_tensors,
    make=lambda flow: _Decode(flow).eval(),
    reference=_reference_decode,
    example=_example_decode,
)
SAMPLE = _form(
    name="sample",
    about="samples of seeds",
    interface=_sample_tensors,
    make=lambda flow: _Sample(flow).eval(),
    reference=_reference_sample,
    example=_example_sample,
)
BOUND = _form(
    name="elbo",
    about="a lower bound of the log-probability of images' levels",
    interface=_bound_tensors,
    make=lambda flow: _Bound(flow).eval(),
    reference=_reference_bound,
    example=_example_bound,
    missing=_no_bound,
)
FLOW = (ENCODE, DECODE, SAMPLE, BOUND)
