"""AutoencoderKL of diffusers: random weights of several configurations, tiles, folders there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import fastgen
from fastgen.converters import build
from fastgen.converters.diffusers import CONVERTER
from fastgen.engines import VAEEngine
from fastgen.errors import CheckpointError, ConfigError
from tests.models.vae_models import flat
from tests.refusals import refused

CONFIGS: dict[str, dict[str, Any]] = {
    "one level": {"block_out_channels": (16,), "norm_num_groups": 4, "layers_per_block": 1},
    "stable diffusion": {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "layers_per_block": 2},
    "flux": {
        "block_out_channels": (8, 16),
        "norm_num_groups": 8,
        "latent_channels": 6,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1159,
        "scaling_factor": 0.3611,
    },
    "grey, no attention": {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 12),
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
        "act_fn": "relu",
    },
}


def theirs(name: str) -> diffusers.AutoencoderKL:
    config = CONFIGS[name]
    depth = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * depth,
        "up_block_types": ("UpDecoderBlock2D",) * depth,
    }
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**config, **blocks, sample_size=32).eval().requires_grad_(False)


def inputs(
    model: diffusers.AutoencoderKL, size: tuple[int, int] = (32, 48)
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    x = 2 * torch.rand(2, model.config.in_channels, *size, generator=generator) - 1
    z = torch.randn(
        2, model.config.latent_channels, size[0] // factor, size[1] // factor, generator=generator
    )
    return x, z


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_diffusers(name: str, tmp_path: Path) -> None:
    """Moments and images: the network in float64 to 1e-10, the engine's fast form in float32 to 1e-5."""
    model = theirs(name)
    model.save_pretrained(tmp_path / "model")
    x, z = inputs(model)
    exact = build(CONVERTER.read(tmp_path / "model"), torch.float64)["vae"]
    model.double()
    wanted, images = model.encode(x.double()).latent_dist, model.decode(z.double()).sample
    (found,) = exact.encode(x.double())
    torch.testing.assert_close(found.mean, wanted.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.log_var, wanted.logvar, rtol=0, atol=1e-10)
    torch.testing.assert_close(exact.decode([z.double()]), images, rtol=0, atol=1e-10)
    engine: Any = fastgen.load(tmp_path / "model", device="cpu")
    (fast,) = engine.encode(x)
    torch.testing.assert_close(fast.mean.double(), wanted.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(fast.log_var.double(), wanted.logvar, rtol=0, atol=1e-5)
    torch.testing.assert_close(engine.decode(z).double(), images, rtol=0, atol=1e-5)


def test_tiles_and_slices(tmp_path: Path) -> None:
    """Those of diffusers, in both directions; how far tiles are from the whole is reported."""
    model = theirs("stable diffusion")
    model.save_pretrained(tmp_path / "model")
    engine: Any = fastgen.load(tmp_path / "model", device="cpu", max_batch=1)
    x, z = inputs(model, (80, 56))
    plain = model.decode(z).sample
    model.enable_slicing()
    torch.testing.assert_close(engine.decode(z), model.decode(z).sample, rtol=0, atol=1e-5)
    model.enable_tiling()
    tiled = model.decode(z).sample
    torch.testing.assert_close(engine.decode(z, tile=32), tiled, rtol=0, atol=1e-5)
    wanted = model.encode(x).latent_dist
    (found,) = engine.encode(x, tile=32)
    torch.testing.assert_close(found.mean, wanted.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.log_var, wanted.logvar, rtol=0, atol=1e-5)
    report = engine.compare_tiling(z, 32)
    assert report.peak == pytest.approx(float((tiled - plain).abs().max()), abs=1e-4)
    assert report.rms == pytest.approx(float((tiled - plain).square().mean().sqrt()), abs=1e-4)
    assert report.peak > 1e-3
    assert engine.compare_tiling(z, 128).peak == 0  # one tile is the whole
    with refused(ConfigError, "tile", 16):
        engine.decode(z, tile=10)
    with refused(ConfigError, "tile"):
        VAEEngine(flat(), device="cpu").decode(torch.zeros(1, 3), tile=32)


@pytest.mark.parametrize("name", ["flux", "grey, no attention"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    """Bit for bit, with the configuration that it had."""
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    fastgen.convert(tmp_path / "theirs", tmp_path / "ours")
    fastgen.convert(tmp_path / "ours", tmp_path / "back", to="diffusers")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    for (key, value), (other, second) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(value, second)
    kept = {key: value for key, value in model.config.items() if not key.startswith("_")}
    found = {key: value for key, value in again.config.items() if not key.startswith("_")}
    assert json.loads(json.dumps(kept)) == json.loads(json.dumps(found))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify(dtype: str, tmp_path: Path) -> None:
    """Blocks, layers and verbs, within what rounding explains; the report of a decoder without a distribution."""
    model = theirs("stable diffusion")
    model.save_pretrained(tmp_path / "model")
    engine: Any = fastgen.load(tmp_path / "model", device="cpu", dtype=dtype)
    assert engine.verify().passed
    x, _ = inputs(model)
    assert len(engine.report(x).latents) == 4
    with refused(ConfigError, "x"):
        engine.elbo(x)
    assert engine.sample(2, seed=0).shape == (2, 3, 32, 32)


def test_what_is_not_supported(tmp_path: Path) -> None:
    """Named by file and option."""
    theirs("one level").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    for change, argument in (
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, path),
        ({"block_out_channels": [8, 16]}, path),
        ({"latent_channels": 0}, f"{path}: latent_channels"),
        ({"out_channels": 1}, "out_channels"),
        ({"made_up": 1}, path),
    ):
        path.write_text(json.dumps({**raw, **change}))
        with refused(ConfigError, argument):
            fastgen.load(tmp_path)
    path.write_text(json.dumps({**raw, "latent_channels": 8}))
    with pytest.raises(CheckpointError):
        fastgen.load(tmp_path)
