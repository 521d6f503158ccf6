"""Flows as ONNX files: the modules that are written, against the reference flow, and the files in onnxruntime."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import onnx_runtime
from fastgen.architectures import ARCHITECTURES, Architecture
from fastgen.converters.onnx import export_engine, export_form
from fastgen.converters.onnx.checking import open_session, run
from fastgen.engines import FlowEngine
from fastgen.errors import CheckpointError, ConfigError
from fastgen.exports import FLOW, ExportForm, support
from fastgen.exports.accurate import log_sigmoid, log_tail, logistic, normal_cdf
from fastgen.models.flow.coupling import Coupling
from fastgen.models.flow.flow import Flow
from tests.engines.flows import CASES, architectures, make
from tests.models import flow_models
from tests.refusals import refused

onnx = pytest.importorskip("onnx")
ENCODE, DECODE, SAMPLE, BOUND = FLOW


def forms(flow: Flow) -> list[ExportForm]:
    """Those that there are: data without levels has no bound."""
    assert bool(BOUND.missing(flow)) == (flow.levels is None)
    return [form for form in FLOW if not form.missing(flow)]


# Files of each architecture's first case are tried by test_onnx_forms.py. Of the others those with a prior or a
# dequantiser of another kind are written with it: `sample` has all that `decode` has, `elbo` all that `encode` has.
FIRST = {architecture: name for name, (architecture, _) in reversed(CASES.items())}
WRITTEN = {
    "glow, everything else": (ENCODE, SAMPLE),
    "realnvp, gated, masks": (DECODE, BOUND),
    "vector_flow, masks": (ENCODE, SAMPLE),
}


def close(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    """To `tolerance` of the largest value, or of 1 where that is less: a log-density may lie anywhere near 0."""
    scale = max(float(want.abs().max()), 1.0)
    torch.testing.assert_close(got.to(want.dtype), want, rtol=0, atol=tolerance * scale)


def test_every_flow_has_every_form() -> None:
    names = list(architectures())
    assert {"glow", "nice", "realnvp", "vector_flow"} <= set(names)
    assert {architecture for architecture, _ in CASES.values()} == set(names), (
        "a case for each, in tests/engines/flows.py"
    )
    for name in names:
        assert ARCHITECTURES[name].exports == FLOW, name


@pytest.mark.parametrize("name", CASES)
def test_the_module_is_the_reference(name: str) -> None:
    compare(make(name).flow)


@pytest.mark.parametrize("name", flow_models.CONFIGS)
def test_the_module_is_the_reference_with_every_option(name: str) -> None:
    compare(flow_models.flow(name, noise=0.1).float())


def compare(flow: Flow) -> None:
    """Both in float32, the reference in float64 too."""
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    for form in forms(flow):
        module, interface = form.make(flow), form.interface(flow)
        for batch in (1, 4):
            tensors = form.example(flow, batch, torch.Generator().manual_seed(batch), {})
            with torch.no_grad():
                got, want = module(*tensors), form.reference(flow, *tensors)
            assert len(tensors) == len(interface.inputs)
            assert len(got) == len(want) == len(interface.outputs)
            for port, value in zip((*interface.inputs, *interface.outputs), (*tensors, *got), strict=True):
                assert port.name.isidentifier()
                assert tuple(value.shape) == (batch, *port.axes[1:]), port.name
                assert value.dtype == port.dtype, port.name
            for one, other in zip(got, want, strict=True):
                close(one, other)
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("function", [log_sigmoid, log_tail, normal_cdf, logistic])
def test_functions_keep_their_digits(function: Callable[[Tensor], Tensor]) -> None:
    """Against float64; tails are compared with themselves, what is near 0 with 1."""
    x = torch.cat([torch.linspace(-30, 30, 20001), torch.linspace(-0.01, 0.01, 201)])
    if function is log_tail:
        x = x.abs()
    d = x.double()
    want = {
        log_sigmoid: torch.nn.functional.logsigmoid(d),
        log_tail: torch.special.log_ndtr(-d),
        normal_cdf: torch.special.log_ndtr(d).exp(),  # `ndtr` itself has no digits below -8
        logistic: torch.special.log_ndtr(d) - torch.special.log_ndtr(-d),
    }[function]
    error = (function(x).double() - want).abs()
    if function is normal_cdf:
        # The logarithm, off by 2e-6 at most of 1 and 2^-23 of itself, is the relative error of what is made of it.
        normal = d.abs() < 13  # below, float32 has no normal numbers
        allowed = want * (2e-6 + 2.0**-22 * torch.special.log_ndtr(d).abs())
        assert bool((error <= allowed)[normal].all())
    else:
        assert bool((error <= 2e-6 * torch.clamp(want.abs(), min=1.0)).all())


def test_a_bound_is_refused_where_there_are_no_levels() -> None:
    flow = make("vector_flow").flow
    with refused(ConfigError, "levels", "log_prob"):
        BOUND.make(flow)
    with refused(ConfigError, "levels"):
        BOUND.interface(flow)


def test_a_flow_without_an_inverse_is_refused() -> None:
    flow = make("glow").flow
    layer = flow.scales[1][1]  # type: ignore[index]
    layer.scale.zero_()
    for form in FLOW:
        with refused(CheckpointError, "scales.1.1"):
            form.make(flow)


def written(form: ExportForm, flow: Flow, precision: str = "fp32") -> tuple[Any, Callable[..., list[Tensor]]]:
    """The model of a form, and its outputs in onnxruntime as a function of its inputs in their order."""
    pytest.importorskip("onnxruntime")
    model = export_form(form, flow, precision=precision)
    onnx.checker.check_model(model, full_check=True)
    session, interface = open_session(model), form.interface(flow)
    assert [value.name for value in session.get_inputs()] == [port.name for port in interface.inputs]
    assert [value.name for value in session.get_outputs()] == [port.name for port in interface.outputs]
    return model, lambda *tensors: [torch.from_numpy(value) for value in run(session, interface, tensors)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in FIRST.values()])
def test_the_file_is_the_reference(name: str) -> None:
    flow = make(name).flow
    for form in WRITTEN.get(name, (ENCODE, DECODE)):
        _, found = written(form, flow)
        for batch in (1, 4):
            tensors = form.example(flow, batch, torch.Generator().manual_seed(batch), {})
            with torch.no_grad():
                want = form.reference(flow, *tensors)
            for one, other in zip(found(*tensors), want, strict=True):
                close(one, other)


@pytest.mark.parametrize("name", ["realnvp", "realnvp, gated, masks"])
def test_the_support_is_the_engines_to_the_last_bit(name: str) -> None:
    flow = make(name).flow
    bounds = support(flow)
    assert bounds is not None
    engine = FlowEngine.from_module(copy.deepcopy(flow))
    for bound, beyond in zip(bounds, (-math.inf, math.inf), strict=True):
        x = torch.full((1, *flow.data_shape), bound)
        engine.encode(x)
        x[0, 0, 1, 2] = torch.nextafter(x[0, 0, 1, 2], torch.tensor(beyond))
        with refused(ConfigError, "x", [0, 0, 1, 2]):
            engine.encode(x)
    assert support(make("vector_flow").flow) is None


def no_density(flow: Flow) -> tuple[Tensor, Tensor]:
    """Images of which the second has one value where `flow` has no density, and the engine's log_prob of them."""
    (x,) = ENCODE.example(flow, 3, torch.Generator().manual_seed(0), {})
    x[1, 0, 2, 3] = 1.5
    log_prob = FlowEngine.from_module(copy.deepcopy(flow)).log_prob(x)
    assert log_prob.isinf().tolist() == [False, True, False]
    return x, log_prob


def test_no_density_where_the_flow_has_none() -> None:
    flow = make("realnvp").flow
    x, want = no_density(flow)
    with torch.no_grad():
        *latents, _, log_prob = ENCODE.make(flow)(x)
    torch.testing.assert_close(log_prob, want, rtol=1e-4, atol=0)
    for latent in latents:  # none that could be taken for those of the second image
        assert latent.flatten(1).isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.slow
def test_the_runtime_answers_as_the_engine_where_there_is_no_density(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = make("realnvp").flow
    x, want = no_density(flow)
    entry = ARCHITECTURES["realnvp"]
    monkeypatch.setitem(ARCHITECTURES, "realnvp", Architecture(entry.config, entry.module, (ENCODE,)))
    engine = FlowEngine.from_module(flow)
    engine.architectures = {"module": "realnvp"}
    export_engine(engine, tmp_path / "out", what="model")
    model = onnx_runtime.load(tmp_path / "out", "cpu", threads=1)
    torch.testing.assert_close(torch.from_numpy(model.log_prob(x)), want, rtol=1e-4, atol=0)
    for call in (model.encode, model.log_det):
        with refused(ConfigError, "x", "1.5", [1, 0, 2, 3]):
            call(x)
    latents = model.encode(x[[0, 2]])
    for one, other in zip(latents, engine.encode(x[[0, 2]]), strict=True):
        close(torch.from_numpy(one), other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glow", "realnvp, gated, masks"])
def test_half_precision_is_that_of_the_networks_alone(name: str) -> None:
    """As in an engine of float16: state, folded matrices and priors stay float32."""
    flow = make(name).flow
    model, found = written(ENCODE, flow, "fp16")
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert {1, 10} <= types, "float32 and float16"
    x, *labels = ENCODE.example(flow, 3, torch.Generator().manual_seed(0), {})
    whole = FlowEngine.from_module(flow).log_prob(x)
    engine = FlowEngine.from_module(copy.deepcopy(flow), dtype="float16")
    assert not labels
    *latents, _, log_prob = found(x)
    # What a half rounds off (2^-11 of a value) goes through as many couplings as there are.
    couplings = sum(isinstance(layer, Coupling) for layer in flow.modules())
    for one, other in zip((*latents, log_prob), (*engine.encode(x), engine.log_prob(x)), strict=True):
        close(one, other, couplings * 2.0**-11)
    assert bool((log_prob != whole).any())
    close(log_prob, whole, couplings * 2.0**-11)


@pytest.mark.slow
def test_the_script_of_the_page(glow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    (script,) = (
        text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "encode.onnx" in text
    )
    monkeypatch.chdir(glow.parent)
    names: dict[str, Any] = {}
    exec(script, names)
    engine = fastgen.load("zoo:glow-mnist", device="cpu")
    assert isinstance(engine, FlowEngine)
    want = engine.log_prob(torch.from_numpy(names["x"]), labels=[3, 8])
    torch.testing.assert_close(torch.from_numpy(names["log_prob"]), want, rtol=1e-4, atol=0)
