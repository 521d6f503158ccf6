"""Another default type of PyTorch changes nothing: every tensor that fastgen makes says its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.cli import main
from fastgen.images import save_image
from tests.small import checkpoint, network, unet_config


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DTYPES = [torch.float64]
REQUEST = {"seed": 3, "labels": [0, 2], "steps": 3}
GUIDED = {"solver": "ddpm", "guidance_scale": 2.0, "guidance_rescale": 0.5, "thresholding": True}


@pytest.mark.parametrize("dtype", DTYPES)
def test_diffusion(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = checkpoint(tmp_path / "m")
    before = fastgen.load(folder, device="cpu")
    want = [before.sample(2, **REQUEST, **more) for more in ({}, GUIDED)]
    with default(dtype):
        for engine in (before, fastgen.load(folder, device="cpu")):
            for more, image in zip(({}, GUIDED), want, strict=True):
                got = engine.sample(2, **REQUEST, **more)
                assert got.dtype == torch.float32
                assert torch.equal(got, image)
            assert engine.sample(1, seed=0, steps=2, output_type="np").dtype == np.float32
            assert len(engine.sample(1, seed=0, steps=2, output_type="pil")) == 1
            assert [preview.images.dtype for preview in engine.stream(1, seed=0, steps=2)] == [
                torch.float32
            ] * 2
            assert engine.verify().passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_network_of_ones_own(dtype: torch.dtype) -> None:
    config = unet_config(num_class_embeds=None)
    net = network(config)
    make = fastgen.DiffusionEngine.from_module
    want = make(net, {}, "epsilon", (1, 8, 8)).sample(2, seed=0, steps=2)
    with default(dtype):
        assert torch.equal(make(net, {}, "epsilon", (1, 8, 8)).sample(2, seed=0, steps=2), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flow(dtype: torch.dtype) -> None:
    before = fastgen.load("zoo:glow-mnist", device="cpu")
    want = before.sample(2, seed=0, labels=[1, 2])
    density = before.log_prob(want, labels=[1, 2])
    with default(dtype):
        engine = fastgen.load("zoo:glow-mnist", device="cpu")
        assert torch.equal(engine.sample(2, seed=0, labels=[1, 2]), want)
        assert torch.equal(engine.log_prob(want, labels=[1, 2]), density)


def test_training(tmp_path: Path) -> None:
    data = tmp_path / "images"
    data.mkdir()
    for k in range(4):
        save_image(torch.rand(1, 8, 8) * 2 - 1, data / f"{k}.png")
    options = ["--data", str(data), "--size", "8", "--steps", "2", "--batch-size", "2", "--device", "cpu"]
    with default(torch.float64):
        assert main(["train", str(tmp_path / "unet"), *options, "--widths", "8,8"]) == 0
        engine = fastgen.load(tmp_path / "unet", device="cpu")
        assert engine.sample(1, seed=0, steps=2).dtype == torch.float32
        assert {parameter.dtype for parameter in engine.network.parameters()} == {torch.float32}
