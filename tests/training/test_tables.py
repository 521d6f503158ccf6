"""Tables to train on, good and bad, and the distributions whose densities are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastgen.errors import DataError
from fastgen.training import synthetic
from fastgen.training.data import NAMED, describe, load
from tests.refusals import refused

VALUES = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def csv(path: Path, head: str = "", values: np.ndarray = VALUES) -> str:
    path.write_text(head + "".join(",".join(f"{v:.9g}" for v in row) + "\n" for row in values))
    return str(path)


@pytest.mark.parametrize("head", ["", "a,b,c\n", "\ufeffa,b,c\r\n"])
def test_csv_with_and_without_names(tmp_path: Path, head: str) -> None:
    data = load(csv(tmp_path / "t.csv", head))
    assert (len(data), data.shape, data.num_classes) == (6, (3,), None)
    values, labels = data.batch([4, 0])
    assert labels is None
    assert np.array_equal(values.numpy(), VALUES[[4, 0]])  # 9 digits hold every float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, dtype: str, order: str) -> None:
    np.save(tmp_path / "t.npy", np.asarray(VALUES.astype(dtype), order=order))  # type: ignore[call-overload]
    assert np.array_equal(load(str(tmp_path / "t.npy")).batch(range(6))[0].numpy(), VALUES)


def test_npz_with_labels_and_a_subset(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=VALUES, y=np.array([0, 1, 2, 0, 1, 2]))
    data = load(str(tmp_path / "t.npz"), subset=(2, 4))
    assert describe(data) == {"rows": 3, "shape": [3], "num_classes": 3, "class_names": None}
    values, labels = data.batch([0])
    assert np.array_equal(values.numpy(), VALUES[2:3])
    assert labels is not None
    assert labels.tolist() == [2]


@pytest.mark.parametrize("head", ["", "# a,b,c\n"])
def test_nothing_of_a_table_is_a_comment(tmp_path: Path, head: str) -> None:
    assert len(load(csv(tmp_path / "t.csv", head))) == 6
    csv(tmp_path / "t.csv", head)
    text = (tmp_path / "t.csv").read_text()
    (tmp_path / "t.csv").write_text(text + "#1,2,3\n")
    with refused(DataError, tmp_path / "t.csv", "#1"):
        load(str(tmp_path / "t.csv"))


def with_value(value: float) -> np.ndarray:
    values = VALUES.astype(np.float64)
    values[2, 1] = value
    return values


@pytest.mark.parametrize(
    ("values", "mentions"),
    [
        (with_value(np.nan), ["row 3, column 2", "nan"]),
        (with_value(np.inf), ["row 3, column 2", "inf"]),
        (VALUES * [1, 1e-33, 1], ["column 2", "1e-30"]),
        (with_value(1e200), ["column 2", "1e+200"]),
        (VALUES * [1, 0, 1], ["column 2"]),
        (VALUES.astype(np.float64) * 0.01 + [0, 0, 1.6e9], ["column 3", "1.6e+09"]),
        (VALUES[:, :1], [1, 2]),
        (VALUES[:0], [[0, 3]]),
        (VALUES.astype(np.complex64), ["complex64"]),
    ],
)
def test_what_has_no_density(tmp_path: Path, values: np.ndarray, mentions: list) -> None:
    np.save(tmp_path / "t.npy", values)
    with refused(DataError, tmp_path / "t.npy", *mentions):
        load(str(tmp_path / "t.npy"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"a,b\n1,2\n3,x\n"),
        ("t.csv", b"1,2\n3\n"),
        ("t.csv", b"\xff\xfe1,2"),
        ("t.csv", b""),
        ("t.npy", b"junk"),
        ("t.npy", b""),
    ],
)
def test_damaged_tables(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, tmp_path / name):
        load(str(tmp_path / name))


def test_a_cut_off_array_and_a_pickle(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", VALUES)
    data = (tmp_path / "t.npy").read_bytes()
    (tmp_path / "t.npy").write_bytes(data[:-4])
    with refused(DataError, tmp_path / "t.npy", 68):
        load(str(tmp_path / "t.npy"))
    np.save(tmp_path / "t.npy", np.array([[{"a": 1}]], dtype=object))
    with refused(DataError, tmp_path / "t.npy", "object"):
        load(str(tmp_path / "t.npy"))


def test_wrong_requests(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv")
    for keywords, mentions in (
        ({"size": (2, 2)}, [3]),
        ({"channels": 1}, [3]),
        ({"labels": "x"}, ["IDX"]),
        ({"subset": (3, 9)}, ["3-9", "0-5"]),
    ):
        with refused(DataError, path, *mentions):
            load(path, **keywords)  # type: ignore[arg-type]


def test_named_tables_are_always_the_same() -> None:
    for name, columns in (("two-moons", 2), ("mixture6", 6)):
        assert name in NAMED
        first, again = load(name), load(name)
        assert (len(first), first.shape) == (10_000, (columns,))
        assert np.array_equal(first.batch(range(10_000))[0].numpy(), again.batch(range(10_000))[0].numpy())


def test_two_moons_are_scikit_learns() -> None:
    """The same arcs: scikit-learn's points without noise lie on the ridge, where the density is the arc's own.

    Far from the ends of an arc of length pi, half of the points' density is 1 / (2 pi) along it and the normal
    density's peak across it; its curvature (noise^2 / 8 of it) and the other arc change that by less than 2 %.
    """
    from sklearn.datasets import make_moons

    points, _ = make_moons(400, shuffle=False, noise=None)
    height = np.exp(synthetic.two_moons_log_density(points))
    noise = synthetic.MOON_NOISE
    middle = np.r_[50:150, 250:350]
    expected = 1 / (2 * np.pi) / (noise * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(height[middle], expected, rtol=0.02)


def test_the_density_of_two_moons_is_that_of_its_samples() -> None:
    sides = [np.linspace(-1.6, 2.6, 22), np.linspace(-1.1, 1.6, 19)]
    fine = [np.linspace(edges[0], edges[-1], 4 * (len(edges) - 1) + 1) for edges in sides]
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in fine]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = (fine[0][1] - fine[0][0]) * (fine[1][1] - fine[1][0])
    mass = np.exp(synthetic.two_moons_log_density(grid)).reshape(len(centres[0]), -1) * cell
    assert mass.sum() == pytest.approx(1, abs=1e-4)  # five deviations beyond the arcs
    cells = mass.reshape(21, 4, 18, 4).sum((1, 3))
    count = 20_000
    counted, _, _ = np.histogram2d(*synthetic.two_moons(count, seed=3).T, bins=sides)
    likely = cells * count >= 5
    chi2 = ((counted - cells * count)[likely] ** 2 / (cells * count)[likely]).sum()
    degrees = likely.sum()
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)  # four deviations of a chi-square


def test_the_density_of_the_mixture_is_scipys() -> None:
    from scipy.stats import multivariate_normal

    x = synthetic.mixture6(500, seed=1)
    means, factors = synthetic._mixture()
    normals = [multivariate_normal(m, f @ f.T) for m, f in zip(means, factors, strict=True)]
    expected = np.log(np.mean([n.pdf(x) for n in normals], axis=0))
    np.testing.assert_allclose(synthetic.mixture6_log_density(x), expected, rtol=0, atol=1e-9)
    # and the samples are its own: six components, each with its share (four deviations of a binomial)
    nearest = np.argmax([n.logpdf(synthetic.mixture6(6000, seed=2)) for n in normals], axis=0)
    assert np.abs(np.bincount(nearest, minlength=6) - 1000).max() < 4 * np.sqrt(6000 * 5 / 36) + 100
