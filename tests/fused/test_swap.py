"""Twins of U-Nets, of sequences with folded weights, and the layouts they keep."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import fastgen
from fastgen import DiffusionEngine
from fastgen.fused import blocks, onednn, small
from fastgen.fused.blocks import FusedNorm, FusedResidual, PlainNorm
from fastgen.fused.folding import folded
from fastgen.fused.onednn import OneDNNConv, OneDNNJoined, OneDNNUp
from fastgen.fused.small import SmallHalf
from fastgen.fused.swap import census, convolutions, swap
from fastgen.fused.twin import Twin
from fastgen.fused.unet import FusedUNet
from fastgen.models.blocks import NormAct, ResidualBlock
from fastgen.models.resample import Upsample
from fastgen.models.unet import UNet, UNetConfig
from fastgen_kernels import use
from tests.small import SCHEDULE, TinyNet, checkpoint

from ..models.unet_configs import CONFIGS

MODULES = {name: CONFIGS[name] for name in CONFIGS}
LAYOUTS = (torch.channels_last, torch.contiguous_format)


def build(options: dict[str, Any]) -> tuple[UNet, tuple[Tensor, Tensor, Tensor | None]]:
    """A float64 network with weights that are all at work, and its inputs."""
    size = options["sample_size"]
    torch.manual_seed(0)
    config = UNetConfig(**{**options, "sample_size": (size, size) if isinstance(size, int) else size})
    network = UNet(config).eval().requires_grad_(False).double()
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    x = torch.randn(3, config.in_channels, *config.sample_size, dtype=torch.float64)
    label = None
    if config.num_class_embeds:
        label = torch.tensor([0, 1, 0])
    elif config.class_embed_type == "timestep":
        label = torch.tensor([1, 2, 3])
    elif config.class_embed_type == "identity":
        label = torch.randn(3, config.emb_channels, dtype=torch.float64)
    return network, (x, torch.tensor([1.0, 5.0, 7.0], dtype=torch.float64), label)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_swapped_network_is_the_same_function(name: str, layout: torch.memory_format) -> None:
    network, (x, t, label) = build(MODULES[name])
    want = network(x, t, label)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    fast = swap(network.to(memory_format=layout))
    assert isinstance(fast, FusedUNet)
    given = x.contiguous(memory_format=layout)
    for _ in range(2):  # nothing is kept from the first call that the second could spoil
        # Of sums in another order, each of some thousand terms.
        torch.testing.assert_close(fast(given, t, label), want, rtol=1e-11, atol=1e-12)
    assert torch.equal(given, x)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_time_and_label_come_in_by_a_table(name: str) -> None:
    network, (x, t, label) = build(MODULES[name])
    fast = swap(network)
    assert isinstance(fast, FusedUNet)
    table = torch.cat(
        [fast.condition(t[i : i + 1], None if label is None else label[i : i + 1], x.dtype) for i in range(3)]
    )
    assert table.shape == (3, fast.width)
    torch.testing.assert_close(fast.denoise(x, table, t), network(x, t, label), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_in_low_precision_it_is_as_near_to_float64_as_the_plain_network(dtype: torch.dtype) -> None:
    """Each rounds in its own places, so each by itself: at most twice as far."""
    network, (x, t, label) = build(CONFIGS["attention down and up, two layers, shifted sinusoids"])
    low = copy.deepcopy(network).to(dtype, memory_format=torch.channels_last)
    exact = copy.deepcopy(low).double()
    inputs = x.to(dtype).contiguous(memory_format=torch.channels_last)
    want = exact(inputs.double(), t, label)
    plain, fast = (
        (run(inputs, t.float(), label).double() - want).square().mean().sqrt() for run in (low, swap(low))
    )
    assert fast <= 2 * plain


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_the_way_of_small_batches_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the operation is its formula in PyTorch: what is looked at is who gives it what."""
    for module in (small, blocks):
        monkeypatch.setattr(module, "DEVICES", ("cpu",))
    network, (x, t, label) = build(MODULES[name])
    fast = swap(network)
    called: list[nn.Module] = []
    for module in fast.modules():
        if isinstance(module, SmallHalf):
            module.register_forward_hook(lambda module, given, result: called.append(module))
    for _ in range(2):
        torch.testing.assert_close(fast(x, t, label), network(x, t, label), rtol=1e-11, atol=1e-12)
    silu = (
        network.config.act_fn in ("silu", "swish") and "KDownBlock2D" not in network.config.down_block_types
    )
    assert bool(called) == silu
    called.clear()
    monkeypatch.setattr(small, "SMALL_PIXELS", 0)
    fast(x, t, label)
    assert not called


@torch.no_grad()
def test_every_block_of_the_usual_u_net_is_fused() -> None:
    network, _ = build(CONFIGS["attention down and up, two layers, shifted sinusoids"])
    counts = census(swap(network.float()))
    assert counts["fused"]["FusedResidual"] == sum(isinstance(m, ResidualBlock) for m in network.modules())
    assert set(counts["plain"]) == {"Sinusoids", "Linear", "SummedLinear"}


@torch.no_grad()
def test_parameters_are_shared() -> None:
    network, (x, t, label) = build(CONFIGS["classes"])
    fast = swap(network)
    before = fast(x, t, label)
    network.conv_in.bias += 1.0
    assert not torch.equal(fast(x, t, label), before)


def test_hooks_and_subclasses_stay_as_they_are() -> None:
    network, _ = build(CONFIGS["classes"])
    block = network.down_blocks[0].resnets[0]
    block.conv1.register_forward_hook(lambda module, given, result: 2 * result)

    class Own(NormAct):
        def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
            return super().forward(x) + 1

    network.mid_block.resnets[0].norm1.__class__ = Own
    fast = swap(network)
    assert isinstance(fast, FusedUNet)
    assert fast.down_blocks[0].resnets[0] is block
    assert fast.mid_block.resnets[0] is network.mid_block.resnets[0]
    assert isinstance(fast.mid_block.resnets[1], FusedResidual)
    network.register_forward_hook(lambda module, given, result: result)
    assert swap(network) is network
    own = nn.GroupNorm(1, 2)
    assert swap(own) is own


def test_global_hooks_are_called_for_every_module(tmp_path: Path) -> None:
    engine = fastgen.load(checkpoint(tmp_path / "m"), device="cpu", graph=False)
    names = {module: name for name, module in engine.network.named_modules()}
    convs = {name for module, name in names.items() if isinstance(module, nn.Conv2d)}
    want, called = engine.sample(1, seed=0, steps=2), []
    assert isinstance(engine.fused, FusedUNet)
    hook = register_module_forward_hook(lambda module, given, result: called.append(names.get(module)))
    try:
        engine.refresh()
        assert engine.fused is engine.network
        assert not engine.describe()["blocks"]["fused"]
        assert engine.describe()["convolutions"].startswith("PyTorch's")
        called.clear()
        # Two evaluations, each off by roundings of float32 in sums of other orders.
        torch.testing.assert_close(engine.sample(1, seed=0, steps=2), want, rtol=0, atol=1e-4)
        assert len(convs) > 10
        assert convs < set(called)
    finally:
        hook.remove()
    before = register_module_forward_pre_hook(lambda module, given: None)
    try:
        assert swap(engine.network) is engine.network
    finally:
        before.remove()
    engine.refresh()
    assert isinstance(engine.fused, FusedUNet)
    assert torch.equal(engine.sample(1, seed=0, steps=2), want)


def test_whose_convolutions_run() -> None:
    """A network without a twin calls PyTorch's, whatever oneDNN can."""
    own = DiffusionEngine.from_module(TinyNet(), SCHEDULE, "v_prediction", (1, 4, 4), device="cpu")
    assert own.describe()["convolutions"].startswith("PyTorch's")
    network = build(CONFIGS["classes"])[0].float()
    said = convolutions(swap(network), torch.device("cpu"), torch.float32)
    assert (said == "oneDNN's own calls") == (onednn.why_not(torch.float32) is None)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
@torch.no_grad()
def test_upsampling_as_a_transposed_convolution(size: tuple[int, int]) -> None:
    if (reason := onednn.why_not(torch.float32)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    block = Upsample(6).eval().requires_grad_(False)
    fast = OneDNNUp(block)
    for batch in (1, 3):
        x = torch.randn(batch, 6, *size).contiguous(memory_format=torch.channels_last)
        exact = copy.deepcopy(block).double()
        bound = copy.deepcopy(exact)
        for parameter in bound.parameters():
            parameter.abs_()
        # 54 products in whatever order, of filters that are sums rounded once.
        allowed = 56 * 2.0**-24 * bound(x.double().abs())
        assert ((fast(x).double() - exact(x.double())).abs() <= allowed).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_onednns_sum_is_the_plain_one(stride: int, groups: int, dtype: torch.dtype) -> None:
    if (reason := onednn.why_not(dtype)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, stride, 1, groups=groups).to(dtype)
    fast = OneDNNConv(conv, prepacked=True)
    for batch, size in ((2, (6, 5)), (1, (6, 5)), (3, (7, 4))):  # another size than it was packed for
        x = torch.randn(batch, 6, *size).to(dtype).contiguous(memory_format=torch.channels_last)
        exact = copy.deepcopy(conv).double()(x.double())
        residual = torch.randn(exact.shape).to(dtype).contiguous(memory_format=torch.channels_last)
        exact += residual.double()
        magnitude = copy.deepcopy(conv).double()
        for parameter in magnitude.parameters():
            parameter.abs_()
        sums = magnitude(x.double().abs()) + residual.double().abs()
        u = torch.finfo(dtype).eps / 2
        bound = 1.01 * u * exact.abs() + (56 * 2.0**-24 + 1.01 * u) * sums
        for got in (fast(x, residual), fast.plain(x, residual)):
            assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parts", [(6,), (4, 2), (1, 5)])
@torch.no_grad()
def test_a_shortcut_of_two_images(
    parts: tuple[int, ...], bias: bool, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As matrix products and as oneDNN's calls: within what float32 rounds of 7 terms."""
    if (reason := onednn.why_not(torch.float32)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 5, 1, bias=bias)
    images = [torch.randn(2, part, 3, 5).contiguous(memory_format=layout) for part in parts]
    exact, magnitude = copy.deepcopy(conv).double(), copy.deepcopy(conv).double()
    for parameter in magnitude.parameters():
        parameter.abs_()
    both = torch.cat(images, 1).double()
    bound = 8 * 2.0**-24 * magnitude(both.abs())
    for limit in (onednn.PRODUCT, 0):
        monkeypatch.setattr(onednn, "PRODUCT", limit)
        got = OneDNNJoined(conv)(*images)
        assert got.shape == (2, 5, 3, 5)
        assert ((got.double() - exact(both)).abs() <= bound).all()


@torch.no_grad()
def test_an_operator_that_has_changed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_convolution_pointwise", "_convolution_transpose_pointwise"):
        with monkeypatch.context() as patch:
            right = getattr(torch.ops.mkldnn, name)
            patch.setattr(torch.ops.mkldnn, name, lambda *given, right=right: right(*given) + 1)
            assert onednn.why_not.__wrapped__(torch.float32) is not None
            patch.setattr(torch.ops.mkldnn, name, lambda *given: (_ for _ in ()).throw(TypeError("no")))
            assert torch.__version__ in onednn.why_not.__wrapped__(torch.float32)
    assert "float64" in onednn.why_not.__wrapped__(torch.float64)


@pytest.mark.parametrize("act", ["silu", "mish", "gelu", None])
@torch.no_grad()
def test_the_fused_norm_on_both_paths(act: str | None) -> None:
    torch.manual_seed(0)
    norm = NormAct(3, 9, act=act)
    fused = FusedNorm(norm)
    x, skip, add = torch.randn(2, 5, 3, 2), torch.randn(2, 4, 3, 2), torch.randn(2, 9)
    scale, shift = torch.randn(2, 18).chunk(2, 1)
    want = PlainNorm.of(norm).double()(
        x.double(), scale.double(), shift.double(), skip=skip.double(), add=add.double()
    )
    norm.float()
    got = fused(x, scale, shift, skip=skip, add=add)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    with use("reference"):
        torch.testing.assert_close(fused(x, scale, shift, skip=skip, add=add), got, rtol=1e-5, atol=1e-5)


def norms(*layers: nn.Module) -> list[nn.Module]:
    for layer in layers:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return list(layers)


def sequences() -> dict[str, tuple[list[nn.Module], Tensor, int]]:
    weight_norm, spectral_norm = (
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    )
    image, row = torch.randn(2, 3, 6, 5), torch.randn(2, 3)
    return {
        "convolution, batch norm, ReLU": (
            norms(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()), image, 2,
        ),
        "transposed convolution, batch norm": (
            norms(nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4, affine=False), nn.LeakyReLU(0.2)), image, 2,
        ),
        "linear, batch norm": (norms(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.SiLU()), row, 2),
        "weight norm": ([weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU()], image, 2),
        "spectral norm, batch norm": (
            norms(spectral_norm(nn.Conv2d(3, 4, 3, 2)), nn.BatchNorm2d(4), nn.ReLU()), image, 2,
        ),
        "batch statistics stay": ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)], image, 2),
        "norm first": (norms(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)), image, 2),
    }  # fmt: skip


@pytest.mark.parametrize("name", sequences())
@torch.no_grad()
def test_folded_sequences(name: str) -> None:
    torch.manual_seed(0)
    layers, x, _ = sequences()[name]
    plain = nn.Sequential(*layers).eval().requires_grad_(False)
    plain(x)  # spectral norm's vectors are what they are from here on
    want = copy.deepcopy(plain).double()(x.double())
    fast = swap(plain)
    given = x.clone()
    assert_near(fast(given), want)
    assert torch.equal(given, x)
    kept = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fast)
    assert kept == (name in ("batch statistics stay", "norm first"))
    assert len(folded(plain)) == len(plain) - (("batch norm" in name) and not kept)
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in fast.modules())


def assert_near(got: Tensor, want: Tensor) -> None:
    """As float32 sums of some tens of products of size 1."""
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_a_twin_keeps_its_plain_form_out_of_its_modules() -> None:
    plain = nn.Linear(2, 2)
    assert Twin(plain).plain is plain
    assert not list(Twin(plain).children())
