"""What a family of models adds to the training loop: its losses, and which networks each of them trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .batch import Dataset
from .settings import RunConfig


class Share(NamedTuple):
    """A part of a step, as one of several processes has it, or one of several accumulated gradients.

    rows: which of the batch's `total` samples it has. generator: as that of the whole step.
    """

    rows: slice
    total: int
    generator: torch.Generator


@dataclass(frozen=True)
class Step:
    """What a step of the run is made of.

    x: the objective's inputs [B, ...], on the networks' device. label: int64 [B], on the CPU, or None. generator: of
    the CPU, seeded for the step; all that is random is drawn from it there, so that a GPU run sees what a CPU run sees.
    target: of paired data what belongs to each x, on the device of x, else None. number: of steps done before it.
    share: None for the whole of a batch. An objective that draws by :meth:`drawn` alone, and whose losses are means of
    what each sample gives, makes the same step of shares as of the whole; one that takes numbers from `generator`
    itself is trained on whole batches only, and a run with shares is refused.
    """

    x: Tensor
    label: Tensor | None
    generator: torch.Generator
    config: RunConfig
    target: Tensor | None = None
    number: int = 0
    share: Share | None = None

    def drawn(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        """What `draw`, given the number of samples and a generator, returns for the samples of this step, [B, ...].

        The numbers of a sample do not depend on how the batch is shared: `draw` makes them for all of it.
        """
        if self.share is None:
            return draw(len(self.x), self.generator)
        return draw(self.share.total, self.share.generator)[self.share.rows]

    def normal(self, *shape: int) -> Tensor:
        """Normal noise of `shape` for each sample, float32 [B, *shape], on the device of `x`."""
        noise = self.drawn(
            lambda count, generator: torch.randn(
                count, *shape, generator=generator, dtype=torch.float32, device="cpu"
            )
        )
        return noise.to(self.x.device)

    def uniform(self) -> Tensor:
        """A number from [0, 1) for each sample, float32 [B], on the CPU."""
        return self.drawn(
            lambda count, generator: torch.rand(count, generator=generator, dtype=torch.float32, device="cpu")
        )

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers from low to high - 1 for each sample, int64 [B, *shape], on the CPU."""
        return self.drawn(
            lambda count, generator: torch.randint(
                low, high, (count, *shape), generator=generator, device="cpu"
            )
        )

    def autocast(self) -> torch.autocast:
        """The precision that the run's networks run in."""
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


@dataclass(frozen=True)
class Group:
    """What one optimiser (AdamW) trains: all parameters of `modules`.

    lr: the peak learning rate, and weight_decay; None is the run's. betas: AdamW's; papers on GANs have (0.5, 0.999)
    (Isola et al. 2017) or (0, 0.9) (Gulrajani et al. 2017), with weight_decay 0, which makes it plain Adam. fixed: the
    parameters stay as they are; there is no optimiser, and no loss for the group. cycles: how many times the run goes
    through warm-up and decay, each time in an equal part of its steps.
    """

    modules: Sequence[nn.Module]
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float | None = None
    fixed: bool = False
    cycles: int = 1


class Objective(Protocol):
    """How the networks of a run, by name, are trained.

    An objective whose loss is no mean of what each sample gives has an attribute `whole_batch`, the reason in words, ""
    where it is one after all; its batches are not shared.
    """

    @property
    def unit(self) -> str:
        """What the loss of a run with one group counts in, for the progress bar."""

    def inputs(self, batch: Tensor) -> Tensor:
        """x or target of the data set, as it came, -> what the networks are trained on; on the CPU."""

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Before the first step of a new run: what the data decides about the networks."""

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """One optimiser per group, by name. Every parameter of `networks` belongs to exactly one group."""

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """The losses of a step, one after the other: (name of the group that descends it, scalar).

        The loop asks for the next loss only after the group's parameters were updated by the one before, and a loss
        changes the parameters of its own group alone. Each group gets at least one loss per step; a critic that is
        updated k times yields k losses. All of them see the same batch, of which each may take a part.
        """


class OneNetwork:
    """An objective with one network, one optimiser and one loss per step, :meth:`loss`."""

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """See ``Objective``."""
        return {"loss": Group(tuple(networks.values()))}

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        """See ``Objective``."""
        (module,) = networks.values()
        yield "loss", self.loss(module, step)

    def loss(self, module: nn.Module, step: Step) -> Tensor:
        """The scalar to descend, to be differentiated."""
        raise NotImplementedError
