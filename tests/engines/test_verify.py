"""`engine.verify()` is green for a right engine and names what is wrong in a broken one."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import ConfigError, DiffusionEngine
from fastgen.cli import main
from fastgen.engines import layers
from fastgen.engines.diffusion import verification
from fastgen.models.blocks import NormAct
from fastgen.models.unet import UNet, UNetConfig
from tests.engines.test_from_module import Own
from tests.models.unet_configs import CONFIGS
from tests.refusals import refused
from tests.small import checkpoint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("graph", [True, "recorded"])
def test_a_right_engine_passes(tmp_path: Path, dtype: str, graph: bool | str) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), dtype=dtype, device="cpu", graph=graph)
    found = engine.verify(batch=3, seed=4)
    assert found.passed, str(found)
    by_name = {check.name: check for check in found.checks}
    assert by_name["conv_in"].kind == type(engine.fused.conv_in).__name__
    assert 0 < by_name["conv_in"].bound <= 1
    for name in ("captured step", "captured loop", "captured loop, guided"):
        assert (name in by_name) == (graph == "recorded")
    assert by_name["reverse_step, guided"].bound <= 1
    limit = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.02}[dtype]
    assert 0 < by_name["network"].drift < limit
    json.dumps(found.to_dict(), allow_nan=False)
    lines = str(found).splitlines()
    assert lines[-1] == "all within what rounding explains"
    assert any(line.startswith("conv_in") for line in lines)


def denoisers() -> list[str]:
    """Configurations of the converters' tests whose networks an engine can draw with."""
    names = []
    for name, options in CONFIGS.items():
        config = UNetConfig(**{**options, "sample_size": (8, 8)})
        channels = config.out_channels in (config.in_channels, 2 * config.in_channels)
        if channels and config.class_embed_type is None:
            names.append(name)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", denoisers())
def test_every_configuration_passes(name: str, dtype: str) -> None:
    torch.manual_seed(0)
    size = CONFIGS[name]["sample_size"]
    config = UNetConfig(**{**CONFIGS[name], "sample_size": (size, size) if isinstance(size, int) else size})
    engine = DiffusionEngine.from_module(
        UNet(config),
        {},
        "epsilon",
        (config.in_channels, *config.sample_size),
        num_classes=config.num_class_embeds,
        variance=None if config.out_channels == config.in_channels else "learned_range",
        dtype=dtype,
        device="cpu",
    )
    found = engine.verify(batch=2)
    assert found.passed, str(found)
    # What has no bound of its own is judged by the network's: it copies or averages pixels, or reads off the time.
    unbounded = {check.kind for check in found.checks if check.bound is None}
    assert unbounded <= {"Sinusoids", "FirDown", "FirUp", "MeanDown", "NearestUp"}


def planted(engine: DiffusionEngine, name: str, change: float) -> None:
    """A layer of the engine that answers wrongly, as a faulty kernel would."""
    layer = engine.fused.get_submodule(name)
    right = type(layer).forward

    class Faulty(type(layer)):  # type: ignore[misc]
        def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
            out = right(self, *inputs, **named)
            # Its float64 copy is the truth that it is judged by.
            return out if out.dtype == torch.float64 else out + change * (out == out.max()) * out.abs().max()

    layer.__class__ = Faulty


@pytest.mark.parametrize("name", ["conv_in", "mid_block.resnets.0.norm1", "mid_block.attentions.0.to_qkv"])
def test_a_wrong_layer_is_named(tmp_path: Path, name: str) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cpu")
    reference = copy.deepcopy(engine.network)
    planted(engine, name, 0.01)
    found = engine.verify(reference=reference)
    assert not found.passed
    wrong = [check.name for check in found.checks if not check.passed]
    assert wrong[0] == name
    assert set(wrong) <= {name, "network", "state", "history"}
    assert str(found).endswith(f"WRONG: {', '.join(wrong)}")
    assert found.to_dict()["passed"] is False
    later = found.checks[[check.name for check in found.checks].index(name) + 1 :]
    assert max(check.drift for check in later if check.drift is not None) > 1e-4


def test_a_layer_that_answers_nan_is_named(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cpu")
    planted(engine, "conv_out", float("nan"))
    found = engine.verify()
    assert "conv_out" in str(found).splitlines()[-1]
    wrong = {check.name for check in found.checks if not check.passed}
    assert {"conv_out", "network", "state"} <= wrong <= {"conv_out", "network", "state", "history"}
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("change", [float("nan"), 0.0, -3.0, 1.0 + 2**-9])
def test_what_is_wrong_between_the_layers_shows_in_the_network(change: float) -> None:
    """A fault that no layer has: the network's own arithmetic, where it does not run in float64."""

    class Between(Own):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            out = super().forward(x, t, label)
            return out if x.dtype == torch.float64 else out * change

    found = DiffusionEngine.from_module(Between(), {}, "epsilon", (2, 6, 10)).verify()
    wrong = [check.name for check in found.checks if not check.passed]
    assert wrong[0] == "network"  # and what the step makes of it
    assert set(wrong) <= {"network", "state", "history"}


def test_a_wrong_step_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cpu")
    op = verification.OPS["reverse_step"]
    broken = dataclasses.replace(op, function=_shifted(op.function))
    monkeypatch.setattr(verification, "OPS", {"reverse_step": broken})
    wrong = [check.name for check in engine.verify().checks if not check.passed]
    assert wrong == ["reverse_step", "reverse_step, guided"]


def _shifted(function):  # type: ignore[no-untyped-def]
    def shifted(**arguments):  # type: ignore[no-untyped-def]
        x, h, y = function(**arguments)
        return x + 1e-3, h, y

    return shifted


def test_a_network_of_ones_own() -> None:
    engine = DiffusionEngine.from_module(Own(), {}, "epsilon", (2, 6, 10), graph="recorded")
    found = engine.verify()
    assert found.passed, str(found)
    assert {"first", "time", "last", "captured step"} <= {check.name for check in found.checks}


def test_a_network_that_works_in_float32_only() -> None:
    class Single(Own):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return super().forward(x, t, label) * (torch.ones(1, 1) @ x.new_ones(1, 1))

    engine = DiffusionEngine.from_module(Single(), {}, "epsilon", (2, 6, 10))
    found = engine.verify()
    assert found.passed
    assert found.facts["reference"].startswith("float32 on the CPU")


def test_the_engine_draws_as_before(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cpu", graph="recorded")
    before = engine.sample(3, seed=1, labels=0)
    engine.verify()
    assert torch.equal(engine.sample(3, seed=1, labels=0), before)
    with refused(ConfigError, "batch", 64, 0):
        engine.verify(batch=0)
    with refused(ConfigError, "seed", 2**63):
        engine.verify(seed=1 << 63)


def test_bounds_grow_with_the_sum() -> None:
    assert layers.summed(1) == 2**-24
    assert layers.summed(9) == 9 * 2**-24
    assert layers.summed(10_000) == pytest.approx(600 * 2**-24)


def test_a_norm_far_from_zero_is_allowed_its_cancellation() -> None:
    """E[x^2] - E[x]^2 loses what the mean's share is; a library that does so is not called wrong."""
    norm = NormAct(2, 4).double()
    near = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    small, large = (layers._allowed(norm, [x], {}, norm(x), torch.float32).max() for x in (near, near + 100))
    assert large > 1000 * small


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(checkpoint(tmp_path / "m"))
    assert main(["verify", folder, "--device", "cpu", "--dtype", "bfloat16"]) == 0
    assert "float32 weights" in capsys.readouterr().out
    assert main(["verify", folder, "--device", "cpu", "--json", "--batch", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    with pytest.raises(SystemExit) as stop:
        main(["verify"])
    assert stop.value.code == 2
    assert "MODEL" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "none")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err


class Table(torch.nn.Module):
    """Looks its timestep up, as networks of discrete time do, and is 1 % too large in float32."""

    def __init__(self, fault: float) -> None:
        super().__init__()
        self.table, self.fault = torch.nn.Embedding(1000, 2), fault

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = x * self.table(t.long())[:, :, None, None]
        return out if x.dtype == torch.float64 else out * (1 + self.fault)


@pytest.mark.parametrize("integer_time", [True, False])
def test_a_timestep_that_is_looked_up_is_not_rounded(integer_time: bool) -> None:
    for fault in (0.0, 0.01):
        engine = DiffusionEngine.from_module(
            Table(fault), {}, "epsilon", (2, 6, 10), integer_time=integer_time, solver="ddim"
        )
        assert engine.verify().passed == (fault == 0.0)


def test_what_is_captured_for_the_comparison_is_given_back() -> None:
    engine = DiffusionEngine.from_module(Own(), {}, "epsilon", (2, 6, 10), graph="recorded")
    engine.verify()
    assert not list(engine.batches.graphs.describe())
