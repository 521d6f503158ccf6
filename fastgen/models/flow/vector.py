"""Flows on vectors, for tabular data: couplings over perceptrons, with what lies between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...config import bounded, one_of
from ...errors import ConfigError
from .coupling import Coupling, network_channels
from .flow import Flow
from .layers import ActNorm, Layer, Permutation, Shape, Standardise
from .linear import LUConv, PlainConv
from .networks import ACTIVATIONS
from .options import MAX_BLOCKS, CouplingOptions, check_read
from .priors import DiagonalNormal, Prior, StandardNormal
from .vector_networks import MLP, Pair, ResidualMLP

__all__ = ["VectorFlow", "VectorFlowConfig"]

LAYERS = ("coupling", "actnorm", "lu", "plain", "shuffle", "reverse", "swap")
MAX_LAYERS = 1024  # of all steps together


@dataclass(frozen=True, kw_only=True)
class VectorFlowConfig(CouplingOptions):
    """Options of :class:`VectorFlow`.

    features: D. standardise: a first layer (x - mean) / std, whose numbers are stored with the weights.
    layers: one step, from data to latents, and steps: how often it is repeated. coupling; actnorm; lu or plain, a
        learned matrix; shuffle (at random), reverse or swap (the halves), a fixed order of the features, stored.
    linear_bias: lu and plain have a bias.
    split: which features the couplings change. alternate: those of odd index, then of even, and so on (the first
        says `changes`: 1 odd, 0 even). half: the second half (1), then the first. mask: a stored mask, at random to
        begin with (alternating where `random_masks` is false); the network sees all features, 0 where they change.
    changes_in_turn: false, where every coupling changes what `changes` says (because a permutation lies between).
    network: mlp (with hidden_features, one width a layer) or residual (`blocks` of width hidden_features[0]).
    separate_networks: one network for the raw scale and one for the shift.
    context_features: D_c of a context, 0 for none; or num_classes of labels.
    prior: standard, or learned, a mean and deviation for each feature (a row a label with class_priors).

    Elsewhere, each a renaming of tensors:
        nflows: AffineCouplingTransform is scale sigmoid, scale_eps 1e-3, parameters shift_scale; additive; a mask
            that alternates is split alternate, any other split mask (its network's first weights get columns of 0,
            the last rows of 0); ResidualNet is network residual; LULinear is lu with linear_bias; RandomPermutation
            and ReversePermutation shuffle; ActNorm; a batch norm is, at inference, an actnorm.
        zuko: NICE and RealNVP are scale soft_clip, slope 1e-3, parameters shift_scale_interleaved, network mlp,
            split alternate, changes 1; randmask is split mask.
        normflows: its layers in reverse order. MaskedAffineFlow is scale exp, reverse, split mask, separate_networks
            (an output_fn tanh is the scale map tanh); AffineCouplingBlock is split half, reverse, parameters
            shift_scale_interleaved; Permute swap is swap; ActNorm; InvertibleAffine is plain (W transposed);
            LULinearPermute is shuffle and lu.
    """

    features: int = bounded(2, 4096)
    standardise: bool = False
    layers: tuple[str, ...] = one_of(*LAYERS, default=("coupling",), max_items=MAX_LAYERS)
    steps: int = bounded(1, 256, default=8)
    linear_bias: bool = False
    split: str = one_of("alternate", "half", "mask", default="alternate")
    changes: int = bounded(0, 1, default=1)
    changes_in_turn: bool = True
    random_masks: bool = False
    network: str = one_of("mlp", "residual", default="mlp")
    separate_networks: bool = False
    hidden_features: tuple[int, ...] = bounded(1, 8192, default=(64, 64), max_items=16)
    blocks: int = bounded(1, 64, default=2)
    act_fn: str = one_of(*ACTIVATIONS, default="relu")
    leaky_slope: float = bounded(0.0, 1.0, default=0.01)
    context_features: int = bounded(0, 4096, default=0)
    num_classes: int | None = bounded(1, 4096, default=None)
    prior: str = one_of("standard", "learned", default="standard")
    class_priors: bool = False
    scale: str = one_of("exp", "sigmoid", "tanh", "soft_clip", "additive", default="soft_clip")

    def __post_init__(self) -> None:
        self.check_coupling()
        check_read(
            self,
            [
                (self.network == "residual", "network residual", ("blocks",)),
                (self.act_fn == "leaky_relu", "act_fn leaky_relu", ("leaky_slope",)),
            ],
        )
        if not self.layers:
            raise ConfigError(f"expected at least one of {', '.join(LAYERS)}", argument="layers")
        if len(self.layers) * self.steps > MAX_LAYERS:
            raise ConfigError(
                f"{len(self.layers)} layers times {self.steps} steps, at most {MAX_LAYERS} are built",
                argument="layers, steps",
            )
        couplings = self.layers.count("coupling") * self.steps
        if self.network == "residual" and couplings * self.blocks > MAX_BLOCKS:
            raise ConfigError(
                f"{couplings} couplings of {self.blocks} blocks are more than {MAX_BLOCKS} blocks; take fewer",
                argument="blocks",
            )
        if self.random_masks and self.split != "mask":
            raise ConfigError(f"needs the split mask, got {self.split}", argument="random_masks")
        if self.linear_bias and not {"lu", "plain"} & set(self.layers):
            raise ConfigError("there is no lu or plain among the layers", argument="linear_bias")
        if self.network == "residual" and len(self.hidden_features) != 1:
            raise ConfigError(
                f"a residual network has one width (and `blocks`), got {len(self.hidden_features)} numbers",
                argument="hidden_features",
            )
        if self.separate_networks and self.scale == "additive":
            raise ConfigError("an additive coupling has a shift only", argument="separate_networks")
        if self.separate_networks and self.parameters != "scale_shift":
            raise ConfigError(
                "their outputs lie side by side: leave parameters scale_shift", argument="separate_networks"
            )
        if self.context_features and self.num_classes is not None:
            raise ConfigError(
                "a flow takes a context or labels, not both", argument="context_features, num_classes"
            )
        if self.context and not couplings and not self.class_priors:
            raise ConfigError(
                "without couplings nothing would look at them", argument="context_features, num_classes"
            )
        if self.class_priors and (self.num_classes is None or self.prior == "standard"):
            raise ConfigError("needs num_classes and the prior learned", argument="class_priors")

    @property
    def context(self) -> int:
        """Columns that the networks see of the condition."""
        return self.num_classes or self.context_features


class VectorFlow(Flow):
    """x [B, D], any real numbers; condition: a context [B, D_c], or labels int64 [B]."""

    def __init__(self, config: VectorFlowConfig) -> None:
        layers: list[Layer] = []
        couplings = 0
        for kind in config.layers * config.steps:
            layers.append(_layer(config, kind, couplings))
            couplings += kind == "coupling"

        def prior(scale: int, latent: Shape, kept: Shape | None) -> Prior:
            if config.prior == "standard":
                return StandardNormal(latent)
            return DiagonalNormal(latent, classes=config.num_classes if config.class_priors else None)

        super().__init__(
            (config.features,),
            [Standardise(config.features)] if config.standardise else [],
            [layers],
            prior,
            classes=config.num_classes,
            context=config.context_features,
        )
        self.config = config


def _layer(config: VectorFlowConfig, kind: str, couplings: int) -> Layer:
    """A layer of the chain that `couplings` couplings stand before."""
    features = config.features
    if kind == "coupling":
        return _coupling(config, (config.changes + couplings * config.changes_in_turn) % 2)
    if kind == "actnorm":
        return ActNorm(features)
    if kind in ("lu", "plain"):
        return (LUConv if kind == "lu" else PlainConv)(features, config.linear_bias)
    order = torch.empty(features, dtype=torch.int64)
    if not order.is_meta:
        index = torch.arange(features)
        orders = {
            "shuffle": torch.randperm(features),
            "reverse": index.flip(0),
            "swap": index.roll(-((features + 1) // 2)),
        }
        order.copy_(orders[kind])
    return Permutation(order)


def _coupling(config: VectorFlowConfig, changes: int) -> Coupling:
    features = config.features
    inputs, outputs = network_channels(features, config.split, changes, config.scale)
    if config.separate_networks:
        network: nn.Module = Pair(
            _network(config, inputs, outputs // 2), _network(config, inputs, outputs // 2)
        )
    else:
        network = _network(config, inputs, outputs)
    mask = torch.empty(features, dtype=torch.uint8)
    if not mask.is_meta:
        order = torch.randperm(features) if config.random_masks else torch.arange(features)
        mask.copy_(order % 2 == changes)
    return config.coupling(network, features, config.split, changes, mask)


def _network(config: VectorFlowConfig, inputs: int, outputs: int) -> nn.Module:
    if config.network == "mlp":
        hidden = config.hidden_features
        return MLP(inputs, outputs, hidden, config.act_fn, config.leaky_slope, config.context)
    width = config.hidden_features[0]
    return ResidualMLP(
        inputs, outputs, width, config.blocks, config.act_fn, config.leaky_slope, config.context
    )
