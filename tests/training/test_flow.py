"""Training flows: the likelihood is descended, from the data's start, and an interruption changes nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.checkpoint import WEIGHTS_FILE, file_sha256, load_spec
from fastgen.cli import main
from fastgen.engines.flow.engine import FlowEngine
from fastgen.errors import ConfigError
from fastgen.models.flow.dequantise import Dequantiser
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import ActNorm, Logit, Standardise
from fastgen.models.flow.priors import StandardLogistic, StandardNormal
from fastgen.models.flow.vector import VectorFlow, VectorFlowConfig
from fastgen.training import loop, synthetic
from fastgen.training.data import describe, load
from fastgen.training.flow import MaximumLikelihood, maximum_likelihood
from fastgen.training.loop import LOSS_FILE
from fastgen.training.objective import Step
from fastgen.training.run import STATE_FILE, Run
from fastgen.training.settings import RunConfig
from fastgen.training.tables import Rows
from tests.refusals import names, refused

COMMON = ["--warmup", "2", "--precision", "fp32", "--quiet"]
IMAGES = [
    "--model",
    "glow",
    "--data",
    "digits",
    "--widths",
    "8",
    "--batch-size",
    "8",
    "--preview-every",
    "0",
]
IMAGES += ["--option", "steps_per_scale=2", *COMMON]
TABLE = ["--model", "vector_flow", "--data", "two-moons", "--widths", "8", "--batch-size", "16"]
TABLE += ["--option", "steps=2", "--option", "layers=actnorm,shuffle,coupling", *COMMON]


def train(folder: Path, *arguments: str) -> int:
    return main(["train", str(folder), *arguments])


def losses(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / LOSS_FILE, delimiter=",", skiprows=1, ndmin=2)[:, 1]


def step(x: torch.Tensor, label: torch.Tensor | None = None) -> Step:
    return Step(x, label, torch.Generator().manual_seed(0), RunConfig(precision="fp32"))


def test_the_loss_of_images_is_bits_per_dimension() -> None:
    """A uniform density on [0, 1] gives each of 256 levels 8 bits: the logit of it is logistic."""
    whole = Flow(
        (1, 2, 2),
        [Logit(1e-7)],
        [[]],
        lambda i, shape, kept: StandardLogistic(shape),
        levels=256,
        dequantiser=Dequantiser(256),
    )
    x = torch.arange(1, 255, dtype=torch.uint8)[:252].view(63, 1, 2, 2)
    loss = MaximumLikelihood("bits/dim").loss(whole, step(x))
    # alpha moves the logit by 1e-7 / x at most, and its sums of tens of nats are rounded: 2^-24 * 4 terms * 10
    assert loss.item() == pytest.approx(8, abs=1e-4)


def test_the_loss_of_rows_is_the_negative_log_density_in_nats() -> None:
    normal = Flow((3,), [], [[ActNorm(3)]], lambda i, shape, kept: StandardNormal(shape))
    x = torch.randn(64, 3)
    expected = -torch.distributions.Normal(0, 1).log_prob(x.double()).sum(1).mean().item()
    # mean of 64 sums of 3 terms below 10 in float32
    assert MaximumLikelihood("nats").loss(normal, step(x)).item() == pytest.approx(expected, abs=1e-5)


def test_the_start_of_a_table_is_all_of_its_rows() -> None:
    torch.manual_seed(0)
    values = torch.randn(500, 3) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([5.0, -100.0, 0.0])
    config = VectorFlowConfig(features=3, standardise=True, layers=("actnorm", "lu", "coupling"), steps=2)
    module = VectorFlow(config)
    batch = values[:40]
    MaximumLikelihood("nats").start(torch.nn.ModuleDict({"flow": module}), Rows(values), step(batch))
    first = module.preprocess[0]
    assert isinstance(first, Standardise)
    y = first(values.double())[0]
    # float32 parameters: mean / std up to 5 is rounded to 3e-7
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=2e-6, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    x, _ = first(values.double())  # all: they are fewer than `flow.START_ROWS`
    for layer in module.scales[0]:  # type: ignore[union-attr]
        x, _ = layer(x)
        if isinstance(layer, ActNorm):
            assert int(layer.initialised) == 1
            # the same rounding, through a matrix and a coupling
            torch.testing.assert_close(x.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
            torch.testing.assert_close(
                x.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("unit", [1e20, 1e-6, 1e-29])
def test_standardised_whatever_the_unit(unit: float) -> None:
    layer = Standardise(2)
    values = torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * unit
    layer.initialize(values.float())
    y = layer(values)[0]
    # loc and scale are rounded to float32, as the rows are
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_actnorm_leaves_a_constant_channel_at_its_scale() -> None:
    layer = ActNorm(3)
    x = torch.randn(50, 3)
    x[:, 1] = 0.1
    x[:, 2] = 1000 + 1e-4 * x[:, 2]  # constant but for rounding: float32 has steps of 6e-5 there
    layer.initialize(x)
    assert layer.scale[1:].tolist() == [1, 1]
    assert layer.scale[0].item() == pytest.approx(1 / (x[:, 0].std(correction=0).item() + 1e-6), rel=1e-6)


def test_a_column_that_is_almost_always_zero_trains(tmp_path: Path) -> None:
    """It is constant in nearly every batch: a start from one would scale it by a million."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2000, 3))
    values[:, 2] *= generator.random(2000) < 0.01
    assert (values[:, 2] != 0).any()
    np.save(tmp_path / "rare.npy", values)
    table = [*TABLE[:2], "--data", str(tmp_path / "rare.npy"), *TABLE[4:]]
    assert train(tmp_path / "m", *table, "--steps", "30", "--lr", "1e-2") == 0
    # A normal density of standardised columns would be 4.3 nats, and what the units add, log 0.1, less than that.
    assert losses(tmp_path / "m").max() < 50
    assert float(fastgen.load(tmp_path / "m").flow.scales[0][0].scale.max()) < 100  # type: ignore[union-attr]


def test_a_part_that_does_not_vary_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "m", *TABLE, "--subset", "5-5", "--steps", "1") == 1
    assert names(capsys.readouterr().err, "two-moons", "column 1")
    assert not (tmp_path / "m").exists()


def test_a_flow_without_couplings_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TABLE[:4], "--option", "layers=actnorm,lu", "--option", "steps=1", *COMMON]
    assert train(tmp_path / "m", *arguments, "--steps", "1") == 0
    assert "coupling" in capsys.readouterr().err


def test_a_network_larger_than_the_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"SC_PHYS_PAGES": 16, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    assert train(tmp_path / "m", *TABLE, "--steps", "1", "--widths", "512") == 1
    assert "--widths" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_run_that_fails_leaves_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(loop, "_train_step", fails)
    (tmp_path / "mine").mkdir()
    for name in ("m", "mine"):
        with pytest.raises(RuntimeError, match="broken"):
            train(tmp_path / name, *TABLE, "--steps", "1")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("arguments", [IMAGES, TABLE], ids=["images", "table"])
def test_the_loss_falls_and_the_model_samples(tmp_path: Path, arguments: list[str]) -> None:
    assert train(tmp_path, *arguments, "--steps", "80", "--lr", "3e-2", "--widths", "16") == 0
    curve = losses(tmp_path)
    assert curve[-10:].mean() < curve[:5].mean() - 0.2
    engine = fastgen.load(tmp_path)
    assert isinstance(engine, FlowEngine)
    spec = load_spec(tmp_path)
    assert (spec.engine, spec.provenance["run"]["weight_decay"]) == ("flow", 0)
    if engine.flow.levels is None:
        assert engine.sample(5, seed=0).shape == (5, 2)  # type: ignore[union-attr]
    else:
        assert engine.settings.num_classes == engine.flow.classes == 10
        assert engine.sample(2, labels=[3, 7], seed=0).shape == (2, 1, 8, 8)  # type: ignore[union-attr]


def interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Ctrl-C while step `number` is under way."""
    calls = []
    before = loop._train_step

    def interrupted(*arguments: object) -> None:
        calls.append(1)
        before(*arguments)  # type: ignore[arg-type]
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "_train_step", interrupted)


@pytest.fixture
def sigint() -> Iterator[None]:
    """Python's own handler, also where the tests run in the background, where shells have Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("arguments", [IMAGES, TABLE], ids=["images", "table"])
def test_interrupt_saves_and_resume_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Buffers too: the order of a shuffle is drawn once, what an ActNorm began with is not measured again."""
    train(tmp_path / "whole", *arguments, "--steps", "5")
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 2)
        assert train(tmp_path / "broken", *arguments, "--steps", "5") == 130
    assert losses(tmp_path / "broken").size == 2
    assert train(tmp_path / "broken", "--resume", "--quiet") == 0
    for name in (WEIGHTS_FILE, STATE_FILE, LOSS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


def test_buffers_stay_exact_in_half_precision(tmp_path: Path) -> None:
    train(tmp_path / "half", *TABLE, "--steps", "2", "--weights-dtype", "float16")
    train(tmp_path / "full", *TABLE, "--steps", "2")
    half, full = (fastgen.load(tmp_path / name) for name in ("half", "full"))
    assert isinstance(half, FlowEngine)
    assert isinstance(full, FlowEngine)
    kept = dict(full.flow.named_buffers())
    assert {"preprocess.0.loc", "scales.0.1.index"} <= set(kept)
    for name, value in half.flow.named_buffers():
        assert torch.equal(value, kept[name]), name
    rounded = [
        n
        for n, p in half.flow.named_parameters()
        if not torch.equal(p, dict(full.flow.named_parameters())[n])
    ]
    assert rounded


def test_previews_are_drawn(tmp_path: Path) -> None:
    train(tmp_path, *IMAGES, "--steps", "1", "--preview-every", "10")
    assert [p.name for p in (tmp_path / "previews").iterdir()] == ["step-0000001.png"]


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"features": 3}, [[2], [3]]),
        ({"num_classes": 3}, [3]),
        ({"context_features": 3}, ["Flow.log_prob"]),
    ],
)
def test_data_that_the_flow_does_not_model(tmp_path: Path, changes: dict, mentions: list) -> None:
    data = load("two-moons")
    run = Run(RunConfig(), load_spec_of(tmp_path), describe(data))
    with refused(ConfigError, "data", *mentions):
        maximum_likelihood(VectorFlow(VectorFlowConfig(**{"features": 2, **changes})), run, data)


def test_a_forged_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state that says it makes another kind of model of a flow is nobody's."""
    train(tmp_path, *TABLE, "--steps", "1")
    path = tmp_path / STATE_FILE
    data = path.read_bytes()
    quoted = b'\\"engine\\": \\"flow\\"'
    assert data.count(quoted) == 1
    path.write_bytes(data.replace(quoted, b'\\"engine\\": \\"gan\\" '))
    assert train(tmp_path, "--resume") == 1
    assert names(capsys.readouterr().err, tmp_path, "gan", "vector_flow")


def test_one_image_has_no_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows have one in any batch: they start from all of the table."""
    assert train(tmp_path / "m", *IMAGES, "--steps", "1", "--batch-size", "1") == 1
    assert "batch_size" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    assert train(tmp_path / "rows", *TABLE, "--steps", "1", "--batch-size", "1") == 0


def load_spec_of(folder: Path):  # type: ignore[no-untyped-def]
    train(folder / "any", *TABLE, "--steps", "1")
    return load_spec(folder / "any")


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (
            ["--model", "glow", "--data", "two-moons"],
            "--model vector_flow",
        ),
        (["--model", "vector_flow", "--data", "digits"], "--model glow, realnvp or nice"),
        (["--data", "mixture6"], "--model vector_flow"),
        (["--model", "glow", "--data", "digits", "--option", "levels=32"], "levels"),
        (["--model", "glow", "--data", "digits", "--option", "depth=2"], "depth"),
        (["--model", "glow", "--data", "digits", "--option", "linear"], "linear"),
        (
            ["--model", "glow", "--data", "digits", "--option", "alpha=1", "--option", "alpha=2"],
            "alpha",
        ),
        (
            ["--model", "glow", "--data", "digits", "--widths", "8", "--option", "hidden_channels=8"],
            "hidden_channels",
        ),
        (["--model", "glow", "--data", "digits", "--option", "num_scales=9"], "num_scales"),
        (
            ["--model", "vector_flow", "--data", "two-moons", "--preview-every", "5"],
            "--preview-every",
        ),
        (["--model", "glow", "--data", "digits", "--batch-size", "1"], "batch_size"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], mention: str
) -> None:
    assert train(tmp_path / "m", *arguments, "--steps", "1", "--quiet") == 1
    assert mention in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "flag"),
    [
        ("glow", ["--data", "digits", "--attention", "1"], "--attention"),
        ("nice", ["--data", "digits", "--label-dropout", "0.1"], "--label-dropout"),
        ("unet", ["--data", "digits", "--option", "steps=2"], "--option"),
        ("vector_flow", ["--data", "two-moons", "--flip"], "--flip"),
        ("vector_flow", ["--data", "two-moons", "--size", "8"], "--size"),
        ("vector_flow", ["--data", "two-moons", "--channels", "1"], "--channels"),
        ("glow", ["--data", "digits", "--target", "folder"], "--target"),
    ],
)
def test_flags_of_other_models_are_no_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, arguments: list[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "m", "--model", model, *arguments)
    assert stop.value.code == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("model", ["realnvp", "nice"])
def test_the_other_flows_of_images_train(tmp_path: Path, model: str) -> None:
    arguments = [
        "--model",
        model,
        "--data",
        "digits",
        "--batch-size",
        "4",
        "--widths",
        "8",
        "--preview-every",
        "0",
    ]
    if model == "realnvp":
        arguments += ["--option", "checkerboard=1", "--option", "channelwise=1", "--option", "blocks=1"]
    assert train(tmp_path, *arguments, "--steps", "2", *COMMON) == 0
    assert fastgen.load(tmp_path).sample(1, seed=0, labels=None if model == "nice" else 3).isfinite().all()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-moons", "mixture6"])
def test_a_fit_from_the_command_line_comes_close_to_the_truth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Held-out nats: no flow beats the entropy, the one number that is known; a fitted normal is far from it."""
    arguments = [
        "--model",
        "vector_flow",
        "--data",
        name,
        "--subset",
        "0-8999",
        "--steps",
        "300",
        "--lr",
        "5e-3",
    ]
    assert train(tmp_path, *arguments, "--batch-size", "256", "--quiet") == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--data", name, "--subset", "9000-9999", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    held_out = load(name, subset=(9000, 9999)).batch(range(1000))[0].double().numpy()
    density = {"two-moons": synthetic.two_moons_log_density, "mixture6": synthetic.mixture6_log_density}[name]
    truth = -density(held_out)
    normal = _normal_nats(load(name, subset=(0, 8999)).batch(range(9000))[0].double().numpy(), held_out)
    assert found["kind"] == "exact"
    # On the same rows; what is left is what the two log-densities differ by, row by row: a few hundredths of a nat.
    assert found["nats"] > truth.mean() - 0.05
    assert found["nats"] < truth.mean() + 0.2 * (normal - truth.mean())


def _normal_nats(training: np.ndarray, held_out: np.ndarray) -> float:
    """Of the normal distribution fitted to `training`, on `held_out`."""
    from scipy.stats import multivariate_normal

    fitted = multivariate_normal(training.mean(0), np.cov(training.T))
    return float(-fitted.logpdf(held_out).mean())
