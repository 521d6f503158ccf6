"""Written files beside the reference: ONNX's checker, and the model in onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastgen.engines import DiffusionEngine
from fastgen.engines.base import Engine
from fastgen.errors import CheckpointError, ConfigError
from fastgen.exports import Interface

from .tables import table_json

if TYPE_CHECKING:
    import onnx

    from .export import Item

# The largest difference from the reference, relative to its largest value. fp32: sums in another order. fp16: halves
# have 11 bits; a network's roundings add up to some tens of units in the last place.
TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}
# Of pictures in [-1, 1]: a solver amplifies a network's roundings, Heun's second row by 300.
PICTURES = {"fp32": 1e-3, "fp16": 0.25}
BATCHES = (1, 3)


def check_item(engine: Engine, item: Item, model: onnx.ModelProto, precision: str) -> list[str]:
    """A line for each comparison. Raises CheckpointError where one fails."""
    import onnx

    onnx.checker.check_model(model, full_check=True)
    session = open_session(model)
    errors: dict[str, float] = {}
    bound = TOLERANCE[precision]
    if item.form is not None:
        for batch in BATCHES:
            for sizes in trial_sizes(item.interface, item.form.sizes(item.network)):
                words = " ".join(f"{axis} {length}" for axis, length in sizes.items())
                errors[f"batch {batch} {words}".strip()] = form_error(item, session, batch, sizes)
    elif isinstance(engine, DiffusionEngine) and item.name == "step":
        errors = {f"batch {batch}": step_error(engine, session, batch) for batch in BATCHES}
    elif isinstance(engine, DiffusionEngine):
        bound = PICTURES[precision]
        errors = {f"{batch} pictures": sampler_error(engine, session, batch) for batch in BATCHES}
    lines = [f"{item.name}: {what}: error {error:.2g}, at most {bound:g}" for what, error in errors.items()]
    wrong = [line for line, error in zip(lines, errors.values(), strict=True) if not error <= bound]
    if wrong:
        raise CheckpointError(f"differs from the reference: {'; '.join(wrong)}", argument=f"{item.name}.onnx")
    return lines


def open_session(model: onnx.ModelProto) -> Any:
    """An onnxruntime session on the CPU. Raises ConfigError where there is no onnxruntime."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError("needs onnxruntime: pip install onnxruntime", argument="check") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def trial_sizes(interface: Interface, usual: Mapping[str, int]) -> list[dict[str, int]]:
    """The lengths of dynamic axes in use, and others: the first axis longer, the second shorter.

    Where two steps would not remain the second is longer as well: blocks that reflect at the border need two pixels
    at the lowest level.
    """
    axes = [axis for axis in interface.dynamic if axis in usual]
    if not axes:
        return [{}]
    other = {}
    for i, axis in enumerate(axes):
        step = interface.divisor(axis)
        shorter = i > 0 and usual[axis] >= 3 * step
        other[axis] = usual[axis] - step if shorter else usual[axis] + (1 + i) * step
    return [dict(usual), other]


def form_error(item: Item, session: Any, batch: int, sizes: Mapping[str, int]) -> float:
    """The largest error of an export form's outputs, each relative to the reference's largest value."""
    assert item.form is not None
    generator = torch.Generator().manual_seed(batch)
    tensors = item.form.example(item.network, batch, generator, sizes)
    with torch.no_grad():
        wanted = item.form.reference(item.network, *tensors)
    return relative_error(run(session, item.interface, tensors), wanted)


def run(session: Any, interface: Interface, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The outputs for input tensors in their order."""
    feed = {port.name: tensor.numpy() for port, tensor in zip(interface.inputs, tensors, strict=True)}
    found: list[np.ndarray] = session.run([port.name for port in interface.outputs], feed)
    return found


def relative_error(found: Sequence[np.ndarray], wanted: Sequence[Tensor]) -> float:
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        reference = other.double().numpy()
        if one.shape != reference.shape:
            return float("inf")
        scale = max(float(np.abs(reference).max()), 1e-30)
        worst = max(worst, float(np.abs(one - reference).max()) / scale)
    return worst


def step_error(engine: DiffusionEngine, session: Any, batch: int) -> float:
    """``step.onnx`` beside the reference of the engine's verb, on a random trial of it: without guidance."""
    verb = engine.verbs()["step"]
    tensors = verb.trial(batch, torch.Generator().manual_seed(batch))
    assert verb.noise is not None
    z = verb.noise(*tensors)
    with torch.no_grad():
        _, *wanted = verb.plain(engine.networks, *tensors, noise=z)
    named = dict(zip(verb.arguments, tensors, strict=True))
    rows = named["coefficients"].clone()
    rows.nan_to_num_(posinf=float(np.finfo(np.float32).max))
    own = torch.arange(batch, device="cpu")
    feed = {
        "x": named["x"],
        "history": named["history"],
        "rows": rows,
        "slot": named["slot"],
        "z": z,
        "time": named["t"],
        "label": named.get("label"),
        "sample_of": own,
        "unguided": own,
    }
    names = [value.name for value in session.get_inputs()]
    found = session.run(["next_x", "next_history"], {name: _array(feed[name]) for name in names})
    return relative_error(found, wanted)


def _array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    found: np.ndarray = tensor.numpy()
    return found


def sampler_error(engine: DiffusionEngine, session: Any, batch: int) -> float:
    """The largest difference of ``sampler.onnx``'s pictures from the engine's, of the model's default solver."""
    import json

    settings = engine.settings
    labels = None if settings.num_classes is None else [k % settings.num_classes for k in range(batch)]
    request = engine.request(batch, seed=1, labels=labels)
    wanted = engine.draw(request)
    plan = request.plans[0]
    table = json.loads(table_json(plan.table, settings.solver, plan.steps))
    feed = sampler_feed(table, range(1, batch + 1))
    if labels is not None:
        feed["label"] = np.array(labels)
    if settings.null_class is not None:
        feed["guidance"] = np.full(batch, settings.guidance_scale, dtype=np.float32)
    (images,) = session.run(["images"], feed)
    assert isinstance(wanted, Tensor)
    return float(np.abs(images - wanted.cpu().numpy()).max())


def sampler_feed(table: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """The inputs of ``sampler.onnx`` that a file of ``tables/`` and seeds make."""
    return {
        "seeds": np.array(seeds, dtype=np.uint64).view(np.int64),
        "rows": np.array(table["rows"], dtype=np.float32),
        "slot": np.array(table["slot"], dtype=np.int64),
        "noise_step": np.array(table["noise_step"], dtype=np.int64),
        "time": np.array(table["time"], dtype=np.float32),
        "initial_scale": np.array([table["initial_scale"]], dtype=np.float32),
        "keep": np.zeros(0, dtype=np.int64),
    }
