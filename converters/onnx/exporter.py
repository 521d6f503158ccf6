"""One export form of one network as an ONNX model: standard operations, readable names, the same bytes every time."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgen.errors import ConfigError
from fastgen.exports import ExportForm, Interface

if TYPE_CHECKING:
    import onnx

OPSET = 20  # what the exporter writes by default, and onnxruntime 1.17 and later runs
MIN_OPSET = 18  # the exporter's own operations begin there; GroupNormalization and others are decomposed
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
NOT_THERE = {
    "bf16": "no onnxruntime runs convolutions of bfloat16 on a CPU, and such a file does not load; use fp16"
}
MAX_LENGTH = 1 << 20  # of a dynamic axis


class _Rounded(nn.Module):
    """A module in half precision between real tensors in float32. rounded: which of its inputs become halves."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, rounded: Sequence[bool]) -> None:
        super().__init__()
        self.module, self.dtype, self.rounded = module.to(dtype), dtype, tuple(rounded)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = [t.to(self.dtype) if r else t for t, r in zip(tensors, self.rounded, strict=True)]
        return tuple(t.float() if t.is_floating_point() else t for t in self.module(*given))


class _Flat(nn.Module):
    """A module whose tensors come as one tuple, however it names them: `dynamic_shapes` has one form then."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(*tensors))


def precision_dtype(precision: str) -> torch.dtype:
    """The type of a precision's weights. Raises ConfigError, with the reason where a known one is missing."""
    if precision not in PRECISIONS:
        reason = NOT_THERE.get(precision)
        raise ConfigError(
            f"expected {' or '.join(PRECISIONS)}, got {precision!r}" + (f": {reason}" if reason else ""),
            argument="precision",
        )
    return PRECISIONS[precision]


def check_opset(opset: int) -> None:
    """Raises ConfigError where no file can be written for `opset`."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if type(opset) is not int or not MIN_OPSET <= opset <= newest:
        raise ConfigError(
            f"expected {MIN_OPSET} to {newest} (the newest that this onnx {onnx.__version__} knows), got {opset!r}; "
            f"operations that the networks need are not in older ones",
            argument="opset",
        )


def export_form(
    form: ExportForm,
    network: nn.Module,
    *,
    precision: str = "fp32",
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """`form` of `network` (float32, on the CPU, eval mode; left as it is) with its weights inside.

    metadata: strings that the file carries. Raises ConfigError: an unknown precision or opset, a network that has no
    such form, or one that the exporter cannot write, with its reason.
    """
    dtype = precision_dtype(precision)
    if precision not in form.precisions:
        raise ConfigError(
            f"the form {form.name} is written in {', '.join(form.precisions)}, not in {precision}",
            argument="precision",
        )
    interface = form.interface(network)
    example = form.example(network, 3, torch.Generator().manual_seed(0), {})
    module = form.make(network)
    if dtype is not torch.float32:
        module = copy.deepcopy(module)
        if form.rounded is None:
            rounded = [port.dtype.is_floating_point and not port.exact for port in interface.inputs]
            module = _Rounded(module, dtype, rounded)
        else:
            module = form.rounded(module, dtype)
    return export_module(module, interface, example, f"form {form.name}", opset=opset, metadata=metadata)


def export_module(
    module: nn.Module,
    interface: Interface,
    example: Sequence[Tensor],
    what: str,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """`module` as an ONNX model with the tensors of `interface`. what: for messages. Raises ConfigError."""
    check_opset(opset)
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                _Flat(module).eval(),
                tuple(example),
                input_names=[port.name for port in interface.inputs],
                output_names=[port.name for port in interface.outputs],
                dynamic_shapes=(_shapes(interface),),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.export and onnxscript raise many kinds
        raise ConfigError(f"cannot be exported to ONNX: {_reason(error)}", argument=what) from error
    assert program is not None
    model = program.model_proto
    tidy(model, interface, opset)
    describe(model, metadata or {})
    return model


def tidy(model: onnx.ModelProto, interface: Interface, opset: int) -> None:
    """Leave out what only the exporter's authors need, and name axes as `interface` does. Raises ConfigError."""
    domains = {entry.domain: entry.version for entry in model.opset_import}
    if set(domains) - {"", "ai.onnx"} or model.functions:
        used = sorted({node.domain for node in model.graph.node if node.domain})
        if used:
            raise ConfigError(
                f"the exporter wrote operations that are not ONNX's own: {', '.join(used)}", argument="opset"
            )
    version = domains.get("", opset)
    if version != opset:
        raise ConfigError(
            f"the exporter wrote opset {version} in place of {opset}, which lacks an operation of this network",
            argument="opset",
        )
    del model.opset_import[:]
    model.opset_import.add(domain="", version=version)
    del model.functions[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version, model.doc_string = "fastgen", "", ""
    graph = model.graph
    graph.name, graph.doc_string = "fastgen", ""
    del graph.value_info[:], graph.metadata_props[:]
    for entry in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        entry.doc_string = ""
        if hasattr(entry, "metadata_props"):
            del entry.metadata_props[:]
    for values, ports in ((graph.input, interface.inputs), (graph.output, interface.outputs)):
        for value, port in zip(values, ports, strict=True):
            value.doc_string = port.meaning
            for dimension, axis in zip(value.type.tensor_type.shape.dim, port.axes, strict=True):
                dimension.Clear()
                if isinstance(axis, str):
                    dimension.dim_param = axis
                else:
                    dimension.dim_value = axis


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Write `metadata` into the model, in alphabetical order."""
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])


def _shapes(interface: Interface) -> tuple[dict[int, Any], ...]:
    """For `torch.export`: an axis of any length is a multiple of a symbol."""
    axes: dict[str, Any] = {}
    for word in interface.dynamic:
        divisor = interface.divisor(word)
        symbol = torch.export.Dim(f"{word}_in_{divisor}" if divisor > 1 else word, min=1, max=MAX_LENGTH)
        axes[word] = symbol * divisor if divisor > 1 else symbol
    return tuple(
        {i: axes[axis] for i, axis in enumerate(port.axes) if isinstance(axis, str)}
        for port in interface.inputs
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter prints progress and remarks about names that it gives itself."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
