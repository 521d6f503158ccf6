"""The reference U-Net against diffusers' UNet2DModel with the same weights, and its configuration's errors."""

from __future__ import annotations

import pytest
import torch

from fastgen.config import from_dict, to_dict
from fastgen.errors import ConfigError
from fastgen.models.unet import UNet, UNetConfig
from tests.small import network, unet_config

CONFIGS = [
    unet_config(),
    unet_config(in_channels=3, out_channels=6, num_class_embeds=None, flip_sin_to_cos=False, freq_shift=1.0),
    unet_config(
        sample_size=(12, 20),
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=4,
        norm_eps=1e-6,
    ),
    unet_config(
        sample_size=(3, 1),
        block_out_channels=(4,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=2,
        norm_num_groups=1,
    ),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_diffusers(config: UNetConfig) -> None:
    from diffusers import UNet2DModel

    values = to_dict(config)
    theirs = UNet2DModel(**{**values, "sample_size": values["sample_size"][0]}).double().eval()
    ours = network(config).double()
    state = {name.replace("to_out.", "to_out.0."): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, config.in_channels, *config.sample_size, generator=generator, dtype=torch.float64)
    t = torch.tensor([3, 999])
    label = None if config.num_class_embeds is None else torch.tensor([0, config.num_class_embeds - 1])
    with torch.no_grad():
        want = theirs(x, t, class_labels=label).sample
        got = ours(x, t, label)
    # The sinusoids are float32 in both, in another order of operations.
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_channels_last_and_bfloat16_run() -> None:
    net = network(unet_config()).to(torch.bfloat16, memory_format=torch.channels_last)
    x = torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    out = net(x, torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))
    assert out.dtype == torch.bfloat16
    assert out.shape == x.shape


def test_trains() -> None:
    torch.manual_seed(0)
    net = UNet(unet_config(dropout=0.1))
    x = torch.randn(4, 1, 8, 8)
    net(x, torch.arange(4), torch.arange(4)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_network_with_classes_needs_labels() -> None:
    with pytest.raises(ValueError, match="label"):
        network(unet_config())(torch.zeros(1, 1, 8, 8), torch.zeros(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (16, 18)}, "18 must be divisible by norm_num_groups"),
        ({"block_out_channels": ()}, "needs an entry"),
        ({"sample_size": (8,)}, "two"),
        ({"sample_size": (9, 8)}, "divisible by 2"),
        ({"down_block_types": ("DownBlock2D",)}, "down_block_types has 1 entries"),
        ({"attention_head_dim": 7}, "divisible by attention_head_dim 7"),
        ({"block_out_channels": (5, 16), "norm_num_groups": 1}, "must be even"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unet_config(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 10**9}, "in_channels: expected 1 to 64, got 1000000000"),
        ({"in_channels": "3"}, "expected int, got str '3'"),
        ({"in_channels": True}, "expected int, got bool"),
        ({"dropout": float("nan")}, "finite"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, "expected one of DownBlock2D, AttnDownBlock2D"),
        ({"act_fn": "gelu"}, "unknown key act_fn; known: sample_size"),
        ({"sample_size": None}, "expected a list"),
        ({"block_out_channels": [8] * 9}, "at most 8 items"),
    ],
)
def test_untrusted_json_is_checked(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(UNetConfig, {**to_dict(unet_config()), **change}, "unet")


def test_missing_key_is_named() -> None:
    values = to_dict(unet_config())
    del values["sample_size"]
    with pytest.raises(ConfigError, match="key sample_size is missing"):
        from_dict(UNetConfig, values, "unet")


def test_config_survives_json() -> None:
    config = unet_config(dropout=0.5)
    assert from_dict(UNetConfig, to_dict(config), "unet") == config
