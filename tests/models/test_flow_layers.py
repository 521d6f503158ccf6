"""Every layer alone: its Jacobian, its inverse, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.flow.coupling import SPLITS, Coupling, network_channels
from fastgen.models.flow.layers import (
    ActNorm,
    Affine,
    Flatten,
    Layer,
    Logit,
    Permutation,
    Scaling,
    Squeeze,
    Standardise,
)
from fastgen.models.flow.linear import LUConv, PlainConv
from fastgen.models.flow.networks import ConvNet, GatedNet, ResNet, ZeroConv
from fastgen.models.flow.options import half_mask
from fastgen.models.flow.vector_networks import MLP
from tests.models.flow_models import flow
from tests.refusals import refused

IMAGE, VECTOR = (4, 2, 4), (5,)
CHECKERBOARD = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]], dtype=torch.uint8)[None]
MAPS = {
    "exp": {"scale": "exp"},
    "sigmoid": {"scale": "sigmoid"},
    "sigmoid, eps": {"scale": "sigmoid", "eps": 1e-3, "parameters": "shift_scale"},
    "sigmoid, shift first": {"scale": "sigmoid", "shift_first": True},
    "tanh": {"scale": "tanh", "bound": 1.7, "rescale": True, "parameters": "scale_shift_interleaved"},
    "soft clip": {"scale": "soft_clip", "slope": 1e-2, "parameters": "shift_scale_interleaved"},
    "additive": {"scale": "additive"},
    "reverse": {"scale": "exp", "reverse": True},
    "reverse, shift first": {"scale": "sigmoid", "reverse": True, "shift_first": True},
}


def moved(module: nn.Module, noise: float = 0.3) -> nn.Module:
    """In float64, with other weights than the start's."""
    module = module.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.add_(noise * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return module


def coupling(shape: tuple[int, ...], split: str, changes: int, **options: object) -> Coupling:
    channels = shape[0]
    inputs, outputs = network_channels(channels, split, changes, str(options.get("scale", "sigmoid")))
    torch.manual_seed(0)
    network = MLP(inputs, outputs, (8,), "silu") if len(shape) == 1 else ConvNet(inputs, outputs, 6, "silu")
    mask = None
    if split == "mask":
        mask = (
            torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8)
            if len(shape) == 1
            else half_mask(channels, changes)
        )
    return Coupling(network, channels=channels, split=split, changes=changes, mask=mask, **options)  # type: ignore[arg-type]


def layers() -> dict[str, tuple[Layer, tuple[int, ...]]]:
    torch.manual_seed(0)
    cases: dict[str, tuple[Layer, tuple[int, ...]]] = {
        "affine": (Affine(-2.0, 0.5), IMAGE),
        "logit": (Logit(0.05), IMAGE),
        "logit of small alpha": (Logit(1e-7), IMAGE),
        "squeeze": (Squeeze(), IMAGE),
        "squeeze, pixel_major": (Squeeze("pixel_major"), IMAGE),
        "flatten": (Flatten(IMAGE), IMAGE),
    }
    for shape in (IMAGE, VECTOR):
        kind, channels = ("image", "vector")[len(shape) == 1], shape[0]
        negative = ActNorm(channels)
        negative.scale.data[1] = -2.0
        cases |= {
            f"actnorm, {kind}": (ActNorm(channels), shape),
            f"actnorm, negative scale, {kind}": (negative, shape),
            f"standardise, {kind}": (Standardise(channels), shape),
            f"scaling, {kind}": (Scaling(channels), shape),
            f"plain, {kind}": (PlainConv(channels, bias=True), shape),
            f"lu, {kind}": (LUConv(channels), shape),
            f"lu with bias, {kind}": (LUConv(channels, bias=True), shape),
            f"shuffle, {kind}": (Permutation.random(channels), shape),
            f"reverse, {kind}": (Permutation.reverse(channels), shape),
        }
        for split in SPLITS:
            if split == "checkerboard" and shape == VECTOR:
                continue
            for changes in (0, 1):
                cases[f"coupling, {split} {changes}, {kind}"] = (coupling(shape, split, changes), shape)
        for name, options in MAPS.items():
            cases[f"coupling, {name}, {kind}"] = (coupling(shape, "half", 1, **options), shape)
            cases[f"coupling, {name}, masked {kind}"] = (coupling(shape, "mask", 0, **options), shape)
    for layer, _ in cases.values():
        if isinstance(layer, LUConv):  # its signs are 1 or -1, the rest may move
            sign = layer.sign.double()
            moved(layer).sign.copy_(sign)
        else:
            moved(layer)
    return cases


LAYERS = layers()


def inputs(shape: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_log_det_is_the_jacobians(name: str) -> None:
    layer, shape = LAYERS[name]
    x = inputs(shape, 1)
    for function, value in ((layer.forward, x), (layer.inverse, layer(x)[0])):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, function=function, value=value: function(v.view_as(value))[0].flatten(),
            value.flatten(),
            vectorize=True,
        )
        want = torch.linalg.slogdet(jacobian).logabsdet.item()
        # the logit of alpha = 1e-7 has a Jacobian whose entries reach 1e7 near the ends
        assert function(value)[1].item() == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_inverse(name: str) -> None:
    layer, shape = LAYERS[name]
    x = inputs(shape)
    y, log_det = layer(x)
    back, inverse_log_det = layer.inverse(y)
    assert tuple(y.shape[1:]) == layer.out_shape(shape)
    assert log_det.shape == inverse_log_det.shape == (2,)
    assert (back - x).abs().max() < 1e-12
    assert (log_det + inverse_log_det).abs().max() < 1e-11
    layer.check()


@pytest.mark.parametrize("name", [n for n, (layer, _) in LAYERS.items() if hasattr(layer, "matrix")])
def test_matrix_is_the_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    weight, bias, log_det = layer.matrix()
    x = inputs(shape)
    y, total = layer(x)
    view = (-1, *[1] * (len(shape) - 1))
    want = torch.einsum("ij,bj...->bi...", weight, x) + bias.view(view)
    assert (y - want).abs().max() < 1e-13
    assert (total - log_det * math.prod(shape[1:])).abs().max() < 1e-12


def test_couplings_leave_what_the_network_sees() -> None:
    x = inputs((4, 2, 4))
    for split, changes, where in (
        ("half", 1, torch.tensor([0, 0, 1, 1])[:, None, None]),
        ("half", 0, torch.tensor([1, 1, 0, 0])[:, None, None]),
        ("alternate", 1, torch.tensor([0, 1, 0, 1])[:, None, None]),
        ("checkerboard", 1, CHECKERBOARD),
        ("checkerboard", 0, 1 - CHECKERBOARD),
    ):
        layer = moved(coupling(IMAGE, split, changes))
        y, _ = layer(x)
        changed = (y != x).all(dim=0)
        assert torch.equal(changed, where.bool().expand(IMAGE)), (split, changes)


def test_squeeze_orders() -> None:
    x = torch.arange(8.0).view(1, 2, 2, 2)  # channel c, row y, column x: 4c + 2y + x
    assert Squeeze()(x)[0].flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert Squeeze("pixel_major")(x)[0].flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    with refused(ConfigError, "layer", "3x4"):
        Squeeze().out_shape((1, 3, 4))


def test_lu_starts_as_a_rotation() -> None:
    torch.manual_seed(0)
    weight = LUConv(6).double().product()
    torch.testing.assert_close(weight @ weight.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
    assert not torch.equal(weight.abs().argmax(1), torch.arange(6))


@pytest.mark.parametrize("shape", [(3, 5, 4), (3,)])
def test_actnorm_starts_from_the_data(shape: tuple[int, ...]) -> None:
    x = 5 + torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64).view(
        -1, *[1] * (len(shape) - 1)
    ) * torch.randn(50, *shape, dtype=torch.float64)
    layer = ActNorm(3).double()
    assert not layer.initialised
    layer.initialize(x)
    y = layer(x)[0].transpose(0, 1).flatten(1)
    assert layer.initialised
    assert y.mean(1).abs().max() < 1e-6
    assert (y.std(1, correction=0) - 1).abs().max() < 1.1e-5  # 1e-6 beside the smallest deviation, 0.1


def test_a_constant_channel_starts_finite() -> None:
    layer = ActNorm(2)
    layer.initialize(torch.full((4, 2, 3, 3), 7.0))
    assert layer.scale.isfinite().all()
    assert layer(torch.full((4, 2, 3, 3), 7.0))[0].abs().max() == 0


def test_logit_keeps_its_digits_at_both_ends() -> None:
    """x and 1 - x get opposite logits in float32, although 1 - alpha - ... is close to 1."""
    x = torch.tensor([[2.0**-12, 2.0**-9, 0.25]])
    low, log_det = Logit(1e-6)(x)
    high, same = Logit(1e-6)(1 - x)
    torch.testing.assert_close(low, -high, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_det, same, rtol=1e-6, atol=0)


def singular(layer: PlainConv) -> None:
    layer.weight[1] = 2 * layer.weight[0]


def test_singular_layers_are_named() -> None:
    net = flow("vectors, everything between")
    net.check()
    kinds = [type(layer) for layer in net.scales[0]]
    plain = kinds.index(PlainConv)
    singular(net.scales[0][plain])
    with refused(CheckpointError, f"scales.0.{plain}", "5x5"):
        net.check()
    net.scales[0][plain].weight.zero_()
    with refused(CheckpointError, f"scales.0.{plain}", "5x5"):
        net.inverse(net(torch.rand(2, 5, dtype=torch.float64))[0])

    net = flow("vectors, everything between")
    net.scales[0][0].scale[3] = 0
    with refused(CheckpointError, "scales.0.0"):
        net.check()

    net = flow("vectors, everything between")
    net.scales[0][kinds.index(Permutation)].index[0] = 9
    with refused(CheckpointError, "scales.0.3"):
        net.check()

    net = flow("vectors, everything between")
    net.scales[0][kinds.index(LUConv)].sign[2] = 0
    with refused(CheckpointError, "scales.0.1"):
        net.check()
    net = flow("vectors, everything between")
    net.scales[0][kinds.index(LUConv)].log_s[2] = -40
    with refused(CheckpointError, "scales.0.1"):
        net.check()


class Says(nn.Module):
    """A network that says the same everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.full((x.shape[0], 2 * x.shape[1]), self.value, dtype=x.dtype)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_scales(value: float) -> None:
    """The bounded maps stay finite whatever the network says; exp shows that it did not."""
    x = torch.rand(1, 4)
    largest = {"sigmoid": 1.0, "tanh": math.exp(2.0), "soft_clip": 1e3}
    for scale, bound in largest.items():
        layer = Coupling(Says(value), channels=4, scale=scale, bound=2.0 if scale == "tanh" else 1.0)
        y, log_det = layer(x)
        assert y.isfinite().all()
        assert log_det.isfinite().all()
        assert log_det.item() <= 2 * math.log(bound) + 1e-6
    y, log_det = Coupling(Says(value), channels=4, scale="exp")(x)
    assert not (y.isfinite().all() and log_det.abs() < 1e3)


def test_weight_norm_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = ResNet(2, 4, 6, 1).first
    theirs = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 6, 3, padding=1))
    theirs.load_state_dict(
        {
            "bias": ours.bias,
            "parametrizations.weight.original0": ours.gain.view(-1, 1, 1, 1) * 1.5,
            "parametrizations.weight.original1": ours.direction * 3,
        }
    )
    ours.gain.data *= 1.5
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    ours.direction.data[0] = 0
    assert ours(x).isfinite().all()


@pytest.mark.parametrize("border", [0.0, 1.0])
def test_zero_conv(border: float) -> None:
    """As Glow's code: what the 3x3 neighbours say, the border included, times exp(3 log_scale)."""
    conv = moved(ZeroConv(2, 3, border))
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    padded = torch.full((2, 5, 6), border, dtype=torch.float64)
    padded[:, 1:-1, 1:-1] = x[0]
    want = torch.stack(
        [
            (conv.conv.weight * padded[:, i : i + 3, j : j + 3]).sum(dim=(1, 2, 3)) + conv.conv.bias
            for i in range(3)
            for j in range(4)
        ],
        dim=1,
    ).view(1, 3, 3, 4)
    want = want * (3 * conv.log_scale).exp()[:, None, None]
    torch.testing.assert_close(conv(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [ConvNet, ResNet, GatedNet])
def test_networks_start_at_zero_and_take_conditions(kind: type[nn.Module]) -> None:
    blocks = {} if kind is ConvNet else {"blocks": 1}
    network = kind(2, 4, 6, classes=3, context=1, **blocks)
    x, image = torch.rand(2, 2, 4, 4), torch.rand(2, 1, 4, 4)
    with refused(ConfigError, "condition"):
        network(x)
    plain = kind(2, 4, 6, classes=3, **blocks)
    assert not plain(x, torch.tensor([0, 2])).any()
    with refused(ConfigError, "condition", "int64", "[B]"):
        plain(x)
    seen = kind(2, 4, 6, context=1, **blocks)
    nn.init.normal_(seen.last.conv.weight)
    assert not torch.equal(seen(x, image), seen(x, 1 - image))
