"""What is clamped, and what is left alone: images to their range, anything else not at all."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.config import to_dict
from fastgen.engines.diffusion import DiffusionEngine
from fastgen.engines.diffusion.settings import DiffusionSettings
from fastgen.errors import ConfigError
from fastgen.images import to_output, to_pictures, within
from tests.refusals import refused

SHAPE = (2, 1, 6)
NAN, INF = float("nan"), float("inf")


class Constant(nn.Module):
    """A perfect denoiser of data that is one point: x_0, with `values` [C, H, W], whatever it sees."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.values.expand_as(x)  # type: ignore[operator]


POINT = torch.linspace(-5, 5, 12).view(SHAPE)  # standardised data has such values


def engine(values: Tensor = POINT, **options: Any) -> DiffusionEngine:
    return DiffusionEngine.from_module(
        Constant(values), {"beta_schedule": "linear"}, "sample", values.shape, **options
    )


def close(got: Tensor, want: Tensor) -> bool:
    """The last step of these solvers lands on x_0 but for float32's rounding of some operations on values up to 5."""
    return torch.allclose(got, want.expand_as(got), atol=1e-4)


SOLVERS = ["ddim", "ddpm", "dpm++2m", "euler", "heun", "unipc"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_none_leaves_values_alone_everywhere(solver: str) -> None:
    own = engine(value_range=None)
    call: dict[str, Any] = {"seed": 0, "solver": solver, "steps": 10}
    assert close(own.sample(2, **call), POINT)
    *_, last = own.stream(2, **call)
    assert close(last.images, POINT)
    seen: list[Tensor] = []
    own.sample(2, callback=lambda step, total, images: seen.append(images), **call)
    assert close(seen[-1], POINT)
    assert seen[0].abs().max() > 1  # noise, as it is
    with own.session() as session:
        session.add(2, **call)
        assert all(close(image, POINT) for _, image in session)
    with own.session() as session:
        session.add(1, **call)
        while not (done := session.finished()):
            session.step()
        assert close(done[0].image, POINT)


@pytest.mark.parametrize("value_range", [(-1, 1), (0, 1), (-3.0, 2.5)])
def test_images_are_clamped_to_their_range(value_range: tuple[float, float]) -> None:
    own = engine(value_range=value_range)
    want = POINT.clamp(*value_range)
    call: dict[str, Any] = {"seed": 0, "solver": "dpm++2m", "steps": 10}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who has said the range knows
        got = own.sample(2, **call)
        *_, last = own.stream(2, **call)
        with own.session() as session:
            session.add(2, **call)
            images = [image for _, image in session]
    assert all(close(found, want) for found in (got, last.images, *images))
    assert got.min() >= value_range[0]
    assert got.max() <= value_range[1]
    first = next(iter(own.stream(2, **call))).images
    assert first.min() >= value_range[0]
    assert first.max() <= value_range[1]
    assert own.describe()["value_range"] == [float(v) for v in value_range]


def test_samples_that_have_not_begun_are_grey() -> None:
    own = engine(value_range=(0, 1), max_batch=1)
    first = next(iter(own.stream(2, seed=0, steps=2))).images
    assert (first[1] == 0.5).all()


def test_a_range_that_nobody_chose_is_said_once() -> None:
    own = engine()
    with pytest.warns(UserWarning, match="value_range=None"):
        assert own.sample(1, seed=0, steps=4).abs().max() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.sample(1, seed=0, steps=4)
        engine(POINT / 5).sample(1, seed=0, steps=4)  # fits the range
        engine(POINT / 4.8).sample(1, seed=0, steps=4)  # a little more than white, as good models give


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_solvers_that_clip_x0_do_so_for_images_alone(solver: str) -> None:
    assert engine(value_range=None).request(seed=0, solver=solver).to_dict()["clip_sample"] is False
    asked = engine(value_range=None).request(seed=0, solver=solver, clip_sample=True)
    assert asked.to_dict()["clip_sample"] is True
    assert "clip_sample" not in engine(value_range=(-1, 1)).request(seed=0, solver=solver).to_dict()


def test_output_types_take_the_range_for_black_to_white() -> None:
    values = torch.tensor([[[0.0, 0.25, 1.0, 7.0]]])
    own = engine(values, value_range=(0, 1))
    call: dict[str, Any] = {"seed": 0, "solver": "euler", "steps": 4}
    assert np.allclose(own.sample(1, output_type="np", **call)[0, 0, :, 0], [0, 0.25, 1, 1], atol=1e-5)
    assert np.asarray(own.sample(1, output_type="pil", **call)[0]).tolist() == [[0, 64, 255, 255]]
    alone = engine(values, value_range=None)  # asked for as images all the same: [-1, 1]
    assert np.allclose(alone.sample(1, output_type="np", **call)[0, 0, :, 0], [0.5, 0.625, 1, 1], atol=1e-5)
    assert np.asarray(alone.sample(1, output_type="pil", **call)[0]).tolist() == [[128, 159, 255, 255]]


@pytest.mark.parametrize("wrong", [(1, -1), (0, 0), (0,), (0, 1, 2), (0, INF), (0, NAN), "01", 3])
def test_ranges_that_are_none(wrong: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        engine(value_range=wrong)
    assert "value_range" in str(caught.value.argument)


def test_a_checkpoints_settings_are_of_images_unless_they_say_null() -> None:
    assert DiffusionSettings({}).checked().value_range == (-1.0, 1.0)
    assert to_dict(DiffusionSettings({}, value_range=None).checked())["value_range"] is None
    with refused(ConfigError, "settings: value_range"):
        DiffusionSettings({}, value_range=(1.0, 0.0)).checked()


def test_an_infinite_value_is_no_colour() -> None:
    x = torch.tensor([-INF, -2.0, 0.5, 2.0, INF, NAN])
    got = within(x.clone(), (-1, 1))
    assert torch.equal(got.isnan(), torch.tensor([True, False, False, False, True, True]))
    assert got[1:4].tolist() == [-1, 0.5, 1]
    assert torch.equal(within(x.clone(), None).nan_to_num(1e9), x.nan_to_num(1e9))


def test_ranges_become_images() -> None:
    assert to_pictures(torch.tensor([0.0, 127.5, 255.0]), (0, 255)).tolist() == [-1, 0, 1]
    assert to_output(torch.full((1, 1, 1, 1), 51.0), "np", (0, 255)).item() == pytest.approx(0.2)
