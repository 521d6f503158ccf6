"""Every option of UNet2DModel: diffusers' folder -> ours -> the same output; ours -> diffusers -> ours, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.converters import build, detect
from fastgen.converters.diffusers import CONVERTER
from fastgen.models.unet import UNetConfig
from tests.models.unet_configs import CONFIGS, random_config


def their_network(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(**config).eval().requires_grad_(False)
    for parameter in net.parameters():  # nothing may hide behind an initial 0 or 1
        parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def inputs(config: UNetConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(2, config.in_channels, *config.sample_size, dtype=torch.float64)
    labels = {
        "timestep": torch.tensor([7, 500]),
        "identity": torch.randn(2, config.emb_channels, dtype=torch.float64),
    }
    label = None if config.num_class_embeds is None else torch.tensor([0, config.num_class_embeds - 1])
    return x, torch.tensor([3, 999]), labels.get(config.class_embed_type or "", label)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


RANDOM = {f"random {seed}": random_config(seed) for seed in range(16)}


@pytest.mark.parametrize("config", [*CONFIGS.values(), *RANDOM.values()], ids=[*CONFIGS, *RANDOM])
def test_converted_networks_are_equal(config: dict[str, Any], tmp_path: Path) -> None:
    theirs = their_network(config)
    theirs.save_pretrained(tmp_path)
    assert detect(tmp_path) is CONVERTER
    converted = CONVERTER.read(tmp_path, None)
    (ours,) = build(converted).values()
    x, t, label = inputs(ours.config)
    # diffusers hands class times to the perceptron in float32 whatever its dtype.
    theirs.time_proj.register_forward_hook(lambda module, args, out: out.to(theirs.dtype))
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        x = x.to(dtype)
        label = label.to(dtype) if label is not None and label.is_floating_point() else label
        with torch.no_grad():
            want = theirs(x, t, class_labels=label).sample
            assert relative(ours(x, t, label), want) < limit


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_is_bit_equal(config: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    their_network(config).save_pretrained(tmp_path / "theirs")
    first = CONVERTER.read(tmp_path / "theirs", None)
    tensors = {name: first.tensors.get(name) for name in first.tensors.shapes}
    assert CONVERTER.write is not None
    CONVERTER.write(tmp_path / "again", first.spec, first.tensors, None)
    second = CONVERTER.read(tmp_path / "again", None)
    assert second.spec.parts == first.spec.parts
    assert second.tensors.shapes == first.tensors.shapes
    assert all(torch.equal(second.tensors.get(name), tensor) for name, tensor in tensors.items())
    loaded = UNet2DModel.from_pretrained(tmp_path / "again", subfolder="unet")
    for name, tensor in UNet2DModel.from_pretrained(tmp_path / "theirs").state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_the_configurations_use_every_option() -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(UNetConfig)}
    used = {name for config in CONFIGS.values() for name, value in config.items() if value != defaults[name]}
    assert used == set(defaults)
    kinds = {kind for c in CONFIGS.values() for key in ("down", "up") for kind in c[f"{key}_block_types"]}
    from fastgen.models.unet_config import DOWN_BLOCKS, UP_BLOCKS

    assert kinds == {*DOWN_BLOCKS, *UP_BLOCKS}


def test_no_option_of_diffusers_is_missing() -> None:
    from diffusers import UNet2DModel

    theirs = {name for name in UNet2DModel().config if not name.startswith("_")}
    assert theirs == {f.name for f in dataclasses.fields(UNetConfig)}
