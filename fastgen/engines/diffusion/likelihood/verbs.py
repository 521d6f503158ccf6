"""``log_prob`` and ``bits_per_dim`` of a diffusion engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastgen_kernels import normals, signed_seeds

from ....diffusion.probability_flow import ProbabilityFlow
from ....diffusion.schedule import NoiseSchedule
from ....errors import ConfigError
from ....models.unet import UNet
from ....runtime.batches import Batches
from ...arguments import sample_labels, sample_seeds
from ..likelihood_verbs import LEVELS
from ..module import Wrapped
from . import ode, options
from .bound import Chain, Steps, strata
from .network import Denoiser
from .options import BoundOptions, ODEOptions
from .results import BOUND, EXACT, HUTCHINSON, HUTCHINSON_BOUND, DiffusionBits, LogProb, Terms

if TYPE_CHECKING:
    from ..engine import DiffusionEngine

CHAIN = 1000  # levels of a bound's chain in continuous time
PROBES = 1 << 20  # numbers of a draw's Hutchinson noise, one for each evaluation


class _Data(NamedTuple):
    """x float64 [n, C, H, W] in the network's units, seeds and labels int64 [n], on the device."""

    x: Tensor
    seeds: Tensor
    label: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x, self.seeds) if self.label is None else (self.x, self.seeds, self.label)


class _Estimate(NamedTuple):
    """Of costs in nats, float64: each draw's [n, K], evaluations of the network, and the bound's terms in nats."""

    costs: Tensor
    evaluations: int
    terms: Terms | None = None


def log_prob(
    engine: DiffusionEngine,
    x: Any,
    samples: Any,
    labels: Any,
    seed: Any,
    method: Any,
    given: Mapping[str, Any],
) -> LogProb:
    """See ``DiffusionEngine.log_prob``."""
    from ...flow.data import check_floats  # which drawing does not need

    if given.get("dequantisation") is not None:
        raise ConfigError(
            "log_prob is of continuous x; bits_per_dim takes levels and dequantises",
            argument="dequantisation",
        )
    chosen, count = options.read(method, given, engine.settings), options.draws(samples)
    check_floats("x", x, engine.shape)
    options.check_finite(x)
    data = _data(engine, engine.inward(x.detach().double()), labels, seed)
    if isinstance(chosen, BoundOptions):
        found = _bound(engine, data, count, chosen, None)
        kind = BOUND
    else:
        found = _flow(engine, data, count, chosen)
        kind = EXACT if options.whole_trace(chosen, math.prod(engine.shape)) else HUTCHINSON
    values, errors = _mean(found.costs, kind)
    terms = found.terms
    if engine.settings.scale is not None:  # rows are standardised, and a density is one of the data's units
        volume = math.fsum(map(math.log, engine.settings.scale))
        values = values + volume
        if terms is not None:
            terms.by_timestep[:, 0] += volume
    return LogProb(-values, kind, 1 if kind == EXACT else count, errors, found.evaluations, terms)


def bits_per_dim(
    engine: DiffusionEngine,
    x: Any,
    samples: Any,
    labels: Any,
    seed: Any,
    method: Any,
    given: Mapping[str, Any],
) -> DiffusionBits:
    """See ``DiffusionEngine.bits_per_dim``."""
    from ...flow.bits import to_levels
    from ...flow.data import check_shape

    unit = 1.0 / (math.log(2) * math.prod(engine.shape))
    chosen, count = options.read(method, given, engine.settings), options.draws(samples)
    if engine.value_range is None:
        if isinstance(chosen, ODEOptions) and chosen.dequantisation is not None:
            raise ConfigError(
                "this model's data is continuous: nothing is dequantised", argument="dequantisation"
            )
        said = log_prob(engine, x, count, labels, seed, method, given)
        return DiffusionBits(
            -unit * said.values,
            said.kind,
            said.samples,
            None,
            unit * said.errors,
            said.evaluations,
            _scaled(said.terms, unit),
        )
    low, high = engine.value_range
    if isinstance(x, Tensor) and x.is_floating_point():
        x = (x.double() - low) * (2.0 / (high - low)) - 1.0 if engine.value_range != (-1.0, 1.0) else x
    k = to_levels(x, LEVELS)
    check_shape("x", k, engine.shape)
    data = _data(engine, low + k.double() * ((high - low) / (LEVELS - 1)), labels, seed)
    noise = None
    if isinstance(chosen, BoundOptions):
        found, kind = _bound(engine, data, count, chosen, LEVELS), BOUND
    else:
        discrete = isinstance(engine.settings.noise_schedule, NoiseSchedule)
        noise = chosen.dequantisation or ("decoder" if discrete else "uniform")
        found = _dequantised(engine, data, count, chosen, noise)
        whole = options.whole_trace(chosen, math.prod(engine.shape))
        kind = BOUND if whole else HUTCHINSON_BOUND
    values, errors = _mean(found.costs, kind)
    return DiffusionBits(
        unit * values, kind, count, noise, unit * errors, found.evaluations, _scaled(found.terms, unit)
    )


def _data(engine: DiffusionEngine, x: Tensor, labels: Any, seed: Any) -> _Data:
    """Raises ConfigError."""
    settings, count = engine.settings, len(x)
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    numbers = sample_labels(
        count, labels, settings.num_classes, settings.class_names, settings.null_class is not None
    )
    label = None
    if settings.num_classes is not None:
        known = [settings.null_class if number is None else number for number in numbers]
        label = torch.tensor(known, dtype=torch.int64, device=engine.device)
    seeds = signed_seeds(sample_seeds(count, seed, None)).to(engine.device)
    return _Data(x.to(engine.device), seeds, label)


def _network(engine: DiffusionEngine) -> Denoiser:
    return Denoiser(engine.network, engine.dtype, engine.shape[0])


def _flow(engine: DiffusionEngine, data: _Data, draws: int, chosen: ODEOptions) -> _Estimate:
    """-log p(z) of z = x at the lowest noise level; K draws of the trace along one path."""
    flow = _probability_flow(engine)
    with engine._working():
        run = _integration(engine, flow, chosen, draws, 0)
        return _Estimate(*run(data))


def _dequantised(
    engine: DiffusionEngine, data: _Data, draws: int, chosen: ODEOptions, noise: str
) -> _Estimate:
    """-log P(x) of levels, bounded: each draw has a path of its own."""
    flow = _probability_flow(engine)
    assert engine.value_range is not None
    low, high = engine.value_range
    width = (high - low) / (LEVELS - 1)
    size = math.prod(engine.shape)
    with engine._working():
        steps = _steps(engine, Chain.of(flow, 2), None, LEVELS)
        batches = _batches(engine)
        costs, evaluations = [], 0
        for draw in range(draws):
            normal = normals(data.seeds, draw, "dequantise", engine.shape, torch.float64)
            if noise == "uniform":
                z = data.x + width * (torch.special.ndtr(normal) - 0.5)
                paid = torch.full((len(z),), -size * math.log(width), dtype=torch.float64, device=z.device)
            else:
                z = data.x + flow.noise * normal
                entropy = 0.5 * normal.square() + 0.5 * math.log(2 * math.pi) + math.log(flow.noise)
                state = flow.ends[0].alpha * z

                def decode(*given: Tensor) -> tuple[Tensor, ...]:
                    return (steps.decoded(given[0], given[1], given[2] if len(given) > 2 else None),)

                label = () if data.label is None else (data.label,)
                (decoded,) = batches("decode", decode, data.x, state, *label)
                paid = decoded - entropy.flatten(1).sum(1)
                evaluations += 1
            run = _integration(engine, flow, chosen, 1, draw)
            cost, asked = run(data._replace(x=z))
            costs.append(cost[:, 0] + paid.cpu())
            evaluations += asked
    return _Estimate(torch.stack(costs, 1), evaluations)


def _bound(
    engine: DiffusionEngine, data: _Data, draws: int, chosen: BoundOptions, levels: int | None
) -> _Estimate:
    flow = _probability_flow(engine, between=False)
    chain = Chain.of(flow, chosen.levels or CHAIN)
    discrete = isinstance(flow.process, NoiseSchedule)
    runs = strata(len(chain), chosen.timesteps or len(chain), even=not discrete)
    first = torch.tensor([a for a, _ in runs], dtype=torch.float64, device=engine.device)
    length = torch.tensor([b - a for a, b in runs], dtype=torch.float64, device=engine.device)
    kept = torch.zeros(len(data.x), len(chain), dtype=torch.float64, device="cpu")
    hits = torch.zeros_like(kept)
    costs = []
    with engine._working():
        steps = _steps(engine, chain, chosen.variance_type, levels)
        batches = _batches(engine)

        prior = chain.prior(data.x).cpu()
        index = torch.arange(len(data.x), device=engine.device).repeat_interleave(len(runs))
        for draw in range(draws):
            # Which level of each run stands for it, for each sample.
            place = torch.special.ndtr(normals(data.seeds, draw, "initial", (len(runs),), torch.float64))
            at = (first + (place * length).floor().minimum(length - 1)).long()

            def terms(index: Tensor, at: Tensor, number: int = draw) -> tuple[Tensor, ...]:
                label = None if data.label is None else data.label[index]
                draws = torch.full_like(at, number)
                return (steps.terms(data.x[index], at, data.seeds[index], draws, label),)

            (found,) = batches("terms", terms, index, at.flatten())
            values, at = found.view(at.shape), at.cpu()
            costs.append(prior + (values * length).sum(1).cpu())
            kept.scatter_add_(1, at, values.cpu())
            hits.scatter_add_(1, at, torch.ones_like(kept[:, : len(runs)]))
    times = torch.tensor(chain.time, dtype=torch.float64, device="cpu")
    said = Terms(prior, kept / hits, times)  # 0 / 0 is NaN: not evaluated
    return _Estimate(torch.stack(costs, 1), len(runs) * draws, said)


def _integration(
    engine: DiffusionEngine, flow: ProbabilityFlow, chosen: ODEOptions, draws: int, first: int
) -> Any:
    """A function of data: -log p(z) [n, draws] on the CPU, and evaluations. first: number of the first draw."""
    network, shape = _network(engine), engine.state_shape
    whole = options.whole_trace(chosen, math.prod(shape))
    draws = 1 if whole else draws
    evaluations = 0

    def part(z: Tensor, seeds: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        nonlocal evaluations

        def field(y: Tensor, u: float, number: int) -> tuple[Tensor, Tensor]:
            slope = flow.slope(u)
            time = torch.full((len(y),), slope.time, dtype=torch.float32, device=y.device)
            probes = (
                None if whole else [_signs(seeds, (first + k) * PROBES + number, shape) for k in range(draws)]
            )
            output, trace = network.with_trace(slope.input * y, time, label, probes)
            rate = slope.own * y + slope.output * output.double()
            return rate, slope.own * y[0].numel() + slope.output * slope.input * trace

        y, ends = flow.shrinkage * z, (flow.start, flow.end)
        if chosen.solver == ode.ADAPTIVE:
            ended = ode.adaptive(field, y, draws, *ends, chosen.rtol, chosen.atol)
        else:
            ended = ode.fixed(field, y, draws, *ends, chosen.solver, chosen.steps)
        evaluations = max(evaluations, ended.evaluations)
        return (-ode.log_density(flow, ended).T.contiguous(),)

    def run(data: _Data) -> tuple[Tensor, int]:
        if chosen.solver == ode.ADAPTIVE:
            ode.require_adaptive()
        (costs,) = _batches(engine)("integrate", part, *data.tensors)
        return costs.cpu(), evaluations

    return run


def _signs(seeds: Tensor, number: int, shape: tuple[int, ...]) -> Tensor:
    """Random signs [B, *shape], float32: of all probes those of the least variance (Hutchinson 1990)."""
    return 2.0 * (normals(seeds, number, "hutchinson", shape) >= 0).float() - 1.0


def _steps(engine: DiffusionEngine, chain: Chain, variance: str | None, levels: int | None) -> Steps:
    chosen = variance or engine.settings.variance or "fixed_small"
    return Steps(chain, _network(engine), chosen, engine.value_range, levels)


def _batches(engine: DiffusionEngine) -> Batches:
    """As many samples together as the engine draws; not captured, which gradients could not be."""
    return Batches(engine.device, max_batch=engine.batches.micro_batch, backend="eager")


def _probability_flow(engine: DiffusionEngine, *, between: bool = True) -> ProbabilityFlow:
    """between: whether the network is asked between its timesteps. Raises ConfigError where it cannot be."""
    network, whole = engine.network, False
    if isinstance(network, Wrapped):
        whole, network = bool(network.integer_time), network.net
    if isinstance(network, UNet) and network.config.time_embedding_type == "learned":
        whole = True
    if between and whole:
        raise ConfigError(
            "the probability flow asks the network between its timesteps, and this one looks them up in a table; "
            "method=bound does not",
            argument="method",
        )
    return ProbabilityFlow(engine.settings.noise_schedule)


def _mean(costs: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Values and their standard errors, [n] each, of draws [n, K]."""
    count = costs.shape[1]
    if kind == EXACT:
        return costs.mean(1), torch.zeros(len(costs), dtype=torch.float64, device="cpu")
    if count == 1:
        return costs[:, 0], torch.full((len(costs),), math.nan, dtype=torch.float64, device="cpu")
    return costs.mean(1), costs.std(1) / math.sqrt(count)


def _scaled(terms: Terms | None, unit: float) -> Terms | None:
    return None if terms is None else Terms(terms.prior * unit, terms.by_timestep * unit, terms.times)
