"""What a caller asked of a flow engine, checked once: settings of a checkpoint, a request for samples, conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ...config import at_most, bounded, shown
from ...errors import ConfigError
from ...models.flow.flow import Flow
from ..arguments import SeededRequest, sample_count, sample_labels, sample_seeds

MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class FlowSettings:
    """Settings of ``Spec(engine="flow")``.

    temperature: what ``sample`` uses where the caller says nothing; 1 is the model's own distribution. num_classes: of
    a class-conditional flow, as its network has it; None says nothing. class_names: for their labels.
    """

    temperature: float = bounded(0.0, MAX_TEMPERATURE, default=1.0)
    num_classes: int | None = bounded(1, 1_000_000, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def check_flow(self, flow: Flow) -> None:
        """Compare with the flow's classes. Raises ConfigError."""
        if self.num_classes is not None and self.num_classes != flow.classes:
            raise ConfigError(
                f"is {self.num_classes}, the flow knows {flow.classes or 'no'} classes",
                argument="settings: num_classes",
            )
        if self.class_names is not None and len(self.class_names) != flow.classes:
            raise ConfigError(
                f"{len(self.class_names)} for {flow.classes or 'no'} classes",
                argument="settings: class_names",
            )


@dataclass(frozen=True)
class FlowRequest(SeededRequest):
    """A complete request for samples: it alone repeats them on the same model, but for a context."""

    temperature: float


def resolve(
    settings: FlowSettings,
    flow: Flow,
    *,
    n: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    labels: Any = None,
    context: Any = None,
    temperature: float | None = None,
) -> FlowRequest:
    """Check the arguments of ``sample``. Raises ConfigError or ArgumentError."""
    if n is None and seeds is None and labels is None and isinstance(context, Tensor) and context.dim() == 2:
        n = len(context)
    count = sample_count(n, seeds, labels)
    chosen = settings.temperature if temperature is None else temperature
    if isinstance(chosen, bool) or not isinstance(chosen, Real) or not 0 <= chosen <= MAX_TEMPERATURE:
        raise ConfigError(
            f"expected a number from 0 to {MAX_TEMPERATURE:g}, got {shown(chosen)}", argument="temperature"
        )
    return FlowRequest(
        sample_seeds(count, seed, seeds),
        sample_labels(count, labels, flow.classes, settings.class_names, False),
        float(chosen),
    )


def conditions(
    settings: FlowSettings,
    flow: Flow,
    count: int,
    labels: Any,
    context: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """What `count` samples are conditioned on: (labels int64 [count],), (context [count, D_c],) or ().

    dtype: of the state, which the context gets. Raises ConfigError.
    """
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    numbers = sample_labels(count, labels, flow.classes, settings.class_names, False)
    if flow.classes is not None:
        if context is not None:
            raise ConfigError("this flow is conditioned on labels; leave context out", argument="context")
        return (torch.tensor(numbers, dtype=torch.int64, device=device),)
    if not flow.context:
        if context is not None:
            raise ConfigError("this flow takes none", argument="context")
        return ()
    if not isinstance(context, Tensor) or not context.is_floating_point():
        raise ConfigError(
            f"expected a float tensor [{count}, {flow.context}] or [{flow.context}], got {shown(context)}",
            argument="context",
        )
    if context.shape not in ((count, flow.context), (flow.context,)):
        raise ConfigError(
            f"expected shape [{count}, {flow.context}] or [{flow.context}], got {list(context.shape)}",
            argument="context",
        )
    return (context.detach().to(device, dtype).expand(count, flow.context),)
