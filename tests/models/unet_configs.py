"""U-Net configurations that together use every option, as arguments of diffusers' ``UNet2DModel``."""

from __future__ import annotations

import random
from typing import Any

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 24),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
NCSNPP: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "norm_num_groups": None,
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "layers_per_block": 1,
    "mid_block_scale_factor": 2**0.5,
    "time_embedding_type": "fourier",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "attention down and up, two layers, shifted sinusoids": SMALL
    | {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
    },
    "not square, odd head size, odd first width": SMALL
    | {"sample_size": (8, 12), "attention_head_dim": 10, "block_out_channels": (9, 15), "norm_num_groups": 3},
    "scale and shift, single head, learned variance": SMALL
    | {
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": None,
        "out_channels": 6,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    },
    "scale and shift, own norm of the middle": SMALL
    | {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 6, "act_fn": "mish", "dropout": 0.3},
    "resampling by residual blocks": SMALL
    | {
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "act_fn": "gelu",
        "mid_block_scale_factor": 1.7,
    },
    "attention resampling by residual blocks": SMALL
    | {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "relu",
    },
    "no middle": SMALL | {"mid_block_type": None, "center_input_sample": True},
    "no attention in the middle": SMALL | {"add_attention": False, "act_fn": "swish", "in_channels": 1},
    "classes": SMALL | {"num_class_embeds": 5, "time_embedding_dim": 40},
    "classes embedded like times": SMALL | {"class_embed_type": "timestep"},
    "classes as vectors": SMALL | {"class_embed_type": "identity"},
    "learned times": SMALL
    | {"time_embedding_type": "learned", "num_train_timesteps": 1000, "class_embed_type": "timestep"},
    "fourier times": SMALL | {"time_embedding_type": "fourier"},
    "skip blocks": NCSNPP,
    "skip blocks, scale and shift, three levels": NCSNPP
    | {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "norm_num_groups": 16,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "positional",
        "layers_per_block": 2,
    },
    "K blocks": SMALL
    | {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
        "layers_per_block": 2,
        "act_fn": "gelu",
    },
    "K blocks without a middle": SMALL
    | {
        "block_out_channels": (64, 32, 32),
        "down_block_types": ("KDownBlock2D",) * 3,
        "up_block_types": ("KUpBlock2D",) * 3,
        "mid_block_type": None,
        "resnet_time_scale_shift": "ada_group",
        "norm_num_groups": None,
    },
    "one level": SMALL
    | {
        "sample_size": (3, 1),
        "block_out_channels": (4,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "attention_head_dim": 2,
        "norm_num_groups": 1,
    },
}


def random_config(seed: int) -> dict[str, Any]:
    """A configuration that draws every option by chance, among those that go together."""
    draw = random.Random(seed)
    levels = draw.randint(1, 3)
    family = draw.choice(["plain", "plain", "skip", "k"])
    groups = draw.choice([1, 2, 4])
    width = 32 if family != "plain" else 4 * groups
    config: dict[str, Any] = {
        "sample_size": (2**levels * draw.randint(1, 2), 2**levels * draw.randint(1, 2)),
        "in_channels": 3 if family == "skip" else draw.randint(1, 4),
        "out_channels": 3 if family == "skip" else draw.randint(1, 6),
        "block_out_channels": tuple(width * draw.randint(1, 3) for _ in range(levels)),
        "layers_per_block": draw.randint(1, 2),
        "norm_num_groups": groups if family == "plain" else draw.choice([groups, None]),
        "attention_head_dim": draw.choice([None, 3, 4]),
        "norm_eps": draw.choice([1e-5, 1e-3]),
        "act_fn": draw.choice(["silu", "swish", "mish", "gelu", "relu"]),
        "mid_block_type": draw.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
        "mid_block_scale_factor": draw.choice([1, 2**0.5]),
        "add_attention": draw.random() < 0.7,
        "attn_norm_num_groups": draw.choice([None, groups]),
        "resnet_time_scale_shift": draw.choice(["default", "scale_shift"]),
        "downsample_type": draw.choice(["conv", "resnet"]),
        "upsample_type": draw.choice(["conv", "resnet"]),
        "downsample_padding": draw.randint(0, 1),
        "center_input_sample": draw.random() < 0.3,
        "time_embedding_type": draw.choice(["positional", "fourier", "learned"]),
        "time_embedding_dim": draw.choice([None, 24]),
        "flip_sin_to_cos": draw.random() < 0.5,
        "freq_shift": draw.choice([0, 1]),
        "dropout": draw.choice([0.0, 0.2]),
    }
    if config["time_embedding_type"] == "learned":
        config["num_train_timesteps"] = 1000
    classes = draw.choice(["none", "none", "table", "timestep", "identity"])
    if classes == "table":
        config["num_class_embeds"] = draw.randint(2, 9)
    elif classes != "none":
        config["class_embed_type"] = classes
    if family == "k":
        down, up = ["KDownBlock2D"], ["KUpBlock2D"]
    elif family == "skip":
        down, up = ["SkipDownBlock2D", "AttnSkipDownBlock2D"], ["SkipUpBlock2D", "AttnSkipUpBlock2D"]
    else:
        down = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
        up = ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
    config["down_block_types"] = tuple(draw.choice(down) for _ in range(levels))
    config["up_block_types"] = tuple(draw.choice(up) for _ in range(levels))
    return config
