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
        ({"attention_head_dim": 17}, "attention_head_dim 17 is more than the 16 channels"),
        ({"freq_shift": 8.0}, "freq_shift 8.0 must differ from half"),
        ({"norm_num_groups": None}, "norm_num_groups may be null only where .* not with DownBlock2D"),
        ({"attn_norm_num_groups": 5}, r"attention \(attn_norm_num_groups\) has a norm of 16 channels"),
        (
            {"resnet_time_scale_shift": "ada_group"},
            "ada_group is for KDownBlock2D .* expected default or scale_shift",
        ),
        ({"time_embedding_type": "learned"}, "num_train_timesteps is the size of the table"),
        ({"num_train_timesteps": 1000}, "num_train_timesteps is the size of the table"),
        ({"class_embed_type": "identity"}, "num_class_embeds has no effect with class_embed_type identity"),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, "at every level or at none"),
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D")}, "in_channels must be 3 with Skip"),
        ({"up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D")}, "out_channels must be 3 with Skip"),
        ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D")}, "up_block_types: after a Skip block only"),
        (
            {
                "sample_size": (8, 8),
                "block_out_channels": (16, 16, 16),
                "down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D",) * 3,
            },
            "down_block_types: a Skip block cannot follow",
        ),
        (
            {"down_block_types": ("KDownBlock2D",) * 2, "up_block_types": ("KUpBlock2D",) * 2},
            "KDownBlock2D has a norm of 16 channels, which do not divide into 0 groups",
        ),
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
        ({"act_fn": "elu"}, "act_fn: expected one of silu, swish, mish, gelu, relu, got str 'elu'"),
        ({"cross_attention_dim": 8}, "unknown key cross_attention_dim; known: sample_size"),
        ({"resnet_time_scale_shift": "spatial"}, "expected one of default, scale_shift, ada_group"),
        ({"downsample_padding": 2}, "downsample_padding: expected 0 to 1, got 2"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type: expected one of UNetMidBlock2D"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 2}, "expected one of UpBlock2D, AttnUpBlock2D"),
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
