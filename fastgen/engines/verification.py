"""Is the engine right on this machine? Every layer, the fused step and the captured graph against plain float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen_kernels import OPS
from fastgen_kernels.op import UNIT_ROUNDOFF
from fastgen_kernels.reverse_step import cases

from ..models.blocks import NormAct

if TYPE_CHECKING:
    from .diffusion.engine import DiffusionEngine

WORKING = 2.0**-24  # unit roundoff of the sums inside a layer
TF32 = 2.0**-10  # of a factor: tensor cores cut off what its 10 bits of fraction do not hold
SIMULATIONS = 4
# Beyond what a few random roundings of the layers do: operations between layers, attention among them, round as well.
MARGIN = 2.0


@dataclass(frozen=True)
class Check:
    """One comparison.

    error: greatest deviation, divided by the greatest value of the reference. bound: the deviation as a fraction of
    what rounding explains, at most 1 when right; None where no bound is known. drift: deviation from the reference
    network as a whole up to here, divided likewise: what lower precision costs.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    error: float
    bound: float | None = None
    drift: float | None = None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.bound <= 1.0


@dataclass(frozen=True)
class Verification:
    """What ``engine.verify()`` found. ``print`` it for a table; ``to_dict()`` is JSON."""

    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything that has a bound is within it."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; a figure that is not finite is None."""
        checks = []
        for check in self.checks:
            values = {**asdict(check), "shape": list(check.shape), "passed": check.passed}
            checks.append({k: None if v in (math.inf, -math.inf) or v != v else v for k, v in values.items()})
        return {**self.facts, "passed": self.passed, "checks": checks}

    def __str__(self) -> str:
        head = ("", "", "shape", "error", "of bound", "drift", "")
        rows = [head]
        for c in self.checks:
            bound = "" if c.bound is None else f"{c.bound:.2f}"
            drift = "" if c.drift is None else f"{c.drift:.1e}"
            shape = "x".join(map(str, c.shape))
            rows.append((c.name, c.kind, shape, f"{c.error:.1e}", bound, drift, "" if c.passed else "WRONG"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = []
        for row in rows:
            words = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
            figures = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join([*words, *figures]).rstrip())
        facts = [f"{name}: {value}" for name, value in self.facts.items()]
        wrong = [c.name for c in self.checks if not c.passed]
        verdict = "all within what rounding explains" if not wrong else f"WRONG: {', '.join(wrong)}"
        return "\n".join([*facts, "", *lines, "", verdict])


@torch.no_grad()
def verify(engine: DiffusionEngine, reference: nn.Module | None, batch: int, seed: int) -> Verification:
    """As ``DiffusionEngine.verify`` describes. The engine's lock is held."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *engine.shape, generator=generator).to(engine.dtype)
    asked = engine.request(labels=None if engine.settings.num_classes is None else 0)
    times = torch.tensor(asked.plans[0].table.time, dtype=torch.float32)
    t = times[torch.randint(len(times), (batch,), generator=generator)]
    label = None
    if engine.settings.num_classes is not None:
        label = torch.randint(engine.settings.num_classes, (batch,), generator=generator)

    def run(
        network: nn.Module, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> Tensor:
        # A float64 network gets a float64 time; else the loop's float32.
        time = t.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
        inputs = x.to(device, dtype, memory_format=layout)
        return network(inputs, time) if label is None else network(inputs, time, label.to(device))

    with watching(engine.network) as seen:
        got = run(engine.network, engine.device, engine.dtype, engine.loop.memory_format)

    def on_cpu(network: nn.Module, dtype: torch.dtype) -> Tensor:
        return run(network, torch.device("cpu"), dtype, torch.contiguous_format)

    def twin(network: nn.Module) -> Twin:
        for dtype in (torch.float64, torch.float32):
            exact = copy.deepcopy(network).to("cpu", dtype).eval()
            for parameter in exact.parameters():
                parameter.data = parameter.data.contiguous()
            try:
                with watching(exact) as calls:
                    output = on_cpu(exact, dtype)
                break
            except RuntimeError:  # a network that makes tensors of its own in float32
                if dtype == torch.float32:
                    raise
        return Twin(exact, dtype, output, calls)

    own = twin(engine.network)
    wanted = own if reference is None else twin(reference)

    checks, rounding = [], {}
    for name, call in seen.items():
        judged = judge_layer(name, call, engine.dtype)
        if judged is not None:
            check, rounding[name] = judged
            other = wanted.calls.get(name)
            drift = None if other is None else deviation(call.output, other.output)
            checks.append(replace(check, drift=drift))
    u = UNIT_ROUNDOFF[engine.dtype]
    explained = 4.0 * u
    for _ in range(SIMULATIONS):
        with jittering(own.network, rounding, u, generator):
            explained = max(explained, deviation(on_cpu(own.network, own.dtype), own.output))
    whole = deviation(got, own.output)
    bound = whole / (MARGIN * explained)
    checks.append(Check("network", "network", tuple(got.shape), whole, bound, deviation(got, wanted.output)))
    checks += list(_steps(engine, batch, generator))
    checks += list(_graphs(engine, batch, seed))
    facts = {
        "model": engine.source,
        "device": str(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "reference": f"{str(wanted.dtype).removeprefix('torch.')} on the CPU, "
        + (
            "float32 weights" if reference is not None or engine.dtype == torch.float32 else "rounded weights"
        ),
        "batch": batch,
        "seed": seed,
    }
    return Verification(facts, checks)


@dataclass
class Call:
    """What a layer was given and returned, the first time it was called."""

    module: nn.Module
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: Tensor


@dataclass
class Twin:
    """A copy of a network on the CPU in `dtype`, float64 where it can, and what it made of the input."""

    network: nn.Module
    dtype: torch.dtype
    output: Tensor
    calls: dict[str, Call]


@contextmanager
def watching(network: nn.Module) -> Iterator[dict[str, Call]]:
    """Within the block, the calls of every module that has no modules in it."""
    seen: dict[str, Call] = {}
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []

    def copied(value: Any) -> Any:  # this layer, or a later one, may work in place
        return value.clone() if isinstance(value, Tensor) else value

    def before(name: str, module: nn.Module, inputs: Any, named: Any) -> None:
        given[name] = tuple(map(copied, inputs)), {key: copied(value) for key, value in named.items()}

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and name not in seen:
            seen[name] = Call(module, *given[name], output.clone())

    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def deviation(got: Tensor, want: Tensor) -> float:
    """Greatest |got - want|, divided by the greatest |want|; inf where only one is finite."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if got.shape != want.shape:
        return float("inf")
    scale = float(want.abs().max()) if want.numel() else 0.0
    worst = float((got - want).abs().nan_to_num(nan=float("inf")).max()) if want.numel() else 0.0
    return worst / scale if scale > 0 else worst


@contextmanager
def jittering(
    network: nn.Module, rounding: dict[str, Tensor | None], u: float, generator: torch.Generator
) -> Iterator[None]:
    """Within the block, results of the layers of `network` (on the CPU) are off by random amounts, as by rounding.

    rounding: by layer, the most that it explains of each element; where that is unknown, 4 u of its value.
    """
    handles = []

    def after(name: str, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        known = rounding.get(name)
        size = 4.0 * u * output.abs() if known is None or known.shape != output.shape else known
        noise = torch.rand(output.shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0
        return output + (size * noise).to(output.dtype)

    for name, module in network.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(partial(after, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def judge_layer(name: str, call: Call, dtype: torch.dtype) -> tuple[Check, Tensor | None] | None:
    """The layer alone, on the very inputs that the engine gave it, in float64; and what rounding explains there."""
    module = copy.deepcopy(call.module).to("cpu", torch.float64)
    inputs = [_exactly(value) for value in call.inputs]
    named = {key: _exactly(value) for key, value in call.named.items()}
    try:
        exact = module(*inputs, **named)
    except Exception:  # a layer that cannot work in float64 is judged by the network as a whole
        return None
    bound = None
    allowed = _allowed(module, inputs, exact, UNIT_ROUNDOFF[dtype], _products(module, call))
    if allowed is not None:
        difference = (call.output.double().cpu() - exact).abs()
        fraction = torch.where(difference == 0, 0.0, difference / allowed).nan_to_num(nan=float("inf"))
        bound = float(fraction.max())
    return Check(
        name, type(module).__name__, tuple(exact.shape), deviation(call.output, exact), bound
    ), allowed


def _exactly(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return value.double().contiguous() if value.is_floating_point() else value


def _products(module: nn.Module, call: Call) -> float:
    """Relative error of a layer's products beyond float32's, by what PyTorch allows itself on a GPU."""
    if not call.output.is_cuda:
        return 0.0
    if call.output.dtype == torch.float32:
        convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        backend = convolutions if isinstance(module, nn.Conv2d) else torch.backends.cuda.matmul
        return 2.0 * TF32 if backend.fp32_precision == "tf32" else 0.0
    # Products of half precision that are divided among programs are added in it.
    return UNIT_ROUNDOFF[call.output.dtype] if isinstance(module, nn.Linear) else 0.0


def summed(terms: int) -> float:
    """Relative rounding of a sum of `terms` products in float32, in whatever order.

    n u is never exceeded (Higham 2002, eq. 3.5), 6 sqrt(n) u with probability 3e-8 an element (Higham & Mary 2019,
    theorem 3.1, lambda = 6).
    """
    return min(terms, 6.0 * math.sqrt(terms)) * WORKING


def _allowed(
    module: nn.Module, inputs: list[Any], exact: Tensor, u: float, products: float = 0.0
) -> Tensor | None:
    """What rounding explains of a deviation: to the layer's type (u), and in the float32 sums inside it.

    None for kinds of layers whose arithmetic is not known here.
    """
    rounded = 1.01 * u * exact.abs()
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        twin = copy.deepcopy(module)
        for parameter in twin.parameters():
            parameter.data.abs_()
        relative = summed(module.weight[0].numel() + 1) + products
        return rounded + relative * twin(inputs[0].abs())
    if isinstance(module, nn.GroupNorm) and len(inputs) == 1:  # not scaled and shifted by an embedding
        x = inputs[0]
        groups = x.reshape(len(x), module.num_groups, -1)
        mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
        rstd = (var + module.eps).rsqrt()
        # Libraries take the variance as E[x^2] - E[x]^2: its relative error grows with the mean's share.
        condition = 1.0 + mean.square() * rstd.square()
        scaled = (groups.abs() + mean.abs()) * rstd
        size = (1, -1, *[1] * (x.dim() - 2))
        weight, bias = (1.0 if p is None else p.abs().reshape(size) for p in (module.weight, module.bias))
        statistics = (scaled * (summed(groups.shape[2]) * condition + 8.0 * WORKING)).reshape(x.shape)
        sums = weight * statistics + 8.0 * WORKING * bias
        if not (isinstance(module, NormAct) and module.act):
            return rounded + sums
        plain = nn.GroupNorm.forward(module, x).abs()
        # No activation's slope is above 1.13, GELU's.
        return rounded + 1.13 * (sums + 1.01 * u * plain) + 8.0 * WORKING * plain
    if isinstance(module, (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Mish)):
        return rounded + 8.0 * WORKING * (exact.abs() + inputs[0].abs())
    if isinstance(module, (nn.Identity, nn.Dropout, nn.Embedding, nn.Flatten)):
        return rounded
    return None


def _steps(engine: DiffusionEngine, batch: int, generator: torch.Generator) -> Iterator[Check]:
    """The fused step at this engine's shape, on the path that it takes here."""
    op = OPS["reverse_step"]
    last = engine.loop.memory_format == torch.channels_last
    for guided in (False, True):
        arguments = cases.arguments(
            generator,
            engine.device,
            engine.dtype,
            (batch, *engine.shape),
            slots=4,
            guided=guided,
            learned=engine.settings.learned,
            channels_last=last,
            sliced=True,
        )
        outputs = op.function(**arguments)
        fraction = max(op.errors(arguments, outputs).values())
        worst = max(deviation(a, b) for a, b in zip(outputs, op.exact(**arguments), strict=True))
        name = "reverse_step, guided" if guided else "reverse_step"
        yield Check(name, "fused", (batch, *engine.shape), worst, fraction)


def _graphs(engine: DiffusionEngine, batch: int, seed: int) -> Iterator[Check]:
    """The captured step against the same step uncaptured, which it must equal bit for bit."""
    if not engine.loop.graphs.freezes:
        return
    # A captured step has a batch of a power of two; uncaptured it must have the same, for libraries to choose alike.
    count = min(1 << (batch - 1).bit_length(), engine.loop.max_batch)
    settings = engine.settings
    labels = None if settings.num_classes is None else [k % settings.num_classes for k in range(count)]
    for guidance in (1.0, 2.0) if settings.null_class is not None else (1.0,):
        request = engine.request(
            seeds=range(seed, seed + count),
            labels=labels,
            steps=min(3, settings.steps),
            guidance_scale=guidance,
        )
        drawn = []
        for backend in (engine.loop.graphs.backend, "eager"):
            loop = engine.new_loop(backend=backend)
            tickets = [loop.add(single) for single in request.singles()]
            done: dict[int, Tensor] = {}
            while loop.step():
                done.update(loop.finished())
            drawn.append(torch.stack([done[ticket] for ticket in tickets]))
        captured, eager = drawn
        bound = 0.0 if torch.equal(captured, eager) else math.inf
        name = "captured step" if guidance == 1 else "captured step, guided"
        yield Check(name, "graph", tuple(eager.shape), deviation(captured, eager), bound)
