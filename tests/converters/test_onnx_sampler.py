"""``sampler.onnx`` and ``step.onnx`` of zoo:ddpm-mnist, and of small networks with other options, beside the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastgen
from fastgen import onnx_runtime
from fastgen.checkpoint import save
from fastgen.converters.onnx.checking import sampler_feed
from fastgen.converters.onnx.tables import table_json
from fastgen.onnx_runtime import table as runtime_table
from fastgen.onnx_runtime.noise import INITIAL
from fastgen.onnx_runtime.noise import normals as numpy_normals
from fastgen_kernels import STREAMS, normals, signed_seeds
from fastgen_kernels.reverse_step import row
from tests.refusals import refused
from tests.small import network, spec, unet_config

SOLVERS = ["ddpm", "ddim", "dpm++2m", "unipc", "heun"]
SEEDS = [5, 2**64 - 1, 7, 8]
LABELS = [3, 1, 4, None]
GUIDANCE = [1.5, 1.0, 3.0, 2.0]


@pytest.fixture(scope="module")
def engine() -> Any:
    return fastgen.load("zoo:ddpm-mnist", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def model(digits: Path) -> Any:
    return onnx_runtime.load(digits, "cpu", threads=1)


def test_numpy_noise_is_the_engines_bit_for_bit() -> None:
    assert STREAMS["initial"] == INITIAL
    seeds = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 12345678901234567]
    for count in (1, 6, 785):
        wanted = normals(signed_seeds(seeds), 3, "step", (count,)).numpy()
        assert np.array_equal(
            numpy_normals(np.array(seeds, dtype=np.uint64), 3, STREAMS["step"], count), wanted
        )


def test_the_runtimes_words_are_the_kernels() -> None:
    assert (runtime_table.ROW_WORDS, runtime_table.GUIDANCE) == (row.ROW_WORDS, row.GUIDANCE)
    assert runtime_table.NOISE_WORDS == [row.A + row.Z, row.B + row.Z]
    assert runtime_table.ADJUSTED_WORDS == [row.THRESHOLD_MAX, row.RESCALE, row.LANGEVIN]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_pictures_are_the_engines(engine: Any, model: Any, solver: str) -> None:
    """To the rounding that the solver amplifies: Heun's second row multiplies by 300."""
    steps = 10
    given = {"seeds": SEEDS, "labels": LABELS, "guidance_scale": GUIDANCE, "solver": solver, "steps": steps}
    images, states = model.trajectory(**given)
    together = model.sample(**given)
    assert np.array_equal(images, together)
    assert states.shape == (len(model.table(solver, steps)), 4, 1, 28, 28)
    assert np.array_equal(states[-1].clip(-1, 1), images)
    wanted = engine.sample(**given).numpy()
    assert np.abs(together - wanted).max() < 1e-3
    assert np.abs(together[0] - together[2]).max() > 0.1  # no constant picture
    for k in range(4):
        alone = model.sample(
            seeds=SEEDS[k : k + 1],
            labels=LABELS[k : k + 1],
            guidance_scale=GUIDANCE[k],
            solver=solver,
            steps=steps,
        )
        assert np.array_equal(alone[0], together[k]), k


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_pictures_of_many_steps_are_the_engines(engine: Any, model: Any, solver: str) -> None:
    given = {
        "seeds": SEEDS[:1],
        "labels": LABELS[:1],
        "guidance_scale": GUIDANCE[:1],
        "solver": solver,
        "steps": 50,
    }
    assert np.abs(model.sample(**given) - engine.sample(**given).numpy()).max() < 1e-3


@pytest.mark.slow
def test_batches_are_divided(digits: Path, model: Any) -> None:
    divided = onnx_runtime.load(digits, "cpu", threads=1, max_batch=2)
    assert np.array_equal(
        divided.sample(3, seed=1, labels=[1, 2, 3], steps=10),
        model.sample(3, seed=1, labels=[1, 2, 3], steps=10),
    )


@pytest.mark.slow
def test_the_file_holds_little_but_the_weights(engine: Any, digits: Path) -> None:
    weights = 4 * sum(p.numel() for p in engine.networks.parameters())
    assert (digits / "sampler.onnx").stat().st_size < 1.1 * weights + 2e6
    assert sum(path.suffix == ".data" for path in digits.iterdir()) == 0


@pytest.mark.slow
def test_kept_samples_are_the_trajectory(digits: Path, model: Any) -> None:
    table = json.loads((digits / "tables" / "ddim-10.json").read_text())
    feed = sampler_feed(table, [1, 2, 3])
    feed |= {"label": np.array([1, 2, 3]), "guidance": np.ones(3, np.float32), "keep": np.array([2, 0])}
    images, kept = model.sessions.get("sampler").run(["images", "trajectory"], feed)
    _, states = model.trajectory(n=3, seed=1, labels=[1, 2, 3], guidance_scale=1, solver="ddim", steps=10)
    assert kept.shape == (10, 2, 1, 28, 28)
    assert np.array_equal(kept, states[:, [2, 0]])
    assert np.array_equal(images[0], kept[-1, 1].clip(-1, 1))


@pytest.mark.slow
def test_tables_are_files_or_given(model: Any, engine: Any, digits: Path) -> None:
    assert ("unipc", 12) in model.tables  # asked for at export
    by_name = model.sample(1, seed=2, labels=1, solver="unipc", steps=12)
    given = json.loads((digits / "tables" / "unipc-12.json").read_text())
    assert np.array_equal(by_name, model.sample(1, seed=2, labels=1, solver=given))
    with refused(fastgen.ConfigError, "solver, steps", "unipc:13"):
        model.sample(1, solver="unipc", steps=13)
    with refused(fastgen.ConfigError, "steps"):
        model.sample(1, solver=given, steps=12)
    for name, wrong in (("rows", [[1.0]]), ("slot", [4] * 12), ("time", ["a"] * 12), ("initial_scale", None)):
        with refused(fastgen.ConfigError, "solver"):
            model.sample(1, solver={**given, name: wrong})


@pytest.mark.slow
def test_wrong_arguments(model: Any) -> None:
    for argument, wrong in (
        ("n", {"n": 0}),
        ("seeds", {"seeds": [-1]}),
        ("labels", {"labels": 10}),
        ("guidance_scale", {"n": 1, "guidance_scale": -1}),
        ("guidance_scale", {"n": 2, "guidance_scale": [1.0]}),
    ):
        with refused(fastgen.ConfigError, argument):
            model.sample(**wrong)


SMALL: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "no classes, learned range": (
        {"num_class_embeds": None, "out_channels": 2},
        {"variance": "learned_range", "null_class": None},
        [{"solver": "ddpm", "steps": 6}, {"solver": "ddim", "steps": 6}],
    ),
    "classes without none, learned variance": (
        {"out_channels": 2, "sample_size": (8, 4)},
        {"variance": "learned", "null_class": None},
        [{"solver": "ddpm", "steps": 6}],
    ),
    "thresholds and rescaled guidance": (
        {},
        {},
        [
            {"solver": "ddpm", "steps": 6, "thresholding": True},
            {"solver": "ddim", "steps": 6, "guidance_rescale": 0.7},
            {"solver": "dpm++2m", "steps": 6, "guidance_interval": (0.2, 0.7)},
        ],
    ),
    "Langevin steps": (
        {},
        {"schedule": {"process": "ve"}},
        [{"solver": "predictor_corrector", "steps": 4}, {"solver": "euler", "steps": 5}],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_with_other_options(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    changes, settings, requests = SMALL[name]
    config = unet_config(**changes)
    classes = None if config.num_class_embeds is None else 3
    made = spec(config, num_classes=classes, **settings)
    tensors = {f"unet.{key}": value for key, value in network(config).state_dict().items()}
    save(tmp_path / "model", made, tensors)
    engine = fastgen.load(tmp_path / "model", device="cpu", dtype="float32")
    fastgen.export(tmp_path / "model", tmp_path / "onnx", what="sampler")
    session = onnx_runtime.load(tmp_path / "onnx", "cpu", threads=1).sessions.get("sampler")
    guided = engine.settings.null_class is not None
    for asked in requests:
        labels = None if classes is None else [0, 2, 1]
        scale = {"guidance_scale": [2.0, 1.0, 3.0]} if guided else {}
        request = engine.request(3, seed=3, labels=labels, **scale, **asked)
        wanted = engine.draw(request).numpy()
        assert np.isfinite(wanted).all()
        plan = request.plans[0]
        feed = sampler_feed(json.loads(table_json(plan.table, "given", plan.steps)), [3, 4, 5])
        weights = np.array([request.plans[k].guidance.scale for k in range(3)], dtype=np.float32)
        if "guidance_interval" in asked:
            on = np.array(request.plans[0].weights) != 1
            feed["rows"][:, row.GUIDANCE] = on
        feed["rows"][:, row.RESCALE] = asked.get("guidance_rescale", 0.0)
        if labels is not None:
            feed["label"] = np.array(labels)
        if guided:
            feed["guidance"] = weights
        images = session.run(["images"], feed)[0]
        assert np.abs(images - wanted).max() < 1e-3, asked


@pytest.mark.slow
def test_half_precision(tmp_path: Path, engine: Any) -> None:
    """A half has 11 bits: 20 steps of a network with an error of 2^-11 of its output's size."""
    pytest.importorskip("onnxruntime")
    written = fastgen.export("zoo:ddpm-mnist", tmp_path, precision="fp16", what="all", check=True)
    assert (
        written.files["sampler.onnx"] < 1.1 * 2 * sum(p.numel() for p in engine.networks.parameters()) + 2e6
    )
    model = onnx_runtime.load(tmp_path, "cpu", threads=1)
    found = model.sample(4, seed=1, labels=[1, 2, 3, 4])
    wanted = engine.sample(4, seed=1, labels=[1, 2, 3, 4]).numpy()
    difference = np.abs(found - wanted)
    assert difference.max() < 0.1
    assert difference.mean() < 1e-3
