"""The families suite: every engine has a workload; images are judged by plain PyTorch and float64."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import fastgen
from fastgen.architectures import ARCHITECTURES
from fastgen.bench import diffusion, families, samplers, verbs
from fastgen.bench.baselines import diffusers as baseline
from fastgen.bench.contest import How
from fastgen.diffusion.solvers import SOLVERS
from fastgen.errors import ConfigError
from fastgen.families import FAMILIES
from tests.small import checkpoint

QUICK = How(rounds=3, say=lambda words: None)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> fastgen.DiffusionEngine:
    return fastgen.load(checkpoint(tmp_path_factory.mktemp("model")), device="cpu")


def test_every_architecture_has_a_model_and_every_engine_a_workload(tmp_path: Path) -> None:
    for family in FAMILIES.values():
        assert set(family.models) <= set(ARCHITECTURES)
        engine = fastgen.load(families.on_disk(next(iter(family.models.values())), tmp_path), device="cpu")
        work = families.workload(engine)
        how = {"batches": [1], "steps": 2, "against": ()}
        assert next(work.contests(engine, suite="families", name="m", **how)).row.suite == "families"


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", dict.fromkeys(model for family in FAMILIES.values() for model in family.models.values())
)
def test_every_model_is_right(model: str, tmp_path: Path) -> None:
    """What `python -m fastgen.bench families` would show as wrong, of a sample, and of a diffusion model in 5 steps."""
    engine = fastgen.load(families.on_disk(model, tmp_path), device="cpu")
    how = {"batches": [1], "steps": 5, "against": ()}
    for case in families.workload(engine).contests(engine, suite="families", name=model, **how):
        assert case.judge((case.result or case.own)()) <= 1, case.row.case


def test_an_architecture_without_a_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert families.without_model() == []
    monkeypatch.setitem(ARCHITECTURES, "newest", ARCHITECTURES["unet"])
    assert families.without_model() == ["newest"]


def test_a_model_of_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgen.config import to_dict
    from tests.small import spec, unet_config

    monkeypatch.setitem(families.BUILT, "random:small", spec(unet_config()))
    place = families.on_disk("random:small", tmp_path)
    assert to_dict(fastgen.load(place).network.config) == to_dict(unet_config())
    assert families.on_disk("zoo:ddpm-mnist", tmp_path) == "zoo:ddpm-mnist"
    with pytest.raises(ConfigError) as error:
        families.on_disk("random:other", tmp_path)
    assert error.value.argument == "model"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("random:cifar10", 35_746_307),  # as google/ddpm-cifar10-32
        ("random:celebahq256", 113_673_219),  # as google/ddpm-celebahq-256
    ],
)
def test_the_built_in_models_are_ddpms(name: str, parameters: int) -> None:
    from fastgen.architectures import part_config
    from fastgen.models.unet import UNet

    with torch.device("meta"):
        net = UNet(part_config(families.BUILT[name].parts["unet"], "unet"))
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling_beside_its_baselines(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("diffusers")
    engine = fastgen.load(checkpoint(tmp_path / "model"), device="cpu", dtype=dtype)
    (case,) = diffusion.contests(
        engine, suite="families", name="small", batches=[5], steps=3, against=["eager", "diffusers"]
    )
    row = case.run(QUICK)
    assert row.error <= 1
    assert set(row.baselines) == {"eager", "diffusers"}
    assert (row.case, row.batch, row.steps, row.images) == ("sample 5, dpm++2m 3", 5, 3, 5)
    assert row.dtype == dtype


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_over_the_least_network(solver: str) -> None:
    pytest.importorskip("diffusers")
    how = {"batches": [2], "steps": 4, "against": ["eager", "diffusers"]}
    (case,) = samplers.contests(torch.device("cpu"), solver, None, **how)
    row = case.run(QUICK)
    assert row.error <= 1
    assert "eager" in row.baselines
    assert ("diffusers" in row.baselines) == (solver in baseline.SOLVERS), row.notes
    assert (case.own().abs() < 1).float().mean() > 0.001  # what is clipped everywhere shows no errors


def test_solvers_that_do_not_fit_a_model_are_named(engine: fastgen.DiffusionEngine) -> None:
    unfit = {solver for solver in SOLVERS if samplers.unfit(solver, engine)}
    assert unfit == {"euler_maruyama", "predictor_corrector"}
    least = samplers.least(torch.device("cpu"), "euler_maruyama")
    unfit = {solver for solver in SOLVERS if samplers.unfit(solver, least)}
    assert unfit == {name for name, solver in SOLVERS.items() if solver.discrete}


def test_baselines_make_their_own_noise_where_they_are_timed(engine: fastgen.DiffusionEngine) -> None:
    """Judged on the engine's, they agree with it; timed, no call repeats the last one."""
    against = ["eager", *(["diffusers"] if importlib.util.find_spec("diffusers") else [])]
    (case,) = diffusion.contests(
        engine, suite="families", name="s", batches=[2], steps=4, against=against, solver="ddpm"
    )
    for prepare in case.baselines.values():
        drawing = prepare()
        assert torch.equal(drawing.judged(), drawing.judged())
        assert case.agrees(drawing.judged()) <= 1
        assert not torch.equal(drawing.timed(), drawing.timed())


def test_a_flows_rows_come_from_its_verbs(tmp_path: Path) -> None:
    vectors = fastgen.load(families.on_disk("random:vector_flow", tmp_path), device="cpu")
    how = {"batches": [5], "steps": None, "against": ["eager"]}
    cases = {case.row.case: case for case in verbs.contests(vectors, suite="families", name="s", **how)}
    assert set(cases) == {f"{name} 5" for name in vectors.verbs()} >= {"sample 5", "log_prob 5"}
    for name, case in cases.items():
        drawing = case.baselines["eager"]()
        assert case.judge(drawing.judged()) <= 1
        equal = torch.equal(drawing.timed()[0], drawing.timed()[0])
        assert equal == (name != "sample 5")  # its baseline makes noise anew in every call
        row = case.run(QUICK)
        assert row.error <= 1
        assert "eager" in row.baselines


@pytest.mark.slow
def test_onnxruntime_and_compile(engine: fastgen.DiffusionEngine) -> None:
    pytest.importorskip("onnxruntime")
    against = ["onnxruntime", "compile"]
    (case,) = diffusion.contests(engine, suite="families", name="s", batches=[2], steps=3, against=against)
    row = case.run(QUICK)
    assert set(row.baselines) == set(against), row.notes


@pytest.fixture
def judge(engine: fastgen.DiffusionEngine):  # type: ignore[no-untyped-def]
    (case,) = diffusion.contests(engine, suite="families", name="s", batches=[6], steps=3, against=[])
    return case.judge


def test_wrong_images_are_seen(engine: fastgen.DiffusionEngine, judge) -> None:  # type: ignore[no-untyped-def]
    request = diffusion.ask(engine, 6, 3)
    right = engine.sample(**request.to_dict())
    assert judge(right) <= 1
    assert judge(right + 1e-3) > 1
    assert judge(right[:5]) == float("inf")
    assert judge(right.where(right != right.max(), float("nan"))) == float("inf")
    one = right.clone()
    one[1] = right[2]  # not one of those that are held against float64
    assert judge(one) > 1
    assert judge(engine.sample(**{**request.to_dict(), "seeds": list(range(1, 7))})) > 1
    assert judge(engine.sample(**{**request.to_dict(), "guidance_scale": 1.6})) > 1
