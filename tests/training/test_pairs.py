"""Pairs of images: by equal names in two folders, or side by side in one file; cropped and mirrored together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgen.diffusion import NoiseSchedule
from fastgen.errors import DataError
from fastgen.training.data import describe, load
from fastgen.training.diffusion import Denoising
from fastgen.training.loop import batches
from fastgen.training.run import Run, _run
from fastgen.training.settings import RunConfig
from tests import small

NAMES = ("ant/1.png", "ant/2.png", "bee/1.png")


def image(seed: int, width: int = 12, height: int = 8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for i, name in enumerate(NAMES):
        for folder, seed in (("x", i), ("y", 10 + i)):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            image(seed).save(tmp_path / folder / name)
    return str(tmp_path / "x"), str(tmp_path / "y")


def test_two_folders(folders: tuple[str, str]) -> None:
    data = load(folders[0], target=folders[1], size=(8, 12))
    assert (len(data), data.paired, data.shape, data.class_names) == (3, True, (3, 8, 12), ["ant", "bee"])
    x, label, target = data.batch([2, 0])
    assert target is not None
    assert label is not None
    assert label.tolist() == [1, 0]
    for row, i in enumerate((2, 0)):
        assert torch.equal(x[row], as_tensor(image(i)))
        assert torch.equal(target[row], as_tensor(image(10 + i)))


def test_suffixes_may_differ(folders: tuple[str, str]) -> None:
    path = Path(folders[1]) / NAMES[1]
    path.rename(path.with_suffix(".jpeg"))  # its content says what it is
    data = load(folders[0], target=folders[1], size=(8, 12))
    target = data.batch([1]).target
    assert target is not None
    assert torch.equal(target[0], as_tensor(image(11)))


def test_side_by_side(tmp_path: Path) -> None:
    image(0).save(tmp_path / "a.png")
    data = load(str(tmp_path), side_by_side=True, size=(8, 6))
    assert (data.paired, data.num_classes) == (True, None)
    x, _, target = data.batch([0])
    assert target is not None
    whole = as_tensor(image(0))
    assert torch.equal(x[0], whole[..., :6])
    assert torch.equal(target[0], whole[..., 6:])


def test_cropped_together(tmp_path: Path) -> None:
    """A pair of the same image stays one, whatever is cut off."""
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        image(0, 30, 17).save(tmp_path / folder / "a.png")
    x, _, target = load(str(tmp_path / "x"), target=str(tmp_path / "y"), size=(8, 8), channels=1).batch([0])
    assert target is not None
    assert x.shape == (1, 1, 8, 8)
    assert torch.equal(x, target)


def test_mirrored_together(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(8, dtype=np.uint8) * 30, (8, 2))
    for i in range(16):
        Image.fromarray(ramp).save(tmp_path / f"{i:02}.png")
    data = load(str(tmp_path), side_by_side=True, size=(8, 8), channels=1)
    config = RunConfig(steps=1, batch_size=16, flip=True)
    ((x, _, target),) = batches(data, Denoising(NoiseSchedule(), None), config, 0)
    assert target is not None
    assert torch.equal(x, target)
    mirrored = (x[:, 0, 0, 0] > x[:, 0, 0, -1]).sum()
    assert 0 < int(mirrored) < 16


def test_unmatched_names(folders: tuple[str, str]) -> None:
    (Path(folders[1]) / NAMES[1]).unlink()
    with pytest.raises(DataError) as error:
        load(folders[0], target=folders[1])
    assert error.value.argument == folders[1]
    with pytest.raises(DataError) as error:
        load(folders[1], target=folders[0])
    assert error.value.argument == folders[1]


def test_two_images_of_one_name(folders: tuple[str, str]) -> None:
    image(5).save(Path(folders[1]) / "ant" / "1.bmp")
    with pytest.raises(DataError) as error:
        load(folders[0], target=folders[1])
    assert error.value.argument == folders[1]


def test_a_pair_of_two_sizes(folders: tuple[str, str]) -> None:
    path = Path(folders[1]) / NAMES[0]
    image(5, 13, 8).save(path)
    with pytest.raises(DataError) as error:
        load(folders[0], target=folders[1]).batch([0])
    assert error.value.argument == str(path)


def test_an_odd_width_has_no_halves(tmp_path: Path) -> None:
    image(0, 13, 8).save(tmp_path / "a.png")
    with pytest.raises(DataError) as error:
        load(str(tmp_path), side_by_side=True).batch([0])
    assert error.value.argument == str(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("source", "options", "argument"),
    [
        ("digits", {"side_by_side": True}, "digits"),
        ("nowhere", {"target": "x"}, "nowhere"),
        ("x", {"target": "nowhere"}, "nowhere"),
        ("x", {"target": "y", "side_by_side": True}, "side_by_side"),
    ],
)
def test_no_pairs(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch, source: str, options: dict, argument: str
) -> None:
    monkeypatch.chdir(Path(folders[0]).parent)
    with pytest.raises(DataError) as error:
        load(source, **options)
    assert error.value.argument == argument


def test_a_run_remembers_that_its_data_is_paired(folders: tuple[str, str], tmp_path: Path) -> None:
    data = describe(load(folders[0], target=folders[1]))
    config = RunConfig(data=folders[0], target=folders[1])
    run = Run(config, small.spec(small.unet_config()), data)
    again = _run(run.encoded(tmp_path), "here")
    assert again.data == data
    assert again.config.target == folders[1]
