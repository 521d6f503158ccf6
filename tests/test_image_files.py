"""Image files in and out: every mode, upright, with alpha and what else is kept; what is refused and why."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from fastgen.errors import ConfigError, DataError, WriteError
from fastgen.files import remove_leftovers
from fastgen.image_files import MAX_PIXELS, READ, WRITTEN, read_image_file, write_image_file
from tests.refusals import refused

SIZE = (5, 7)  # height, width: odd
ORIENTATION = 0x0112


def colours(seed: int = 0, channels: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pixels(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".gif", ".ppm", ".webp"])
def test_formats_without_loss(tmp_path: Path, suffix: str) -> None:
    values = colours()
    image = Image.fromarray(values)
    if suffix == ".gif":  # of 256 colours
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        values = np.asarray(image.convert("RGB"))
    path = saved(image, tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    found = read_image_file(path)
    assert torch.equal(found.pixels, pixels(values))
    assert found.alpha is None
    assert found.size == SIZE
    assert torch.equal(found.tensor(), found.pixels.float() / 127.5 - 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.fromarray(colours()).convert(mode)
    path = saved(image, tmp_path / f"a{'.tif' if mode in ('CMYK', 'YCbCr') else '.png'}")
    found = read_image_file(path, channels)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB" if channels == 3 else "L"))
    assert torch.equal(found.pixels, pixels(expected))


def test_sixteen_bits_of_grey_keep_their_steps(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(SIZE)
    found = read_image_file(saved(Image.fromarray(values), tmp_path / "deep.png"), 1)
    expected = torch.from_numpy(values.astype(np.float64) * (2 / 65535) - 1).float()
    # Three roundings of values up to 2.
    assert torch.allclose(found.tensor()[0], expected, atol=3 * 2 * 2**-24)


def test_a_turned_photograph_is_read_upright_and_not_turned_again(tmp_path: Path) -> None:
    values = colours()
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    exif[0x010F] = "a camera"
    path = saved(Image.fromarray(values), tmp_path / "a.png", exif=exif)
    found = read_image_file(path)
    assert torch.equal(found.pixels, pixels(np.rot90(values, -1)))
    write_image_file(found.tensor(), tmp_path / "b.png", found)
    with Image.open(tmp_path / "b.png") as file:
        kept = file.getexif()
        assert kept[0x010F] == "a camera"
        assert ORIENTATION not in kept
        assert np.array_equal(np.asarray(file), np.rot90(values, -1))


@pytest.mark.parametrize("suffix", [s for s in WRITTEN if s not in (".jpeg", ".tiff")])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_comes_out_as_it_went_in(tmp_path: Path, suffix: str, channels: int) -> None:
    values = colours(channels=4)
    if suffix == ".jpg":  # which shows noise only roughly
        values[:] = 200, 100, 50, 128
    found = read_image_file(saved(Image.fromarray(values), tmp_path / "a.png"), channels)
    assert found.alpha is not None
    assert np.array_equal(found.alpha.numpy(), values[..., 3])
    write_image_file(found.tensor(), tmp_path / f"b{suffix}", found)
    with Image.open(tmp_path / f"b{suffix}") as file:
        back = file.convert("RGBA")
    if suffix in (".png", ".tif"):
        assert np.array_equal(np.asarray(back)[..., 3], values[..., 3])
        drawn = np.asarray(back.convert("L" if channels == 1 else "RGB"))
        assert torch.equal(pixels(drawn), found.pixels)
    elif suffix == ".webp":
        assert np.array_equal(np.asarray(back)[..., 3], values[..., 3])
    else:  # over white
        weight = values[..., 3:] / 255
        shown = found.pixels.permute(1, 2, 0).numpy() * weight + 255 * (1 - weight)
        tolerance = 1 if suffix == ".bmp" else 3  # JPEG rounds coefficients of three channels
        assert np.abs(np.asarray(back.convert("RGB")).astype(float) - shown).max() <= tolerance


def test_alpha_grows_with_the_result(tmp_path: Path) -> None:
    values = colours(channels=4)
    values[..., 3] = 0
    values[:, 3:, 3] = 255
    found = read_image_file(saved(Image.fromarray(values), tmp_path / "a.png"))
    write_image_file(torch.zeros(3, 10, 14), tmp_path / "b.png", found)
    with Image.open(tmp_path / "b.png") as file:
        alpha = np.asarray(file)[..., 3]
    assert alpha.shape == (10, 14)
    assert (alpha[:, :4] == 0).all()
    assert (alpha[:, 9:] == 255).all()


def test_transparency_by_a_colour(tmp_path: Path) -> None:
    values = colours()
    path = saved(Image.fromarray(values), tmp_path / "a.png", transparency=tuple(map(int, values[2, 3])))
    found = read_image_file(path)
    assert found.alpha is not None
    assert int(found.alpha[2, 3]) == 0
    assert int((found.alpha == 255).sum()) == found.alpha.numel() - 1


def test_the_profile_stays_where_the_colour_space_does(tmp_path: Path) -> None:
    path = saved(Image.fromarray(colours()), tmp_path / "a.png", icc_profile=b"profile", dpi=(300, 300))
    write_image_file(torch.zeros(3, *SIZE), tmp_path / "b.png", read_image_file(path))
    write_image_file(torch.zeros(1, *SIZE), tmp_path / "c.png", read_image_file(path))
    with Image.open(tmp_path / "b.png") as same, Image.open(tmp_path / "c.png") as grey:
        assert same.info["icc_profile"] == b"profile"
        assert round(same.info["dpi"][0]) == 300
        assert "icc_profile" not in grey.info


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    values = colours()
    write_image_file(pixels(values), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file), values)


def test_what_is_no_image(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    with refused(DataError, text, *READ):
        read_image_file(text)
    cut = saved(Image.fromarray(colours(size=(64, 64))), tmp_path / "cut.png")
    cut.write_bytes(cut.read_bytes()[:2000])
    with refused(DataError, cut):
        read_image_file(cut)
    with refused(DataError, tmp_path / "absent.png"):
        read_image_file(tmp_path / "absent.png")
    with refused(DataError, tmp_path):
        read_image_file(tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_several_frames(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(colours(seed)) for seed in range(3)]
    path = saved(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with refused(DataError, path, 3):
        read_image_file(path)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_without_a_white(tmp_path: Path, mode: str) -> None:
    path = saved(Image.fromarray(colours(channels=1)).convert(mode), tmp_path / "a.tif")
    with refused(DataError, path):
        read_image_file(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_only_where_asked_for(tmp_path: Path) -> None:
    """A file that says 10,000 x 10,000 in a few bytes; Pillow's own limit is lifted, too, and comes back."""
    path = saved(Image.new("1", (10_000, 10_000)), tmp_path / "large.png")
    before = Image.MAX_IMAGE_PIXELS
    with refused(DataError, path, MAX_PIXELS):
        read_image_file(path, 1)
    assert read_image_file(path, 1, max_pixels=10**8).size == (10_000, 10_000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_cannot_be_written(tmp_path: Path) -> None:
    image = torch.zeros(3, *SIZE)
    with refused(ConfigError, tmp_path / "a.xyz", ".png"):
        write_image_file(image, tmp_path / "a.xyz")
    with refused(ConfigError, "image"):
        write_image_file(torch.zeros(2, 3, 4), tmp_path / "a.png")
    with refused(ConfigError, "channels"):
        read_image_file(tmp_path / "a.png", 4)
    with refused(WriteError, tmp_path / "no" / "a.png"):
        write_image_file(image, tmp_path / "no" / "a.png")
    with refused(ConfigError, tmp_path / "a.jpg"):
        write_image_file(torch.zeros(1, 1, 70_000, dtype=torch.uint8), tmp_path / "a.jpg")


def test_a_chunk_of_text_that_expands(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * (1 << 24), zip=True)
    path = saved(Image.fromarray(colours()), tmp_path / "a.png", pnginfo=info)
    with refused(DataError, path):
        read_image_file(path)


def test_what_a_format_has_no_room_for(tmp_path: Path) -> None:
    """Large EXIF entries, and resolutions that no writer takes: the image is written all the same."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 100_000
    image = Image.fromarray(colours())
    large = read_image_file(saved(image, tmp_path / "large.png", exif=exif))
    with pytest.warns(UserWarning, match="EXIF"):
        write_image_file(large.tensor(), tmp_path / "large.jpg", large)
    write_image_file(large.tensor(), tmp_path / "kept.tif", large)
    with Image.open(tmp_path / "kept.tif") as file:
        assert len(file.getexif()[0x010E]) == 100_000
    limits = read_image_file(_png_of_resolution(tmp_path / "dpi.png", 0xFFFFFFFF))
    for suffix in WRITTEN:
        write_image_file(limits.tensor(), tmp_path / f"dpi-out{suffix}", limits)


def _png_of_resolution(path: Path, pixels_per_metre: int) -> Path:
    Image.fromarray(colours()).save(path, dpi=(300, 300))
    data = path.read_bytes()
    at = data.index(b"pHYs") + 4
    chunk = struct.pack(">IIB", pixels_per_metre, pixels_per_metre, 1)
    checksum = struct.pack(">I", zlib.crc32(b"pHYs" + chunk))
    path.write_bytes(data[:at] + chunk + checksum + data[at + 13 :])
    return path


def test_damaged_exif_leaves_the_image(tmp_path: Path) -> None:
    values = colours()
    path = saved(Image.fromarray(values), tmp_path / "a.png", exif=b"Exif\0\0garbage that is no TIFF")
    with pytest.warns(UserWarning, match="EXIF"):
        found = read_image_file(path)
    assert torch.equal(found.pixels, pixels(values))
    assert "exif" not in found.kept


def test_sixteen_bits_of_a_portable_map(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 35).round().astype(">u2").reshape(SIZE)
    (tmp_path / "a.pgm").write_bytes(b"P5 7 5 65535\n" + values.tobytes())
    found = read_image_file(tmp_path / "a.pgm", 1)
    assert torch.allclose(found.pixels[0], torch.from_numpy(values.astype(np.float32)) / 257, atol=1e-4)


def test_names_as_long_as_a_folder_takes(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".png", "ü" * 125 + ".png"):
        write_image_file(torch.zeros(3, *SIZE), tmp_path / name)
        assert (tmp_path / name).exists()
    remove_leftovers(tmp_path, ["x" * 251 + ".png"])
    assert len(list(tmp_path.iterdir())) == 2
