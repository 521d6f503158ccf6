"""Twins of the networks inside couplings: the same parameters, fewer passes over memory.

`twin` rewrites the networks of ``fastgen.models.flow`` alone, whose forward is known to use each block as a function.
Any other network, a subclass of one of them, and one with hooks run as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..models.flow import networks as images
from ..models.flow import vector_networks as vectors
from ..models.flow.networks import ChannelAffine, ConvNet, WeightNormConv, ZeroConv
from .exactly import hooked
from .folding import folded, weight_norm
from .onednn import HALF, OneDNNConv, takes
from .transposed import takes_transposed, transposed

# Their results are tensors of their own, which nobody else reads: what comes next may work in place.
FRESH = (nn.Conv2d, nn.Linear, WeightNormConv, ChannelAffine)
IN_PLACE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU)


class FusedZeroConv(nn.Module):
    """`ZeroConv` with its factor computed once, and its border as a sum instead of a padded copy of the input."""

    factor: Tensor | None

    def __init__(self, block: ZeroConv) -> None:
        super().__init__()
        conv, self.border, self._weight = block.conv, block.border, block.conv.weight.detach()
        factor = None if block.log_scale is None else torch.exp(3 * _at_least_float32(block.log_scale))
        self.register_buffer("factor", None if factor is None else factor[:, None, None])
        if self.border:
            conv = copy.copy(conv)  # shares the parameters
            conv.padding = (1, 1)
        self.conv = _conv(conv)
        self._frames: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.border:
            y += self._frame(x)
        return y if self.factor is None else y * self.factor

    def _frame(self, x: Tensor) -> Tensor:
        """[1, out, H, W]: what the border around an image of this size adds."""
        size = x.shape[2], x.shape[3]
        if size not in self._frames:
            weight = self._weight
            ring = weight.new_full((1, weight.shape[1], size[0] + 2, size[1] + 2), self.border)
            ring[:, :, 1:-1, 1:-1] = 0
            self._frames[size] = nn.functional.conv2d(ring, weight)
        return self._frames[size]


class FusedChannelAffine(nn.Module):
    """`ChannelAffine` in place and in one pass: x * scale + scale * loc."""

    scale: Tensor
    shift: Tensor

    def __init__(self, block: ChannelAffine) -> None:
        super().__init__()
        scale, loc = block.scale.detach(), block.loc.detach()
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", (scale * loc)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale, out=x)


class FusedConvNet(nn.Module):
    """`ConvNet` whose activations work in place."""

    def __init__(self, block: ConvNet) -> None:
        super().__init__()
        self.condition, self.last = block.condition, _twin(block.last)
        if block.condition.embedding is None:
            both = sequential(nn.Sequential(block.first, *block.inner))
            self.first, self.inner = both[0], both[1:]
        else:  # the sum with the embedding is a tensor of its own too
            self.first, self.inner = _conv(block.first), sequential(block.inner, fresh=True)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.first(self.condition.beside(x, condition))
        return self.last(self.inner(self.condition.added(x, condition)))


def _conv(conv: nn.Conv2d, rectified: bool = False, prepacked: bool = False) -> nn.Module:
    # A float32 convolution alone gains some percent by filters laid out beforehand, for twice their memory.
    gains = rectified or prepacked or conv.weight.dtype in HALF
    return OneDNNConv(conv, rectified, prepacked=prepacked) if gains and takes(conv) else conv


def _at_least_float32(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    ConvNet: FusedConvNet,
    WeightNormConv: lambda block: _conv(weight_norm(block)),
    ZeroConv: FusedZeroConv,
    nn.Conv2d: _conv,
    nn.Sequential: lambda block: sequential(block),
}

# They call the modules in them, each a twin then, and look at nothing else of them.
OURS = (
    images.ResNet,
    images.ResidualBlock,
    images.GatedNet,
    images.GatedBlock,
    vectors.MLP,
    vectors.ResidualMLP,
    vectors.ResidualBlock,
    vectors.Pair,
)
COUPLING_NETWORKS = (*OURS, ConvNet)


@torch.no_grad()
def twin(network: nn.Module) -> nn.Module:
    """A network that computes what `network`, that of a coupling, does at inference.

    It has the same parameters where none are folded. What is folded (weight norm, ZeroConv's factor) is computed from
    the parameters' values now.
    """
    known = type(network) in COUPLING_NETWORKS
    return _twin(network) if known and not any(map(hooked, network.modules())) else network


def _twin(block: nn.Module) -> nn.Module:
    """The same, of a block within a network of ours: what is unknown there is left as it is."""
    made = TWINS.get(type(block))
    if made is not None:
        return made(block)
    if type(block) not in OURS:
        return block
    shallow = copy.copy(block)
    shallow._modules = {name: None if m is None else _twin(m) for name, m in block._modules.items()}
    return shallow


def sequential(
    blocks: nn.Sequential,
    fresh: bool = False,
    *,
    prepacked: bool = False,
    swapped: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Sequential:
    """What `blocks` compute: weights folded, a ReLU within the convolution before it, activations in place.

    fresh: nobody else reads the first block's input. prepacked: of convolutions, see ``OneDNNConv``. swapped: the twin
    of a block that is not known here. Types are exact: a subclass may have its own forward.
    """
    made: list[nn.Module] = []
    for block in folded(blocks):
        before = made[-1] if made else None
        if _is_relu(block) and type(before) is nn.Conv2d and takes(before):
            made[-1] = _conv(before, rectified=True, prepacked=prepacked)
        elif prepacked and _is_relu(block) and before is not None and takes_transposed(before):
            assert isinstance(before, nn.ConvTranspose2d)
            made[-1] = transposed(before, rectified=True)
        elif type(block) is nn.Conv2d or (prepacked and takes_transposed(block)):
            made.append(block)  # for oneDNN below, if no ReLU follows
        elif type(block) is ChannelAffine:
            made.append(FusedChannelAffine(block) if fresh else block)
        elif fresh and type(block) in IN_PLACE and not hooked(block):
            made.append(_in_place(block))
        else:
            made.append((swapped or _twin)(block))
        fresh = type(block) in FRESH or (fresh and type(block) in IN_PLACE)
    return nn.Sequential(*(_finished(m, prepacked) for m in made))


def _finished(block: nn.Module, prepacked: bool) -> nn.Module:
    """The twin of a convolution that no ReLU has followed; another block as it is."""
    if type(block) is nn.Conv2d:
        return _conv(block, prepacked=prepacked)
    return transposed(block) if prepacked and type(block) is nn.ConvTranspose2d else block


def _is_relu(block: nn.Module) -> bool:
    if hooked(block):
        return False
    return type(block) is nn.ReLU or (type(block) is nn.LeakyReLU and block.negative_slope == 0)


def _in_place(act: nn.Module) -> nn.Module:
    if _is_relu(act):
        return nn.ReLU(inplace=True)
    act = copy.copy(act)
    act.inplace = True  # type: ignore[assignment]
    return act
