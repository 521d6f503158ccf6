"""Sets of images compared: feature networks, sources of images, and ``fastgen metrics``."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import fastgen.metrics
from fastgen.cli import main
from fastgen.errors import CheckpointError, ConfigError, DataError
from fastgen.metrics import sets
from fastgen.metrics.features import open_features
from fastgen.models.inception import Inception, resized
from tests.metrics.fit_digits import accuracy
from tests.refusals import names, refused

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def digits(count: int = 40, seed: int = 0, size: tuple[int, int] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


class Means(nn.Module):
    """Means of the colours, and of the squares."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        return torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], 1)


@pytest.fixture
def means(tmp_path: Path) -> str:
    path = tmp_path / "means.pt"
    torch.jit.trace(Means(), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).save(str(path))
    return str(path)


def test_sources_of_images(tmp_path: Path) -> None:
    values = digits(5)
    np.save(tmp_path / "bytes.npy", values)
    np.savez(tmp_path / "floats.npz", x=values[:, None].astype(np.float32) / 127.5 - 1)
    np.save(tmp_path / "last.npy", np.repeat(values[..., None], 3, 3))
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i}.png")
    expected = torch.from_numpy(values)[:, None]
    for name in ("bytes.npy", "floats.npz", "last.npy", "folder"):
        batches = list(sets.images(tmp_path / name, 1, 2))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert torch.equal(torch.cat(batches), expected), name
    (rgb,) = sets.images(tmp_path / "bytes.npy", 3, 8)
    assert torch.equal(rgb, expected.expand(-1, 3, -1, -1))


def test_unlike_sizes_come_apart(tmp_path: Path) -> None:
    for i, size in enumerate([(4, 4), (4, 4), (6, 4), (4, 4)]):
        Image.fromarray(digits(1, i, size)[0]).save(tmp_path / f"{i}.png")
    assert [tuple(batch.shape) for batch in sets.images(tmp_path, 1, 8)] == [
        (2, 1, 4, 4),
        (1, 1, 6, 4),
        (1, 1, 4, 4),
    ]


@pytest.mark.parametrize("kind", [">f4", "<f2", ">f8", "longdouble"])
def test_floats_of_any_type(tmp_path: Path, kind: str) -> None:
    values = digits(3)
    np.save(tmp_path / "a.npy", (values[:, None].astype(np.float32) / 127.5 - 1).astype(np.dtype(kind)))
    (tmp_path / "a.npy").rename(tmp_path / "a.NPY")
    found = torch.cat(list(sets.images(tmp_path / "a.NPY", 1, 2)))
    off = (found.int() - torch.from_numpy(values)[:, None].int()).abs().max()
    # float16 has 2^-11 of a value up to 1: less than a tenth of a level of 2 / 255.
    assert int(off) == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 255.0, 1.06, -1.06])
def test_floats_that_are_no_images(tmp_path: Path, wrong: float) -> None:
    """In the last batch, too: nothing is yielded before."""
    values = np.zeros((5, 1, 4, 4), np.float32)
    values[4, 0, 1, 1] = wrong
    np.save(tmp_path / "a.npy", values)
    with refused(DataError, tmp_path / "a.npy", f"{wrong:g}"):
        next(sets.images(tmp_path / "a.npy", 1, 2))


def test_floats_of_a_doubtful_range(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 1, 4, 4))
    with pytest.warns(UserWarning, match=r"a\.npy.*\[-1, 1\]"):
        list(sets.images(tmp_path / "a.npy", 1, 1))
    np.save(tmp_path / "b.npy", np.linspace(-1.04, 1.04, 32, dtype=np.float32).reshape(2, 1, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = sets.images(tmp_path / "b.npy", 1, 8)
    assert (int(found.min()), int(found.max())) == (0, 255)


def test_arguments_of_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", digits(2))
    with refused(ConfigError, "batch", 0):
        list(sets.images(tmp_path / "a.npy", 1, 0))
    with refused(ConfigError, "channels", 2):
        list(sets.images(tmp_path / "a.npy", 2, 1))
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4), np.float32))
    with refused(DataError, tmp_path / "none.npy"):
        list(sets.images(tmp_path / "none.npy", 1, 1))


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    for i, alpha in enumerate((0, 255, 0)):
        image = Image.new("RGB", (4, 4), "red")
        image.putalpha(alpha)
        image.save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match=r"0\.png and 1 ") as caught:
        (found,) = sets.images(tmp_path, 3, 8)
    assert len(caught) == 1
    assert bool((found[[0, 2]] == 255).all())
    assert found[1, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_too_few_images() -> None:
    """The message is of images, not of features or of subsets that nobody gave."""
    network = open_features("digits")
    one, many = (sets.describe(network, [torch.from_numpy(digits(n))[:, None]]) for n in (1, 20))
    for metric, least in (("frechet", 2), ("kernel", 2), ("manifold", 6)):
        with refused(ConfigError, "real", f"{least} images", 1):
            sets.compare(one, many, metrics=[metric])
        with refused(ConfigError, "fake", f"{least} images", 1):
            sets.compare(many, one, metrics=[metric])
    with refused(ConfigError, "fake", "10 images", 1):
        sets.compare(many, one, metrics=["score"])
    assert sets.compare(one, many, metrics=["score"])


def test_a_score_without_a_classifier(means: str) -> None:
    network = open_features(means)
    batches = [torch.randint(0, 256, (10, 3, 5, 7), dtype=torch.uint8)]
    with refused(ConfigError, "metrics", "score"):
        sets.describe(network, batches, ["score"])
    found = sets.describe(network, batches)
    with refused(ConfigError, "metrics", "score"):
        sets.compare(found, found, metrics=["frechet", "score"])
    with pytest.warns(UserWarning, match="no classifier"):
        assert "precision" in sets.compare(found, found)


def test_the_names_that_are_exported() -> None:
    assert fastgen.metrics.compare is sets.compare
    for name in fastgen.metrics.__all__:
        assert getattr(fastgen.metrics, name) is not None
    with pytest.raises(AttributeError, match="absent"):
        _ = fastgen.metrics.absent
    code = "import sys, fastgen.metrics, fastgen.cli; print(fastgen.metrics.METRICS, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == f"{sets.METRICS} False"


def test_what_holds_no_images(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((3, 4)))
    np.savez(tmp_path / "other.npz", rows=np.zeros((3, 4)))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no numbers")
    for name in ("rows.npy", "other.npz", "objects.npy", "text.npy", "absent.npy", "absent"):
        with refused(DataError, tmp_path / name):
            list(sets.images(tmp_path / name, 1, 2))
    (tmp_path / "empty").mkdir()
    with refused(DataError, tmp_path / "empty"):
        list(sets.images(tmp_path / "empty", 1, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_make_no_difference() -> None:
    network = open_features("digits")
    images = torch.from_numpy(digits(30))[:, None]
    whole, parts = (sets.describe(network, images.split(size)) for size in (30, 7))
    assert len(parts) == 30
    # Networks may round by the batch; sums are in float64.
    torch.testing.assert_close(parts.moments.covariance, whole.moments.covariance, rtol=1e-5, atol=1e-6)
    other = sets.describe(network, torch.from_numpy(digits(30, 1))[:, None].split(30))
    one, two = (sets.compare(described, other, neighbours=2) for described in (whole, parts))
    assert set(one) == {
        *("frechet_distance", "kernel_distance", "kernel_distance_std", "classifier_score"),
        *("classifier_score_std", "precision", "recall", "density", "coverage"),
    }
    assert one == pytest.approx(two, rel=1e-3, abs=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_only_inception_makes_it_a_fid() -> None:
    network = open_features("digits")
    one, two = (sets.describe(network, [torch.from_numpy(digits(20, seed))[:, None]]) for seed in (0, 1))
    assert {"fid", "kid", "inception_score"} <= set(sets.compare(one, two, inception=True))
    assert not {"fid", "kid", "inception_score"} & set(sets.compare(one, two))
    assert set(sets.compare(one, two, metrics=["frechet"])) == {"frechet_distance"}
    with refused(ConfigError, "metrics", "psnr"):
        sets.compare(one, two, metrics=["psnr"])


def test_a_network_of_the_users(means: str) -> None:
    network = open_features(means)
    images = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    features, logits = network(images)
    assert logits is None
    assert torch.equal(features, Means()(images))
    assert not network.inception


def test_files_of_no_network(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name in ("text.pt", "other.pth", "other.safetensors", "absent.pth"):
        with refused(CheckpointError, tmp_path / name):
            open_features(tmp_path / name)


def test_resizing_as_tensorflow_1() -> None:
    """Against PyTorch's, where the two agree: corners aligned, of an image extended by its last row and column."""
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    extended = F.pad(x, (0, 1, 0, 1), mode="replicate")
    expected = F.interpolate(extended, (13, 13), mode="bilinear", align_corners=True)[:, :, :12, :12]
    torch.testing.assert_close(resized(x, 12), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_inception_from_a_file(tmp_path: Path) -> None:
    """Random weights in torch-fidelity's layout: without the count of batches, in half the precision."""
    torch.manual_seed(0)
    network = Inception().eval()
    state = {n: v.half() for n, v in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    found = open_features(tmp_path / "weights.pth")
    assert found.inception
    network.load_state_dict({n: v.float() for n, v in state.items()}, strict=False)
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    with torch.no_grad():
        features, logits = network(images)
    assert features.shape == (2, 2048)
    assert torch.equal(found(images)[0], features)
    assert torch.equal(found(images)[1], logits)  # type: ignore[arg-type]


@pytest.mark.real
def test_the_digit_network_reads_digits() -> None:
    assert accuracy() >= 0.98


def test_the_command(tmp_path: Path, means: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        np.save(tmp_path / f"{seed}.npy", digits(40, seed, (6, 6)))
    sources = [str(tmp_path / "0.npy"), str(tmp_path / "1.npy")]
    assert main(["metrics", *sources, "--features", means, "--json", "--batch", "16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["features"], found["real"], found["fake"]) == ("means.pt", 40, 40)
    assert "classifier_score" not in found  # it is no classifier
    assert (
        main(["metrics", sources[0], sources[0], "--features", means, "--metrics", "frechet,manifold"]) == 0
    )
    said = capsys.readouterr().out
    assert names(said, "frechet distance", "precision: 1", "coverage: 1")
    assert main(["metrics", *sources, "--metrics", "fid"]) == 1
    assert names(capsys.readouterr().err, "--metrics", "frechet")
    assert main(["metrics", *sources, "--features", means, "--subset-size", "50"]) == 1
    assert names(capsys.readouterr().err, sources[0], 50, 40)
    assert main(["metrics", *sources, "--features", means, "--metrics", "score"]) == 1
    assert names(capsys.readouterr().err, "--metrics", "score")
    np.save(tmp_path / "one.npy", digits(1, 0, (6, 6)))
    assert main(["metrics", sources[0], str(tmp_path / "one.npy"), "--features", means]) == 1
    assert names(capsys.readouterr().err, tmp_path / "one.npy", "2 images", 1)
