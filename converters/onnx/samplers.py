"""``step.onnx``, one step of any diffusion solver, and ``sampler.onnx``, all of them from seeds to pictures in a Loop.

Both are put together from the exported denoiser and the pieces of ``fastgen.exports.reverse_step``. A solver is data, a
table of rows (``fastgen_kernels.reverse_step.row``), so that one file serves all. The weights lie inside the Loop's
body: outside of it, each iteration takes about a fifth longer in onnxruntime.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fastgen.exports import BATCH, DENOISER, Interface, Port
from fastgen.exports.reverse_step import EVALUATIONS, Adjust, Noise, Shape, Update
from fastgen_kernels import STREAMS
from fastgen_kernels.reverse_step import row

from .exporter import OPSET, export_form, export_module

if TYPE_CHECKING:
    import onnx

    from .graphs import Graph

STEPS, KEPT = "steps", "kept"
NOISY = (row.A + row.Z, row.B + row.Z, row.LANGEVIN)  # a row with any of these makes noise
ADJUSTED = (row.THRESHOLD_MAX, row.RESCALE, row.LANGEVIN)  # ... is changed once the network has answered


@dataclass(frozen=True)
class Layout:
    """What a diffusion model's files depend on besides its network.

    shape: (C, H, W). null_class: the label that stands for none, None where there is none. learned: how the network's
    variance channels are read, as in ``reverse_step``.
    """

    shape: Shape
    labelled: bool
    null_class: int | None
    learned: int

    @property
    def guided(self) -> bool:
        return self.null_class is not None

    @property
    def history(self) -> tuple[str | int, ...]:
        return (BATCH, row.MAX_SLOTS, *self.shape)

    def image(self, name: str, meaning: str = "") -> Port:
        return Port(name, (BATCH, *self.shape), meaning)


class Pieces:
    """The parts of a diffusion model, each exported when it is first needed: seconds apiece.

    network: of the architecture "unet". Raises ConfigError, see `export_form`.
    """

    def __init__(
        self, network: nn.Module, layout: Layout, *, precision: str = "fp32", opset: int = OPSET
    ) -> None:
        self.network, self.layout, self.precision, self.opset = network, layout, precision, opset

    @cached_property
    def denoiser(self) -> onnx.ModelProto:
        return export_form(DENOISER, self.network, precision=self.precision, opset=self.opset)

    @property
    def noise(self) -> onnx.ModelProto:
        return _around(Noise, (self.layout.shape,), self.opset)

    @property
    def update(self) -> onnx.ModelProto:
        layout = self.layout
        return _around(Update, (layout.shape, layout.learned, layout.guided), self.opset)

    @property
    def adjust(self) -> onnx.ModelProto:
        layout = self.layout
        return _around(Adjust, (layout.shape, layout.learned, layout.guided), self.opset)


@lru_cache(maxsize=16)
def _around(
    kind: type[Noise] | type[Update] | type[Adjust], arguments: tuple[Any, ...], opset: int
) -> onnx.ModelProto:
    """What surrounds any network of these sizes, exported once in a process. Not to be changed: graphs copy it."""
    module = kind(*arguments)
    return export_module(module, module.interface(), module.example(), kind.__name__.lower(), opset=opset)


def step_interface(layout: Layout) -> Interface:
    """The tensors of ``step.onnx``."""
    inputs = [
        layout.image("x", "the state; of the first step initial_scale times normal noise"),
        Port("history", layout.history, "earlier values of the solver; zeros in the first step"),
        Port("rows", (BATCH, row.ROW_WORDS), "each sample's row of its table, its guidance weight in word 2"),
        Port("slot", (BATCH,), "history slot that the row writes, -1 for none", torch.int64),
        layout.image("z", "standard normal noise, anything finite where the row has none"),
        Port("time", (BATCH,), "the network's time"),
    ]
    if layout.guided:
        inputs += [
            Port(
                "label",
                (EVALUATIONS,),
                "class of each evaluation: first the samples' own, then none's",
                torch.int64,
            ),
            Port("sample_of", (EVALUATIONS,), "the sample that each evaluation is of", torch.int64),
            Port("unguided", (BATCH,), "each sample's evaluation without a label, or its own", torch.int64),
        ]
    elif layout.labelled:
        inputs.append(Port("label", (BATCH,), "class number", torch.int64))
    outputs = (
        layout.image("next_x", "the next state"),
        Port("next_history", layout.history, "the next history"),
    )
    return Interface(tuple(inputs), outputs)


def sampler_interface(layout: Layout) -> Interface:
    """The tensors of ``sampler.onnx``."""
    inputs = [
        Port("seeds", (BATCH,), "one per sample; 64 bits", torch.int64),
        Port("rows", (STEPS, row.ROW_WORDS), "the solver's table"),
        Port("slot", (STEPS,), "of the table", torch.int64),
        Port("noise_step", (STEPS,), "of the table", torch.int64),
        Port("time", (STEPS,), "of the table"),
        Port("initial_scale", (1,), "of the table"),
    ]
    if layout.labelled:
        meaning = "class number" + ("" if layout.null_class is None else f"; {layout.null_class} is none")
        inputs.append(Port("label", (BATCH,), meaning, torch.int64))
    if layout.guided:
        inputs.append(Port("guidance", (BATCH,), "classifier-free guidance weight, 1 is none"))
    meaning = "numbers of the samples whose states are wanted after every step; none: an empty list"
    inputs.append(Port("keep", (KEPT,), meaning, torch.int64))
    outputs = (
        layout.image("images", "in [-1, 1]"),
        Port("trajectory", (STEPS, KEPT, *layout.shape), "states of the samples in keep"),
    )
    return Interface(tuple(inputs), outputs)


def step_model(pieces: Pieces) -> onnx.ModelProto:
    """One step of each sample by its own row.

    Noise comes from outside, and rows' adjustments are left out: all that is inside runs on a GPU, where a CUDA graph
    can hold it. onnxruntime has no kernels there for the integers of which noise is made.
    """
    from .graphs import Graph

    graph, interface = Graph(), step_interface(pieces.layout)
    scale = graph.add("Gather", "rows", graph.constant([row.INPUT_SCALE], np.int64), axis=1)
    x, time, guiding = "x", "time", {}
    scaled = graph.add("Mul", x, graph.add("Reshape", scale, graph.constant([-1, 1, 1, 1], np.int64)))
    if pieces.layout.guided:
        scaled = graph.add("Gather", scaled, "sample_of", axis=0)
        time = graph.add("Gather", time, "sample_of", axis=0)
        guidance = graph.add("Gather", "rows", graph.constant(row.GUIDANCE, np.int64), axis=1)
        guiding = {"guidance": guidance, "unguided": "unguided"}
    output = _network(graph, pieces, scaled, time, "label")
    bound = {
        "x": x,
        "history": "history",
        "output": output,
        "rows": "rows",
        "slot": "slot",
        "z": "z",
        **guiding,
    }
    graph.inline(pieces.update, "update", bound, ["next_x", "next_history"])
    return _model(graph, interface, pieces.opset, "step")


def sampler_model(pieces: Pieces) -> onnx.ModelProto:
    """Pictures of seeds, a table, labels and guidance weights."""
    from .graphs import Graph

    graph, interface = Graph(), sampler_interface(pieces.layout)
    batch = graph.add("Shape", "seeds", name="batch_size")
    count = graph.add("Shape", "rows", start=0, end=1)
    steps = graph.add("Squeeze", count, name="step_count")
    nothing = graph.constant([0], np.int64)
    zeros = graph.add("Expand", nothing, batch)
    bound = {"seeds": "seeds", "noise_step": zeros, "stream": _stream(graph, "initial")}
    (noise,) = graph.inline(pieces.noise, "initial", bound)
    x = graph.add("Mul", noise, "initial_scale", name="initial_x")
    sizes = graph.constant([row.MAX_SLOTS, *pieces.layout.shape], np.int64)
    history = graph.add("ConstantOfShape", graph.add("Concat", batch, sizes, axis=0), name="initial_history")
    body = _body(pieces)
    always = graph.constant(True, np.bool_)
    results = ["final_x", "final_history", "trajectory"]
    graph.nodes.append(_node("Loop", [steps, always, x, history], results, "loop", body=body))
    bounds = [graph.constant(bound, np.float32) for bound in (-1.0, 1.0)]
    graph.add("Clip", "final_x", *bounds, name="images")
    return _model(graph, interface, pieces.opset, "sampler")


def _body(pieces: Pieces) -> onnx.GraphProto:
    """The Loop's body: iteration i takes row i of the table, which the outer graph holds."""
    from onnx import TensorProto, helper

    from .graphs import Graph, value_info

    layout, body = pieces.layout, Graph("body/")
    columns = ("rows", "slot", "noise_step", "time")
    taken = {name: body.add("Gather", name, "iteration", axis=0, name=f"body/{name}") for name in columns}
    one_row = taken["rows"]
    width = body.constant([row.ROW_WORDS], np.int64)
    rows = body.add("Expand", one_row, body.add("Concat", "batch_size", width, axis=0))
    slot, noise_step = (body.add("Expand", taken[name], "batch_size") for name in ("slot", "noise_step"))
    scaled = body.add(
        "Mul", "x", body.add("Gather", one_row, body.constant(row.INPUT_SCALE, np.int64), axis=0)
    )
    label, evaluations = "label", "batch_size"
    guiding: dict[str, str] = {}
    if pieces.layout.guided:
        scaled, label, evaluations, guiding = _guide(body, pieces, one_row, scaled)
    time = body.add("Expand", taken["time"], evaluations)
    output = _network(body, pieces, scaled, time, label)

    image = pieces.layout.image("z", "")
    made, none = Graph("noisy/"), Graph("quiet/")
    bound = {"seeds": "seeds", "noise_step": noise_step, "stream": _stream(made, "step")}
    made.inline(pieces.noise, "noise", bound, ["noisy/z"])
    none.add("ConstantOfShape", none.add("Shape", "x"), name="quiet/z")
    z = "body/z"
    branches = {
        "then_branch": made.graph("noisy", [], [_output("noisy/z", image)]),
        "else_branch": none.graph("quiet", [], [_output("quiet/z", image)]),
    }
    body.nodes.append(_node("If", [_any(body, one_row, NOISY)], [z], "body/noise", **branches))

    changed, same = Graph("changed/"), Graph("same/")
    bound = {"x": "x", "output": output, "rows": rows, "z": z, **guiding}
    changed.inline(pieces.adjust, "adjust", bound, ["changed/rows"])
    same.add("Identity", rows, name="same/rows")
    port = Port("rows", (BATCH, row.ROW_WORDS), "")
    branches = {
        "then_branch": changed.graph("changed", [], [_output("changed/rows", port)]),
        "else_branch": same.graph("same", [], [_output("same/rows", port)]),
    }
    adjusted = "body/adjusted_rows"
    body.nodes.append(_node("If", [_any(body, one_row, ADJUSTED)], [adjusted], "body/adjust", **branches))

    bound = {
        "x": "x",
        "history": "history",
        "output": output,
        "rows": adjusted,
        "slot": slot,
        "z": z,
        **guiding,
    }
    body.inline(pieces.update, "update", bound, ["next_x", "next_history"])
    body.add("Gather", "next_x", "keep", axis=0, name="kept_x")
    body.add("Identity", "go_on", name="still_go_on")
    inputs = [
        helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        value_info(pieces.layout.image("x", "")),
        value_info(Port("history", layout.history, "")),
    ]
    outputs = [
        helper.make_tensor_value_info("still_go_on", TensorProto.BOOL, []),
        value_info(pieces.layout.image("next_x", "")),
        value_info(Port("next_history", layout.history, "")),
        value_info(Port("kept_x", (KEPT, *pieces.layout.shape), "")),
    ]
    return body.graph("body", inputs, outputs)


def _guide(body: Graph, pieces: Pieces, one_row: str, scaled: str) -> tuple[str, str, str, dict[str, str]]:
    """Evaluations without a label after those with one, in an iteration in which any sample is guided.

    A row's guidance word is what the sample's weight is multiplied with, beyond 1: w = 1 + (guidance - 1) * word.
    Returns the network's inputs and labels, how many they are [1], and what `Update` takes of it.
    """
    one = body.constant(1.0, np.float32)
    zero_i, one_i = (body.constant(n, np.int64) for n in (0, 1))
    word = body.add("Gather", one_row, body.constant(row.GUIDANCE, np.int64), axis=0)
    weight = body.add("Add", body.add("Mul", body.add("Sub", "guidance", one), word), one)
    differs = body.add("Cast", body.add("Not", body.add("Equal", weight, one)), to=7)
    any_differs = body.add("ReduceMax", differs, keepdims=0)
    batch = body.add("Squeeze", "batch_size")
    more = body.add("Mul", batch, any_differs)
    samples = body.add("Range", zero_i, batch, one_i)
    again = body.add("Range", zero_i, more, one_i)
    sample_of = body.add("Concat", samples, again, axis=0)
    null = body.constant([pieces.layout.null_class], np.int64)
    nulls = body.add("Expand", null, body.add("Shape", again))
    labels = body.add("Concat", "label", nulls, axis=0)
    guiding = {"guidance": weight, "unguided": body.add("Add", samples, more)}
    return body.add("Gather", scaled, sample_of, axis=0), labels, body.add("Shape", sample_of), guiding


def _network(graph: Graph, pieces: Pieces, x: str, time: str, label: str) -> str:
    bound = {"x": x, "time": time, **({"label": label} if pieces.layout.labelled else {})}
    return graph.inline(pieces.denoiser, "network", bound)[0]


def _stream(graph: Graph, name: str) -> str:
    return graph.constant([STREAMS[name]], np.int64)


def _any(graph: Graph, one_row: str, words: tuple[int, ...]) -> str:
    """Whether any of the row's words is not 0: bool []."""
    chosen = graph.add("Gather", one_row, graph.constant(words, np.int64), axis=0)
    largest = graph.add("ReduceMax", graph.add("Abs", chosen), keepdims=0)
    return graph.add("Greater", largest, graph.constant(0.0, np.float32))


def _output(name: str, port: Port) -> onnx.ValueInfoProto:
    from .graphs import value_info

    return value_info(Port(name, port.axes, "", port.dtype))


def _node(
    operation: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any
) -> onnx.NodeProto:
    from onnx import helper

    made: onnx.NodeProto = helper.make_node(operation, inputs, outputs, name=name, **attributes)
    return made


def _model(graph: Graph, interface: Interface, opset: int, name: str) -> onnx.ModelProto:
    from onnx import helper

    from .graphs import value_info

    made = graph.graph(
        name, [value_info(p) for p in interface.inputs], [value_info(p) for p in interface.outputs]
    )
    model: onnx.ModelProto = helper.make_model(
        made, producer_name="fastgen", opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    return model
