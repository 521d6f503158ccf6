"""Twins of the style-based generators beside the reference networks: with fixed noise, without, with another one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastgen.fused.gan import fused
from fastgen.fused.onednn import OneDNNUp
from fastgen.fused.stylegan import (
    Blur,
    Doubling,
    FusedStyleGAN,
    FusedStyleGenerator,
    FusedStyleLayer,
    Styles,
    normalised,
)
from fastgen.fused.stylegan2 import Enlarged, FusedStyleGAN2, doubled, ends
from fastgen.models.gan.stylegan.layers import EqualizedLinear, blur, upfirdn, upsampled
from fastgen.models.gan.stylegan.stylegan import StyleGAN, StyleGANConfig, StyleLayer
from fastgen.models.gan.stylegan.stylegan2 import StyleGAN2, StyleGAN2Config, modulated_conv
from fastgen_kernels import use
from fastgen_kernels.op import interpreted
from tests.kernels import interpreter


@pytest.fixture
def kernel_device() -> torch.device:
    """Where the kernels run: in Triton's interpreter, corrected, unless there is a GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not interpreted():
        pytest.skip("TRITON_INTERPRET is not set: the kernels run on the GPU")
    interpreter.install()
    return torch.device("cpu")


SMALL = {"latent": 12, "w_dim": 10, "mapping_layers": 3}
FIRST = {**SMALL, "size": 20, "widths": (16, 9, 8), "out_channels": 3}
NETWORKS = {
    "stylegan": lambda: StyleGAN(StyleGANConfig(**FIRST)),
    "stylegan, labels, one noise": lambda: StyleGAN(
        StyleGANConfig(**FIRST, num_classes=4, shared_noise=True)
    ),
    "stylegan, of z, bias before the blur": lambda: StyleGAN(
        StyleGANConfig(**FIRST, input="latent", bias_before_blur=True, blur=(1, 3, 3, 1))
    ),
    "stylegan without a blur": lambda: StyleGAN(StyleGANConfig(**FIRST, blur=())),
    "stylegan2": lambda: StyleGAN2(StyleGAN2Config(**FIRST)),
    "stylegan2, labels, clamped": lambda: StyleGAN2(StyleGAN2Config(**FIRST, num_classes=4, clamp=2.0)),
    "stylegan2, one channel, not equalised": lambda: StyleGAN2(
        StyleGAN2Config(**SMALL, size=7, widths=(8,), out_channels=1, equalized=False, eps=0.5)
    ),
    "stylegan2, other filters": lambda: StyleGAN2(StyleGAN2Config(**FIRST, blur=(1, 2, 4))),
}
NOISES = ("const", "none", "random")


def network(name: str, seed: int = 0) -> nn.Module:
    """Of random weights, float64, none of which is 0 or 1."""
    torch.manual_seed(seed)
    made = NETWORKS[name]().double().eval()
    with torch.no_grad():
        for key, value in made.named_parameters():
            if key.endswith(("bias", "noise_strength", "const")):
                value.add_(torch.randn_like(value) * 0.3)
        made.w_mean.normal_()
    return made


def given(made: nn.Module, batch: int = 3):
    """z, and labels where it takes them."""
    classes = made.config.num_classes
    labels = None if classes is None else torch.arange(batch) % classes
    return torch.randn(batch, made.config.latent, dtype=torch.float64), labels


def noise_of(made: nn.Module, mode: str, batch: int = 3):
    if mode == "none":
        return None
    if mode == "const":
        return list(made.noises)
    return [torch.randn(batch, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


def test_which_networks_have_a_twin():
    assert type(fused(network("stylegan"))) is FusedStyleGAN
    assert type(fused(network("stylegan2"))) is FusedStyleGAN2

    class Mine(StyleGAN2):
        pass

    torch.manual_seed(0)
    own = Mine(StyleGAN2Config(**FIRST))
    assert fused(own) is own


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_float64(name, noise):
    """What is folded is the same but for float64's rounding; called twice, because something may be kept or changed."""
    plain = network(name)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    twin = fused(plain)
    z, labels = given(plain)
    added = noise_of(plain, noise)
    for psi in (1.0, torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64)):
        w, want = twin.mapping(z, labels), plain.mapping(z, labels)
        close(w, want)
        for cutoff in (None, 2):
            ws = twin.truncate(w, psi, cutoff)
            close(ws, plain.truncate(want, psi, cutoff))
            close(twin.synthesis(ws, added), plain.synthesis(ws, added))
    if noise == "const":
        close(twin(z, labels), plain(z, labels))
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_rounding(name, dtype):
    """Off the exact images by 1e-5 of them in float32, or twice what the reference in that type is off by.

    AdaIN and the norms pass errors on, so that the reference's own error is the measure.
    """
    exact = network(name)
    z, labels = given(exact)
    z = z.to(dtype)
    rounded = exact.to(dtype)
    noise = noise_of(rounded, "const")
    ws = rounded.truncate(rounded.mapping(z, labels), 0.7)
    plain, found = rounded.synthesis(ws, noise).double(), fused(rounded).synthesis(ws, noise).double()
    want = rounded.double().synthesis(ws.double(), [n.double() for n in noise])
    size = float(want.abs().max())
    error, own = (float((x - want).abs().max()) / size for x in (found, plain))
    print(name, dtype, f"{error:.1e} {own:.1e}")
    least = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert error <= max(least, 2 * own)


@torch.no_grad()
def test_mixed_styles():
    """Unlike styles for each layer, and equal ones that are no view of one."""
    plain = network("stylegan2")
    twin = fused(plain)
    z, _ = given(plain)
    ws = plain.mapping(z)[:, None].repeat(1, plain.num_ws, 1)
    close(twin.synthesis(ws, None), plain.synthesis(ws, None))
    ws[:, 2:] = plain.mapping(-z)[:, None]
    close(twin.synthesis(ws, None), plain.synthesis(ws, None))


@torch.no_grad()
def test_styles():
    torch.manual_seed(0)
    maps = [EqualizedLinear(6, n, lr_multiplier=0.1, bias=1.0).double() for n in (3, 5, 2)]
    styles = Styles([(maps[0], 0), (maps[1], 2), (maps[2], 1)])
    ws = torch.randn(4, 3, 6, dtype=torch.float64)
    for found, layer, i in zip(styles(ws), maps, (0, 2, 1), strict=True):
        close(found, layer(ws[:, i]))
    one = ws[:, :1].expand(-1, 3, -1)
    for found, layer in zip(styles(one), maps, strict=True):
        close(found, layer(ws[:, 0]))


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 3, 3, 1), (1, 5), (2,), (1, 2, 3, 4, 5, 6, 7)])
@torch.no_grad()
def test_filters(taps):
    """Lopsided ones show whether they are mirrored."""
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    made = Blur(taps, 3, len(taps) // 2, (len(taps) - 1) // 2, x)
    close(made(x), blur(x, taps))
    close(Enlarged(taps, 3, x)(x), upsampled(x, taps))
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    both = Blur(taps, 4, *ends(len(taps), 3), x, gain=4.0)(doubled(weight)(x))
    close(
        both,
        modulated_conv(
            x, weight, torch.ones(2, 3, dtype=torch.float64), demodulate=False, up=True, blur=taps
        ),
    )
    close(
        both,
        upfirdn(
            F.conv_transpose2d(x, weight.transpose(0, 1), stride=2),
            taps,
            padding=ends(len(taps), 3),
            gain=4.0,
        ),
    )


@torch.no_grad()
def test_doubling():
    """A convolution of doubled pixels as a transposed one, also beside oneDNN's."""
    torch.manual_seed(0)
    layer = StyleLayer(6, 5, "up", StyleGANConfig(**FIRST)).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    weight, _ = layer.conv.effective()
    want = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    close(Doubling(weight, None)(x), want)
    twin = FusedStyleLayer(layer.float(), torch.zeros(1, 1, 6, 8), False)
    if isinstance(twin.conv, OneDNNUp):  # where this PyTorch has oneDNN
        close(twin.conv(x.float()).double(), want, 1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_statistics_by_products(layout):
    torch.manual_seed(0)
    x = (torch.randn(2, 5, 6, 7, dtype=torch.float64) * 3 + 50).contiguous(memory_format=layout)
    scale, shift = torch.randn(2, 2, 5, dtype=torch.float64)
    want = scale[..., None, None] * F.instance_norm(x, eps=1e-8) + shift[..., None, None]
    close(normalised(x.clone(), scale, shift, 1e-8), want, 1e-12)
    # A large mean costs no digits: deviations are squared, not pixels.
    found = normalised(x.float() + 4e3, scale.float(), shift.float(), 1e-8).double()
    close(found, want, 1e-3)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_what_a_gpu_runs(name, noise):
    """The layers that are operations, in float64, where they run in PyTorch."""
    plain = network(name)
    made = (FusedStyleGAN if isinstance(plain, StyleGAN) else FusedStyleGAN2)(plain, kernels=True).eval()
    z, labels = given(plain)
    ws, added = plain.truncate(plain.mapping(z, labels), 0.7, 2), noise_of(plain, noise)
    for _ in range(2):
        close(made.synthesis(ws, added), plain.synthesis(ws, added))


@pytest.mark.parametrize("name", ["stylegan", "stylegan2"])
@torch.no_grad()
def test_by_triton(kernel_device, name):
    """The same of float32, by the kernels."""
    plain = network(name).float().to(kernel_device)
    made = (FusedStyleGAN if isinstance(plain, StyleGAN) else FusedStyleGAN2)(plain, kernels=True).eval()
    ws = plain.truncate(plain.mapping(torch.randn(1, 12, device=kernel_device)), 0.7)
    noise = list(plain.noises)
    with use("triton"):
        found = made.synthesis(ws, noise)
    exact = plain.double().synthesis(ws.double(), [n.double() for n in noise])
    close(found.double(), exact, 1e-5)


def test_a_generator_keeps_its_parts():
    plain = network("stylegan2")
    twin = fused(plain)
    assert isinstance(twin, FusedStyleGenerator)
    assert twin.num_ws == plain.num_ws
    assert twin.noise_shapes == plain.noise_shapes
    assert not any(p.requires_grad for p in twin.parameters())
