"""Every format and mode of image that is advertised, made by Pillow: the right values, or a refusal in words."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastgen.errors import DataError
from fastgen.training.data import load
from fastgen.training.decode import IMAGE_SUFFIXES
from tests.refusals import refused

SIZE = 16
LEFT, RIGHT = (200, 40, 90), (30, 160, 250)  # colours of the two halves
GREY_LEFT, GREY_RIGHT = 60, 220
Halves = tuple[tuple[int, ...], tuple[int, ...]]


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (SIZE, SIZE), left)
    image.paste(right, (SIZE // 2, 0, SIZE, SIZE))
    return image


def palette(alpha: bool = False) -> Image.Image:
    """P: the left half has index 1, the right half 2; PA likewise, the right half half transparent."""
    image = halves("P", 1, 2)
    image.putpalette([0, 0, 0, *LEFT, *RIGHT])
    if not alpha:
        return image
    channel = halves("L", 255, 128)
    whole = Image.new("PA", image.size)
    whole.putpalette([0, 0, 0, *LEFT, *RIGHT])
    data = np.stack([np.asarray(image), np.asarray(channel)], -1).astype(np.uint8)
    whole.frombytes(data.tobytes())
    return whole


def read(folder: Path, background: str | None = None, channels: int = 3) -> np.ndarray:
    """[2, C]: the values in the middle of each half of the one image in `folder`, which must be flat there."""
    images, *_ = load(str(folder), size=(SIZE, SIZE), channels=channels, background=background).batch([0])
    values = images[0].numpy().astype(int)
    quarter = SIZE // 4
    return np.stack([values[:, SIZE // 2, quarter], values[:, SIZE // 2, SIZE - quarter]])


def over(colour: tuple[int, ...], alpha: int, background: tuple[int, ...]) -> np.ndarray:
    """Porter & Duff 1984, "over", in real numbers."""
    weight = alpha / 255
    return np.array(colour) * weight + np.array(background) * (1 - weight)


RGB = halves("RGB", LEFT, RIGHT)
GREY = halves("L", GREY_LEFT, GREY_RIGHT)
COLOURS, GREYS = (LEFT, RIGHT), ((GREY_LEFT,) * 3, (GREY_RIGHT,) * 3)
BLACK_WHITE = ((0, 0, 0), (255, 255, 255))
# file, image, how it is saved, the values of its halves, how far off they may be: JPEG loses some, and so do
# conversions that drop fractions: of YCbCr 1 of Y and 1.772 of Cb
CASES: dict[str, tuple[str, Image.Image, dict, Halves, int]] = {
    "png 1": ("a.png", halves("1", 0, 1), {}, BLACK_WHITE, 0),
    "png L": ("a.png", GREY, {}, GREYS, 0),
    "png P": ("a.png", palette(), {}, COLOURS, 0),
    "png RGB": ("a.PNG", RGB, {}, COLOURS, 0),
    "jpg L": ("a.jpg", GREY, {"quality": 95}, GREYS, 3),
    "jpg RGB": ("a.jpeg", RGB, {"quality": 95}, COLOURS, 6),
    "jpg CMYK": ("a.jpg", RGB.convert("CMYK"), {"quality": 95}, COLOURS, 8),
    "jpg MPO": (
        "a.JPG",
        RGB,
        {"format": "MPO", "save_all": True, "append_images": [GREY], "quality": 95},
        COLOURS,
        6,
    ),
    "webp RGB": ("a.webp", RGB, {"lossless": True}, COLOURS, 0),
    "webp L": ("a.webp", GREY, {"lossless": True}, GREYS, 0),
    "bmp 1": ("a.bmp", halves("1", 0, 1), {}, BLACK_WHITE, 0),
    "bmp L": ("a.bmp", GREY, {}, GREYS, 0),
    "bmp P": ("a.bmp", palette(), {}, COLOURS, 0),
    "bmp RGB": ("a.bmp", RGB, {}, COLOURS, 0),
    "tif 1": ("a.tif", halves("1", 0, 1), {}, BLACK_WHITE, 0),
    "tif L": ("a.tif", GREY, {}, GREYS, 0),
    "tif P": ("a.tif", palette(), {}, COLOURS, 0),
    "tif RGB": ("a.tiff", RGB, {}, COLOURS, 0),
    "tif RGB lzw": ("a.tif", RGB, {"compression": "tiff_lzw"}, COLOURS, 0),
    "tif RGBX": ("a.tif", RGB.convert("RGBX"), {}, COLOURS, 0),
    "tif CMYK": ("a.tif", RGB.convert("CMYK"), {}, COLOURS, 2),
    "tif YCbCr": ("a.tif", RGB.convert("YCbCr"), {}, COLOURS, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_opaque_images(tmp_path: Path, name: str) -> None:
    file, image, options, want, allowed = CASES[name]
    image.save(tmp_path / file, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is said where nothing is transparent
        assert np.abs(read(tmp_path) - np.array(want)).max() <= allowed
        grey = read(tmp_path, channels=1)[:, 0]
    luma = np.array(want) @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(grey - luma).max() <= allowed + 1


def test_every_advertised_suffix_is_tried() -> None:
    assert {Path(file).suffix.lower() for file, *_ in CASES.values()} == IMAGE_SUFFIXES


HALF = 128  # alpha of the right half; the left half is opaque
TRANSPARENT: dict[str, tuple[str, Image.Image, dict, Halves, tuple[int, int]]] = {
    # ..., colours, alpha of the halves
    "png RGBA": ("a.png", halves("RGBA", (*LEFT, 255), (*RIGHT, HALF)), {}, COLOURS, (255, HALF)),
    "png RGBA hidden": ("a.png", halves("RGBA", (*LEFT, 255), (*RIGHT, 0)), {}, COLOURS, (255, 0)),
    "png LA": ("a.png", halves("LA", (GREY_LEFT, 255), (GREY_RIGHT, HALF)), {}, GREYS, (255, HALF)),
    "png P index": ("a.png", palette(), {"transparency": 2}, COLOURS, (255, 0)),
    "png P alphas": ("a.png", palette(), {"transparency": bytes([0, 255, HALF])}, COLOURS, (255, HALF)),
    "png RGB tRNS": ("a.png", RGB, {"transparency": RIGHT}, COLOURS, (255, 0)),
    "png L tRNS": ("a.png", GREY, {"transparency": GREY_RIGHT}, GREYS, (255, 0)),
    "png 1 tRNS": ("a.png", halves("1", 0, 1), {"transparency": 1}, BLACK_WHITE, (255, 0)),
    "webp RGBA": (
        "a.webp",
        halves("RGBA", (*LEFT, 255), (*RIGHT, HALF)),
        {"lossless": True, "exact": True},
        COLOURS,
        (255, HALF),
    ),
    "webp RGBA hidden": (
        "a.webp",
        halves("RGBA", (*LEFT, 255), (*RIGHT, 0)),
        {"lossless": True, "exact": True},
        COLOURS,
        (255, 0),
    ),
    "tif RGBA": ("a.tif", halves("RGBA", (*LEFT, 255), (*RIGHT, HALF)), {}, COLOURS, (255, HALF)),
    "tif LA": ("a.tif", halves("LA", (GREY_LEFT, 255), (GREY_RIGHT, HALF)), {}, GREYS, (255, HALF)),
    "tif PA": ("a.tif", palette(alpha=True), {}, COLOURS, (255, HALF)),
}


@pytest.mark.parametrize("background", [None, "black", "#10e020"])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_images_lie_over_the_background(
    tmp_path: Path, name: str, background: str | None
) -> None:
    file, image, options, colours, alphas = TRANSPARENT[name]
    image.save(tmp_path / file, **options)
    under = {None: (255, 255, 255), "black": (0, 0, 0), "#10e020": (16, 224, 32)}[background]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got = read(tmp_path, background)
    want = np.stack([over(c, a, under) for c, a in zip(colours, alphas, strict=True)])
    assert np.abs(got - want).max() <= 1  # rounded to whole numbers
    told = [str(w.message) for w in said]
    assert len(told) == (background is None)  # who has chosen a colour knows
    assert all("white" in text and "background" in text for text in told)


def test_grey_of_transparent_images(tmp_path: Path) -> None:
    halves("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)).save(tmp_path / "logo.png")  # black on transparent black
    assert read(tmp_path, "white", channels=1).tolist() == [[0], [255]]


def test_hidden_colours_do_not_bleed_through_resizing(tmp_path: Path) -> None:
    checks = np.zeros((64, 64, 4), np.uint8)
    checks[..., 0] = 255  # red everywhere, and visible nowhere
    Image.fromarray(checks).save(tmp_path / "a.png")
    images, *_ = load(str(tmp_path), size=(7, 7), background="black").batch([0])
    assert not images.any()


def png(header: bytes, transparent: bytes, rows: bytes) -> bytes:
    """A PNG with a tRNS chunk; Pillow writes none of every kind."""
    chunks = ((b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_a_transparent_colour_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Pillow keeps the upper half of each value, and would compare it with the lower half of the transparent one."""
    rows = bytes([0, *[0x12, 0x34] * 3 * SIZE]) * SIZE
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png(header, bytes([0x12, 0x34] * 3), rows))
    with refused(DataError, tmp_path / "a.png", 16, "RGBA"):
        load(str(tmp_path))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_value_of_a_shallow_grey_png(tmp_path: Path, bits: int) -> None:
    """Values of fewer than 8 bits are scaled, and so is the one that is transparent (PNG, section 11.3.2.1)."""
    rows = bytes([0, 0x00, 0xFF]) * SIZE  # filter 0, then black, then the highest value
    width = 16 // bits
    header = struct.pack(">IIBBBBB", width, SIZE, bits, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(png(header, struct.pack(">H", 2**bits - 1), rows))
    images, *_ = load(str(tmp_path), size=(SIZE, width), background="#0000ff").batch([0])
    assert images[0, :, 0, 0].tolist() == [0, 0, 0]
    assert images[0, :, 0, -1].tolist() == [0, 0, 255]


def test_alpha_of_a_bmp(tmp_path: Path) -> None:
    """A version 4 header says which bits are alpha; Pillow writes none, without which the fourth byte means nothing."""
    pixels = bytes([*RIGHT[::-1], HALF]) * SIZE * SIZE
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, SIZE, SIZE, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    info = info.ljust(108, b"\0")
    file = b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels
    (tmp_path / "a.bmp").write_bytes(file)
    want = over(RIGHT, HALF, (0, 0, 0))
    assert np.abs(read(tmp_path, "black") - want).max() <= 1


@pytest.mark.parametrize(
    ("image", "mentions"),
    [
        (Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)), ["0..255"]),
        (Image.fromarray(np.full((16, 16), 1000.0, np.float32)), ["0..255"]),
        (Image.fromarray(np.full((16, 16), 1000, np.int32)), [32, 8]),
        (Image.fromarray(np.full((16, 16), 1000, np.uint16)), [16, 8]),
        (RGB.convert("LAB"), ["LAB"]),
    ],
    ids=["F unit", "F thousand", "I", "I;16", "LAB"],
)
def test_tiffs_that_have_no_8_bit_meaning_are_refused(
    tmp_path: Path, image: Image.Image, mentions: list
) -> None:
    image.save(tmp_path / "a.tif")
    with refused(DataError, tmp_path / "a.tif", *mentions):
        load(str(tmp_path), size=(8, 8))


def test_headers_are_read_before_anything_is_trained_on(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.jpg"):
        RGB.save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    with refused(DataError, tmp_path / "b.png"):
        load(str(tmp_path))
    (tmp_path / "d.jpg").write_bytes(b"")
    with refused(DataError, tmp_path / "b.png", 1, tmp_path / "d.jpg"):
        load(str(tmp_path))


@pytest.mark.parametrize("wrong", ["whitish", "#12", "rgba(0, 0, 0, 128)", ""])
def test_colours_that_are_none(tmp_path: Path, wrong: str) -> None:
    RGB.save(tmp_path / "a.png")
    with refused(DataError, "background"):
        load(str(tmp_path), background=wrong)


def test_only_folders_have_a_background() -> None:
    with refused(DataError, "background", "digits"):
        load("digits", background="black")


def test_pairs_lie_over_the_background_too(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        halves("RGBA", (*LEFT, 255), (*RIGHT, 0)).save(tmp_path / folder / "a.png")
    with pytest.warns(UserWarning, match="2 of 2"):
        data = load(str(tmp_path / "x"), target=str(tmp_path / "y"), size=(SIZE, SIZE))
    x, _, target = data.batch([0])
    assert target is not None
    for image in (x[0], target[0]):
        assert image[:, 3, 3].tolist() == list(LEFT)
        assert image[:, 3, 12].tolist() == [255] * 3
