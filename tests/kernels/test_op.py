"""What an operation says of itself, and the choice of path."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import fastgen_kernels
from fastgen_kernels import OPS, op, select, use
from tests.refusals import refused


def test_importing_does_not_import_triton():
    code = "import sys, fastgen_kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_select():
    assert select("cpu") == "reference"
    with use("reference"):
        assert select("cuda") == "reference"
        with use("triton"):
            assert select("cuda") == "triton"
        assert select("cuda") == "reference"
    with refused(ValueError, "path", "cuda"), use("cuda"):
        pass


def test_no_silent_fallback(monkeypatch):
    monkeypatch.setattr(op, "triton_version", lambda: None)
    with pytest.raises(RuntimeError, match=r"pip install .*use\('reference'\)"):
        select("cuda")
    assert select("cpu") == "reference"
    monkeypatch.undo()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if op.triton_version() is not None:
        with use("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
            select("cpu")


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_complete(name):
    operation = OPS[name]
    assert operation.name == name
    missing = [f.name for f in dataclasses.fields(operation) if getattr(operation, f.name) is None]
    assert set(missing) <= {"out", "eager", "in_place"}
    assert (
        "in_place" in missing or "out" not in missing
    )  # conv_norm has buffers to write into, and none to change
    names = [case.name for case in operation.cases]
    assert len(set(names)) == len(names)
    assert any(case.production for case in operation.cases)
    assert all(case.reason for case in operation.cases)
    assert operation.case(names[0]) is operation.cases[0]
    with pytest.raises(KeyError, match="no case 'none such'"):
        operation.case("none such")
    assert fastgen_kernels.decompositions()[operation.overload] is operation.decomposition


def test_gradient_asked_only_of_an_input_that_has_none():
    arguments = (
        OPS["reverse_step"]
        .case("slots1")
        .make(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32)
    )
    arguments["rows"].requires_grad_()
    x_next, _, _ = fastgen_kernels.reverse_step(**arguments)
    x_next.sum().backward()
    assert arguments["rows"].grad is None


def test_errors_sees_what_is_wrong():
    operation = OPS["reverse_step"]
    arguments = operation.case("slots1").make(
        torch.Generator().manual_seed(0), torch.device("cpu"), torch.float32
    )
    outputs = [value.clone() for value in operation.function(**arguments)]
    assert max(operation.errors(arguments, outputs).values()) <= 1.0
    outputs[0][0, 0, 0, 0] += 1e-4
    outputs[2][0, 0, 0, 0] = float("nan")
    errors = operation.errors(arguments, outputs)
    assert errors["x_next"] > 1.0
    assert errors["h_next"] <= 1.0
    assert errors["y"] == float("inf")
