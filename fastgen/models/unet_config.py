"""Options of the U-Net, with diffusers' names, and what follows from them: widths, norm groups, what fits.

Everything is checked here, before a tensor is allocated, so that a configuration from an untrusted file
either builds or is refused by the name of the option.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import bounded, one_of
from ..errors import ConfigError
from .blocks import ACTIVATIONS

DOWN_BLOCKS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
    "KDownBlock2D",
)
UP_BLOCKS = (
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipUpBlock2D",
    "AttnSkipUpBlock2D",
    "KUpBlock2D",
)
SKIP_CHANNELS = 3  # of the image that skip blocks carry along
SKIP_ATTENTION_GROUPS = 32
K_GROUP_SIZE = 32  # channels per group in K blocks


@dataclass(frozen=True)
class UNetConfig:
    """Options of :class:`~fastgen.models.unet.UNet`; names and meanings are those of diffusers' ``UNet2DModel``.

    sample_size: (height, width) in pixels. in_channels, out_channels: twice as many out for a learned variance.
    block_out_channels, down_block_types, up_block_types: one entry a resolution, finest first (up: coarsest first).
    layers_per_block: residual blocks a resolution on the way down; one more on the way up.
    mid_block_type: None leaves the middle out. add_attention: attention in it. mid_block_scale_factor: divides the
        sums in it.
    attention_head_dim: channels per head, None = one head. attn_norm_num_groups: norm groups of the middle's attention;
        None = norm_num_groups, and no norm at all where resnet_time_scale_shift is not default.
    norm_num_groups: None only where every block is a Skip or a K block; those choose their groups by their channels.
    resnet_time_scale_shift: how residual blocks take the embedding: added (default), as scale and shift of the second
        norm (scale_shift); ada_group says what K blocks do anyway, and is for them alone.
    downsample_type, upsample_type: how AttnDownBlock2D and AttnUpBlock2D change the resolution.
    downsample_padding: of strided convolutions, 1 on all sides or 0 (right and bottom only).
    act_fn: of the residual blocks; the embedding's perceptron and the output always use SiLU.
    center_input_sample: the network sees 2x - 1.
    time_embedding_type: positional (with flip_sin_to_cos, freq_shift), learned (a table of num_train_timesteps), or
        fourier, which also divides the output by t. time_embedding_dim: None = 4 * block_out_channels[0].
    num_class_embeds: classes that the network embeds, a null class for guidance included. class_embed_type: timestep
        embeds a number like the time, identity adds a given vector [B, time_embedding_dim]; without a table.
    """

    sample_size: tuple[int, ...] = bounded(1, 4096, max_items=2)
    in_channels: int = bounded(1, 64, default=3)
    out_channels: int = bounded(1, 128, default=3)
    block_out_channels: tuple[int, ...] = bounded(1, 4096, default=(32, 64, 96), max_items=8)
    down_block_types: tuple[str, ...] = one_of(*DOWN_BLOCKS, default=("DownBlock2D",) * 3)
    up_block_types: tuple[str, ...] = one_of(*UP_BLOCKS, default=("UpBlock2D",) * 3)
    layers_per_block: int = bounded(1, 8, default=1)
    attention_head_dim: int | None = bounded(1, 4096, default=8)
    norm_num_groups: int | None = bounded(1, 1024, default=32)
    norm_eps: float = bounded(0.0, 1.0, default=1e-5)
    dropout: float = bounded(0.0, 0.99, default=0.0)
    flip_sin_to_cos: bool = True
    freq_shift: float = bounded(-1024.0, 1024.0, default=0.0)
    num_class_embeds: int | None = bounded(1, 1_000_000, default=None)
    mid_block_type: str | None = one_of("UNetMidBlock2D", default="UNetMidBlock2D")
    mid_block_scale_factor: float = bounded(1e-6, 1e6, default=1.0)
    add_attention: bool = True
    attn_norm_num_groups: int | None = bounded(1, 1024, default=None)
    resnet_time_scale_shift: str = one_of("default", "scale_shift", "ada_group", default="default")
    downsample_type: str = one_of("conv", "resnet", default="conv")
    upsample_type: str = one_of("conv", "resnet", default="conv")
    downsample_padding: int = bounded(0, 1, default=1)
    act_fn: str = one_of(*ACTIVATIONS, default="silu")
    center_input_sample: bool = False
    time_embedding_type: str = one_of("positional", "fourier", "learned", default="positional")
    time_embedding_dim: int | None = bounded(1, 65_536, default=None)
    num_train_timesteps: int | None = bounded(1, 100_000, default=None)
    class_embed_type: str | None = one_of("timestep", "identity", default=None)

    def __post_init__(self) -> None:
        for check in (_check_levels, _check_kinds, _check_norms, _check_attention, _check_embedding):
            check(self)

    @property
    def emb_channels(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def mid_groups(self) -> int:
        return self.norm_num_groups or own_groups(self.block_out_channels[-1])

    @property
    def out_groups(self) -> int:
        return self.norm_num_groups or own_groups(self.block_out_channels[0])

    @property
    def mid_attention_groups(self) -> int | None:
        """Norm groups of the middle's attention, None for no norm."""
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.mid_groups
        return self.attn_norm_num_groups


@dataclass(frozen=True)
class Level:
    """One resolution on the way down or up.

    kind: the block type. resnets: (in, out, (norm groups of in, of out)) of its residual blocks; on the way up `in`
    counts the skip that is concatenated. out: channels after the last of them. skips: entries it puts on the stack of
    skips, or takes from it. resample: whether the resolution changes afterwards.
    """

    kind: str
    resnets: tuple[tuple[int, int, tuple[int, int]], ...]
    out: int
    skips: int
    resample: bool

    @property
    def attends(self) -> bool:
        return self.kind.startswith("Attn")

    @property
    def skip(self) -> bool:
        """Whether it carries a small image along (Karras et al. 2020, figure 7)."""
        return "Skip" in self.kind

    @property
    def k(self) -> bool:
        return self.kind.startswith("K")


def down_levels(config: UNetConfig) -> list[Level]:
    """The way down, finest first."""
    levels, width = [], config.block_out_channels[0]
    for i, (out, kind) in enumerate(zip(config.block_out_channels, config.down_block_types, strict=True)):
        resample = i < len(config.block_out_channels) - 1
        ins = [width] + [out] * (config.layers_per_block - 1)
        resnets = tuple((n, out, _groups(config, kind, n, n, out)) for n in ins)
        extra = resample and not kind.startswith("K")  # K blocks keep the smaller image to themselves
        levels.append(Level(kind, resnets, out, config.layers_per_block + extra, resample))
        width = out
    return levels


def up_levels(config: UNetConfig) -> list[Level]:
    """The way up, coarsest first."""
    channels = config.block_out_channels
    skips = [channels[0]]
    for level in down_levels(config):
        skips += [level.out] * level.skips
    levels, width = [], channels[-1]
    for i, (out, kind) in enumerate(zip(reversed(channels), config.up_block_types, strict=True)):
        resample = i < len(channels) - 1
        if kind.startswith("K"):
            # One skip is used, the others are dropped; the last residual block takes the next level's width.
            after = channels[max(len(channels) - 2 - i, 0)]
            ins = [2 * out] + [out] * (config.layers_per_block - 1)
            outs = [out] * (config.layers_per_block - 1) + [after]
            resnets = tuple((n, o, _groups(config, kind, n, n, out)) for n, o in zip(ins, outs, strict=True))
            levels.append(Level(kind, resnets, after, config.layers_per_block, resample))
            width = after
            continue
        taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
        resnets = tuple(
            (n + skip, out, _groups(config, kind, n, n + skip, out, skip))
            for n, skip in zip([width] + [out] * config.layers_per_block, taken, strict=True)
        )
        levels.append(Level(kind, resnets, out, len(taken), resample))
        width = out
    return levels


def own_groups(channels: int) -> int:
    """Norm groups of Skip blocks, which take them from their channels."""
    return min(channels // 4, 32)


def _groups(config: UNetConfig, kind: str, before: int, ins: int, out: int, skip: int = 0) -> tuple[int, int]:
    """Groups of a residual block's two norms. before: channels of `ins` that are not a skip."""
    if kind.startswith("K"):
        return ins // K_GROUP_SIZE, out // K_GROUP_SIZE
    if kind == "AttnSkipUpBlock2D":
        # In diffusers a missing bracket: before + skip // 4 and not (before + skip) // 4. Models were trained with it.
        return min(before + skip // 4, 32), own_groups(out)
    if "Skip" in kind:
        return own_groups(ins), own_groups(out)
    return config.norm_num_groups or 0, config.norm_num_groups or 0


def _check_levels(config: UNetConfig) -> None:
    levels = len(config.block_out_channels)
    if levels == 0 or len(config.sample_size) != 2:
        raise ConfigError(
            "block_out_channels needs an entry and sample_size two (height, width)", argument="unet"
        )
    for name in ("down_block_types", "up_block_types"):
        if len(getattr(config, name)) != levels:
            raise ConfigError(
                f"{name} has {len(getattr(config, name))} entries, block_out_channels has {levels}",
                argument="unet",
            )
    stride = 2 ** (levels - 1)
    if any(size % stride for size in config.sample_size):
        raise ConfigError(
            f"sample_size {config.sample_size} must be divisible by {stride} ({levels} levels)",
            argument="unet",
        )


def _check_kinds(config: UNetConfig) -> None:
    """Which block types go together."""
    down, up = config.down_block_types, config.up_block_types
    k_blocks = [kind.startswith("K") for kind in (*down, *up)]
    if any(k_blocks) and not all(k_blocks):
        raise ConfigError(
            "down_block_types, up_block_types: KDownBlock2D and KUpBlock2D hand on other skips than the rest; "
            "use them at every level or at none",
            argument="unet",
        )
    if any(k_blocks) and min(config.sample_size) < 2 ** (len(down)):
        raise ConfigError(
            f"sample_size {config.sample_size} is too small for K blocks on {len(down)} levels",
            argument="unet",
        )
    mixed = ["Skip" not in kind for kind in down[:-1]]
    if any(mixed) and not all(mixed[mixed.index(True) :]):
        raise ConfigError(
            "down_block_types: a Skip block cannot follow another kind, which does not shrink the image that "
            "Skip blocks carry along",
            argument="unet",
        )
    carried = ["Skip" in kind for kind in up]
    if any(carried[:-1]) and not all(carried[carried.index(True) :]):
        raise ConfigError(
            "up_block_types: after a Skip block only Skip blocks can follow, the others do not enlarge the "
            "image that it hands on",
            argument="unet",
        )
    if any("Skip" in kind for kind in down[:-1]) and config.in_channels != SKIP_CHANNELS:
        raise ConfigError(
            f"in_channels must be 3 with Skip blocks, got {config.in_channels}", argument="unet"
        )
    if any(carried[:-1]) and config.out_channels != SKIP_CHANNELS:
        raise ConfigError(
            f"out_channels must be 3 with Skip blocks, got {config.out_channels}", argument="unet"
        )
    if config.resnet_time_scale_shift == "ada_group" and not (
        all(k_blocks) and config.mid_block_type is None
    ):
        raise ConfigError(
            "resnet_time_scale_shift: ada_group is for KDownBlock2D and KUpBlock2D without a middle "
            "(mid_block_type null); expected default or scale_shift",
            argument="unet",
        )


def _check_norms(config: UNetConfig) -> None:
    """Every norm's channels are a multiple of its groups."""
    ordinary = [
        kind
        for kind in (*config.down_block_types, *config.up_block_types)
        if not ("Skip" in kind or kind.startswith("K"))
    ]
    if config.norm_num_groups is None and ordinary:
        raise ConfigError(
            f"norm_num_groups may be null only where all blocks are Skip or K blocks, not with {ordinary[0]}",
            argument="unet",
        )
    if config.norm_num_groups is not None:
        for channels in config.block_out_channels if ordinary else ():
            if channels % config.norm_num_groups:
                raise ConfigError(
                    f"block_out_channels {channels} must be divisible by norm_num_groups "
                    f"{config.norm_num_groups}",
                    argument="unet",
                )
    for where, channels, groups in _norms(config):
        if groups < 1 or channels % groups:
            raise ConfigError(
                f"block_out_channels: {where} has a norm of {channels} channels, which do not divide into "
                f"{groups} groups",
                argument="unet",
            )


def _norms(config: UNetConfig) -> Iterator[tuple[str, int, int]]:
    """(where, channels, groups) of every group norm."""
    for level in (*down_levels(config), *up_levels(config)):
        for ins, out, groups in level.resnets:
            yield level.kind, ins, groups[0]
            yield level.kind, out, groups[1]
        if level.skip:
            yield level.kind, level.out, own_groups(level.out)
        if level.attends:
            groups_ = SKIP_ATTENTION_GROUPS if level.skip else config.norm_num_groups or 0
            yield f"the attention of {level.kind}", level.out, groups_
    yield "the output", config.block_out_channels[0], config.out_groups
    if config.mid_block_type is not None:
        yield "the middle", config.block_out_channels[-1], config.mid_groups
        if config.add_attention and config.mid_attention_groups is not None:
            yield (
                "the middle's attention (attn_norm_num_groups)",
                config.block_out_channels[-1],
                config.mid_attention_groups,
            )


def _check_attention(config: UNetConfig) -> None:
    channels = [level.out for level in (*down_levels(config), *up_levels(config)) if level.attends]
    if config.mid_block_type is not None and config.add_attention:
        channels.append(config.block_out_channels[-1])
    if config.attention_head_dim is not None and channels and min(channels) < config.attention_head_dim:
        raise ConfigError(
            f"attention_head_dim {config.attention_head_dim} is more than the {min(channels)} channels of a "
            "level with attention",
            argument="unet",
        )


def _check_embedding(config: UNetConfig) -> None:
    first = config.block_out_channels[0]
    if config.time_embedding_type == "positional" and first // 2 == config.freq_shift:
        raise ConfigError(
            f"freq_shift {config.freq_shift} must differ from half of block_out_channels[0], {first // 2}",
            argument="unet",
        )
    if (config.time_embedding_type == "learned") != (config.num_train_timesteps is not None):
        raise ConfigError(
            "num_train_timesteps is the size of the table of time_embedding_type learned: give both or neither",
            argument="unet",
        )
    if config.class_embed_type is not None and config.num_class_embeds is not None:
        raise ConfigError(
            f"num_class_embeds has no effect with class_embed_type {config.class_embed_type}: give one of them",
            argument="unet",
        )
