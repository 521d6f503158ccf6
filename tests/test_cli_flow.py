"""The command line on flows: sample, evaluate, info."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.cli import main, parser
from fastgen.errors import ConfigError, DataError
from fastgen.training.data import load

COMMON = ["--steps", "3", "--warmup", "1", "--batch-size", "16", "--quiet"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A flow of 8x8 digits that knows their classes."""
    folder = tmp_path_factory.mktemp("images") / "m"
    arguments = ["--model", "glow", "--data", "digits", "--widths", "8", "--option", "steps_per_scale=1"]
    assert main(["train", str(folder), *arguments, "--preview-every", "0", *COMMON]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("moons") / "m"
    arguments = ["--model", "vector_flow", "--data", "two-moons", "--widths", "8", "--option", "steps=2"]
    assert main(["train", str(folder), *arguments, *COMMON]) == 0
    return str(folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A flow of three columns and two classes."""
    folder = tmp_path_factory.mktemp("labelled")
    generator = np.random.default_rng(0)
    np.savez(folder / "t.npz", x=generator.normal(size=(50, 3)), labels=np.arange(50) % 2)
    arguments = [
        "--model",
        "vector_flow",
        "--data",
        str(folder / "t.npz"),
        "--widths",
        "8",
        "--option",
        "steps=1",
    ]
    assert main(["train", str(folder / "m"), *arguments, *COMMON]) == 0
    return str(folder / "m")


def test_a_sheet_and_the_same_again(images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "a.png"
    assert main(["sample", images, "-o", str(sheet), "--seed", "4", "--temperature", "0.7", "-n", "6"]) == 0
    assert "6 images, temperature 0.7 on cpu" in capsys.readouterr().out
    assert main(["sample", "--like", str(sheet), "-o", str(tmp_path / "b.png"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["request"] == {
        "seeds": [4, 5, 6, 7, 8, 9],
        "labels": [0, 1, 2, 3, 4, 5],  # a flow that knows classes draws each in turn
        "temperature": 0.7,
    }
    assert sheet.read_bytes() == (tmp_path / "b.png").read_bytes()
    assert main(["sample", images, "-o", str(tmp_path / "c.png"), "--seed", "4", "-n", "6"]) == 0
    assert sheet.read_bytes() != (tmp_path / "c.png").read_bytes()


def test_single_files_each_of_which_can_be_repeated(images: str, tmp_path: Path) -> None:
    assert main(["sample", images, "-o", str(tmp_path / "all"), "--seeds", "3,9", "--labels", "7"]) == 0
    files = sorted((tmp_path / "all").glob("*.png"))
    assert [f.name for f in files] == ["00000-seed3.png", "00001-seed9.png"]
    assert main(["sample", "--like", str(files[1]), "-o", str(tmp_path / "one.png")]) == 0
    assert (tmp_path / "one.png").read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_rows_come_back_as_data(moons: str, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"rows.{suffix}"
    assert main(["sample", moons, "-o", str(out), "-n", "20", "--seed", "1"]) == 0
    drawn = fastgen.load(moons).sample(20, seed=1)
    assert np.array_equal(load(str(out)).batch(range(20))[0].numpy(), drawn.numpy())  # type: ignore[union-attr]


def test_rows_can_be_drawn_again(moons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", moons, "-o", str(tmp_path / "a.csv"), "-n", "5"]) == 0
    seed = capsys.readouterr().out.partition("seed ")[2].split()[0]
    assert main(["sample", moons, "-o", str(tmp_path / "b.csv"), "-n", "5", "--seed", seed, "--json"]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    request = json.loads(capsys.readouterr().out)["request"]
    assert request == {"n": 5, "seed": int(seed), "labels": None, "temperature": 1.0}
    assert main(["sample", moons, "-o", str(tmp_path / "c.csv"), "--seeds", "4,2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["seeds"] == [4, 2]


def test_a_table_is_like_no_image(
    images: str, moons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", images, "-o", str(tmp_path / "a.png"), "-n", "1"]) == 0
    capsys.readouterr()
    assert main(["sample", moons, "--like", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.csv")]) == 1
    assert capsys.readouterr().err.startswith("fastgen: error: --like: ")


def test_rows_of_classes(labelled: str, tmp_path: Path) -> None:
    assert main(["sample", labelled, "-o", str(tmp_path / "rows.npz"), "-n", "6", "--labels", "1,0"]) == 0
    assert np.load(tmp_path / "rows.npz")["labels"].tolist() == [1, 0, 1, 0, 1, 0]


def test_evaluate_is_the_engines_number(images: str, moons: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = load("digits", subset=(0, 299)).batch(range(300))
    engine = fastgen.load(images)
    call = ["evaluate", images, "--data", "digits", "--subset", "0-299", "--samples", "2", "--json"]
    assert main(call) == 0
    found = json.loads(capsys.readouterr().out)
    expected = engine.bits_per_dim(data[0], 2, labels=data[1], seed=0)  # type: ignore[union-attr]
    assert found["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-6)  # float32 in other batches
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
    assert (found["kind"], found["given"], found["count"]) == (expected.kind, "labels", 300)

    assert main(["evaluate", moons, "--data", "two-moons", "--subset", "0-299", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows, *_ = load("two-moons", subset=(0, 299)).batch(range(300))
    nats = -fastgen.load(moons).log_prob(rows).double()  # type: ignore[union-attr]
    assert found["nats"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert found["standard_error"] == pytest.approx(nats.std().item() / math.sqrt(300), rel=1e-4)
    assert (found["kind"], found["given"]) == ("exact", None)
    assert main(["evaluate", moons, "--data", "two-moons", "--subset", "0-9"]) == 0
    assert "10 rows: " in (line := capsys.readouterr().out)
    assert "nats (exact)" in line


def test_density_of_two_columns(moons: str, tmp_path: Path) -> None:
    out = tmp_path / "d.png"
    assert main(["evaluate", moons, "--data", "two-moons", "--plot", str(out), "-n", "300"]) == 0
    found = colours(out)
    assert {"samples", "data"} <= found
    assert main(["evaluate", moons, "--plot", str(tmp_path / "alone.png"), "-n", "300"]) == 0
    assert "data" not in colours(tmp_path / "alone.png")


def test_density_of_more_columns(labelled: str, tmp_path: Path) -> None:
    data = str(Path(labelled).parent / "t.npz")
    call = ["evaluate", labelled, "--label", "1", "-n", "200", "--data", data]
    assert main([*call, "--plot", str(tmp_path / "d.png")]) == 0
    assert {"samples", "data"} <= colours(tmp_path / "d.png")
    assert main([*call, "--columns", "1,3", "--plot", str(tmp_path / "d.pdf")]) == 0
    assert (tmp_path / "d.pdf").read_bytes().startswith(b"%PDF")


def colours(path: Path) -> set[str]:
    """Whose dots are seen: samples are blue, data is orange."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    # blue and orange, also faint; the heat map's yellow has as much green as red
    found = {
        "samples": (blue > red + 60) & (green > red + 30) & (blue > 170),
        "data": (red > green + 30) & (green > blue + 30),
    }
    return {name for name, mask in found.items() if mask.sum() > 30}


def test_density_without_matplotlib(
    moons: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["evaluate", moons, "--plot", str(tmp_path / "d.png")]) == 1
    assert "needs matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_info(moons: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", moons, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["model"]
    assert (facts["engine"], facts["networks"]) == ("flow", {"flow": "vector_flow"})


def test_verify(images: str, moons: str) -> None:
    for model in (images, moons):
        assert main(["verify", model]) == 0


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["sample", "MOONS"], "--out"),
        (["sample", "MOONS", "-o", "a.csv", "--columns", "3"], "--columns"),
        (["sample", "IMAGES", "-o", "a.csv"], "--out"),
        (["sample", "IMAGES", "--temperature", "-1"], "temperature"),
        (["sample", "IMAGES", "--labels", "12"], "labels"),
        (["sample", "zoo:ddpm-mnist", "-o", "a.csv"], "--out"),
        (["sample", "zoo:ddpm-mnist", "-o", "a.npz", "--gif", "a.gif"], "--gif"),
        (["sample", "zoo:ddpm-mnist", "-o", "a.npy", "--scale", "2"], "--scale"),
        (["sample", "MOONS", "-o", "out"], "--out"),
        (["evaluate", "zoo:gan-mnist", "--data", "digits"], "zoo:gan-mnist"),
        (["evaluate", "MOONS", "--data", "mixture6"], "--data"),
        (["evaluate", "MOONS", "--data", "two-moons", "--samples", "3"], "--samples"),
        (["evaluate", "IMAGES", "--data", "two-moons"], "two-moons"),
        (["evaluate", "LABELLED", "--data", "TABLE"], "labels"),
        (["evaluate", "MOONS", "--data", "digits"], "--data"),
        (["evaluate", "MOONS", "--data", "two-moons", "--seed", "3"], "--seed"),
        (["evaluate", "MOONS", "--data", "two-moons", "--columns", "1"], "--plot"),
        (["evaluate", "MOONS", "--plot", "d.png", "--subset", "0-9"], "--data"),
        (["evaluate", "LABELLED", "--data", "ZEROS", "--label", "1"], "--label"),
        (["evaluate", "MOONS", "--data", "two-moons", "--label", "1"], "--label"),
        (["evaluate", "IMAGES", "--data", "digits", "--subset", "0-1", "--seed", str(2**64 - 1)], "--seed"),
        (["evaluate", "IMAGES", "--plot", "d.png"], "--plot"),
        (["evaluate", "zoo:ddpm-mnist", "--plot", "d.png"], "--plot"),
        (["evaluate", "zoo:ddpm-mnist", "--method", "bound", "--plot", "d.png"], "--data"),
        (
            ["evaluate", "zoo:ddpm-mnist", "--method", "bound", "--timesteps", "1", "--data", "digits"],
            "digits",
        ),
        (["evaluate", "LABELLED", "--label", "1", "--data", "ZEROS", "--plot", "d.png"], "--data"),
        (["evaluate", "MOONS", "--plot", "d.txt"], "--plot"),
        (["evaluate", "MOONS", "--columns", "1,3", "--plot", "d.png"], "--columns"),
        (["evaluate", "LABELLED", "--plot", "d.png"], "labels"),
        (["train", "new", "--model", "glow"], "--data"),
    ],
)
def test_what_is_refused(
    images: str,
    moons: str,
    labelled: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    argument: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("1,2,3\n4,5,7\n")
    zeros = str(Path(labelled).parent / "zeros.npz")  # a table without a row of class 1
    np.savez(zeros, x=np.eye(3), labels=np.array([0, 0, 0]))
    names = {"IMAGES": images, "MOONS": moons, "LABELLED": labelled, "TABLE": "table.csv", "ZEROS": zeros}
    command = [names.get(a, a) for a in arguments]
    args = parser().parse_args(command)
    with pytest.raises((ConfigError, DataError)) as refusal:
        args.run(args)
    assert refusal.value.argument == argument
    assert main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["sample", "IMAGES", "--steps", "3", "--gif", "a.gif"], "--steps, --gif"),
        (["sample", "zoo:ddpm-mnist", "--temperature", "1"], "--temperature"),
        (["evaluate", "IMAGES", "--data", "digits", "--method", "bound"], "--method"),
        (["evaluate", "--data", "digits"], "MODEL"),
        (["evaluate", "IMAGES"], "--data"),
    ],
)
def test_flags_that_are_missing_or_of_another_family(
    images: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    flags: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastgen.architectures.builders", None)  # it is known before weights are read
    with pytest.raises(SystemExit) as stop:
        main([images if a == "IMAGES" else a for a in arguments])
    assert stop.value.code == 2
    usage, error = capsys.readouterr().err.rstrip().rsplit("\n", 1)
    assert usage.startswith("usage: fastgen ")
    assert flags in error
    assert not list(tmp_path.iterdir())


def test_the_label_of_data_that_has_none(
    labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("1,2,3\n4,5,7\n")
    call = ["evaluate", labelled, "--data", str(tmp_path / "table.csv"), "--label", "1", "--json"]
    assert main([*call, "--plot", str(tmp_path / "d.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = torch.tensor([[1.0, 2, 3], [4, 5, 7]])
    nats = -fastgen.load(labelled).log_prob(rows, labels=1).double().mean()
    assert found["nats"] == pytest.approx(nats.item(), rel=1e-6)
    assert found["plot"] == str(tmp_path / "d.png")


def test_nothing_is_overwritten(moons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, command, flag in (("a.csv", "sample", "--out"), ("d.png", "evaluate", "--plot")):
        (tmp_path / name).write_text("mine")
        assert main([command, moons, flag, str(tmp_path / name)]) == 1
        assert "exists already" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "request_",
    [
        {"seeds": [1], "labels": [None], "solver": "ddim", "steps": 3},
        {"seeds": 10**9, "labels": [0], "temperature": 1.0},
        {"seeds": [1], "labels": [0], "temperature": "hot"},
        {"seeds": [1], "labels": [0], "temperature": 1.0, "context": [1]},
    ],
)
def test_a_forged_image_is_refused(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request_: dict
) -> None:
    image = tmp_path / "a.png"
    metadata = {"model": images, "sha256": None, "request": request_}
    fastgen.save_image(torch.zeros(1, 8, 8), image, metadata=metadata)
    assert main(["sample", "--like", str(image)]) == 1
    assert "damaged" in (said := capsys.readouterr().err) or "temperature: expected" in said
