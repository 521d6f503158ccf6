"""Generators of DCGANs: PyTorch's example (``main.0.weight``), and the layout of courses (``gen.0.0.weight``).

main.0, main.3, main.6, ...     transposed convolutions, main.1, main.4, ... batch norms
gen.0.0, gen.1.0, ...           the same, gen.0.1, gen.1.1, ... batch norms; with biases
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.models.gan.dcgan import MAX_LAYERS, DCGANConfig

from ..base import Report
from ..flows.source import Result, Source, converter, same
from ..flows.state import State

SUPPORTED = "transposed convolutions, each but the last with a batch norm and a ReLU, tanh at the end"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class DCGANOptions:
    """What tensors do not say; None: as the layout's own code has it.

    strides, paddings: of each transposed convolution. PyTorch's example: 1, 2, 2, ... and 0, 1, 1, ...; the courses': a
    filter of 3 pixels has stride 2, one of 4 pixels stride 1, and 2 in the last layer; no padding.
    """

    strides: tuple[int, ...] | None = bounded(1, 8, default=None, max_items=MAX_LAYERS + 1)
    paddings: tuple[int, ...] | None = bounded(0, 32, default=None, max_items=MAX_LAYERS + 1)


def is_example(names: Iterable[str]) -> bool:
    """Whether these are names of PyTorch's example's generator; its discriminator has no norm at 1."""
    found = set(names)
    return {"main.0.weight", "main.1.running_mean", "main.3.weight", "main.4.running_mean"} <= found


def is_course(names: Iterable[str]) -> bool:
    """Whether these are names of the courses' generator."""
    return {"gen.0.0.weight", "gen.0.1.running_mean", "gen.1.0.weight"} <= set(names)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of either."""
    names = list(names)
    return is_example(names) or is_course(names)


def read(state: State, options: DCGANOptions, report: Report) -> Result:
    """The generator."""
    example = is_example(state.names)
    if example:
        places = [(f"main.{n}", f"main.{n + 1}") for n in state.numbers("main") if n % 3 == 0]
    else:
        count = state.count("gen", MAX_LAYERS + 1)
        places = [(f"gen.{n}.0", f"gen.{n}.1") for n in range(count)]
    tensors: dict[str, Tensor] = {}
    shapes: list[tuple[int, ...]] = []
    biased = []
    for i, (conv, norm) in enumerate(places):
        weight = state.take(f"{conv}.weight", None, None, None, None)
        shapes.append(tuple(weight.shape))
        tensors[f"layers.{3 * i}.weight"] = weight
        biased.append(state.has(f"{conv}.bias"))
        if biased[-1]:
            tensors[f"layers.{3 * i}.bias"] = state.take(f"{conv}.bias", weight.shape[1])
        if i < len(places) - 1:
            for name in NORM:
                if name != "num_batches_tracked" or state.has(f"{norm}.{name}"):
                    tensors[f"layers.{3 * i + 1}.{name}"] = state.take(f"{norm}.{name}")
                else:  # files of PyTorch 0.4 and older have none
                    tensors[f"layers.{3 * i + 1}.{name}"] = weight.new_zeros(()).long()
    kernels = [same(shape[2:], "a filter's side", state.where) for shape in shapes]
    last = len(places) - 1
    if example:
        strides, paddings = [1, *[2] * last], [0, *[1] * last]
    else:
        strides = [2 if kernel == 3 or i == last else 1 for i, kernel in enumerate(kernels)]
        paddings = [0] * len(places)
    values = {
        "latent": shapes[0][0],
        "out_channels": shapes[-1][1],
        "widths": [shape[1] for shape in shapes[:-1]],
        "kernels": kernels,
        "strides": strides if options.strides is None else list(options.strides),
        "paddings": paddings if options.paddings is None else list(options.paddings),
        "bias": same(biased, "whether there is a bias", state.where),
    }
    config = from_dict(DCGANConfig, values, state.where)
    report.assumed.append(
        f"strides {values['strides']}, paddings {values['paddings']}: images of {config.side} pixels"
    )
    return Result("dcgan", config, tensors)


CONVERTER = converter(
    Source(
        name="dcgan",
        about="DCGAN generators as in PyTorch's examples (main.*) and in courses (gen.*)",
        supported=SUPPORTED,
        options=DCGANOptions,
        recognises=recognises,
        read=read,
        family="gan",
        part="generator",
    )
)
