"""The verbs of a flow engine."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import ENGINES
from fastgen.checkpoint import Part, Spec, save
from fastgen.config import to_dict
from fastgen.engines import FlowEngine
from fastgen.engines.flow.bits import to_levels
from fastgen.errors import ConfigError
from fastgen.models.flow.coupling import Coupling
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.glow import Glow, GlowConfig
from fastgen.models.flow.layers import ActNorm, Affine
from fastgen.models.flow.priors import StandardNormal
from fastgen_kernels import normals
from tests.engines.flows import CASES, Case, filled, make
from tests.refusals import refused

LOG_2 = math.log(2)


def data(engine: FlowEngine, case: Case) -> Tensor:
    """The case's data as the engine takes it."""
    return case.x * 2 - 1 if engine.discrete else case.x


def engine_of(case: Case, **options: Any) -> FlowEngine:
    return FlowEngine.from_module(case.flow, device="cpu", **options)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_float64_equals_the_reference(name: str) -> None:
    case = make(name, torch.float64)
    engine = engine_of(case)
    x, terms = data(engine, case), case.x[0].numel()
    unit = terms * LOG_2 if engine.discrete else 0.0
    want = case.flow.log_prob(case.x, case.condition) - unit
    torch.testing.assert_close(engine.log_prob(x, **case.given), want, rtol=0, atol=1e-12 * terms)
    latents = engine.encode(x, **case.given)
    for a, b in zip(latents, case.flow(case.x, case.condition)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(engine.decode(latents, **case.given), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_samples_are_the_references_from_the_same_noise(name: str) -> None:
    case = make(name, torch.float64)
    engine = engine_of(case)
    seeds = [5, 6, 7, 8, 9, 10]
    sizes = [math.prod(shape) for shape in case.flow.latent_shapes]
    flat = normals(seeds, 0, "initial", (sum(sizes),)).double()
    noise = [
        part.view(-1, *shape)
        for part, shape in zip(flat.split(sizes, 1), case.flow.latent_shapes, strict=True)
    ]
    with torch.no_grad():
        want = case.flow.sample(noise, 0.8, case.condition)
    want = (want * 2 - 1).clamp(-1, 1) if engine.discrete else want
    got = engine.sample(6, seed=5, temperature=0.8, **case.given)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_noise_does_not_depend_on_the_batch(name: str) -> None:
    case = make(name, torch.float64)
    engine = engine_of(case, max_batch=4)  # six are done in turns of four and two

    def rows(which: slice) -> dict[str, Any]:
        return {key: value[which] for key, value in case.given.items()}

    together = engine.sample(6, seed=3, **rows(slice(6)))
    alone = torch.cat([engine.sample(1, seed=3 + k, **rows(slice(k, k + 1))) for k in range(6)])  # type: ignore[misc]
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(together, engine.sample(seeds=range(3, 9), **rows(slice(6))))  # type: ignore[arg-type]
    assert len({float(x.sum()) for x in together}) == 6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_of_glow_three_scales_of_eight_steps(dtype: str) -> None:
    case = deep_glow()
    engine = engine_of(case, dtype=dtype)
    x = data(engine, case)
    error = float((engine.decode(engine.encode(x)) - x).abs().max())
    assert error <= (1e-5 if dtype == "float32" else 1e-12)


def deep_glow() -> Case:
    torch.manual_seed(0)
    config = GlowConfig(sample_size=(32, 32), num_scales=3, steps_per_scale=8, hidden_channels=(32,))
    return filled(Glow(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_is_in_the_states_type_and_close_to_exact(dtype: torch.dtype) -> None:
    case = make("glow")
    engine = engine_of(case, dtype=dtype)
    x = data(engine, case)
    got = engine.log_prob(x)
    assert got.dtype == dtype
    exact = case.flow.double().log_prob(case.x.double()) - case.x[0].numel() * LOG_2
    # Sums of 192 terms of size 1, after 6 layers: each term off by some ten roundings.
    bound = 192 * 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=bound)


def test_half_precision_is_for_coupling_networks_only() -> None:
    case = make("glow")
    exact = engine_of(make("glow")).log_prob(case.x * 2 - 1)
    engine = engine_of(case, dtype="bfloat16")
    assert {
        p.dtype for m in case.flow.modules() if isinstance(m, Coupling) for p in m.network.parameters()
    } == {torch.bfloat16}
    assert {p.dtype for m in case.flow.modules() if isinstance(m, ActNorm) for p in m.parameters()} == {
        torch.float32
    }
    got = engine.log_prob(case.x * 2 - 1)
    assert got.dtype == torch.float32
    assert 0 < float((got - exact).abs().max()) < 192 * 2.0**-8
    assert engine.describe()["dtype"] == "bfloat16"
    assert engine.describe()["state"] == "float32"


# Closed forms.


def closed_form(shape: tuple[int, ...], scale: float, levels: int | None) -> Flow:
    """x -> (x - 1/2) / scale is standard normal in every element."""
    from fastgen.models.flow.dequantise import Dequantiser

    return Flow(
        shape,
        [Affine(1 / scale, -0.5 / scale)],
        [[]],
        lambda i, latent, kept: StandardNormal(latent),
        levels=levels,
        dequantiser=None if levels is None else Dequantiser(levels),
    )


def test_bits_per_dim_of_continuous_data_are_exact() -> None:
    engine = FlowEngine.from_module(closed_form((3,), 0.5, None), device="cpu", dtype="float64")
    x = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 1.5]], dtype=torch.float64)
    z = (x - 0.5) / 0.5
    nats = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - math.log(0.5)).sum(1)
    found = engine.bits_per_dim(x)
    assert found.kind == "exact"
    torch.testing.assert_close(found.values, -nats / (3 * LOG_2), rtol=1e-12, atol=1e-12)
    assert found.mean == pytest.approx(float(found.values.mean()))
    assert "exact, 2 samples" in str(found)


def level_probability(k: Tensor, levels: int, scale: float) -> Tensor:
    """P of each level under the closed form: the normal's mass between its ends."""
    ends = [(k.double() + side) / levels for side in (0, 1)]
    low, high = ((end - 0.5) / scale for end in ends)
    return torch.special.ndtr(high) - torch.special.ndtr(low)


@pytest.mark.parametrize("samples", [1, 64])
def test_bits_per_dim_of_levels_bound_the_exact_value(samples: int) -> None:
    levels, scale, shape = 4, 0.2, (1, 2, 2)
    engine = FlowEngine.from_module(closed_form(shape, scale, levels), device="cpu", dtype="float64")
    torch.manual_seed(0)
    k = torch.randint(0, levels, (400, *shape))
    exact = -level_probability(k, levels, scale).log2().flatten(1).mean(1)
    found = engine.bits_per_dim(k.to(torch.uint8), samples)
    gap = found.values - exact
    error = float(gap.std()) / 20
    if samples == 1:
        assert found.kind == "bound"
        # E_u log p is known: the mean of -z^2/2 over a level.
        u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        x = (k.double()[..., None] + u) / levels
        log_p = (-0.5 * ((x - 0.5) / scale) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(scale)).mean(-1)
        want = (math.log(levels) - log_p).flatten(1).mean(1) / LOG_2
        assert abs(float((found.values - want).mean())) < 5 * error
        assert float(gap.mean()) > 5 * error  # a bound that is not tight
    else:
        assert found.kind == "importance-weighted bound"
        assert abs(float(gap.mean())) < 0.01
    assert found.to_dict()["samples"] == samples


def test_bits_per_dim_takes_images_or_levels_and_repeats() -> None:
    case = make("realnvp, gated, masks")  # dequantised by a flow of its own
    engine = engine_of(case)
    k = torch.randint(0, 256, (5, 1, 8, 8))
    first = engine.bits_per_dim(k, 2, seed=7)
    assert torch.equal(first.values, engine.bits_per_dim(k.to(torch.uint8), 2, seed=7).values)
    assert torch.equal(first.values, engine.bits_per_dim(k.float() * (2 / 255) - 1, 2, seed=7).values)
    assert not torch.equal(first.values, engine.bits_per_dim(k, 2, seed=8).values)
    torch.testing.assert_close(
        first.values[3:], engine.bits_per_dim(k[3:], 2, seed=10).values, rtol=1e-5, atol=1e-5
    )
    with refused(ConfigError, "x", 256):
        engine.bits_per_dim(k.float() * (2 / 255) - 1 + 0.001)
    with refused(ConfigError, "x", 256):
        engine.bits_per_dim(k + 1000)
    with refused(ConfigError, "x", 256):
        engine.bits_per_dim(k + 2**32)
    with refused(ConfigError, "samples", 0):
        engine.bits_per_dim(k, 0)


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [(65_536, torch.float32), (65_536, torch.float64), (256, torch.float16), (16, torch.bfloat16)],
)
def test_every_level_survives_the_images_type(levels: int, dtype: torch.dtype) -> None:
    k = torch.arange(levels)
    for x in ((2 * k.to(dtype) / (levels - 1) - 1), (k.double() * (2 / (levels - 1)) - 1).to(dtype)):
        assert torch.equal(to_levels(x, levels), k.int())


def test_a_type_that_cannot_tell_levels_apart_is_refused() -> None:
    with refused(ConfigError, "x", "bfloat16", 256):
        to_levels(torch.zeros(1).bfloat16(), 256)


def test_one_sample_has_no_standard_error() -> None:
    found = engine_of(make("glow")).bits_per_dim(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor(2))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.to_dict()["standard_error"] is None
    assert found.samples == 2


# Verbs.


def test_interpolation_begins_and_ends_where_it_should() -> None:
    case = make("glow, everything else", torch.float64)
    engine = engine_of(case)
    x = data(engine, case)
    row = engine.interpolate(x[:2], x[2:4], 5, labels=[0, 2])
    assert isinstance(row, Tensor)
    assert row.shape == (10, *engine.shape)
    assert torch.allclose(row[[0, 5]], x[:2], atol=1e-10)
    torch.testing.assert_close(row[[4, 9]], x[2:4], rtol=0, atol=1e-10)
    middle = engine.decode(
        [
            (a + b) / 2
            for a, b in zip(engine.encode(x[:1], labels=0), engine.encode(x[2:3], labels=0), strict=True)
        ],
        labels=0,
    )
    torch.testing.assert_close(row[2:3], middle.clamp(-1, 1), rtol=0, atol=1e-10)


def test_temperature_zero_is_the_mode_and_the_checkpoints_is_the_default() -> None:
    case = make("glow")
    engine = FlowEngine.from_module(case.flow, device="cpu", temperature=0.0)
    x = engine.sample(2, seed=0)
    assert isinstance(x, Tensor)
    torch.testing.assert_close(x[0], x[1], rtol=0, atol=1e-6)
    assert not torch.allclose(engine.sample(1, seed=0, temperature=1.0), x[:1])  # type: ignore[arg-type]


def test_output_types() -> None:
    engine = engine_of(make("glow"))
    x = engine.sample(2, seed=0)
    assert isinstance(x, Tensor)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert float(x.abs().max()) <= 1
    array = engine.sample(2, seed=0, output_type="np")
    assert isinstance(array, np.ndarray)
    assert array.shape == (2, 8, 8, 3)
    assert len(engine.sample(2, seed=0, output_type="pil")) == 2
    vectors = engine_of(make("vector_flow, halves"))
    with refused(ConfigError, "output_type", "np", "pt"):
        vectors.sample(1, output_type="np")


def test_a_request_repeats_itself() -> None:
    engine = engine_of(make("glow, everything else"))
    request = engine.request(2, seed=4, labels=[1, 2], temperature=0.5)
    assert engine.metadata(request)["request"] == {"seeds": [4, 5], "labels": [1, 2], "temperature": 0.5}
    assert torch.equal(
        engine.sample(**request.to_dict()),  # type: ignore[arg-type]
        engine.sample(2, seed=4, labels=[1, 2], temperature=0.5),  # type: ignore[arg-type]
    )


def test_class_names() -> None:
    case = make("glow, everything else")
    engine = FlowEngine.from_module(case.flow, device="cpu", class_names=["a", "b", "c"])
    by_name, by_number = engine.sample(seed=0, labels=["c", "a"]), engine.sample(seed=0, labels=[2, 0])
    assert torch.equal(by_name, by_number)  # type: ignore[arg-type]


def checkpoint(folder: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = GlowConfig(sample_size=(8, 8), num_scales=2, steps_per_scale=2, hidden_channels=(8,))
    flow = filled(Glow(config)).flow
    spec = Spec("flow", {"flow": Part("glow", to_dict(config))}, {"temperature": 0.7, **settings})
    save(folder, spec, {f"flow.{name}": value for name, value in flow.state_dict().items()})
    return flow


def test_a_checkpoint_loads(tmp_path: Any) -> None:
    flow = checkpoint(tmp_path / "m")
    engine = fastgen.load(tmp_path / "m", device="cpu")
    assert isinstance(engine, FlowEngine)
    assert type(engine) is ENGINES["flow"]
    facts = engine.describe()
    assert facts["networks"] == {"flow": "glow"}
    assert facts["defaults"] == {"temperature": 0.7}
    assert facts["units"] == "images in [-1, 1]"
    assert facts["dtype"] == facts["state"] == "float32"
    assert facts["layers"] == 1 + 2 * (1 + 3 * 2)
    assert facts["steps"] == 1 + 2 * (1 + 2 * 2)
    want = FlowEngine.from_module(flow, temperature=0.7, device="cpu").sample(3, seed=0)
    assert torch.equal(engine.sample(3, seed=0), want)  # type: ignore[arg-type]
    assert fastgen.load(tmp_path / "m", device="cpu", dtype="float64").dtype == torch.float64


def test_settings_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    checkpoint(tmp_path / "m", class_names=["a"])
    with refused(ConfigError, "settings: class_names", 1):
        fastgen.load(tmp_path / "m", device="cpu")
    checkpoint(tmp_path / "n", num_classes=4)
    with refused(ConfigError, "settings: num_classes", 4):
        fastgen.load(tmp_path / "n", device="cpu")
    checkpoint(tmp_path / "o", temperature=-1.0)
    with refused(ConfigError, "settings: temperature", -1.0):
        fastgen.load(tmp_path / "o", device="cpu")
