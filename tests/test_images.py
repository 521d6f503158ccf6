"""Tensors to files and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.errors import ConfigError, DataError
from fastgen.images import grid, read_metadata, to_output, to_uint8
from tests.refusals import refused


def test_range_and_rounding() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, float("nan")]).view(1, 1, 1, 6)
    with pytest.warns(UserWarning, match="1 of 1"):
        assert to_uint8(x).ravel().tolist() == [0, 0, 128, 255, 255, 0]


def test_every_byte_survives(tmp_path: Path) -> None:
    pixels = torch.arange(256 * 3, dtype=torch.int64).remainder(256).view(3, 16, 16)
    fastgen.save_image(pixels / 127.5 - 1, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).transpose(2, 0, 1), pixels.numpy())


@pytest.mark.parametrize(
    ("n", "columns", "size"), [(1, None, (1, 1)), (5, None, (3, 2)), (5, 5, (5, 1)), (3, 9, (3, 1))]
)
def test_sheet_places_images_row_by_row(n: int, columns: int | None, size: tuple[int, int]) -> None:
    images = torch.linspace(-1, 1, n).view(n, 1, 1, 1).expand(n, 1, 4, 6)
    sheet = np.asarray(grid(images, columns=columns, scale=2))
    across, down = size
    assert sheet.shape == (down * (8 + 2) + 2, across * (12 + 2) + 2)
    for i, level in enumerate(to_uint8(images)[:, 0, 0, 0]):
        y, x = 2 + i // across * 10, 2 + i % across * 14
        assert (sheet[y : y + 8, x : x + 12] == level).all()


def test_captions_make_room(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8)
    plain, captioned = grid(images), grid(images, captions=["7", "ü"])
    assert captioned.height > plain.height
    with refused(ConfigError, "captions", 2):
        grid(images, captions=["7"])


def test_metadata_round_trip(tmp_path: Path) -> None:
    request = {"seeds": [2**53], "labels": [None], "name": "größe"}
    fastgen.save_grid(torch.zeros(1, 1, 2, 2), tmp_path / "a.png", metadata=request)
    assert read_metadata(tmp_path / "a.png") == request


def test_images_without_metadata(tmp_path: Path) -> None:
    fastgen.save_image(torch.zeros(1, 2, 2), tmp_path / "a.png")
    with refused(DataError, tmp_path / "a.png", "metadata="):
        read_metadata(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with refused(DataError, tmp_path / "b.png"):
        read_metadata(tmp_path / "b.png")


def test_a_bomb_is_a_damaged_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fastgen.save_image(torch.zeros(1, 64, 64), tmp_path / "a.png", metadata={})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with refused(DataError, tmp_path / "a.png"):
        read_metadata(tmp_path / "a.png")


def test_gif_has_the_frames(tmp_path: Path) -> None:
    frames = [torch.full((4, 1, 4, 4), v) for v in (-1.0, 0.0, 1.0)]
    fastgen.save_gif(frames, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
    with refused(ConfigError, "frames"):
        fastgen.save_gif([], tmp_path / "b.gif")


def test_output_types() -> None:
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    assert to_output(x, "pt") is x
    array = to_output(x, "np")
    assert array.shape == (2, 4, 5, 3)
    np.testing.assert_allclose(array, (x.numpy().transpose(0, 2, 3, 1) + 1) / 2)
    assert [p.size for p in to_output(x, "pil")] == [(5, 4)] * 2
    with refused(ConfigError, "output_type", "jpg"):
        to_output(x, "jpg")


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(1, 2, 4, 4), torch.zeros(3, 4, 4), torch.zeros(0, 1, 4, 4), torch.zeros(1, 1, 4, 4).int()],
)
def test_wrong_tensors(bad: torch.Tensor, tmp_path: Path) -> None:
    with refused(ConfigError, "images", list(bad.shape)):
        fastgen.save_grid(bad, tmp_path / "a.png")


def test_wrong_suffix(tmp_path: Path) -> None:
    with refused(ConfigError, tmp_path / "a.exe", ".png"):
        fastgen.save_image(torch.zeros(1, 2, 2), tmp_path / "a.exe")
