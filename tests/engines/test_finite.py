"""A sample with values that are not finite is said, with its seed, however it is handed out."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen.checkpoint import load_spec, save
from fastgen.cli import main
from fastgen.engines.diffusion import DiffusionEngine
from fastgen.engines.flow import FlowEngine
from fastgen.images import save_grid, to_uint8
from fastgen.models.flow.dequantise import Dequantiser
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import Layer, zeros
from fastgen.models.flow.priors import StandardNormal
from tests.refusals import names
from tests.small import checkpoint

SHAPE = (1, 4, 4)


class Failing(nn.Module):
    """Answers `value` for every sample whose first pixel is above 0: of noise, about half of them."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x[:, :1, :1, :1] > 0, self.value, 0.1).to(x.dtype).expand_as(x)


def engine(value: float, **options: Any) -> DiffusionEngine:
    options = {"value_range": (-1, 1), **options}
    return DiffusionEngine.from_module(
        Failing(value), {}, "epsilon", SHAPE, solver="euler", steps=1, **options
    )


def draw(own: Any, **options: Any) -> Any:
    return own.sample(8, seed=0, **options)


def stream(own: Any) -> Any:
    *_, last = own.stream(8, seed=0)
    return last.images


def session(own: Any) -> Any:
    with own.session() as session:
        session.add(8, seed=0)
        return torch.stack([image for _, image in sorted(session)])


def finished(own: Any) -> Any:
    with own.session() as session:
        session.add(8, seed=0)
        while session.step():
            pass
        return torch.stack([image for _, image in sorted(session.finished())])


WAYS: dict[str, Callable[[Any], Any]] = {
    "pt": draw,
    "np": lambda own: torch.from_numpy(draw(own, output_type="np")),
    "stream": stream,
    "session": session,
    "finished": finished,
}


def seeds_of(said: list[warnings.WarningMessage]) -> set[int]:
    texts = [str(w.message) for w in said if "not finite" in str(w.message)]
    return {int(seed) for text in texts for seed in re.findall(r"\d+", text.split("seeds")[1].split(".")[0])}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("value_range", [(-1, 1), None])
@pytest.mark.parametrize("way", WAYS)
def test_the_seeds_are_named(way: str, value: float, value_range: Any) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = WAYS[way](engine(value, value_range=value_range))
    failed = {i for i, image in enumerate(images) if not image.isfinite().all()}
    assert 0 < len(failed) < 8
    assert seeds_of(said) == failed


def test_one_warning_per_call_and_none_without_cause() -> None:
    own = engine(float("nan"), max_batch=2)  # samples finish at four moments
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        draw(own)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for way in WAYS.values():
            way(engine(0.2))


def test_pil_says_the_seeds_too() -> None:
    with pytest.warns(UserWarning, match="seeds"):
        drawn = draw(engine(float("nan")), output_type="pil")
    assert len(drawn) == 8


@pytest.mark.parametrize(
    ("dtype", "mentions"),
    [("float16", ["bfloat16", "float32"]), ("bfloat16", ["float32"]), ("float32", ["verify"])],
)
def test_the_advice_fits_the_precision(dtype: str, mentions: list[str]) -> None:
    with pytest.warns(UserWarning, match="not finite") as said:
        draw(engine(float("nan"), dtype=dtype))
    assert all(word in str(said[0].message) for word in mentions)


def test_cancelled_samples_leave_no_seed_behind() -> None:
    with engine(0.2).session() as session:
        first, second = session.add(2, seed=0)
        session.cancel(first)
        assert [ticket for ticket, _ in session] == [second]
        assert not session._seeds


def test_images_that_failed_are_said_where_they_become_bytes(tmp_path: Path) -> None:
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 0, 0], images[2, 0, 1, 1] = float("nan"), float("inf")
    with pytest.warns(UserWarning, match="1, 2"):
        values = to_uint8(images)
    assert values[1, 0, 0, 0] == values[2, 1, 1, 0] == 0
    assert values[0].min() == 128
    with pytest.warns(UserWarning, match="1, 2"):
        save_grid(images, tmp_path / "a.png")


class Overflowing(Layer):
    """Towards the data: infinite for latents whose first value is above 0."""

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.where(y.flatten(1)[:, :1, None, None] > 0, float("inf"), y), zeros(y)


@pytest.mark.parametrize(("levels", "output_type"), [(None, "pt"), (256, "pt"), (256, "np"), (256, "pil")])
def test_a_flow_says_it_too(levels: int | None, output_type: str) -> None:
    dequantiser = None if levels is None else Dequantiser(levels)
    flow = Flow(
        SHAPE,
        [],
        [[Overflowing()]],
        lambda i, latent, kept: StandardNormal(latent),
        levels=levels,
        dequantiser=dequantiser,
    )
    own = FlowEngine.from_module(flow, device="cpu")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = own.sample(8, seed=0, output_type=output_type)
    failed = seeds_of(said)
    assert 0 < len(failed) < 8
    if output_type == "pt":
        assert failed == {i for i, image in enumerate(images) if not image.isfinite().all()}


def command(model: Path, out: Path, count: int) -> int:
    return main(
        ["sample", str(model), "-o", str(out), "-n", str(count), "--seed", "0", "--steps", "1", "--quiet"]
    )


def broken(folder: Path) -> Path:
    """A model whose weights have overflowed: nothing that it draws is finite."""
    checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("conv_out.bias"))
    tensors[name] = torch.full_like(tensors[name], 1e38)
    spec = load_spec(folder)
    shutil.rmtree(folder)
    save(folder, spec, tensors)
    return folder


def test_a_command_that_drew_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = broken(tmp_path / "model")
    assert (
        main(
            [
                "sample",
                str(model),
                "-o",
                str(tmp_path / "a.png"),
                "-n",
                "2",
                "--seed",
                "0",
                "--dtype",
                "float16",
            ]
        )
        == 1
    )
    assert names(capsys.readouterr().err, "seeds 0, 1", "bfloat16", "float32")
    assert not (tmp_path / "a.png").exists()


def test_a_command_that_drew_some_writes_them_and_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = DiffusionEngine.draw

    def one_fails(self: DiffusionEngine, request: Any, **options: Any) -> Any:
        images = draw(self, request, **options)
        images[1] = float("nan")
        return images

    monkeypatch.setattr(DiffusionEngine, "draw", one_fails)
    assert command(checkpoint(tmp_path / "model"), tmp_path / "a.png", 2) == 0
    error = capsys.readouterr().err
    assert names(error, "black", 1)
    assert (tmp_path / "a.png").exists()
    assert len(error.splitlines()) == 1  # for people: no place in the code
