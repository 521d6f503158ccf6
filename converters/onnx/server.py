"""A model repository of the Triton Inference Server: ``config.pbtxt`` beside each model."""

from __future__ import annotations

from fastgen.exports import BATCH, Interface, Port

MAX_BATCH = 64
TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def configuration(name: str, interface: Interface) -> bytes:
    """``config.pbtxt`` of a model that onnxruntime runs.

    Where every tensor's first axis is the batch the server gathers requests into batches itself; else (a table beside
    seeds) each request is a batch of its own.
    """
    ports = (*interface.inputs, *interface.outputs)
    batched = all(port.axes[:1] == (BATCH,) for port in ports)
    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH if batched else 0}",
        *_tensors("input", interface.inputs, batched),
        *_tensors("output", interface.outputs, batched),
    ]
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join([*lines, ""]).encode()


def _tensors(kind: str, ports: tuple[Port, ...], batched: bool) -> list[str]:
    lines = []
    for port in ports:
        axes = port.axes[1:] if batched else port.axes
        sizes = [axis if isinstance(axis, int) else -1 for axis in axes]
        # A tensor of one number a sample has no axes left, which the server writes as one of length 1.
        reshape = ", reshape: { shape: [ ] }" if not sizes else ""
        dims = ", ".join(map(str, sizes or [1]))
        kind_of = TYPES[str(port.dtype).removeprefix("torch.")]
        lines.append(f'{kind} {{ name: "{port.name}", data_type: {kind_of}, dims: [ {dims} ]{reshape} }}')
    return lines
