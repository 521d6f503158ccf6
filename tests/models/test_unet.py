"""The reference U-Net against diffusers' UNet2DModel with the same weights, and its configuration's errors."""

from __future__ import annotations

import pytest
import torch

from fastgen.config import from_dict, to_dict
from fastgen.errors import ConfigError
from fastgen.models.unet import UNet, UNetConfig
from tests.refusals import refused
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
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


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
    with refused(ConfigError, "label"):
        network(unet_config())(torch.zeros(1, 1, 8, 8), torch.zeros(1))


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"block_out_channels": (16, 18)}, ("unet", "18", "norm_num_groups")),
        ({"block_out_channels": ()}, ("unet",)),
        ({"sample_size": (8,)}, ("unet",)),
        ({"sample_size": (9, 8)}, ("unet",)),
        ({"down_block_types": ("DownBlock2D",)}, ("unet", "down_block_types")),
        ({"attention_head_dim": 17}, ("unet", "attention_head_dim", "17", "16")),
        ({"freq_shift": 8.0}, ("unet", "freq_shift", "8.0")),
        ({"norm_num_groups": None}, ("unet", "norm_num_groups", "DownBlock2D")),
        ({"attn_norm_num_groups": 5}, ("unet", "attn_norm_num_groups", "16")),
        (
            {"resnet_time_scale_shift": "ada_group"},
            ("unet", "ada_group", "KDownBlock2D", "scale_shift"),
        ),
        ({"time_embedding_type": "learned"}, ("unet", "num_train_timesteps")),
        ({"num_train_timesteps": 1000}, ("unet", "num_train_timesteps")),
        ({"class_embed_type": "identity"}, ("unet", "num_class_embeds", "class_embed_type")),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, ("unet",)),
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D")}, ("unet", "in_channels")),
        ({"up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D")}, ("unet", "out_channels")),
        ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D")}, ("unet", "up_block_types")),
        (
            {
                "sample_size": (8, 8),
                "block_out_channels": (16, 16, 16),
                "down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D",) * 3,
            },
            ("unet", "down_block_types"),
        ),
        (
            {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2},
            ("unet", "KDownBlock2D", "16"),
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        unet_config(**changes)


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"in_channels": 10**9}, ("unet: in_channels", "in_channels", "64", "1000000000")),
        ({"in_channels": "3"}, ("unet: in_channels", "3")),
        ({"in_channels": True}, ("unet: in_channels",)),
        ({"dropout": float("nan")}, ("unet: dropout",)),
        (
            {"down_block_types": ["CrossAttnDownBlock2D"] * 2},
            ("unet: down_block_types[0]", "DownBlock2D", "AttnDownBlock2D"),
        ),
        ({"act_fn": "elu"}, ("unet: act_fn", "act_fn", "elu")),
        ({"cross_attention_dim": 8}, ("unet", "cross_attention_dim", "sample_size")),
        (
            {"resnet_time_scale_shift": "spatial"},
            ("unet: resnet_time_scale_shift", "scale_shift", "ada_group"),
        ),
        ({"downsample_padding": 2}, ("unet: downsample_padding", "downsample_padding")),
        (
            {"mid_block_type": "UNetMidBlock2DCrossAttn"},
            ("unet: mid_block_type", "mid_block_type", "UNetMidBlock2D"),
        ),
        (
            {"up_block_types": ["UpDecoderBlock2D"] * 2},
            ("unet: up_block_types[0]", "UpBlock2D", "AttnUpBlock2D"),
        ),
        ({"sample_size": None}, ("unet: sample_size",)),
        ({"block_out_channels": [8] * 9}, ("unet: block_out_channels",)),
    ],
)
def test_untrusted_json_is_checked(change: dict, about: tuple[str | None, ...]) -> None:
    with refused(ConfigError, *about):
        from_dict(UNetConfig, {**to_dict(unet_config()), **change}, "unet")


def test_missing_key_is_named() -> None:
    values = to_dict(unet_config())
    del values["sample_size"]
    with refused(ConfigError, "unet", "sample_size"):
        from_dict(UNetConfig, values, "unet")


def test_config_survives_json() -> None:
    config = unet_config(dropout=0.5)
    assert from_dict(UNetConfig, to_dict(config), "unet") == config
