"""Every source of training images, good and bad."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.errors import DataError
from fastgen.training.arrays import read_idx
from fastgen.training.data import load
from fastgen.training.folders import ImageFolder
from tests import real
from tests.refusals import refused

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "t-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS)))
    (tmp_path / "t-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (tmp_path / "plain.idx").write_bytes(idx(PIXELS))
    return tmp_path


def test_idx_with_the_labels_beside_it(files: Path) -> None:
    data = load(str(files / "t-images-idx3-ubyte.gz"))
    assert data.shape == (1, 5, 7)
    assert data.num_classes == 3
    images, labels, _ = data.batch([4, 0])
    assert np.array_equal(images[:, 0].numpy(), PIXELS[[4, 0]])
    assert labels is not None
    assert labels.tolist() == [1, 0]


def test_idx_plain_and_with_named_labels(files: Path) -> None:
    assert load(str(files / "plain.idx")).batch([0])[1] is None
    named = load(str(files / "plain.idx"), labels=str(files / "t-labels-idx1-ubyte.gz"), subset=(2, 4))
    assert len(named) == 3
    assert named.batch([0])[1].tolist() == [2]  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(4, 5, 7), (4, 1, 5, 7), (4, 3, 5, 7), (4, 5, 7, 3), (4, 5, 7, 1)])
def test_npz(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=np.arange(4))
    data = load(str(tmp_path / "a.npz"))
    channels = 3 if 3 in shape else 1
    assert data.shape == (channels, 5, 7)
    want = (
        pixels.reshape(4, 1, 5, 7)
        if channels == 1
        else pixels
        if shape[1] == 3
        else pixels.transpose(0, 3, 1, 2)
    )
    assert np.array_equal(data.batch(range(4))[0].numpy(), want)
    assert data.num_classes == 4


def test_digits_of_scikit_learn() -> None:
    data = load("digits")
    assert (len(data), data.shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert data.batch([0])[0].max() == 239  # the first digit's brightest pixel is 15 of 16


def test_folder_with_classes(tmp_path: Path) -> None:
    for name, colour in (("bee", (255, 0, 0)), ("ant", (0, 0, 255))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20), colour).save(tmp_path / name / "1.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    data = load(str(tmp_path), size=(8, 8))
    assert isinstance(data, ImageFolder)
    assert data.class_names == ["ant", "bee"]
    images, labels, _ = data.batch([1, 0])
    assert labels is not None
    assert labels.tolist() == [1, 0]
    assert images[0, :, 4, 4].tolist() == [255, 0, 0]
    grey = load(str(tmp_path), size=(4, 6), channels=1)
    assert grey.batch([0])[0].shape == (1, 1, 4, 6)


def test_flat_folder_has_no_classes(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 7).save(tmp_path / "a.JPG")
    data = load(str(tmp_path))
    assert data.shape == (3, 64, 64)
    assert data.num_classes is None
    assert data.batch([0])[1] is None


def test_folders_that_are_not_what_they_seem(tmp_path: Path) -> None:
    for name in ("ant/1.png", "bee/1.png", "__MACOSX/ant/1.png", "ant/.thumbnails/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "ant" / "x.png").mkdir()
    data = load(str(tmp_path), size=(8, 8))
    assert data.class_names == ["ant", "bee"]
    assert len(data) == 2
    Image.new("L", (8, 8)).save(tmp_path / "stray.png")
    with refused(DataError, tmp_path, 1, "stray.png"):
        load(str(tmp_path), size=(8, 8))


def test_deep_images_are_refused_not_saturated(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 30_000, dtype=np.uint16)).save(tmp_path / "a.png")
    with refused(DataError, tmp_path / "a.png", 16, 8):
        load(str(tmp_path), size=(8, 8)).batch([0])


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS)
    data = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "array.npy", PIXELS)
    for damaged in (data[:-30], data[:100], (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "b.npz").write_bytes(damaged)
        with refused(DataError, tmp_path / "b.npz"):
            load(str(tmp_path / "b.npz"))


def test_rotation_of_the_camera_is_undone(tmp_path: Path) -> None:
    image = Image.new("L", (4, 2), 0)
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    image = load(str(tmp_path), size=(4, 2), channels=1).batch([0])[0]
    assert torch.equal(image[0, 0].nonzero(), torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("a.idx", b"", ["IDX"]),
        ("a.idx", b"\0\0\x08\x03\0\0", []),
        ("a.gz", gzip.compress(idx(PIXELS), mtime=0)[:60], []),
        ("a.idx", b"\0\0\x0d\x03" + b"\0" * 12, ["IDX"]),
        ("a.idx", idx(PIXELS)[:-1], [210, 209]),
        ("a.idx", idx(LABELS), [LABELS.shape[0]]),
        ("a.gz", b"\x1f\x8b junk", []),
        ("a.npz", b"junk", ["NPZ"]),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, mentions: list) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, tmp_path / name, *mentions):
        load(str(tmp_path / name))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], dtype=object))
    with refused(DataError, tmp_path / "a.npz", "images", "object"):
        load(str(tmp_path / "a.npz"))


def test_wrong_arrays(tmp_path: Path) -> None:
    cases: tuple[tuple[list, dict], ...] = (
        (["uint8", "float64"], {"images": np.zeros((2, 4, 4))}),
        (["images", "photos"], {"photos": PIXELS}),
        ([[2, 8, 8, 4]], {"images": np.zeros((2, 8, 8, 4), dtype=np.uint8)}),
        ([6, [3]], {"images": PIXELS, "labels": LABELS[:3]}),
        ([-1, 4], {"images": PIXELS, "labels": np.array([-1, 0, 1, 2, 3, 4])}),
    )
    for mentions, arrays in cases:
        np.savez(tmp_path / "a.npz", **arrays)
        with refused(DataError, tmp_path / "a.npz", *mentions):
            load(str(tmp_path / "a.npz"))


def test_wrong_requests(files: Path) -> None:
    path = str(files / "plain.idx")
    for keywords, about, mentions in (
        ({"size": (28, 28)}, path, ["5x7", "28x28"]),
        ({"channels": 3}, path, [1, 3]),
        ({"subset": (3, 9)}, path, ["3-9", "0-5"]),
        ({"labels": str(files / "none")}, files / "none", []),
    ):
        with refused(DataError, about, *mentions):
            load(path, **keywords)  # type: ignore[arg-type]
    with refused(DataError, files / "nothing", "two-moons"):
        load(str(files / "nothing"))
    (files / "empty").mkdir()
    with refused(DataError, files / "empty", ".png"):
        load(str(files / "empty"))


@pytest.mark.real
def test_mnist_as_it_is_distributed() -> None:
    images, labels = real.mnist()
    assert images.shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    data = load(str(real.folder() / "data/mnist/t10k-images-idx3-ubyte.gz"), subset=(9000, 9999))
    assert np.array_equal(data.batch([0])[0][0, 0].numpy(), images[9000])
    assert data.batch([0])[1].tolist() == [labels[9000]]  # type: ignore[union-attr]
    assert read_idx(real.folder() / "data/mnist/t10k-labels-idx1-ubyte.gz")[0] == 7


@pytest.mark.real
def test_photographs_from_a_folder() -> None:
    data = load(str(real.folder() / "data/kodak"), size=(48, 64))
    images, *_ = data.batch(range(len(data)))
    assert images.shape == (6, 3, 48, 64)
    assert (images.float().std(dim=(1, 2, 3)) > 20).all()
