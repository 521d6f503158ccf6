"""Generators of BigGAN-PyTorch (ajbrock): ``G.pth``, ``G_ema.pth`` of its BigGAN, BigGANdeep and SAGAN settings.

shared.weight                   the shared embedding; none with G_shared=False, whose norms have tables
linear, blocks.i.0.conv1, ...   weight, bias; with spectral norm u0 [1, rows] and sv0, which is for its log
blocks.i.0.bn1.gain.weight      of every norm; stored_mean, or bn.stored_mean (mybn), or bn.running_mean
blocks.i.1.theta, phi, g, o     self-attention, with gamma
output_layer.0, output_layer.2  the last norm and convolution
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fastgen.config import bounded, from_dict
from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.gan.biggan import BigGANConfig, BigGANDeepConfig
from fastgen.models.gan.sagan import SAGANConfig

from ..base import Report
from ..flows.assumed import Assumed, Table
from ..flows.source import Result, Source, converter, without
from ..flows.state import State

SUPPORTED = "Generator of BigGAN.py and BigGANdeep.py with batch norm (norm_style bn)"
ASSUMED: Table = {
    "bn_eps": Assumed(1e-5, source="BigGAN.py: Generator(BN_eps)"),
    "depth": Assumed(2, source="BigGANdeep.py: Generator(G_depth)"),
}
MAX_BLOCKS = 64
CONVS, DEEP_CONVS = ("conv1", "conv2"), ("conv1", "conv2", "conv3", "conv4")


@dataclass(frozen=True)
class BigGANOptions:
    """bn_eps: of class-conditional norms (BN_eps). depth: of BigGAN-deep, blocks of a stage (G_depth)."""

    bn_eps: float = bounded(1e-12, 1.0, default=ASSUMED["bn_eps"].value)
    depth: int = bounded(1, 8, default=ASSUMED["depth"].value)


def recognises(names: Iterable[str]) -> bool:
    """Whether these are names of one of its generators."""
    return {"linear.weight", "blocks.0.0.bn1.gain.weight", "output_layer.2.weight"} <= set(names)


def read(state: State, options: BigGANOptions, report: Report) -> Result:
    """The generator."""
    deep = state.has("blocks.0.0.conv4.weight")
    blocks = state.count("blocks", MAX_BLOCKS)
    depth = options.depth if deep else 1
    if not deep:
        without(options, report, "of BigGAN-deep", "depth")
    if blocks % depth:
        raise ConfigError(f"{blocks} blocks are no stages of {depth}", argument=f"{state.where}: depth")
    spectral = state.has("linear.u0")
    found = Found(state, spectral)
    first, top = state.peek("linear.weight"), state.peek("output_layer.2.weight")
    before = [state.peek(f"blocks.{i}.0.conv1.weight").shape[1] for i in range(0, blocks, depth)]
    widths = [*before, top.shape[1]]
    channels = widths[-1]
    if any(width % channels for width in widths):
        raise ConfigError(f"channels {widths} are no multiples of the last", argument=state.where)
    inputs = state.peek("blocks.0.0.bn1.gain.weight").shape[1]
    shared = None
    if state.has("shared.weight"):
        shared = found.tensors["embedding.weight"] = state.take("shared.weight", None, None)
    bottom = round((first.shape[0] / widths[0]) ** 0.5)
    attention = [i // depth for i in range(blocks) if state.has(f"blocks.{i}.1.gamma")]
    values = {
        "out_channels": top.shape[0],
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "bottom": bottom,
        "attention": attention,
        "num_classes": len(state.peek("blocks.0.0.bn1.gain.weight") if shared is None else shared),
        "spectral_norm": spectral,
        "eps": options.bn_eps,
    }
    architecture = "sagan"
    kind: type = SAGANConfig
    if shared is None:
        values["latent"] = first.shape[1]
        if deep:
            raise ConfigError(
                f"a deep one without a shared embedding; supported: {SUPPORTED}", argument=state.where
            )
    else:
        values["shared"] = shared.shape[1]
        part = inputs - shared.shape[1]
        if deep:
            architecture, kind = "biggan_deep", BigGANDeepConfig
            values |= {"latent": part, "depth": depth}
        else:
            architecture, kind = "biggan", BigGANConfig
            hierarchical = part > 0
            values["hierarchical"] = hierarchical
            values["latent"] = part * (blocks + 1) if hierarchical else first.shape[1]
    found.layer("linear", "first", True)
    for i in range(blocks):
        convs = DEEP_CONVS if deep else CONVS
        for n, conv in enumerate(convs, 1):
            found.layer(f"blocks.{i}.0.{conv}", f"blocks.{i}.{conv}", True)
            found.norm(f"blocks.{i}.0.bn{n}", f"blocks.{i}.norm{n}", spectral and shared is not None)
        if not deep:
            found.layer(f"blocks.{i}.0.conv_sc", f"blocks.{i}.shortcut", True)
        if state.has(f"blocks.{i}.1.gamma"):
            found.attention(f"blocks.{i}.1", f"attention.{i // depth}")
    found.top()
    found.layer("output_layer.2", "last", True)
    return Result(architecture, from_dict(kind, values, state.where), found.tensors)


class Found:
    """Tensors under our names."""

    def __init__(self, state: State, spectral: bool) -> None:
        self.state, self.spectral = state, spectral
        self.tensors: dict[str, Tensor] = {}

    def weight(self, theirs: str, ours: str, spectral: bool) -> None:
        """A weight, with the vector of its power method."""
        state = self.state
        value = state.take(f"{theirs}.weight")
        if not spectral:
            self.tensors[f"{ours}.weight"] = value
            return
        self.tensors[f"{ours}.parametrizations.weight.original"] = value
        self.tensors[f"{ours}.parametrizations.weight.0.u"] = state.take(f"{theirs}.u0", 1, len(value))[0]
        # Further singular values are for its log.
        state.drop(*(n for n in state.names if n.startswith((f"{theirs}.u", f"{theirs}.sv"))))

    def layer(self, theirs: str, ours: str, biased: bool) -> None:
        """A convolution or linear layer."""
        self.weight(theirs, ours, self.spectral)
        if biased:
            self.tensors[f"{ours}.bias"] = self.state.take(f"{theirs}.bias", None)

    def attention(self, theirs: str, ours: str) -> None:
        """Self-attention."""
        for name in ("theta", "phi", "g", "o"):
            self.layer(f"{theirs}.{name}", f"{ours}.{name}", False)
        self.tensors[f"{ours}.gamma"] = self.state.take(f"{theirs}.gamma").reshape(())

    def norm(self, theirs: str, ours: str, spectral: bool) -> None:
        """A class-conditional norm."""
        self.weight(f"{theirs}.gain", f"{ours}.gain", spectral)
        self.weight(f"{theirs}.bias", f"{ours}.shift", spectral)
        self._statistics(theirs, ours)

    def top(self) -> None:
        """The last norm, which is of no class."""
        for theirs, ours in (("gain", "weight"), ("bias", "bias")):
            self.tensors[f"norm.{ours}"] = self.state.take(f"output_layer.0.{theirs}", None)
        self._statistics("output_layer.0", "norm")

    def _statistics(self, theirs: str, ours: str) -> None:
        state = self.state
        for name, other in (("mean", "running_mean"), ("var", "running_var")):
            known = (f"{theirs}.stored_{name}", f"{theirs}.bn.stored_{name}", f"{theirs}.bn.{other}")
            held = next((place for place in known if state.has(place)), None)
            if held is None:
                raise CheckpointError(
                    f"{theirs} has no {known[0]}: norms of samples and groups have none; supported: {SUPPORTED}",
                    argument=state.where,
                )
            self.tensors[f"{ours}.{other}"] = state.take(held, None)[None]
        counter = f"{theirs}.bn.accumulation_counter"
        if state.has(counter) and float(count := state.take(counter).sum()) > 0:
            for other in ("running_mean", "running_var"):  # sums over the passes of --accumulate_stats
                self.tensors[f"{ours}.{other}"] = self.tensors[f"{ours}.{other}"] / count
        state.drop(f"{theirs}.bn.num_batches_tracked")


GENERATOR = converter(
    Source(
        name="biggan-pytorch",
        about="generators of ajbrock's BigGAN-PyTorch (G.pth, G_ema.pth): BigGAN, BigGAN-deep, SAGAN",
        supported=SUPPORTED,
        options=BigGANOptions,
        recognises=recognises,
        read=read,
        family="gan",
        part="generator",
    )
)
