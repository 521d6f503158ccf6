"""The command line, used rightly and wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.checkpoint import save
from fastgen.cli import main
from fastgen.images import read_metadata, save_image
from tests.small import checkpoint, network, spec, unet_config


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.png").mkdir()
    (tmp_path / "file").write_text("mine")
    return str(checkpoint(tmp_path / "model", class_names=["ant", "bee", "cat"]))


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def sample(*arguments: str) -> int:
    return main(["sample", *arguments, "--steps", "2", "--device", "cpu"])


def test_sheet(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(model, "-n", "4", "--labels", "ant,cat", "--seed", "7", "-o", "a.png") == 0
    assert "4 images, dpm++2m x 2 on cpu" in capsys.readouterr().out
    kept = read_metadata("a.png")
    assert kept["request"]["seeds"] == [7, 8, 9, 10]
    assert kept["request"]["labels"] == [0, 2, 0, 2]
    assert len(kept["sha256"]) == 64


def test_folder_of_files_and_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(model, "--seeds", "3,9-10", "-o", "out", "--json", "--solver", "ddim", "--eta", "0.5") == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(f).name for f in report["files"]] == [
        "00000-seed3.png",
        "00001-seed9.png",
        "00002-seed10.png",
    ]
    assert report["request"]["eta"] == 0.5
    assert read_metadata("out/00001-seed9.png")["request"]["seeds"] == [9]
    assert pixels("out/00000-seed3.png").shape == (8, 8)


def test_gif(model: str) -> None:
    assert sample(model, "-n", "2", "-o", "a.png", "--gif", "a.gif") == 0
    with Image.open("a.gif") as animation:
        assert animation.n_frames == 2


@pytest.mark.parametrize(
    "arguments", [["--labels", "0-2"], ["--solver", "ddpm"], ["--guidance-scale", "3"], []]
)
def test_like_repeats_a_sheet(model: str, arguments: list[str]) -> None:
    assert sample(model, "-n", "3", *arguments, "-o", "a.png") == 0  # random seeds
    assert main(["sample", "--like", "a.png"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("a-again.png"))


def test_values_in_turn(model: str) -> None:
    guided = ["--guidance-scale", "1,3", "--guidance-sigmas", "0.1,inf", "--labels", "0-2"]
    guided += ["--guidance-times", "100,900"]
    assert sample(model, "-n", "3", *guided, "--solver", "ddim", "--eta", "0,0.5", "-o", "a.png") == 0
    request = read_metadata("a.png")["request"]
    assert request["guidance_scale"] == [1.0, 3.0, 1.0]
    assert request["eta"] == [0.0, 0.5, 0.0]
    assert request["guidance_sigmas"] == [0.1, "inf"]
    assert request["guidance_times"] == [100.0, 900.0]
    assert main(["sample", "--like", "a.png", "--device", "cpu"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("a-again.png"))


@pytest.mark.parametrize("out", ["a.png", "out"])
def test_an_option_that_is_a_list_is_repeated(model: str, out: str) -> None:
    listed = ["--solver", "unipc", "--steps", "3", "--option", "disable_corrector=[0]"]
    assert sample(model, "-n", "2", "--seed", "4", *listed, "-o", out) == 0
    first = out if out == "a.png" else "out/00000-seed4.png"
    assert main(["sample", "--like", first, "-o", "again.png", "--device", "cpu"]) == 0
    difference = pixels(first).astype(int) - pixels("again.png")
    assert np.abs(difference).max() <= 1  # of the single file: another batch size


def test_like_repeats_one_of_many(model: str) -> None:
    assert sample(model, "-n", "3", "--seed", "5", "-o", "out") == 0
    assert main(["sample", "--like", "out/00002-seed7.png", "-o", "again", "--device", "cpu"]) == 0
    difference = pixels("out/00002-seed7.png").astype(int) - pixels("again/00000-seed7.png")
    assert np.abs(difference).max() <= 1  # another batch size: float error, at most one level


def test_like_keeps_layout_and_dtype(model: str) -> None:
    drawn = [
        "-n",
        "3",
        "--columns",
        "1",
        "--scale",
        "5",
        "--no-captions",
        "--labels",
        "0",
        "--dtype",
        "bfloat16",
    ]
    assert sample(model, *drawn, "-o", "a.png") == 0
    assert main(["sample", "--like", "a.png", "--device", "cpu"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("a-again.png"))
    sample(model, "--seed", "3", "-n", "1", "--labels", "1", "-o", "out")
    assert main(["sample", "--like", "out/00000-seed3.png", "-o", "b.png", "--device", "cpu"]) == 0
    assert np.array_equal(pixels("out/00000-seed3.png"), pixels("b.png"))


@pytest.mark.parametrize(
    "change",
    [
        {"request": None},
        {"request": {}},
        {"request": {"seeds": [1], "labels": [None], "solver": "ddim", "steps": [2, 3]}},
        {"request": {"seeds": [1], "labels": [None], "solver": "ddim", "steps": 2, "self": 1}},
        {"layout": {"scale": -3}},
        {"layout": {"scale": 10**6}},
        {"request": {"settings": 1}},
        {"request": {"seeds": 3, "labels": None, "solver": "ddim", "steps": 2}},
        {"request": {"seeds": [1], "labels": [None], "solver": [["ddim"]], "steps": 2}},
        {"request": {"seeds": [1], "labels": [None], "solver": "ddim", "steps": 2, "eta": [1, 0]}},
        {"request": {"seeds": [1], "labels": [None], "solver": "ddim", "steps": 2, "n": 10**9}},
        {"request": {"seeds": [1], "labels": [None], "solver": "ddim", "steps": 2, "progress": True}},
        {"request": {"seeds": [1], "labels": [None], "solver": "ddim", "steps": 2, "classifier_classes": 3}},
        {"request": {"seeds": [1.5], "labels": [[]], "solver": "ddim", "steps": "2"}},
        {"sha256": 7},
        {"sha256": None},
        {"model": ["x"]},
        {"dtype": "int4"},
        {"layout": {"columns": "wide"}},
        {"layout": [1]},
    ],
)
def test_like_trusts_nobody(model: str, change: dict, capsys: pytest.CaptureFixture[str]) -> None:
    sample(model, "-n", "1", "-o", "a.png")
    save_image(torch.zeros(1, 8, 8), "b.png", metadata={**read_metadata("a.png"), **change})
    capsys.readouterr()
    assert main(["sample", "--like", "b.png", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("fastgen: error: ")


def test_like_is_never_a_fresh_request(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(torch.zeros(1, 8, 8), "b.png", metadata={})
    assert main(["sample", model, "--like", "b.png"]) == 1
    assert "b.png" in capsys.readouterr().err
    assert not Path("b-again.png").exists()


def test_the_library_writes_requests_too(model: str) -> None:
    engine = fastgen.load(model, device="cpu")
    request = engine.request(2, seed=4, steps=2)
    fastgen.save_grid(engine.sample(**request.to_dict()), "a.png", metadata=engine.metadata(request))
    assert main(["sample", "--like", "a.png", "--device", "cpu", "--scale", "1"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("a-again.png"))


def test_like_refuses_another_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    sample(model, "-n", "1", "-o", "a.png")
    config = unet_config()
    state = {f"unet.{n}": t for n, t in network(config, seed=3).state_dict().items()}
    save(model, spec(config), state)
    assert main(["sample", "--like", "a.png"]) == 1
    assert "sha256" in capsys.readouterr().err


def test_solver_options(model: str) -> None:
    options = [
        "--option",
        "solver_type=heun",
        "--option",
        "clip_sample=True",
        "--option",
        "clip_sample_range=1",
    ]
    assert sample(model, "-n", "1", "-o", "a.png", *options) == 0
    request = read_metadata("a.png")["request"]
    assert request["solver_type"] == "heun"
    assert request["clip_sample"] is True


def test_unlike_images_of_one_sheet_are_repeated(model: str) -> None:
    options = [
        "--solver",
        "ddim, heun",
        "--steps",
        "3,5,4",
        "--labels",
        "0-1",
        "--guidance-interval",
        "0.2,0.9",
    ]
    options += ["--guidance-scale", "3", "--guidance-rescale", "0.5", "--device", "cpu"]
    assert main(["sample", model, "-n", "4", "-o", "a.png", *options]) == 0
    request = read_metadata("a.png")["request"]
    assert request["solver"] == ["ddim", "heun", "ddim", "heun"]
    assert request["steps"] == [3, 5, 4, 3]
    assert main(["sample", "--like", "a.png", "--device", "cpu"]) == 0
    assert np.array_equal(pixels("a.png"), pixels("a-again.png"))
    assert main(["sample", model, "-n", "4", "--seed", "5", "-o", "out", *options]) == 0
    single = read_metadata("out/00001-seed6.png")["request"]
    assert (single["solver"], single["steps"], single["guidance_interval"]) == ("heun", 5, [0.2, 0.9])


@pytest.mark.parametrize(
    ("arguments", "mention"),
    [
        (["nowhere"], "nowhere"),
        (["zoo:cats"], "zoo:cats"),
        (["{model}", "-n", "0"], "--count"),
        (["{model}", "--labels", "3"], "ant, bee, cat"),
        (["{model}", "--labels", "dog"], "'dog'"),
        (
            ["{model}", "--solver", "magic"],
            "'magic'",
        ),
        (["{model}", "--steps", "0"], "steps"),
        (["{model}", "--steps", "10000"], "steps"),
        (["{model}", "--eta", "1"], "eta"),
        (["{model}", "--option", "eta"], "--option"),
        (["{model}", "--option", "foo=1"], "foo"),
        (["{model}", "--option", "self=1"], "self"),
        (["{model}", "--option", "settings=1"], "settings"),
        (["{model}", "--option", "steps=2"], "--option"),
        (["{model}", "--out", "a.exe"], "a.exe"),
        (["{model}", "--out", "no/where/a.png"], "no/where"),
        (["{model}", "--gif", "a.png"], ".gif"),
        (["{model}", "--out", "images.png"], "images.png"),
        (["{model}", "--out", "file", "--overwrite"], "--out"),
        (
            ["{model}", "--option", 'timestep_spacing=["leading"]'],
            "timestep_spacing",
        ),
        (["{model}", "--device", "tpu"], "device"),
        (["{model}", "--dtype", "int4"], "dtype"),
        (["{model}", "--seed", "-1"], "got -1"),
        (["{model}", "--guidance-scale", "-1"], "guidance_scale"),
        (["{model}", "--guidance-interval", "0.5"], "guidance_interval"),
        (["{model}", "--guidance-interval", "0.5,x"], "--guidance-interval"),
        (["{model}", "--guidance-rescale", "2"], "guidance_rescale"),
        (["{model}", "--guidance-scale", "1,x"], "--guidance-scale"),
        (["{model}", "--guidance-sigmas", "3,1"], "guidance_sigmas"),
        (["{model}", "--guidance-times", "800,200"], "guidance_times"),
        (["{model}", "--eta", "high"], "--eta"),
        (["{model}", "--option", "classifier_classes=2"], "classifier_classes"),
        (["{model}", "--steps", "3,four"], "--steps"),
        (["--like", "missing.png"], "missing.png"),
        ([], "MODEL"),
    ],
)
def test_wrong_use_is_one_clear_line(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], mention: str
) -> None:
    before = sorted(Path().iterdir())
    assert main(["sample", *[a.format(model=model) for a in arguments]]) == 1
    captured = capsys.readouterr()
    assert mention in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(Path().iterdir()) == before


def test_like_takes_no_other_request(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", model, "--like", "a.png", "--steps", "3"]) == 1
    assert "--steps" in capsys.readouterr().err


def test_nothing_is_overwritten(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").write_text("mine")
    assert sample(model, "-o", "a.png") == 1
    assert "a.png" in capsys.readouterr().err
    assert Path("a.png").read_text() == "mine"
    assert sample(model, "-n", "1", "-o", "a.png", "--overwrite") == 0
    sample(model, "--seeds", "1", "-o", "out")
    Path("out/00001-seed2.png").write_text("mine")
    first = Path("out/00000-seed1.png").read_bytes()
    assert sample(model, "--seeds", "3,2", "-o", "out", "--solver", "ddpm") == 1
    assert "out: holds 1 of 1 images of another request: " in capsys.readouterr().err
    assert sorted(p.name for p in Path("out").glob("*")) == [
        ".fastgen.json",
        "00000-seed1.png",
        "00001-seed2.png",
    ]
    assert Path("out/00000-seed1.png").read_bytes() == first


@pytest.mark.parametrize(
    "arguments",
    ["--columns -1", "--scale 0", "--seeds 9-3", "--seeds a", "--seed 1 --seeds 2", "--stepz"],
)
def test_usage_errors(model: str, capsys: pytest.CaptureFixture[str], arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", model, *arguments.split()])
    assert stop.value.code == 2
    assert "usage: fastgen" in capsys.readouterr().err


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "zoo:ddpm-mnist" in capsys.readouterr().out
    assert main(["info", model, "--device", "cpu"]) == 0
    assert "reverse_step: reference" in capsys.readouterr().out
    assert main(["info", "--solvers", "--json"]) == 0
    assert "eta" in json.loads(capsys.readouterr().out)["solvers"]["ddim"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["doctor"]
    assert facts["versions"]["torch"]
    assert "reverse_step" in facts["will run"]["operations"]
    assert facts["problems"] == []


def test_doctor_reports_a_missing_triton(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> str:
        raise RuntimeError("fused kernels need triton")

    monkeypatch.setattr("fastgen_kernels.select", missing)
    assert main(["info", "--doctor"]) == 1
    assert "problems: fused kernels need triton" in capsys.readouterr().out
