"""ONNX graphs put together from exported pieces: a piece's nodes are copied in under names of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastgen.exports import Port

ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def value_info(port: Port) -> onnx.ValueInfoProto:
    """A graph's input or output as `port` describes it."""
    kind = ELEMENT_TYPES[str(port.dtype).removeprefix("torch.")]
    return helper.make_tensor_value_info(port.name, kind, list(port.axes), doc_string=port.meaning)


class Graph:
    """Nodes and constants of a graph in the making. Methods that add return the names of what is computed."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0

    def add(self, operation: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one result, called `name` or by a number."""
        self._count += 1
        result = name or f"{self.prefix}{operation.lower()}_{self._count}"
        self.nodes.append(helper.make_node(operation, inputs, [result], name=f"{result}/node", **attributes))
        return result

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """A constant; equal ones are one."""
        array = np.asarray(value, dtype=dtype)
        spelt = "_".join(str(v).replace("-", "minus_") for v in array.ravel())
        name = f"{self.prefix}{array.dtype.name}_{'x'.join(map(str, array.shape))}_{spelt}"
        if all(tensor.name != name for tensor in self.constants):
            self.constants.append(numpy_helper.from_array(array, name))
        return name

    def inline(
        self, model: onnx.ModelProto, prefix: str, bound: Mapping[str, str], results: Sequence[str] = ()
    ) -> list[str]:
        """The nodes and weights of `model`, whose inputs are the values `bound` names.

        results: names for the outputs. Names inside, and outputs without one, begin with `prefix` and a slash.
        """
        names = dict(bound)
        graph = model.graph
        for value, result in zip(
            graph.output, results or [f"{prefix}/{v.name}" for v in graph.output], strict=True
        ):
            if value.name in names:
                raise AssertionError(f"{value.name} is an input and an output")
            names[value.name] = result

        def renamed(name: str) -> str:
            return names.setdefault(name, f"{prefix}/{name}") if name else ""

        for tensor in graph.initializer:
            copied_tensor = onnx.TensorProto()
            copied_tensor.CopyFrom(tensor)
            copied_tensor.name = renamed(tensor.name)
            self.constants.append(copied_tensor)
        for node in graph.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{prefix}/{node.name}"
            copied.input[:] = [renamed(name) for name in node.input]
            copied.output[:] = [renamed(name) for name in node.output]
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise AssertionError(f"{node.op_type} holds a graph, whose names would not be changed")
            self.nodes.append(copied)
        return [names[value.name] for value in graph.output]

    def graph(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The finished graph."""
        made: onnx.GraphProto = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        return made
