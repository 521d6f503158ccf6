"""One rule says which class a label means: in Python, on the command line, in folders of images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.checkpoint import load_spec
from fastgen.cli import main
from fastgen.commands.evaluate import load_data
from fastgen.engines.arguments import class_number, written_labels
from fastgen.errors import ConfigError
from fastgen.images import read_metadata
from fastgen.training.data import load
from fastgen.training.folders import ordered
from tests.refusals import refused

NUMBERS = [str(n) for n in range(12)]  # sorted as numbers
AS_STRINGS = sorted(
    NUMBERS
)  # 0, 1, 10, 11, 2, ...: models trained by versions that sorted so keep this order
ONE_BASED = [str(n) for n in range(1, 11)]
ANIMALS = ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("found", "want"),
    [
        (NUMBERS, NUMBERS),
        (["10", "9", "009", "b", "a", "-1", "2.5"], ["009", "9", "10", "-1", "2.5", "a", "b"]),
        (["n02", "n1", "n10"], ["n02", "n1", "n10"]),  # names, not numbers
        (["2", "10", "²"], ["2", "10", "²"]),  # a digit that int() refuses
    ],
)
def test_the_order_of_folders(found: list[str], want: list[str]) -> None:
    assert ordered(set(found)) == want


def test_a_known_order_stays() -> None:
    assert ordered(set(NUMBERS), AS_STRINGS) == AS_STRINGS
    assert ordered({"10", "2"}, AS_STRINGS) == AS_STRINGS  # data of fewer classes than the model knows
    assert ordered({"10", "2", "x"}, AS_STRINGS) == ["2", "10", "x"]


@pytest.mark.parametrize(
    ("label", "names", "want"),
    [
        (10, NUMBERS, 10),
        ("10", NUMBERS, 10),
        (np.int64(10), NUMBERS, 10),
        (torch.tensor(10), NUMBERS, 10),
        ("10", AS_STRINGS, 2),  # an exact name wins
        (10, AS_STRINGS, 10),  # an integer is a number
        ("1", ONE_BASED, 0),
        (0, ONE_BASED, 0),
        ("bee", ANIMALS, 1),
        ("1", ANIMALS, 1),  # no name is made of digits: no doubt
        ("1", None, 1),
        ("01", ANIMALS, 1),
    ],
)
def test_a_label_has_one_meaning(label: object, names: list[str] | None, want: int) -> None:
    assert class_number(label, len(names) if names else 3, names) == want


@pytest.mark.parametrize(
    ("label", "names", "mentions"),
    [
        ("0", ONE_BASED, ["0", "10"]),  # folder "1", or none?
        ("00", NUMBERS, ["00"]),
        ("bee", ["ant", "bee", "bee"], [1, 2]),
        ("dog", ANIMALS, ["dog", "cat"]),
        ("Bee", ANIMALS, ["Bee", "bee"]),
        (3, ANIMALS, [3, "bee"]),
        (-1, ANIMALS, [-1]),
        ("3", ANIMALS, [3]),
        (1.0, ANIMALS, [1.0]),
        (True, ANIMALS, [True]),
        ("9" * 5000, None, []),
    ],
)
def test_what_is_ambiguous_or_unknown_is_refused(
    label: object, names: list[str] | None, mentions: list
) -> None:
    with refused(ConfigError, "labels", *mentions):
        class_number(label, len(names) if names else 3, names)


@pytest.mark.parametrize(
    ("text", "names", "want"),
    [
        ("0-3,7", None, ["0", "1", "2", "3", "7"]),
        ("ant, bee", ANIMALS, ["ant", "bee"]),
        ("0-2", ["0-2", "3-5"], ["0-2"]),  # a name that looks like a range
        ("3-5,0-2", ["0-2", "3-5"], ["3-5", "0-2"]),
        ("a,b", ["a,b", "c"], ["a,b"]),
        ("well-known", ["well-known"], ["well-known"]),
        ("-1", None, ["-1"]),
    ],
)
def test_labels_on_the_command_line(text: str, names: list[str] | None, want: list[str]) -> None:
    assert written_labels(text, names) == want


@pytest.mark.parametrize("text", ["5-3", "0-1000000", "0-999999,1-2"])
def test_ranges_that_are_none(text: str) -> None:
    with refused(ConfigError, "labels"):
        written_labels(text, None)


TRAIN = [
    "--steps",
    "1",
    "--widths",
    "8,8",
    "--size",
    "8",
    "--batch-size",
    "4",
    "--preview-every",
    "0",
    "--quiet",
]


def test_twelve_folders_from_training_to_the_command_line(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    for name in NUMBERS:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 20 * int(name)).save(tmp_path / "data" / name / "x.png")
    data = load(str(tmp_path / "data"), size=(8, 8), channels=1)
    assert data.class_names == NUMBERS
    x, label, _ = data.batch(range(12))
    assert label is not None
    assert (x[:, 0, 0, 0] == 20 * label).all()  # each image under its own number

    model = str(tmp_path / "model")
    assert main(["train", model, "--data", str(tmp_path / "data"), *TRAIN]) == 0
    assert load_spec(Path(model)).settings["class_names"] == NUMBERS
    engine = fastgen.load(model)
    assert engine.request(labels="10", seed=0).labels == engine.request(labels=10, seed=0).labels == (10,)
    sheet = tmp_path / "a.png"
    assert (
        main(["sample", model, "--labels", "10", "-n", "1", "--steps", "1", "--seed", "0", "-o", str(sheet)])
        == 0
    )
    assert read_metadata(sheet)["request"]["labels"] == [10]


def test_a_run_of_the_old_order_goes_on_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NUMBERS:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 20 * int(name)).save(tmp_path / "data" / name / "x.png")
    model = str(tmp_path / "model")
    with monkeypatch.context() as old:
        old.setattr("fastgen.training.folders.ordered", lambda found, known=None: sorted(found))
        steps = ["--steps", "3", "--save-every", "1"]
        assert main(["train", model, "--data", str(tmp_path / "data"), *TRAIN, *steps]) == 0
    assert load_spec(Path(model)).settings["class_names"] == AS_STRINGS
    engine = fastgen.load(model)
    assert engine.request(labels="10", seed=0).labels == (AS_STRINGS.index("10"),)
    assert main(["train", model, "--resume", "--quiet"]) == 0  # its data is ordered as it was
    again = load(str(tmp_path / "data"), size=(8, 8), class_names=AS_STRINGS)
    x, label, _ = again.batch(range(12))
    assert label is not None
    assert [AS_STRINGS[i] for i in label] == [str(int(value) // 20) for value in x[:, 0, 0, 0]]


def test_evaluation_numbers_classes_as_the_model_does(tmp_path: Path) -> None:
    for name in ("2", "10"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), 20 * int(name)).save(tmp_path / name / "x.png")
    settings = SimpleNamespace(class_names=tuple(AS_STRINGS))
    model: Any = SimpleNamespace(shape=(1, 8, 8), settings=settings, describe=lambda: {"levels": 256})
    x, label, _ = load_data(model, str(tmp_path)).batch(range(2))
    assert label is not None
    assert [AS_STRINGS[i] for i in label] == [str(int(value) // 20) for value in x[:, 0, 0, 0]]
    (tmp_path / "12").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "12" / "x.png")
    with refused(ConfigError, "--data", 12):
        load_data(model, str(tmp_path))
