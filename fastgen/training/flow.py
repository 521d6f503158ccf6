"""Training a normalising flow by maximum likelihood, exact or, of discrete data, by a bound (Theis et al. 2016)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.flow.flow import Flow
from ..models.flow.layers import Standardise
from .batch import Dataset
from .objective import OneNetwork, Step
from .run import Run
from .tables import Rows, check_spread

START_ROWS = 4096  # that ActNorms start from


@dataclass(frozen=True)
class MaximumLikelihood(OneNetwork):
    """The objective of a :class:`Flow`: its mean negative log-likelihood, in `unit`.

    bits/dim, of levels (uint8 images): the bound of one dequantisation sample, divided by log 2 and by the elements
    of an image; noise is drawn anew in every step. nats, of real numbers (rows of a table): exact, of a whole row.
    """

    unit: str

    def inputs(self, batch: Tensor) -> Tensor:
        """As they are: a flow of images takes their levels."""
        return batch

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """ActNorm's start is the first batch's (Kingma & Dhariwal 2018, section 3.1).

        Rows are standardised by all of them, and ActNorms start from up to `START_ROWS`: a batch of rows is small, and
        a column may well be constant in it.
        """
        (module,) = networks.values()
        assert isinstance(module, Flow)
        if module.levels is None:
            order = torch.randperm(len(dataset), generator=step.generator, device="cpu")[:START_ROWS].tolist()
            rows = dataset.batch(order)
            step = dataclasses.replace(step, x=rows.x.to(step.x.device), label=rows.label)
        for layer in module.preprocess:
            if isinstance(layer, Standardise):
                everything = dataset.batch(range(len(dataset))).x
                layer.initialize(everything.to(step.x.device))
        with torch.no_grad():
            x, _ = _dequantised(module, step)
            module.initialize(x, _condition(module, step))

    def loss(self, module: nn.Module, step: Step) -> Tensor:
        """The mean negative log-likelihood of the batch."""
        assert isinstance(module, Flow)
        with step.autocast():
            x, log_q = _dequantised(module, step)
            log_prob = module.log_prob(x, _condition(module, step)) - log_q
        nats = -log_prob.mean()
        if module.levels is None:
            return nats
        dimensions = math.prod(module.data_shape)
        return nats / (dimensions * math.log(2)) + math.log2(module.levels)


def maximum_likelihood(module: Flow, run: Run, dataset: Dataset) -> MaximumLikelihood:
    """The objective of `run`, which trains `module` on `dataset`.

    Raises ConfigError where batches of images have one sample alone, or where the data is not what `module` models;
    DataError where rows have a column that does not vary (or not by what float32 can hold).
    """
    _check(module, dataset)
    # Here, not where the data is read: that may be a part of a file, and `evaluate` takes a single row.
    if isinstance(dataset, Rows):
        check_spread(dataset.values.double().numpy(), run.config.data)
    if module.levels is not None and run.config.batch_size < 2:
        raise ConfigError(
            "a flow starts from the spread of its first batch: expected at least 2 samples, got 1",
            argument="batch_size",
        )
    return MaximumLikelihood("nats" if module.levels is None else "bits/dim")


def _check(module: Flow, dataset: Dataset) -> None:
    """Whether `dataset` has the shape, the levels and the labels of `module`. Raises ConfigError."""
    if tuple(dataset.shape) != tuple(module.data_shape):
        raise ConfigError(
            f"its samples are {list(dataset.shape)}, the flow models {list(module.data_shape)}",
            argument="data",
        )
    levels = 256 if len(dataset.shape) == 3 else None
    if module.levels != levels:
        raise ConfigError(
            f"has {levels or 'no'} levels, the flow models {module.levels or 'none'}", argument="data"
        )
    if module.context:
        raise ConfigError(
            "has no context, which the flow needs; write a loop of your own with Flow.log_prob",
            argument="data",
        )
    if module.classes is not None and (dataset.num_classes is None or dataset.num_classes > module.classes):
        raise ConfigError(
            f"has {dataset.num_classes or 'no'} classes, the flow knows {module.classes}", argument="data"
        )


def _dequantised(module: Flow, step: Step) -> tuple[Tensor, Tensor]:
    """Real numbers for the flow, and log q of the noise that made them of levels, [B]."""
    if module.dequantiser is None:
        return step.x, step.x.new_zeros(len(step.x))
    x, log_q = module.dequantiser(step.x, step.normal(*step.x.shape[1:]))
    return x, log_q


def _condition(module: Flow, step: Step) -> Tensor | None:
    if module.classes is None:
        return None
    assert step.label is not None
    return step.label.to(step.x.device)
