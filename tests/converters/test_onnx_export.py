"""What ``fastgen export`` writes, where, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastgen
from fastgen import architectures, cli, onnx_runtime
from fastgen.architectures import ARCHITECTURES, Architecture
from fastgen.converters.onnx import export_form, export_module
from fastgen.converters.onnx.export import forms_of
from fastgen.converters.onnx.folder import check_destination, model_files, write_folder
from fastgen.converters.onnx.server import configuration
from fastgen.errors import ArgumentError, CheckpointError, ConfigError, WriteError
from fastgen.exports import DENOISER, Interface, Port
from tests.refusals import refused
from tests.small import TinyNet, checkpoint, network, unet_config

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"family": "diffusion", "sha256": "1", "precision": "fp32"}


def undeclared() -> list[str]:
    """Architectures that neither have a form nor say why."""
    return [name for name, a in ARCHITECTURES.items() if bool(a.exports) == bool(a.no_export)]


def test_every_architecture_has_forms_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert undeclared() == []
    monkeypatch.setitem(ARCHITECTURES, "new", Architecture(dict, nn.Identity))
    assert undeclared() == ["new"]
    for architecture in ARCHITECTURES.values():
        names = [form.name for form in architecture.exports]
        assert len(set(names)) == len(names)
        assert all(
            name.isidentifier() and form.about for name, form in zip(names, architecture.exports, strict=True)
        )


def test_a_model_that_cannot_be_exported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fastgen.DiffusionEngine.from_module(
        TinyNet(), {"beta_schedule": "linear"}, "epsilon", (1, 4, 4), device="cpu"
    )
    with refused(ConfigError, own.source, "TinyNet", "unet"):
        forms_of(own)
    reason = "its output depends on the whole batch"
    unet = ARCHITECTURES["unet"]
    monkeypatch.setitem(
        architectures.ARCHITECTURES, "unet", Architecture(unet.config, unet.module, (), reason)
    )
    model = checkpoint(tmp_path / "model")
    with refused(ConfigError, model, reason):
        fastgen.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused_before_work(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    for argument, kind, wrong, *mentions in (
        ("what", ArgumentError, {"what": "everything"}, "sampler"),
        ("precision", ConfigError, {"precision": "bf16"}, "fp16"),
        ("precision", ConfigError, {"precision": "int8"}, "fp16"),
        ("opset", ConfigError, {"opset": 11}, 18),
        ("opset", ConfigError, {"opset": 99}, 99),
        ("tables", ConfigError, {"tables": ["unipc"]}, "unipc:12"),
        ("tables", ConfigError, {"tables": "unipc:12"}, "unipc:12", "["),
        ("tables", ConfigError, {"tables": [3]}, "unipc:12", 3),
        ("tables", ConfigError, {"tables": 3}, "unipc:12", 3),
        ("force", ConfigError, {"force": "no"}, "no"),
        ("check", ConfigError, {"check": 1}, 1),
        ("local_files_only", ConfigError, {"local_files_only": "x"}, "x"),
        ("solver", ConfigError, {"tables": ["nothing:12"]}, "unipc"),
    ):
        with refused(kind, argument, *mentions):
            fastgen.export(model, tmp_path / "out", **wrong)
    for what in ("step", "sampler", "tables"):
        with refused(ConfigError, "what", "zoo:glow-mnist"):
            fastgen.export("zoo:glow-mnist", tmp_path / "out", what=what)
    assert not (tmp_path / "out").exists()


def test_tables_alone_and_nothing_is_overwritten(tmp_path: Path) -> None:
    model, out = checkpoint(tmp_path / "model"), tmp_path / "out"
    written = fastgen.export(model, out, what="tables")
    assert set(written.files) == {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    again = fastgen.export(model, out, what="tables", tables=["deis:7"])  # the same bytes are no change
    assert "tables/deis-7.json" in again.files
    loaded = onnx_runtime.load(out, "cpu")
    assert ("deis", 7) in loaded.tables
    with refused(ConfigError, out, "sampler.onnx"):
        loaded.sample(1)
    (out / "tables" / "deis-7.json").write_text("mine")
    with refused(ConfigError, out, "tables/deis-7.json", "--force"):
        fastgen.export(model, out, what="tables", tables=["deis:7"])
    assert (out / "tables" / "deis-7.json").read_text() == "mine"
    fastgen.export(model, out, what="tables", tables=["deis:7"], force=True)
    assert len(loaded.table("deis", 7)) == 7
    other = checkpoint(tmp_path / "other", steps=7)
    with refused(ConfigError, out, "--force"):
        fastgen.export(other, out, what="tables")
    fastgen.export(other, out, what="tables", force=True)
    assert not (out / "tables" / "deis-7.json").exists()
    assert onnx_runtime.load(out, "cpu").manifest["defaults"]["steps"] == 7
    (tmp_path / "file").write_text("")
    with refused(ConfigError, tmp_path / "file"):
        fastgen.export(model, tmp_path / "file", what="tables")


def test_tables_say_what_the_engines_table_says(tmp_path: Path) -> None:
    from fastgen.diffusion.table import pack
    from fastgen.exports.reverse_step import LARGEST
    from fastgen_kernels.reverse_step import row
    from fastgen_kernels.reverse_step.reference import integer_words

    model = checkpoint(tmp_path / "model")
    fastgen.export(model, tmp_path / "out", what="tables")
    engine = fastgen.load(model, device="cpu")
    loaded = onnx_runtime.load(tmp_path / "out", "cpu")
    for solver, steps in loaded.tables:
        table = engine.request(1, solver=solver, steps=steps, labels=0).plans[0].table
        rows, times = pack(table, 1)
        words = integer_words(rows)
        found = loaded.table(solver, steps)
        assert np.array_equal(found.slot, words[:, row.SLOT].numpy())
        assert np.array_equal(found.noise_step, words[:, row.NOISE_STEP].numpy())
        assert np.array_equal(found.time, times.numpy())
        words[:, [row.SLOT, row.NOISE_STEP, row.NEXT]] = 0
        rows[:, row.CLIP].clamp_(max=LARGEST)
        assert np.array_equal(found.rows, rows.numpy()), solver


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"a.onnx": b"old", "b.onnx": b"old"}, {}, FACTS, False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    count = 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with refused(WriteError, tmp_path / "b.onnx", os.strerror(errno.ENOSPC)):
        write_folder(tmp_path, {"a.onnx": b"new", "b.onnx": b"new"}, {}, FACTS, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with refused(WriteError, tmp_path / "file" / "out"):
        fastgen.export(model, tmp_path / "file" / "out", what="tables")
    check_destination(tmp_path, ["nothing.onnx"], False)
    with refused(ConfigError, tmp_path, "file"):
        check_destination(tmp_path, ["file"], False)


def test_damaged_folders(tmp_path: Path) -> None:
    manifest = tmp_path / "model.json"
    with refused(CheckpointError, manifest):
        onnx_runtime.load(tmp_path, "cpu")
    for text in ("{", "[]", "{}", json.dumps({"format": "fastgen-onnx", "version": 99, "files": {}})):
        manifest.write_text(text)
        with refused(CheckpointError, manifest):
            onnx_runtime.load(tmp_path, "cpu")
    for name in ("/etc/passwd", "../x.onnx"):
        manifest.write_text(json.dumps({"format": "fastgen-onnx", "version": 1, "files": {name: {}}}))
        with refused(CheckpointError, manifest):
            onnx_runtime.load(tmp_path, "cpu")
    manifest.write_text(json.dumps({"format": "fastgen-onnx", "version": 1, "files": {}, "family": "gan"}))
    with refused(ConfigError, "family", "gan"):
        onnx_runtime.load(tmp_path, "cpu")


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    fastgen.export(checkpoint(tmp_path / "model"), tmp_path / "out", what="tables")
    return tmp_path / "out"


def test_cuda_is_never_quietly_the_cpu(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu lists CUDA wherever it is installed; that libraries are missing shows when they are loaded."""
    import onnxruntime

    for device in ("auto", "cpu"):
        found = onnx_runtime.load(tables, device).describe()["provider"]
        assert found == "CPUExecutionProvider" or device == "auto"
    with refused(ConfigError, "device"):
        onnx_runtime.load(tables, "gpu")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime can run on CUDA")
    with refused(ConfigError, "device", "onnxruntime-gpu"):
        onnx_runtime.load(tables, "cuda")
    with refused(ConfigError, "cuda_graph"):
        onnx_runtime.load(tables, "cpu", cuda_graph=True)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with refused(ConfigError, "device", ".so"):  # the first library that is missing
        onnx_runtime.load(tables, "cuda")
    assert onnx_runtime.load(tables, "auto").describe()["provider"] == "CPUExecutionProvider"


WITHOUT_TORCH = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "safetensors", "onnx", "PIL"):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Nothing())
"""


def without_torch(code: str, *arguments: str) -> str:
    """What Python prints that has no PyTorch."""
    command = [sys.executable, "-c", WITHOUT_TORCH + code, *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_runtime_needs_no_torch_and_sends_nothing(tables: Path) -> None:
    code = (
        "import os, fastgen.onnx_runtime as r\n"
        "m = r.load(sys.argv[1], 'cpu')\n"
        "print(len(m.table()), 'torch' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])\n"
    )
    assert without_torch(code, str(tables)).split() == ["5", "False", "1"]


@pytest.mark.slow
def test_the_script_of_the_page_draws_the_engines_digits(digits: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    script = text.split("<!-- script -->\n```python\n")[1].split("```")[0]
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 15
    code = f"import os\nos.chdir(sys.argv[1])\n{script}\nnp.save(sys.argv[2], images)\n"
    code += "assert not any(name.split('.')[0] == 'fastgen' for name in sys.modules)\n"
    without_torch(code, str(digits.parent), str(tmp_path / "images.npy"))
    found = np.load(tmp_path / "images.npy")
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu", dtype="float32")
    wanted = engine.sample(seeds=range(10), labels=range(10), solver="dpm++2m", steps=20, guidance_scale=2.0)
    assert np.abs(found - wanted.numpy()).max() < 1e-3


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 40 * 40).view(40, 40), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x @ self.weight,)


ROWS = Interface((Port("x", ("batch", 40), ""),), (Port("y", ("batch", 40), ""),))


@pytest.mark.slow
def test_large_models_keep_their_weights_beside_them(tmp_path: Path) -> None:
    """Above 2 GB a protobuf cannot be; here above 2 kB. Also where the weights are those of a Loop's body."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from fastgen.converters.onnx.graphs import Graph

    plain = export_module(Small(), ROWS, (torch.randn(3, 40),), "small")
    body = Graph("body/")
    (y,) = body.inline(plain, "inside", {"x": "state"})
    body.add("Identity", "go_on", name="still")
    shape = ["batch", 40]

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    flags = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go_on", "still")]
    number = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    graph = Graph()
    steps, always = graph.constant(3, np.int64), graph.constant(True, np.bool_)
    inner = body.graph("body", [number, flags[0], value("state")], [flags[1], value(y)])
    graph.nodes.append(helper.make_node("Loop", [steps, always, "x"], ["y"], body=inner))
    made = graph.graph("loop", [value("x")], [value("y")])
    loop = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)
    for name, model in (("plain", plain), ("loop", loop)):
        whole = runtime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        files = model_files(f"{name}.onnx", model, limit=2000)
        assert set(files) == {f"{name}.onnx", f"{name}.onnx.data"}
        assert len(files[f"{name}.onnx"]) < 2000
        for file, data in files.items():
            (tmp_path / file).write_bytes(data)
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
        session = runtime.InferenceSession(str(tmp_path / f"{name}.onnx"))
        assert np.array_equal(session.run(None, {"x": x})[0], whole)
        assert model_files("x.onnx", model) == {"x.onnx": model.SerializeToString(deterministic=True)}


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes() -> None:
    net = network(unet_config())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (export_form(DENOISER, net).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert str(ROOT).encode() not in first
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    model, out = checkpoint(tmp_path / "model"), tmp_path / "out"
    arguments = ["export", str(model), "-o", str(out)]
    assert cli.main([*arguments, "--check", "--table", "deis:7", "--opset", "19"]) == 0
    said = capsys.readouterr().out
    assert "denoiser.onnx" in said
    assert "sampler" in said
    for name in ("denoiser", "step", "sampler"):
        written = onnx.load(out / f"{name}.onnx")
        assert written.opset_import[0].version == 19
        kept = {entry.key: entry.value for entry in written.metadata_props}
        assert kept["fastgen.form"] == name
        assert kept["fastgen.family"] == "diffusion"
        assert json.loads(kept["fastgen.config"])["networks"]["unet"]["sample_size"] == [8, 8]
        assert set(json.loads(kept["fastgen.ranges"])) >= {v.name for v in written.graph.input}
        assert len(kept["fastgen.sha256"]) == 64
    assert cli.main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert cli.main(["export", str(model), "-o", str(out), "--precision", "bf16"]) == 1
    assert "fp16" in capsys.readouterr().err
    assert cli.main([*arguments, "--what", "server", "--json", "--opset", "19"]) == 0
    report = json.loads(capsys.readouterr().out)
    for name in ("denoiser", "sampler"):
        assert report["files"][f"server/{name}/1/model.onnx"] > 0
        text = (out / "server" / name / "config.pbtxt").read_text()
        served = onnx.load(out / "server" / name / "1" / "model.onnx")
        assert all(f'name: "{value.name}"' in text for value in (*served.graph.input, *served.graph.output))


def test_a_servers_configuration() -> None:
    inputs = (Port("x", ("batch", 3, "height", "width"), ""), Port("time", ("batch",), ""))
    batched = configuration("denoiser", Interface(inputs, (Port("output", ("batch", 3, 8, 8), ""),))).decode()
    assert "max_batch_size: 64" in batched
    assert "dynamic_batching" in batched
    assert 'input { name: "x", data_type: TYPE_FP32, dims: [ 3, -1, -1 ] }' in batched
    assert 'input { name: "time", data_type: TYPE_FP32, dims: [ 1 ], reshape: { shape: [ ] } }' in batched
    table = Port("slot", ("steps",), "", torch.int64)
    single = configuration("sampler", Interface((inputs[0], table), ())).decode()
    assert "max_batch_size: 0" in single
    assert "dynamic_batching" not in single
    assert 'input { name: "slot", data_type: TYPE_INT64, dims: [ -1 ] }' in single
