"""Layers against those of normflows, nflows and zuko with the same weights, float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.models.flow.coupling import Coupling
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.layers import ActNorm, Layer, Logit, Permutation, Squeeze
from fastgen.models.flow.linear import LUConv, PlainConv
from fastgen.models.flow.priors import DiagonalNormal, StandardNormal
from fastgen.models.flow.vector_networks import MLP, ResidualMLP

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _float64() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def moved(module: nn.Module) -> nn.Module:
    for parameter in module.requires_grad_(False).parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


class Calls(nn.Module):
    """Another project's network, called with x alone; its output may be negated where the formula is."""

    def __init__(self, network: nn.Module, sign: Tensor | None = None) -> None:
        super().__init__()
        self.network, self.sign = network, sign

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        out = self.network(x) if condition is None else self.network(x, condition)
        return out if self.sign is None else out * self.sign


def agree(chain: list[Layer], theirs: object, x: Tensor, direction: str = "inverse") -> None:
    """`chain` from data to latents against their module, whose `direction` goes that way."""
    want, want_log_det = getattr(theirs, direction)(x)
    y, log_det = x, x.new_zeros(len(x))
    for layer in chain:
        y, change = layer(y)
        log_det = log_det + change
    torch.testing.assert_close(y, want, **TOLERANCE)
    torch.testing.assert_close(log_det, want_log_det.expand(len(x)), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
@pytest.mark.parametrize("scale_map", ["sigmoid", "sigmoid_inv", "exp"])
@pytest.mark.parametrize("split", ["channel", "channel_inv"])
@pytest.mark.parametrize("use_lu", [True, False])
def test_glow_block_of_normflows(scale_map: str, split: str, use_lu: bool) -> None:
    import normflows

    block = normflows.flows.GlowBlock(
        6, 8, scale_map=scale_map, split_mode=split, use_lu=use_lu, init_zeros=False, leaky=0.1
    )
    coupling, conv, norm = moved(block).flows
    norm.data_dep_init_done = torch.tensor(1.0)
    actnorm = ActNorm(6)
    actnorm.loc.data, actnorm.scale.data = -norm.t.flatten(), torch.exp(-norm.s).flatten()
    if use_lu:
        linear: LUConv | PlainConv = LUConv(6)
        linear.permutation, linear.sign = conv.P.argmax(1), conv.sign_S
        linear.lower.data, linear.upper.data, linear.log_s.data = conv.L, conv.U, conv.log_S
    else:
        linear = PlainConv(6)
        linear.weight.data = conv.W
    options: dict = {"scale": scale_map.split("_")[0], "parameters": "shift_scale_interleaved"}
    sign = None
    if scale_map == "sigmoid":  # (x - t) sigmoid(s + 2)
        options["shift_first"] = True
        sign = torch.tensor([-1.0, 1.0] * 3).view(-1, 1, 1)
    else:
        options["reverse"] = True
    network = Calls(coupling.flows[1].param_map, sign)
    ours = Coupling(network, channels=6, changes=int(split == "channel"), **options)
    agree([actnorm, linear, ours], block, torch.randn(3, 6, 4, 4))


@pytest.mark.parametrize("parts", ["both", "shift"])
def test_masked_affine_flow_of_normflows(parts: str) -> None:
    import normflows

    mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    shift = moved(normflows.nets.MLP([5, 8, 5]))
    scale = (
        moved(normflows.nets.MLP([5, 8, 5], output_fn="tanh", output_scale=1.5)) if parts == "both" else None
    )
    theirs = normflows.flows.MaskedAffineFlow(mask, shift, scale)

    class Both(nn.Module):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return shift(x) if scale is None else torch.cat([scale(x), shift(x)], dim=1)

    ours = Coupling(
        Both(),
        channels=5,
        split="mask",
        mask=(mask == 0).to(torch.uint8),
        scale="exp" if scale is not None else "additive",
        reverse=True,
    )
    agree([ours], theirs, torch.randn(4, 5))


def test_other_layers_of_normflows() -> None:
    import normflows

    x = torch.rand(3, 2, 4, 4)
    agree([Logit(0.05)], normflows.transforms.Logit(0.05), x)
    squeezed, _ = normflows.flows.Squeeze().inverse(x)
    assert torch.equal(Squeeze()(x)[0], squeezed)
    for channels in (4, 5):
        swap = normflows.flows.Permute(channels, "swap")
        index = torch.arange(channels).roll(-(channels // 2) - channels % 2)
        agree([Permutation(index)], swap, torch.randn(2, channels))
    affine = moved(normflows.flows.mixing.InvertibleAffine(4, use_lu=False))
    linear = PlainConv(4)
    linear.weight.data = affine.W.T
    agree([linear], affine, torch.randn(3, 4))


@pytest.mark.parametrize("kind", ["affine", "additive"])
@pytest.mark.parametrize("context", [None, 2])
def test_coupling_of_nflows(kind: str, context: int | None) -> None:
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import AdditiveCouplingTransform, AffineCouplingTransform

    cls = AffineCouplingTransform if kind == "affine" else AdditiveCouplingTransform
    theirs = moved(
        cls([-1, 1, -1, 1, -1], lambda i, o: ResidualNet(i, o, 8, context_features=context, num_blocks=2))
    )
    network = ResidualMLP(3, 2 if kind == "additive" else 4, 8, 2, context=context or 0)
    source = theirs.transform_net
    names = {"first": source.initial_layer, "last": source.final_layer}
    for i, block in enumerate(source.blocks):
        names[f"blocks.{i}.branch.1"], names[f"blocks.{i}.branch.3"] = block.linear_layers
        if context:
            names[f"blocks.{i}.gate"] = block.context_layer
    network.load_state_dict(
        {f"{k}.{n}": v for k, layer in names.items() for n, v in layer.state_dict().items()}
    )
    options = {"scale": "sigmoid", "eps": 1e-3} if kind == "affine" else {"scale": "additive"}
    ours = Coupling(network, channels=5, split="alternate", changes=1, parameters="shift_scale", **options)  # type: ignore[arg-type]
    x = torch.randn(4, 5)
    given = None if context is None else torch.randn(4, context)
    for direction in ("forward", "inverse"):
        want, want_log_det = getattr(theirs, direction)(x, given)
        y, log_det = getattr(ours, direction)(x, given)
        torch.testing.assert_close(y, want, **TOLERANCE)
        torch.testing.assert_close(log_det, want_log_det, **TOLERANCE)


def test_linear_layers_of_nflows() -> None:
    from nflows.transforms import ActNorm as TheirActNorm
    from nflows.transforms import LULinear, RandomPermutation

    lu = moved(LULinear(4, identity_init=False))
    lower, upper = lu._create_lower_upper()
    ours = LUConv(4, bias=True)
    ours.permutation, ours.sign = torch.arange(4), torch.ones(4)
    ours.lower.data, ours.upper.data, ours.bias.data = lower, upper, lu.bias  # type: ignore[union-attr]
    ours.log_s.data = lu.upper_diag.log()
    agree([ours], lu, torch.randn(3, 4), "forward")
    shuffle = RandomPermutation(4)
    agree([Permutation(shuffle._permutation)], shuffle, torch.randn(3, 4), "forward")
    norm = moved(TheirActNorm(4))
    actnorm = ActNorm(4)
    actnorm.scale.data, actnorm.loc.data = norm.scale, norm.shift / norm.scale
    agree([actnorm], norm, torch.randn(3, 4), "forward")
    agree([actnorm], norm, torch.randn(3, 4, 2, 2), "forward")


@pytest.mark.parametrize("context", [0, 2])
def test_flow_of_zuko(context: int) -> None:
    import zuko

    theirs = moved(zuko.flows.RealNVP(5, context, transforms=3, hidden_features=(8,)))
    layers = []
    for i, transform in enumerate(theirs.transform.transforms):
        changes = 1 - i % 2
        kept = int((torch.arange(5) % 2 != changes).sum())
        network = MLP(kept, 2 * (5 - kept), (8,), context=context)
        network.layers.load_state_dict(transform.hyper.state_dict())
        layers.append(
            Coupling(
                network,
                channels=5,
                split="alternate",
                changes=changes,
                scale="soft_clip",
                parameters="shift_scale_interleaved",
            )
        )
    ours = Flow((5,), [], [layers], lambda scale, latent, kept: StandardNormal(latent), context=context)
    x = torch.randn(6, 5)
    given = torch.randn(6, context) if context else None
    distribution = theirs(given)
    torch.testing.assert_close(ours.log_prob(x, given), distribution.log_prob(x), **TOLERANCE)
    noise = torch.randn(6, 5)
    torch.testing.assert_close(
        ours.sample([noise], 1.0, given), distribution.transform.inv(noise), **TOLERANCE
    )


def test_priors_of_normflows() -> None:
    import normflows

    y = torch.tensor([2, 0, 1])
    z = torch.randn(3, 4, 2, 2)
    classes = moved(normflows.distributions.ClassCondDiagGaussian((4, 2, 2), 3))
    ours = DiagonalNormal((4, 2, 2), classes=3)
    ours.mean.data, ours.log_std.data = (v.permute(3, 0, 1, 2) for v in (classes.loc, classes.log_scale))
    torch.testing.assert_close(ours.log_prob(z, None, y), classes.log_prob(z, y), **TOLERANCE)
    glow = moved(normflows.distributions.GlowBase((4, 2, 2)))
    ours = DiagonalNormal((4, 2, 2), per_channel=True)
    ours.mean.data = glow.loc * torch.exp(3 * glow.loc_logs)
    ours.log_std.data = glow.log_scale * torch.exp(3 * glow.log_scale_logs)
    torch.testing.assert_close(ours.log_prob(z), glow.log_prob(z), **TOLERANCE)
    half = ours.draw(torch.ones(1, 4, 2, 2), 0.5)
    torch.testing.assert_close(half, (ours.mean + 0.5 * ours.log_std.exp()).expand_as(half), **TOLERANCE)
