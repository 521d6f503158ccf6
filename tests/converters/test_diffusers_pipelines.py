"""fastgen.load on folders that diffusers saved: the same images from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastgen
from fastgen.engines.diffusion.queue import SampleRequest as Request

from .folders import CELEBA_HQ, CIFAR, TINY, our_noise, pipeline

CLOSE = 1e-4  # of images in [-1, 1]


def from_noise(engine: Any, noise: torch.Tensor, **arguments: Any) -> np.ndarray:
    """The engine's image from a given start [1, C, H, W], as diffusers' [H, W, C] in [0, 1]."""
    table = engine.request(1, seed=0, **arguments).plans[0].table
    engine.loop.add(Request(table, 0, initial=noise[0]))
    while engine.loop.step():
        pass
    ((_, state),) = engine.loop.finished()
    return (state.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0).numpy()


def compare_ddpm(folder: Path, unet: dict[str, Any], steps: int) -> None:
    """DDPM: start and step noise are ours in both."""
    theirs = pipeline(unet, variance_type="fixed_large")
    theirs.save_pretrained(folder)
    engine = fastgen.load(folder, device="cpu")
    assert engine.settings.solver == "ddpm"
    assert engine.settings.solver_options == {
        "variance_type": "fixed_large",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
    }
    with our_noise(5, engine.shape):
        want = theirs(num_inference_steps=steps, output_type="np").images[0]
    got = engine.sample(1, seed=5, steps=steps, output_type="np")[0]
    assert np.abs(got - want).max() < CLOSE / 2
    assert want.std() > 0.01


def compare_ddim(folder: Path, unet: dict[str, Any], steps: int) -> None:
    """DDIM is deterministic: the start noise is diffusers' own, from its generator."""
    theirs = pipeline(unet, "DDIMPipeline")
    theirs.save_pretrained(folder)
    engine = fastgen.load(folder, device="cpu")
    noise = torch.randn(1, *engine.shape, generator=torch.Generator().manual_seed(3))
    want = theirs(
        generator=torch.Generator().manual_seed(3), num_inference_steps=steps, output_type="np"
    ).images[0]
    assert np.abs(from_noise(engine, noise, steps=steps) - want).max() < CLOSE / 2


def test_tiny(tmp_path: Path) -> None:
    compare_ddpm(tmp_path / "ddpm", TINY, 12)
    compare_ddim(tmp_path / "ddim", TINY, 12)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_ddim_with_a_constant_stride(tmp_path: Path, spacing: str) -> None:
    theirs = pipeline(TINY, "DDIMPipeline", timestep_spacing=spacing)
    theirs.save_pretrained(tmp_path)
    engine = fastgen.load(tmp_path, device="cpu")
    noise = torch.randn(1, *engine.shape, generator=torch.Generator().manual_seed(3))
    want = theirs(generator=torch.Generator().manual_seed(3), num_inference_steps=7, output_type="np").images[
        0
    ]
    assert np.abs(from_noise(engine, noise, steps=7) - want).max() < CLOSE / 2


def test_ddim_pipeline_around_another_scheduler(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline, DDPMScheduler

    made = pipeline()
    made.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"DDPMPipeline"', '"DDIMPipeline"'))
    engine = fastgen.load(tmp_path, device="cpu")
    assert engine.settings.solver == "ddim"
    theirs = DDIMPipeline(made.unet, DDPMScheduler())
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *engine.shape, generator=torch.Generator().manual_seed(1))
    want = theirs(generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images[
        0
    ]
    assert np.abs(from_noise(engine, noise, steps=5) - want).max() < CLOSE / 2


def test_learned_variance(tmp_path: Path) -> None:
    """Twice the channels out (Nichol & Dhariwal 2021): the second half is the variance."""
    theirs = pipeline(TINY | {"out_channels": 6}, variance_type="learned_range")
    theirs.save_pretrained(tmp_path)
    engine = fastgen.load(tmp_path, device="cpu")
    assert engine.settings.variance == "learned_range"
    with our_noise(5, engine.shape):
        want = theirs(num_inference_steps=8, output_type="np").images[0]
    assert np.abs(engine.sample(1, seed=5, steps=8, output_type="np")[0] - want).max() < CLOSE / 2


@pytest.mark.slow
def test_cifar(tmp_path: Path) -> None:
    compare_ddpm(tmp_path / "ddpm", CIFAR, 4)
    compare_ddim(tmp_path / "ddim", CIFAR, 4)


@pytest.mark.slow
def test_celeba_hq(tmp_path: Path) -> None:
    compare_ddpm(tmp_path, CELEBA_HQ, 2)


def test_ours_runs_in_diffusers(tmp_path: Path) -> None:
    """A folder of ours as a DDIMPipeline: the same image."""
    from diffusers import DDIMPipeline

    pipeline(TINY, "DDIMPipeline").save_pretrained(tmp_path / "a")
    fastgen.convert(tmp_path / "a", tmp_path / "b")
    report = fastgen.convert(tmp_path / "b", tmp_path / "c", to="diffusers")
    assert report.ignored == []
    theirs = DDIMPipeline.from_pretrained(tmp_path / "c")
    theirs.set_progress_bar_config(disable=True)
    engine = fastgen.load(tmp_path / "b", device="cpu")
    noise = torch.randn(1, *engine.shape, generator=torch.Generator().manual_seed(3))
    want = theirs(generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np").images[
        0
    ]
    assert np.abs(from_noise(engine, noise, steps=4) - want).max() < CLOSE / 2
    again = fastgen.load(tmp_path / "c", device="cpu")
    assert again.settings == engine.settings


def test_the_zoo_survives_diffusers(tmp_path: Path) -> None:
    """Classes, guidance and defaults have no place in diffusers; they come back all the same."""
    fastgen.convert("zoo:ddpm-mnist", tmp_path / "a", to="diffusers")
    engine, original = (
        fastgen.load(tmp_path / "a", device="cpu"),
        fastgen.load("zoo:ddpm-mnist", device="cpu"),
    )
    ours, theirs = vars(original.settings) | {}, vars(engine.settings) | {}
    assert original.settings.noise_schedule == engine.settings.noise_schedule
    for name in ("num_classes", "null_class", "class_names", "solver", "steps", "guidance_scale"):
        assert ours[name] == theirs[name]
    same = [
        torch.equal(a, b)
        for a, b in zip(original.network.parameters(), engine.network.parameters(), strict=True)
    ]
    assert all(same)
    kept = {"labels": [3], "seed": 1, "steps": 3}
    assert torch.equal(engine.sample(**kept), original.sample(**kept))
