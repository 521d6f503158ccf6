"""Twins of coupling networks, and convolutions by oneDNN's own call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastgen.fused.networks import FusedZeroConv, sequential, twin
from fastgen.fused.onednn import Convolution, OneDNNConv, takes
from fastgen.models.flow.networks import ConvNet, GatedNet, ResNet, ZeroConv
from fastgen.models.flow.vector_networks import MLP, ResidualMLP

NETWORKS = {
    "conv": lambda: ConvNet(3, 4, 8),
    "conv, actnorm, border": lambda: ConvNet(3, 4, 8, "leaky_relu", 0.0, True, 1.0),
    "conv, classes": lambda: ConvNet(3, 4, 8, "elu", classes=3),
    "conv, context, gelu": lambda: ConvNet(3, 4, 8, "gelu", scaled=False, context=2),
    "resnet": lambda: ResNet(3, 4, 8, 2, "leaky_relu", 0.2),
    "gated": lambda: GatedNet(3, 4, 8, 2),
    "mlp": lambda: MLP(3, 4, (8, 8), "silu"),
    "residual mlp": lambda: ResidualMLP(3, 4, 8, 2, context=2),
}


def build(name: str, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    network = NETWORKS[name]().to(dtype).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    vector = "mlp" in name
    x = torch.randn(5, 3, dtype=dtype) if vector else torch.randn(5, 3, 6, 4, dtype=dtype)
    condition = None
    if "classes" in name:
        condition = torch.tensor([0, 1, 2, 1, 0])
    elif "context" in name or "residual" in name:
        condition = torch.randn(5, 2, dtype=dtype) if vector else torch.randn(5, 2, 6, 4, dtype=dtype)
    return network, x, condition


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_twin_computes_the_same_and_leaves_its_input_alone(name: str) -> None:
    network, x, condition = build(name, torch.float64)
    given, fast = x.clone(), twin(network)
    want = network(x, condition)
    for _ in range(2):  # nothing is kept from the first call that the second could spoil
        torch.testing.assert_close(fast(given, condition), want, rtol=1e-13, atol=1e-13)
    assert torch.equal(given, x)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_twin_shares_the_parameters(name: str) -> None:
    network, x, condition = build(name, torch.float64)
    fast = twin(network)
    before = fast(x, condition)
    own = {p.data_ptr() for p in network.parameters()}
    biases = [p for n, p in fast.named_parameters() if n.endswith("bias")]
    assert biases
    assert all(p.data_ptr() in own for p in biases)
    for bias in biases:
        bias += 0.5
    torch.testing.assert_close(network(x, condition), fast(x, condition), rtol=1e-13, atol=1e-13)
    assert not torch.equal(before, fast(x, condition))


@pytest.mark.parametrize("border", [0.0, 1.0, 0.3])
@torch.no_grad()
def test_a_border_is_added_for_every_size(border: float) -> None:
    torch.manual_seed(0)
    block = ZeroConv(3, 5, border).double()
    for parameter in block.parameters():
        parameter += torch.randn_like(parameter)
    fused = FusedZeroConv(block)
    for size in ((4, 4), (1, 1), (2, 7), (4, 4)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(fused(x), block(x), rtol=1e-13, atol=1e-13)


DTYPES = [
    dtype for dtype in (torch.float32, torch.bfloat16, torch.float16) if takes(nn.Conv2d(1, 1, 1).to(dtype))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(6, 32, 3), (32, 32, 1), (32, 12, 3), (1, 5, 3)])
@torch.no_grad()
def test_onednns_convolution_is_the_plain_one(
    dtype: torch.dtype, rectified: bool, inputs: int, outputs: int, size: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2).to(dtype)
    packed = OneDNNConv(conv, rectified)
    for batch in (2, 1, 9):
        wide = torch.randn(batch, 2 * inputs, 8, 6).to(dtype).contiguous(memory_format=torch.channels_last)
        x = wide[:, :inputs]
        exact = conv.double()(x.double())
        conv.to(dtype)
        exact = exact.relu() if rectified else exact
        magnitude = copy.deepcopy(conv).double()
        for parameter in magnitude.parameters():
            parameter.abs_()
        # One rounding of the result, and float32 sums of so many products.
        bound = torch.finfo(dtype).eps * exact.abs() + inputs * size**2 * 2.0**-23 * magnitude(
            x.double().abs()
        )
        assert ((packed(x).double() - exact).abs() <= bound).all()
        assert ((packed.plain(x).double() - exact).abs() <= bound).all()
    assert isinstance(packed.plain, Convolution)
    assert packed.plain.rectified == rectified
    assert packed.plain.weight is conv.weight


def test_only_plain_convolutions_are_taken() -> None:
    plain = nn.Conv2d(2, 2, 3)
    assert takes(plain) == torch.backends.mkldnn.is_available()
    assert not takes(plain.double())
    for odd in (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Linear(2, 2),
    ):
        assert not takes(odd)


class Own(nn.Module):
    """A network of a user's, which looks into its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 1))

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        first, act, last = self.blocks
        y = nn.functional.conv2d(x, first.weight, first.bias, first.stride, first.padding)
        return act(y) + y + last(x) + self.blocks[2](y)


class Doubled(MLP):
    """A subclass of a network of ours."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        return self.layers[0](x).sum() + self.layers(x)


def hooked() -> nn.Module:
    network = ConvNet(3, 4, 8)
    network.first.register_forward_hook(lambda module, given, result: 3 * result)
    return network


def old_weight_norm() -> nn.Module:
    network = ConvNet(3, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(network.inner[1])
    return network


def new_weight_norm() -> nn.Module:
    network = ConvNet(3, 4, 8)
    nn.utils.parametrizations.weight_norm(network.inner[1])
    return network


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "of a user": Own,
    "a subclass": lambda: Doubled(3, 4, (8,)),
    "hooks": hooked,
    "weight norm of torch.nn.utils": old_weight_norm,
    "parametrised": new_weight_norm,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OTHERS)
@torch.no_grad()
def test_other_networks_run_as_they_are(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = OTHERS[name]().to(dtype)
    for parameter in network.parameters():
        parameter += torch.randn_like(parameter).to(dtype) * 0.3
    x = (torch.randn(2, 3) if name == "a subclass" else torch.randn(2, 3, 5, 5)).to(dtype)
    given = x.clone()
    if name == "parametrised":  # the other convolutions are rewritten: some roundings of values of size 10
        tolerance = 40 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            twin(network)(given), network(x), rtol=0, atol=tolerance, check_dtype=False
        )
    else:
        assert twin(network) is network
    assert torch.equal(twin(network)(given), twin(network)(x))
    assert torch.equal(given, x)


@torch.no_grad()
def test_activations_leave_the_callers_tensor_alone() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    for blocks in ([nn.Identity(), nn.ReLU()], [nn.ELU()], [nn.Identity(), nn.SiLU()]):
        sequential(nn.Sequential(*blocks))(x)
        assert torch.equal(x, torch.tensor([[-1.0, 2.0]]))


def test_a_convolution_that_is_more_than_one_is_not_taken() -> None:
    conv = nn.Conv2d(2, 2, 3)
    conv.register_forward_pre_hook(lambda module, given: None)
    assert not takes(conv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert not takes(nn.utils.weight_norm(nn.Conv2d(2, 2, 3)))
