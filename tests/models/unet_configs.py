"""U-Net configurations that together use every option, as arguments of diffusers' ``UNet2DModel``."""

from __future__ import annotations

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
