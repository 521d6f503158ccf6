"""The engine of super-resolution: tiles, sizes, types, seams, overflow, and memory."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgen.engines.upscale import UpscaleEngine
from fastgen.engines.upscale.tiles import Tiling, axis
from fastgen.errors import ConfigError, OutOfMemoryError
from fastgen.fused import activated
from tests.models.test_upscale import SMALL, small
from tests.refusals import refused

# A few layers of sums of some hundreds of products of about 1, in other orders, of images in [-1, 1].
CLOSE = 1e-5


def engine(name: str = "srresnet x2", **options: Any) -> UpscaleEngine:
    return UpscaleEngine(small(name), device="cpu", **options)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", SMALL)
def test_exact_tiles_are_the_whole_image(name: str) -> None:
    """Of sizes that no tile divides, and that the network's input must be padded from."""
    made, x = engine(name), images(3, 61, 83)
    whole = made.upscale(x, tile=None)
    assert whole.shape == (3, 61 * made.upscaler.scale, 83 * made.upscaler.scale)
    for tile in (8, 19):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tiled = made.upscale(x, tile=tile, tile_overlap="exact")
        torch.testing.assert_close(tiled, whole, rtol=0, atol=CLOSE)
    assert made.last["exact"]
    plain = (small(name)(padded(x, made.upscaler.multiple)[None] / 2 + 0.5) * 2 - 1).clamp(-1, 1)[0]
    wanted = plain[:, : whole.shape[1], : whole.shape[2]].detach()
    torch.testing.assert_close(whole, wanted, rtol=0, atol=CLOSE)


def padded(x: Tensor, multiple: int) -> Tensor:
    height, width = x.shape[1:]
    more = (0, -width % multiple, 0, -height % multiple)
    return torch.nn.functional.pad(x, more, mode="reflect")


@pytest.mark.parametrize("length", [1, 7, 40, 41, 97, 256, 1001])
@pytest.mark.parametrize(("tile", "halo", "multiple"), [(8, 3, 1), (16, 8, 2), (20, 4, 4), (64, 1, 1)])
def test_windows_cover_an_axis(length: int, tile: int, halo: int, multiple: int) -> None:
    length = -(-length // multiple) * multiple
    found = axis(length, Tiling(tile, halo, True), multiple)
    at = 0
    for span in found.spans:
        end = span.start + found.window
        assert 0 <= span.start <= span.begin == at < span.end <= end <= length
        assert span.start % multiple == found.window % multiple == 0
        assert span.start == 0 or span.begin - span.start >= halo
        assert end == length or end - span.end >= halo
        at = span.end
    assert at == length
    assert found.window <= max(tile + 2 * halo + multiple + 3, length if len(found.spans) == 1 else 0)


def test_seams_are_measured() -> None:
    made, x = engine(), images(3, 50, 70)
    whole = made.upscale(x, tile=None)
    with pytest.warns(UserWarning, match="tile_overlap"):
        tiled = made.upscale(x, tile=16, tile_overlap=1)
    seam = made.describe()["last"]["seam_error"]
    error = float((tiled - whole).abs().max())
    assert error > 2 / 255
    # Two tiles at a line are each at most that far from the whole image's values near it.
    assert 2 / 255 < seam <= 4 * error
    made.upscale(
        x, tile=8
    )  # by default an overlap of 32 where the receptive field is more than a quarter of a tile
    assert made.last["halo"] == 32
    made.upscale(x, tile=4 * made.upscaler.radius)
    assert made.last["halo"] == made.upscaler.radius


def test_images_of_unlike_sizes_and_types() -> None:
    made = engine()
    sizes = [(9, 12), (24, 7), (9, 12), (1, 1)]
    given = [images(3, *size, seed=i) for i, size in enumerate(sizes)]
    found = made.upscale(given)
    for x, y in zip(given, found, strict=True):
        torch.testing.assert_close(y, made.upscale(x), rtol=0, atol=CLOSE)
    batch = made.upscale(torch.stack([given[0], given[2]]))
    torch.testing.assert_close(batch, torch.stack([found[0], found[2]]), rtol=0, atol=CLOSE)
    levels = ((given[0] + 1) * 127.5).round().to(torch.uint8)
    whole = made.upscale(levels)
    exact = made.upscale(levels, output_type="pt")
    assert whole.dtype == torch.uint8
    assert float((whole - (exact + 1) * 127.5).abs().max()) <= 0.5 + 1e-3
    pil = Image.fromarray(levels.permute(1, 2, 0).numpy())
    drawn = made.upscale(pil, output_type="pil")
    assert drawn.size == (24, 18)
    assert torch.equal(
        torch.frombuffer(bytearray(drawn.tobytes()), dtype=torch.uint8).view(18, 24, 3),
        whole.permute(1, 2, 0),
    )
    assert made.upscale(given[0], output_type="np").shape == (18, 24, 3)


def test_other_scales() -> None:
    made, x = engine(), images(3, 10, 15)
    assert made.upscale(x, 3).shape == (3, 30, 45)
    assert made.upscale(x, 0.5).shape == (3, 5, 8)
    own, wide = made.upscale(x), made.upscale(x, 3.1)
    for channel, wanted in zip(own, wide, strict=True):
        resized = Image.fromarray(channel.numpy()).resize((46, 31), Image.Resampling.BICUBIC)
        bounded = torch.tensor(np.array(resized)).clamp(-1, 1)
        torch.testing.assert_close(wanted, bounded, rtol=0, atol=CLOSE)


def test_overflow_of_float16_is_made_again() -> None:
    made = engine("srvgg x4", dtype="float16")
    # What the first layer makes is too large for float16, what the last one makes is not.
    with torch.no_grad():
        made.upscaler.body[0].weight.mul_(3e5)
        made.upscaler.body[0].bias.zero_()
        made.upscaler.body[2].weight.mul_(1e-5)
    # One corner alone is bright: black, which the network sees as 0, overflows nowhere.
    x = torch.full((3, 40, 40), -1.0)
    x[:, :4, :4] = 1.0
    with pytest.warns(UserWarning, match="float16"):
        found = made.upscale(x, tile=16, tile_overlap="exact")
    assert 0 < made.last["in_float32"] < made.last["windows"]
    wide = small("srvgg x4")
    wide.load_state_dict({k: v.float() for k, v in made.upscaler.state_dict().items()})
    exact = UpscaleEngine(wide, device="cpu").upscale(x, tile=None)
    assert bool(found.isfinite().all())
    assert not found.requires_grad
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)


def test_what_is_not_finite_is_an_error() -> None:
    """Never a black image: the second image is NaN from the start."""
    made, x = engine(), images(2, 3, 8, 8)
    x[1, 0, 3, 3] = float("nan")
    with refused(ConfigError, "image", 1):
        made.upscale(x, output_type="uint8")


@pytest.mark.parametrize(("tile", "overlap"), [(1, 1), (1, 2), (3, 5), (3, 13), (2, 7)])
@pytest.mark.parametrize("size", [(17, 23), (40, 33)])
def test_tiny_tiles(tile: int, overlap: int, size: tuple[int, int]) -> None:
    made, x = engine("srvgg x4"), images(3, *size)
    whole = made.upscale(x, tile=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of seams
        found = made.upscale(x, tile=tile, tile_overlap=overlap)
    assert found.shape == whole.shape
    if overlap >= made.upscaler.radius:
        torch.testing.assert_close(found, whole, rtol=0, atol=CLOSE)


def test_memory_that_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()

    def full(*given: Any, **options: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("fastgen.engines.upscale.engine.Result", full)
    with refused(OutOfMemoryError):
        made.upscale(images(3, 8, 8))


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_images_of_pillow_without_a_white(mode: str) -> None:
    with refused(ConfigError, "image", mode):
        engine().upscale(Image.new(mode, (8, 8)))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_verify(name: str, dtype: str) -> None:
    found = engine(name, dtype=dtype).verify()
    assert found.passed, str(found)


def test_verify_finds_a_wrong_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    right = activated.slope_of
    monkeypatch.setattr(
        activated, "slope_of", lambda act, like: None if act is None else right(act, like) * 1.5
    )
    assert not engine("srvgg x4").verify().passed


def test_weights_that_change_are_folded_anew() -> None:
    made, x = engine(), images(3, 8, 8)
    before = made.upscale(x)
    with torch.no_grad():
        made.upscaler.conv_in.weight.mul_(0.5)
    after = made.upscale(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(
        after, UpscaleEngine(made.upscaler, device="cpu").upscale(x), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize(
    ("image", "arguments", "argument"),
    [
        (torch.zeros(1, 8, 8), {}, "image"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), {}, "image"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)], {}, "image"),
        ([], {}, "image"),
        (torch.zeros(3, 8, 8), {"scale": 0}, "scale"),
        (torch.zeros(3, 8, 8), {"scale": 33}, "scale"),
        (torch.zeros(3, 8, 8), {"tile": 0}, "tile"),
        (torch.zeros(3, 8, 8), {"tile": "large"}, "tile"),
        (torch.zeros(3, 8, 8), {"tile_overlap": 0}, "tile_overlap"),
        (torch.zeros(3, 8, 8), {"output_type": "gif"}, "output_type"),
    ],
)
def test_what_is_refused(image: Any, arguments: dict[str, Any], argument: str) -> None:
    with refused(ConfigError, argument):
        engine().upscale(image, **arguments)


LARGE = """
import sys, torch
from pathlib import Path
from fastgen.engines.upscale import UpscaleEngine
from fastgen.models.upscale.srvgg import SRVGG, SRVGGConfig
torch.set_num_threads(1)
made = UpscaleEngine(SRVGG(SRVGGConfig(scale=2, num_features=4, num_convs=0)), device="cpu")
side = int(sys.argv[1])
y = made.upscale(torch.randint(0, 256, (3, side, side), dtype=torch.uint8))
assert y.shape == (3, 2 * side, 2 * side) and y.dtype == torch.uint8
assert made.last["windows"] > 1 and made.last["exact"]
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_large_image_streams() -> None:
    """Peak memory is that of the two images and some tiles: 10,000 x 10,000 take 1.75 GiB, as measured by hand."""
    side = 2500
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(side)], capture_output=True, text=True, check=True
    )
    base = 600 << 20  # PyTorch, and windows of 1024 x 1024 pixels of 12 channels at most, a few at a time
    assert int(done.stdout) * 1024 < base + 15 * side**2
