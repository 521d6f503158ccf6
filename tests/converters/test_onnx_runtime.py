"""``fastgen.onnx_runtime`` with a step of a few lines of ONNX: divided batches, arguments, damaged folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgen
from fastgen import FlowEngine, onnx_runtime
from fastgen.converters.onnx.export import flow_facts
from fastgen.converters.onnx.folder import write_folder
from fastgen.errors import ArgumentError, CheckpointError, ConfigError
from fastgen.onnx_runtime.noise import INITIAL, normals
from tests.engines import flows
from tests.refusals import refused
from tests.small import checkpoint

Change = Callable[[dict[str, Any]], dict[str, Any]]
SHAPE = (1, 8, 8)
HALF = np.float32(0.5)


def step() -> bytes:
    """x / 2 + t, of every sample: what a step reads and writes besides is passed on."""
    import onnx
    from onnx import TensorProto as T
    from onnx import helper as h

    inputs = [
        h.make_tensor_value_info("x", T.FLOAT, ["n", *SHAPE]),
        h.make_tensor_value_info("history", T.FLOAT, ["n", 4, *SHAPE]),
        h.make_tensor_value_info("rows", T.FLOAT, ["n", 32]),
        h.make_tensor_value_info("slot", T.INT64, ["n"]),
        h.make_tensor_value_info("z", T.FLOAT, ["n", *SHAPE]),
        h.make_tensor_value_info("time", T.FLOAT, ["n"]),
    ]
    outputs = [
        h.make_tensor_value_info("next_x", T.FLOAT, ["n", *SHAPE]),
        h.make_tensor_value_info("next_history", T.FLOAT, ["n", 4, *SHAPE]),
    ]
    nodes = [
        h.make_node("Mul", ["x", "half"], ["halved"]),
        h.make_node("Reshape", ["time", "each"], ["times"]),
        h.make_node("Add", ["halved", "times"], ["next_x"]),
        h.make_node("Identity", ["history"], ["next_history"]),
    ]
    constants = [
        h.make_tensor("half", T.FLOAT, [], [0.5]),
        h.make_tensor("each", T.INT64, [4], [-1, 1, 1, 1]),
    ]
    graph = h.make_graph(nodes, "step", inputs, outputs, constants)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with step.onnx and tables; 3 classes and a null class. Read only."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("runtime")
    fastgen.export(checkpoint(root / "model"), root / "out", what="tables")
    manifest = onnx_runtime.read_manifest(root / "out")
    facts = {name: value for name, value in manifest.items() if name not in ("format", "version", "files")}
    write_folder(root / "out", {"step.onnx": step()}, {}, facts, False)
    return root / "out"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Of one's own, to be damaged."""
    for path in (whole / "step.onnx", whole / "model.json", whole / "tables" / "ddim-10.json"):
        copy = tmp_path / path.relative_to(whole)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path


def test_states_of_divided_batches_are_joined(whole: Path) -> None:
    """Beside the recurrence written out, and in one batch."""
    model = onnx_runtime.load(whole, "cpu", threads=1, max_batch=4)
    images, states = model.trajectory(6, seed=3, solver="ddim", steps=10)
    table = model.table("ddim", 10)
    x = normals(np.arange(3, 9, dtype=np.uint64), 0, INITIAL, 64).reshape(6, *SHAPE) * table.initial_scale
    for i in range(10):
        x = x * HALF + table.time[i]
        assert np.array_equal(states[i], x), i
    assert np.array_equal(images, x.clip(-1, 1))
    assert len(states) == 10
    together = onnx_runtime.load(whole, "cpu", threads=1)
    for given in ({"n": 6, "seed": 3}, {"seeds": range(3, 9)}):
        for one, other in zip(
            together.trajectory(**given, solver="ddim", steps=10), (images, states), strict=True
        ):
            assert np.array_equal(one, other)


def test_arguments_that_do_not_exist(whole: Path) -> None:
    model = onnx_runtime.load(whole, "cpu", threads=1)
    for argument in ("eta", "num_inference_steps", "clip_sample"):
        with refused(ArgumentError, argument, "guidance_scale"):
            model.sample(1, **{argument: 0.5})
    with refused(ArgumentError, "eta", "guidance_scale"):
        model.trajectory(1, eta=0.5)
    with refused(ArgumentError, "callback"):
        model.trajectory(1, callback=print)
    with refused(ConfigError, "cuda_graph", "no"):
        onnx_runtime.load(whole, "cpu", cuda_graph="no")


def test_an_array_of_no_dimension_is_a_number(whole: Path) -> None:
    model = onnx_runtime.load(whole, "cpu", threads=1)
    given: dict[str, Any] = {"n": 2, "seed": 1, "labels": 1, "solver": "ddim", "steps": 10}
    weights = []
    for scale in (2, np.array(2.0), np.float32(2), [np.array(2.0), 2], np.array([2, 2])):
        assert model.sample(**given, guidance_scale=scale).shape == (2, *SHAPE)
        weights.append(model._weights(2, scale))
    assert all(np.array_equal(each, [2, 2]) for each in weights)
    for wrong in (np.array(-1.0), np.array(True), np.array("2"), np.ones((2, 2)), np.array(1j), {2}, "2"):
        with refused(ConfigError, "guidance_scale"):
            model.sample(**given, guidance_scale=wrong)


def changed(**values: Any) -> Change:
    return lambda manifest: {**manifest, **values}


def without(name: str) -> Change:
    return lambda manifest: {key: value for key, value in manifest.items() if key != name}


FLOW = {
    "family": "flow",
    "shape": [2],
    "latent_shapes": [[2]],
    "levels": None,
    "support": None,
    "classes": None,
    "context": 0,
    "class_names": None,
    "defaults": {"temperature": 1.0},
}


def of_flow(missing: str) -> Change:
    return lambda manifest: without(missing)({**manifest, **FLOW})


WRONG: dict[str, tuple[str, Change]] = {
    **{
        f"no {name}": ("", without(name))
        for name in ("shape", "defaults", "classes", "null_class", "class_names")
    },
    "shape": (": shape", changed(shape="1x8x8")),
    "sides": (": shape[1]", changed(shape=[1, 0, 8])),
    "classes": (": classes", changed(classes="3")),
    "names": (": class_names", changed(class_names=["ant"])),
    "no steps": (": defaults", changed(defaults={"solver": "ddim", "guidance_scale": 1})),
    "steps": (": defaults: steps", changed(defaults={"solver": "ddim", "steps": 0, "guidance_scale": 1})),
    "no digest": (": files: step.onnx", changed(files={"step.onnx": {}})),
    "no entry": (": files: step.onnx", changed(files={"step.onnx": None})),
    **{
        f"a flow without {name}": ("", of_flow(name))
        for name in ("latent_shapes", "levels", "support", "context")
    },
    "a flow's support": (": support", changed(**{**FLOW, "support": [0.0]})),
    "a flow's defaults": (": defaults", changed(**{**FLOW, "defaults": {}})),
    "a flow's latents": (": latent_shapes[0]", changed(**{**FLOW, "latent_shapes": [2]})),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_description_that_says_too_little(name: str, folder: Path) -> None:
    where, change = WRONG[name]
    path = folder / "model.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with refused(CheckpointError, f"{path}{where}"):
        onnx_runtime.load(folder, "cpu")


def test_whole_descriptions_are_read(folder: Path) -> None:
    """What tests above take away is all that is wrong with them; a later version may say more."""
    path = folder / "model.json"
    manifest = json.loads(path.read_text())
    for values in ({"more": 1}, FLOW):
        path.write_text(json.dumps({**manifest, **values}))
        assert onnx_runtime.load(folder, "cpu").shape == tuple(values.get("shape", SHAPE))


@pytest.mark.parametrize("name", flows.CASES)
def test_what_is_said_of_every_flow_can_be_read(name: str, tmp_path: Path) -> None:
    engine = FlowEngine.from_module(flows.make(name).flow, device="cpu")
    facts = {"family": "flow", **flow_facts(engine)}
    write_folder(tmp_path, {"encode.onnx": b""}, {}, facts, False)
    found = onnx_runtime.load(tmp_path, "cpu")
    assert found.shape == engine.shape
    assert {key: found.manifest[key] for key in facts} == json.loads(json.dumps(facts))


@pytest.mark.parametrize("name", ["step.onnx", "tables/ddim-10.json"])
def test_a_damaged_file_is_not_run(name: str, folder: Path) -> None:
    given: dict[str, Any] = {"seed": 1, "solver": "ddim", "steps": 10}
    assert onnx_runtime.load(folder, "cpu", threads=1).sample(1, **given).shape == (1, *SHAPE)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with refused(CheckpointError, folder / name, "SHA-256"):
        onnx_runtime.load(folder, "cpu", threads=1).sample(1, **given)
    (folder / name).unlink()
    with refused(CheckpointError, folder / name):
        onnx_runtime.load(folder, "cpu", threads=1).sample(1, **given)


def test_large_tensors_beside_a_file_are_compared_too(folder: Path) -> None:
    facts = {
        k: v for k, v in onnx_runtime.read_manifest(folder).items() if k not in ("format", "version", "files")
    }
    write_folder(folder, {"step.onnx.data": b"tensors"}, {}, facts, False)
    (folder / "step.onnx.data").write_bytes(b"Tensors")
    with refused(CheckpointError, folder / "step.onnx.data"):
        onnx_runtime.load(folder, "cpu", threads=1).sample(1, solver="ddim", steps=10)
