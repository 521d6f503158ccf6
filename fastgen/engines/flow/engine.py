"""The verbs of a normalising flow: sample, log_prob, bits_per_dim, encode, decode, interpolate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastgen_kernels import signed_seeds

from ...checkpoint import Spec
from ...config import from_dict, shown
from ...errors import ConfigError
from ...fused.flow import FusedFlow
from ...images import PICTURES, Range, to_output
from ...models.flow.flow import Flow
from ...runtime.device import dtype_name, placed
from ..arguments import as_index, check_known, parameters, sample_seeds
from ..base import only_part
from ..finished import finite, warn_not_finite
from ..latent import LatentEngine, check_steps
from ..layers import Name
from ..verb import Verb
from ..verification import Check
from .bits import BitsPerDim, to_levels
from .data import check_shape, check_support
from .placement import place
from .request import FlowRequest, FlowSettings, conditions, resolve
from .verbs import FlowVerbs
from .verification import check_reference, coupling_networks, rounding_off, running, step_checks

MAX_DRAWS = 100_000  # dequantisation samples
IMAGES_PER_CALL = 64
ROWS_PER_CALL = 1024  # 64 would wait for Python, not for arithmetic


class FlowEngine(LatentEngine):
    """Samples from a flow and says how likely data is. Made by :func:`fastgen.load`. Threads, forks: see ``Engine``.

    Where the flow models levels (images of 256 values per channel), x is images: float32 [n, C, H, W] in [-1, 1]; the
    flow itself sees (x + 1) / 2. Else x is in the data's own units, [n, C, H, W] or [n, D]. Log-densities are those of
    the x that is handed over, in nats, in the state's type: float32, or float64 throughout with dtype="float64".

    A scale that overflows (see ``Coupling``) is not clamped: x, latents and log_prob become infinite or NaN.
    """

    kind = "flow"
    asked = ("temperature", *LatentEngine.asked)
    one_network = True
    operation = "affine_coupling"
    settings_type = FlowSettings
    settings: FlowSettings
    state_dtype: torch.dtype

    def __init__(
        self,
        flow: Flow,
        settings: FlowSettings | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
        source: str = "",
        architectures: dict[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        max_batch: int | None = None,
        graph: bool | str = True,
    ) -> None:
        """`flow` is moved to `device` and `dtype` and belongs to the engine from here on.

        dtype: "auto" is float32. "bfloat16" and "float16" are for the networks inside couplings only: state, folded
            matrices, priors and log-determinants stay float32, and log_prob is that of a flow whose networks are
            rounded so; a round trip is then off by what rounding makes of a changed input, far above float32's.
            "float64": everything. None leaves the types as they are.
        max_batch: samples at a time, by default 64 images or 1024 rows. Other arguments: see ``Engine``.

        Raises CheckpointError, naming the layer, where one has no inverse.
        """
        settings = settings or FlowSettings()
        settings.check_flow(flow)
        if max_batch is None:
            max_batch = IMAGES_PER_CALL if len(flow.data_shape) == 3 else ROWS_PER_CALL
        super().__init__(
            {next(iter(architectures or {}), "flow"): flow},
            settings,
            device=device,
            dtype=dtype,
            source=source,
            architectures=architectures,
            provenance=provenance,
            max_batch=max_batch,
            graph=graph,
        )

    @property
    def flow(self) -> Flow:
        """The reference flow; `fused` runs in its place."""
        return cast(Flow, self.network)

    @classmethod
    def from_spec(cls, networks: nn.ModuleDict, spec: Spec, **options: Any) -> Self:
        """From the filled network of a checkpoint, by part. options: those of ``FlowEngine``. Raises ConfigError."""
        name, network = only_part(networks)
        if not isinstance(network, Flow):
            raise ConfigError(f"{spec.parts[name].architecture} is not a flow", argument=f"parts.{name}")
        return cls(network, cls.settings_of(spec), **cls.records(spec), **options)

    @classmethod
    def from_module(
        cls,
        flow: Flow,
        *,
        temperature: float = 1.0,
        class_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_batch: int | None = None,
        graph: bool | str = True,
        **unknown: Any,
    ) -> FlowEngine:
        """From a `Flow` of your own, made of any `Layer`s. By default it stays where and as it is.

        It is used, not copied: weights that change in place (an optimiser, `load_state_dict`), tensors and modules that
        are replaced show in the next call, which folds them anew; what was written through `.data` and hooks that were
        added show after `refresh`. Every call puts it into eval mode. Its values and types stay, but the filters of
        its couplings' networks come to lie channels-last, and tensors made in inference mode are replaced by copies.
        Other arguments: see ``FlowEngine``. Raises ConfigError, CheckpointError or, for an argument that does not
        exist, ArgumentError (a TypeError).
        """
        check_known(unknown, parameters(cls.from_module), "from_module takes")
        if not isinstance(flow, Flow):
            raise ConfigError(
                f"expected a fastgen.models.flow.flow.Flow, got {type(flow).__qualname__}; "
                "wrap your layers as subclasses of fastgen.models.flow.layers.Layer and build a Flow of them",
                argument="flow",
            )
        values = {
            "temperature": temperature,
            "class_names": None if class_names is None else list(class_names),
        }
        here, _ = placed(flow)
        return cls(
            flow,
            from_dict(FlowSettings, values, "from_module"),
            device=here if device is None else device,
            dtype=dtype,
            source=f"module {type(flow).__module__}.{type(flow).__qualname__}",
            architectures={"module": type(flow).__qualname__},
            max_batch=max_batch,
            graph=graph,
        )

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: Any = None,
        context: Tensor | None = None,
        temperature: float | None = None,
        output_type: str = "pt",
    ) -> Tensor | np.ndarray | list:
        """Draw `n` samples: [n, *shape] on the engine's device; images are clipped to [-1, 1].

        A sample with values that are not finite is handed out with a warning that names its seed.

        n: how many; by default as many as there are seeds, labels or rows of context, else 1.
        seed: sample k has seed + k, in [0, 2^64); seeds: one per sample. Neither: seeds from the system's entropy.
            A sample's noise depends on its seed, not on how many are drawn beside it.
        labels: class numbers or names, one for all or one per sample. context: float [n, D_c], or [D_c] for all.
        temperature: factor of the standard deviation of the latents; below 1 samples are closer to the mode.
        output_type: "pt"; for images also "np": float32 [n, H, W, C] in [0, 1]; "pil": a list of images.

        ConfigError (a ValueError) for values out of range, ArgumentError (a TypeError) for names that do not exist.
        """
        self._check_output(output_type)
        request = self.request(
            n, seed=seed, seeds=seeds, labels=labels, context=context, temperature=temperature
        )
        return self.draw(request, context=context, output_type=output_type)

    def draw(
        self, request: FlowRequest, *, context: Tensor | None = None, output_type: str = "pt"
    ) -> Tensor | np.ndarray | list:
        """As `sample`, of what `request` returned; a request does not hold the context."""
        self._check_output(output_type)
        count = len(request.seeds)
        condition = self._condition(count, None if self.flow.classes is None else request.labels, context)
        numbers = signed_seeds(request.seeds).to(self.device)
        temperatures = torch.full((count,), request.temperature, device=self.device, dtype=self.state_dtype)
        (x,) = self.call("sample", numbers, temperatures, *condition)
        warn_not_finite(finite(x), request.seeds, self.dtype)
        return to_output(x, output_type)

    def log_prob(self, x: Tensor, *, labels: Any = None, context: Tensor | None = None) -> Tensor:
        """log p(x) in nats, [n], in the state's type: the density of continuous x, float [n, *shape].

        -inf where there is no density: flows whose first layer is a logit have one on [0, 1] and a little beyond, in
        an image's units [-1, 1]. For the probability of images with levels, see `bits_per_dim`.
        """
        x = self._data("x", x)
        return self.call("log_prob", x, *self._condition(len(x), labels, context))[0]

    def bits_per_dim(
        self,
        x: Tensor,
        samples: int = 1,
        *,
        labels: Any = None,
        context: Tensor | None = None,
        seed: int = 0,
    ) -> BitsPerDim:
        """-log2 P(x) a dimension, [n], and what kind of number it is: see ``BitsPerDim``.

        x: where the flow models levels, images in [-1, 1] whose values are levels, or the levels as integers; else
        as for `log_prob`, and the result is exact. samples: dequantisations averaged for each x (importance-weighted).
        seed: of their noise; that of x[k] is seed + k.
        """
        samples = as_index(samples)
        if type(samples) is not int or not 1 <= samples <= MAX_DRAWS:
            raise ConfigError(
                f"expected an int from 1 to {MAX_DRAWS}, got {shown(samples)}", argument="samples"
            )
        dimensions = math.prod(self.flow.data_shape)
        if self.flow.levels is None:
            log_prob = self.log_prob(x, labels=labels, context=context)
            return BitsPerDim(log_prob.double().cpu() / (-math.log(2) * dimensions), "exact", 1)
        k = to_levels(x, self.flow.levels)
        check_shape("x", k, self.flow.data_shape)
        condition = self._condition(len(k), labels, context)
        k = k.to(self.device)
        numbers = signed_seeds(sample_seeds(len(k), seed, None)).to(self.device)
        terms = []
        with self._working():
            for draw in range(samples):
                draws = torch.full_like(numbers, draw)
                terms.append(self._call("bits_per_dim", k, numbers, draws, *condition)[0])
        # log of the mean weight, in float64: log P is a sum over thousands of pixels.
        log_p = torch.stack([term.double() for term in terms]).logsumexp(0) - math.log(samples)
        values = math.log2(self.flow.levels) - log_p.cpu() / (math.log(2) * dimensions)
        return BitsPerDim(values, "bound" if samples == 1 else "importance-weighted bound", samples)

    def encode(self, x: Tensor, *, labels: Any = None, context: Tensor | None = None) -> list[Tensor]:
        """The latents of x [n, *shape], one tensor per scale, the finest first: `decode` makes x of them again.

        Raises ConfigError that names the value, where x has one that no latent belongs to (see `log_prob`).
        """
        x = self._data("x", x)
        check_support(self.flow, x)
        return list(self.call("encode", x, *self._condition(len(x), labels, context)))

    def decode(
        self, latents: Sequence[Tensor], *, labels: Any = None, context: Tensor | None = None
    ) -> Tensor:
        """x [n, *shape] of the latents of every scale. Images are not clipped: they may leave [-1, 1]."""
        given = self._latent_list(latents, self.flow.latent_shapes, "scale")
        return self.call("decode", *given, *self._condition(len(given[0]), labels, context))[0]

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        steps: int = 8,
        *,
        labels: Any = None,
        context: Tensor | None = None,
        output_type: str = "pt",
    ) -> Tensor | np.ndarray | list:
        """From a to b along the straight line between their latents (Kingma & Dhariwal 2018, figure 5).

        a, b: [n, *shape]. Returns [n * steps, *shape], a row of `steps` for each pair, the first a and the last b;
        images are clipped to [-1, 1]. labels, context: one for all or one per pair.
        """
        self._check_output(output_type)
        steps = check_steps(steps)
        start, end = (self.encode(x, labels=labels, context=context) for x in (a, b))
        between = self._between(start, end, steps)
        condition = [c.repeat_interleave(steps, 0) for c in self._condition(len(start[0]), labels, context)]
        return self._shown(self.call("decode", *between, *condition)[0], output_type)

    def verbs(self) -> dict[str, Verb]:
        """log_prob, encode, decode, sample and, of levels, bits_per_dim."""
        return FlowVerbs(self).verbs()

    def request(self, /, n: int | None = None, **arguments: Any) -> FlowRequest:
        """What ``sample(n, **arguments)`` would draw, with every default and random seed filled in."""
        return resolve(self.settings, self.flow, n=n, **arguments)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample: (C, H, W) or (D,)."""
        return self.flow.data_shape

    @property
    def value_range(self) -> Range | None:
        """See ``Engine``."""
        return PICTURES if self.discrete else None

    @property
    def discrete(self) -> bool:
        """Whether x is images in [-1, 1], which the flow sees in [0, 1]."""
        return self.flow.levels is not None

    def _place(self, dtype: str | torch.dtype | None) -> torch.dtype:
        chosen, self.state_dtype = place(self.flow, self.device, dtype)
        return chosen

    def _prepare(self) -> None:
        self.fused = FusedFlow(self.flow, self.device, self.state_dtype)

    def _facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "units": "images in [-1, 1]" if self.discrete else "the data's own",
            "latents": [list(shape) for shape in self.flow.latent_shapes],
            "levels": self.flow.levels,
            "classes": self.flow.classes,
            "context": self.flow.context or None,
            "layers": sum(len(step.layers) for chain in self.fused.chains for step in chain.steps),
            "steps": sum(len(chain.steps) for chain in self.fused.chains),
            "state": dtype_name(self.state_dtype),
        }

    def _defaults(self) -> dict[str, Any]:
        return {"temperature": self.settings.temperature}

    def _reference(self, reference: nn.Module) -> nn.ModuleDict:
        networks = super()._reference(reference)
        check_reference(next(iter(networks.values())), self.flow)
        return networks

    def running(self) -> dict[str, nn.Module]:
        return running(self.fused)

    def layer_checks(self, found: Mapping[str, list[Check]]) -> Iterator[Check]:
        return coupling_networks(found)

    def rounding_off(
        self, networks: nn.ModuleDict, known: Mapping[Name, Tensor | None], generator: torch.Generator
    ) -> AbstractContextManager[None]:
        return rounding_off(networks, self.dtype, self.state_dtype, generator)

    def more_checks(self, batch: int, seed: int, generator: torch.Generator) -> Iterator[Check]:
        return step_checks(self, batch, generator)

    def _condition(self, count: int, labels: Any, context: Any) -> tuple[Tensor, ...]:
        self._check_alive()  # before the first tensor on the device
        return conditions(self.settings, self.flow, count, labels, context, self.device, self.state_dtype)

    def _data(self, name: str, x: Any) -> Tensor:
        return self._floats(name, x, self.flow.data_shape)

    def _check_parts(self, request: FlowRequest, batch: int) -> None:
        if self.flow.context:
            raise ConfigError(
                f"this flow needs {self.flow.context} numbers per sample, which no file keeps; call sample for a part "
                "at a time, with the part of the context",
                argument="context",
            )
