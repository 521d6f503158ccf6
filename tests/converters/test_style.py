"""pytorch-AdaIN's and MicroAST's files: layouts written here of PyTorch's own modules, converted, the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.converters import CONVERTERS, build, detect
from fastgen.converters.style.adain import open_encoder
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused


def mean_std(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((2, 3), keepdim=True), (x.var((2, 3), keepdim=True) + 1e-5).sqrt()


def adaptive(x: Tensor, style: Tensor, alpha: float) -> Tensor:
    (mean, std), (other_mean, other_std) = mean_std(x), mean_std(style)
    return alpha * ((x - mean) / std * other_std + other_mean) + (1 - alpha) * x


def filled(module: nn.Module) -> nn.Module:
    """Random weights of a size that passes through the layers."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.normal_(conv.weight, 0.0, (2 / conv.weight[0].numel()) ** 0.5)
            assert conv.bias is not None
            nn.init.normal_(conv.bias, 0.0, 0.1)
    return module.double().requires_grad_(False).eval()


def conv3(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d((1, 1, 1, 1)), nn.Conv2d(inputs, outputs, 3), nn.ReLU()]


def vgg(a: int, b: int, c: int, d: int) -> nn.Sequential:
    """The encoder, with a layer behind relu4_1 as the whole VGG has."""
    pool = nn.MaxPool2d(2, 2, 0, ceil_mode=True)
    layers = [nn.Conv2d(3, 3, 1), *conv3(3, a), *conv3(a, a), pool, *conv3(a, b), *conv3(b, b), pool]
    layers += [*conv3(b, c), *conv3(c, c), *conv3(c, c), *conv3(c, c), pool, *conv3(c, d), *conv3(d, d)]
    return nn.Sequential(*layers)


def mirrored(a: int, b: int, c: int, d: int) -> nn.Sequential:
    """The decoder."""
    up = nn.Upsample(scale_factor=2, mode="nearest")
    layers = [*conv3(d, c), up, *conv3(c, c), *conv3(c, c), *conv3(c, c), *conv3(c, b), up]
    layers += [*conv3(b, b), *conv3(b, a), up, *conv3(a, a), *conv3(a, 3)[:-1]]
    return nn.Sequential(*layers)


def write_adain(folder: Path) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The files, and the authors' function."""
    torch.manual_seed(0)
    widths = 4, 6, 8, 10
    encoder, decoder = filled(vgg(*widths)), filled(mirrored(*widths))
    folder.mkdir()
    torch.save(encoder.state_dict(), folder / "vgg_normalised.pth")
    torch.save(decoder.state_dict(), folder / "decoder.pth")
    cut = encoder[:31]  # up to relu4_1
    return lambda content, style, alpha: decoder(adaptive(cut(content), cut(style), alpha))


class Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reflection_pad = nn.ReflectionPad2d(size // 2)
        self.conv_layer = nn.Conv2d(inputs, outputs, size, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_layer(self.reflection_pad(x))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Layer(channels, channels, 3), Layer(channels, channels, 3)

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if weight is None:
            return x + self.conv2(self.conv1(x).relu())
        inner = (weight * self.conv1(x) + bias * x).relu()
        return x + weight * self.conv2(inner) + bias * inner


class Encoder(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for shape in ((3, n, 9), (n, 2 * n, 3, 2, n), (2 * n, 2 * n, 1), (2 * n, 4 * n, 3, 2, 2 * n)):
            layers += [Layer(*shape), nn.ReLU()]
        self.enc1 = nn.Sequential(*layers, Layer(4 * n, 4 * n, 1), nn.ReLU(), Block(4 * n))
        self.enc2 = nn.Sequential(Block(4 * n))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.enc1(x)
        return first, self.enc2(first)


class Modulator(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        for name in ("weight1", "bias1", "weight2", "bias2"):
            layer = nn.Sequential(Layer(4 * n, 4 * n, 3, 1, 4 * n), nn.AdaptiveAvgPool2d(1))
            setattr(self, name, layer)


class Decoder(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.dec1, self.dec2 = Block(4 * n), Block(4 * n)
        up = nn.Upsample(scale_factor=2, mode="bilinear")
        layers: list[nn.Module] = [up, Layer(4 * n, 2 * n, 3, 1, 2 * n), nn.ReLU(), Layer(2 * n, 2 * n, 1)]
        layers += [nn.ReLU(), up, Layer(2 * n, n, 3, 1, n), nn.ReLU(), Layer(n, n, 1), nn.ReLU()]
        self.dec3 = nn.Sequential(*layers, Layer(n, 3, 9))


def write_microast(folder: Path) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The files, and the authors' function."""
    torch.manual_seed(0)
    n = 4
    names = "content_encoder", "style_encoder", "modulator", "decoder"
    parts = [filled(part) for part in (Encoder(n), Encoder(n), Modulator(n), Decoder(n))]
    folder.mkdir()
    for name, part in zip(names, parts, strict=True):
        torch.save(part.state_dict(), folder / f"{name}_iter_160000.pth.tar")
    content_encoder, style_encoder, modulator, decoder = parts

    def stylised(content: Tensor, style: Tensor, alpha: float) -> Tensor:
        first, last = style_encoder(style)
        x = adaptive(content_encoder(content)[1], last, alpha)
        x = decoder.dec1(x, modulator.weight2(last), modulator.bias2(last))  # type: ignore[operator, union-attr]
        x = adaptive(x, first, alpha)
        x = decoder.dec2(x, modulator.weight1(first), modulator.bias1(first))  # type: ignore[operator, union-attr]
        return decoder.dec3(x)  # type: ignore[operator, union-attr]

    return stylised


SOURCES = {"pytorch-adain": write_adain, "microast": write_microast}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_same_pictures(source: str, tmp_path: Path) -> None:
    theirs = SOURCES[source](tmp_path / "m")
    converter = detect(tmp_path / "m")
    assert converter is not None
    assert converter.name == source
    converted = converter.read(tmp_path / "m")
    ours = build(converted, torch.float64)["network"]
    generator = torch.Generator().manual_seed(1)
    content, style = (torch.rand(2, 3, *size, generator=generator).double() for size in ((45, 62), (37, 90)))
    for alpha in (1.0, 0.4, 0.0):
        want = theirs(content, style, alpha)[:, :, :45, :62]
        found = ours(content, style, alpha)
        assert float((found - want).abs().max() / want.abs().max()) < 1e-12
    assert ("32.weight" in str(converted.report.ignored)) == (source == "pytorch-adain")


def test_loaded_and_converted(source: str, tmp_path: Path) -> None:
    SOURCES[source](tmp_path / "m")
    content = torch.rand(1, 3, 30, 41) * 2 - 1
    found = fastgen.load(tmp_path / "m", device="cpu").stylize(content, content)
    fastgen.convert(tmp_path / "m", tmp_path / "ours")
    assert torch.equal(fastgen.load(tmp_path / "ours", device="cpu").stylize(content, content), found)


def test_a_part_that_is_missing(source: str, tmp_path: Path) -> None:
    SOURCES[source](tmp_path / "m")
    for file in sorted((tmp_path / "m").iterdir()):
        kept = file.read_bytes()
        file.unlink()
        with refused(CheckpointError, tmp_path / "m"):
            fastgen.load(tmp_path / "m", device="cpu")
        file.write_bytes(kept[: len(kept) // 2])  # a download that broke off
        with refused(CheckpointError, tmp_path / "m"):
            fastgen.load(tmp_path / "m", device="cpu")
        file.write_bytes(kept)
    fastgen.load(tmp_path / "m", device="cpu")


def test_a_part_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_adain(tmp_path / "m")
    decoder = tmp_path / "m/decoder.pth"
    decoder.write_bytes(decoder.read_bytes()[:1000])
    with refused(CheckpointError, tmp_path / "m", "decoder.pth"):
        fastgen.load(tmp_path / "m", device="cpu")
    with refused(CheckpointError, tmp_path / "m", "decoder.pth"):
        CONVERTERS["pytorch-adain"].read(tmp_path / "m")


def test_an_encoder_that_is_not_there(tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "nope.pth"):
        open_encoder(tmp_path / "nope.pth")


def test_a_part_that_is_there_twice(tmp_path: Path) -> None:
    write_adain(tmp_path / "m")
    (tmp_path / "m/decoder_iter_10.pth").write_bytes((tmp_path / "m/decoder.pth").read_bytes())
    with refused(CheckpointError, tmp_path / "m", "decoder_iter_10.pth", "decoder.pth"):
        fastgen.load(tmp_path / "m", device="cpu")


def test_tensors_that_do_not_fit(source: str, tmp_path: Path) -> None:
    SOURCES[source](tmp_path / "m")
    file = next(file for file in sorted((tmp_path / "m").iterdir()) if "decoder" in file.name)
    state = torch.load(file, weights_only=True)
    name = next(name for name in state if name.endswith("weight"))
    torch.save({**state, name: state[name][:, 1:]}, file)
    with refused(CheckpointError, tmp_path / "m"):
        fastgen.load(tmp_path / "m", device="cpu")


def test_what_is_assumed_is_refused(source: str, tmp_path: Path) -> None:
    SOURCES[source](tmp_path / "m")
    with refused(ConfigError, "assume", "channels"):
        fastgen.load(tmp_path / "m", device="cpu", assume={"channels": 3})
