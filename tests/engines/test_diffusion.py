"""The engine's verbs: what a call means, what it refuses, and that calls do not disturb each other."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import fastgen
from fastgen.engines.diffusion.engine import DiffusionEngine
from fastgen.engines.diffusion.loop import Loop
from fastgen.errors import ArgumentError, ConfigError
from tests.refusals import refused
from tests.small import checkpoint, network, spec, unet_config

ATOL = 2e-5  # float error of a few network evaluations at another batch size


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder = checkpoint(
        tmp_path_factory.mktemp("models") / "m", class_names=["ant", "bee", "cat"], guidance_scale=1.5
    )
    return fastgen.load(folder, device="cpu", max_batch=4)


def engine_of(**settings: object) -> DiffusionEngine:
    config = unet_config(num_class_embeds=None) if settings.pop("plain", False) else unet_config()
    networks = torch.nn.ModuleDict({"unet": network(config)})
    return DiffusionEngine.from_spec(networks, spec(config, **settings), device="cpu")


def test_shape_range_and_dtype(engine: DiffusionEngine) -> None:
    images = engine.sample(3, seed=0)
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[1])


def test_seed_counts_up(engine: DiffusionEngine) -> None:
    together = engine.sample(6, seed=10, labels=1)
    for k in (0, 5):
        torch.testing.assert_close(engine.sample(seed=10 + k, labels=1)[0], together[k], rtol=0, atol=ATOL)
    picked = engine.sample(seeds=[15, 10], labels=1)
    torch.testing.assert_close(picked, together[[5, 0]], rtol=0, atol=ATOL)


def test_same_call_same_bits(engine: DiffusionEngine) -> None:
    assert torch.equal(engine.sample(5, seed=3), engine.sample(5, seed=3))
    assert not torch.equal(engine.sample(), engine.sample())


def test_count_follows_seeds_and_labels(engine: DiffusionEngine) -> None:
    assert len(engine.sample()) == 1
    assert len(engine.sample(seeds=range(3))) == 3
    assert len(engine.sample(labels=[0, 1, 2, None, "bee"])) == 5
    assert engine.request(labels=["bee", 1, None]).labels == (1, 1, None)


def test_labels_and_guidance_matter(engine: DiffusionEngine) -> None:
    base = engine.sample(seed=1, labels=0, guidance_scale=1)
    assert not torch.allclose(base, engine.sample(seed=1, labels=2, guidance_scale=1), atol=1e-4)
    assert not torch.allclose(base, engine.sample(seed=1, labels=0, guidance_scale=4), atol=1e-4)
    # guidance 0 is the network without the label
    free = engine.sample(seed=1, guidance_scale=4)
    torch.testing.assert_close(engine.sample(seed=1, labels=0, guidance_scale=0), free, rtol=0, atol=ATOL)


def test_names_that_users_know(engine: DiffusionEngine) -> None:
    assert torch.equal(engine.sample(seed=1, steps=3), engine.sample(seed=1, num_inference_steps=3))
    with refused(ArgumentError, "steps, num_inference_steps"):
        engine.sample(steps=3, num_inference_steps=3)
    assert not torch.equal(
        engine.sample(seed=1, solver="ddim", eta=1.0), engine.sample(seed=1, solver="ddim")
    )
    with refused(ArgumentError, "eta", "dpm++2m", "timestep_spacing"):
        engine.sample(solver="dpm++2m", eta=0.5)
    with refused(ArgumentError, "gudance"):
        engine.sample(gudance=3)
    with refused(ArgumentError, "settings"):
        engine.sample(settings=1)


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        ({"n": 0}, ("n", 1_000_000)),
        ({"n": 2.0}, ("n", 2.0)),
        ({"n": 2, "seeds": [1, 2, 3]}, ("seeds", 2, 3)),
        ({"seeds": []}, ("seeds", 0)),
        ({"seed": -1}, ("seed", -1)),
        ({"seed": 2**64}, ("seed", 2**64)),
        ({"seed": 2**64 - 1, "n": 2}, ("seeds", 2**64)),
        ({"seed": 1.5}, ("seed", 1.5)),
        ({"labels": 3}, ("labels", "ant, bee, cat", 3)),
        ({"labels": -1}, ("labels", -1)),
        ({"labels": "dog"}, ("labels", "ant, bee, cat", "'dog'")),
        ({"labels": [0, 1], "n": 3}, ("labels", 3, 2)),
        ({"solver": "oracle"}, ("solver", "ddpm, ddim", "oracle")),
        ({"steps": 0}, ("steps", "num_train_timesteps", 1000)),
        ({"steps": 10_000}, ("steps", 10_000)),
        ({"steps": True}, ("steps", True)),
        ({"guidance_scale": float("nan")}, ("guidance_scale", "nan")),
        ({"guidance_scale": -1}, ("guidance_scale", -1)),
        ({"solver": "ddim", "eta": -0.1}, ("solver ddim: eta", -0.1)),
        ({"timestep_spacing": "even"}, ("solver dpm++2m: timestep_spacing", "even")),
        ({"thresholding": 1}, ("solver dpm++2m: thresholding", 1)),
        ({"output_type": "jpeg"}, ("output_type", "jpeg")),
    ],
)
def test_wrong_values_are_named(engine: DiffusionEngine, arguments: dict, about: tuple) -> None:
    with refused(fastgen.ConfigError, *about):
        engine.sample(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": np.int64(1)},
        {"labels": torch.tensor(1)},
        {"labels": torch.tensor([1, 1]), "n": np.int32(2)},
        {"labels": np.array([1, 1])},
        {"labels": 1, "seeds": torch.tensor([3, 4])},
        {"labels": 1, "seed": np.uint64(3), "n": 2},
    ],
)
def test_integers_of_other_libraries(engine: DiffusionEngine, arguments: dict) -> None:
    request = engine.request(**{"steps": np.int64(3), "seed": None, **arguments})
    assert set(request.labels) == {1}
    steps = request.plans[0].steps
    assert steps == 3
    assert all(type(v) is int for v in (*request.seeds, *request.labels, steps))


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": 1.0},
        {"labels": True},
        {"labels": torch.tensor([1.0])},
        {"labels": [[1]]},
        {"seeds": 5},
        {"seed": torch.tensor(1.5)},
        {"seed": True},
        {"n": True},
        {"timestep_spacing": [["leading"]]},
        {"steps": [2.0]},
        {"steps": {}},
        {"solver": [["ddim"]]},
        {"solver": {}},
    ],
)
def test_what_is_no_integer_is_refused(engine: DiffusionEngine, arguments: dict) -> None:
    argument = next(iter(arguments))
    if argument == "timestep_spacing":  # an option is named with its solver
        argument = "solver dpm++2m: timestep_spacing"
    with refused(fastgen.ConfigError, argument):
        engine.sample(**arguments)


def test_equal_keys_are_not_equal_arguments(engine: DiffusionEngine) -> None:
    engine.sample(seed=0, steps=1, clip_sample=True)
    with refused(fastgen.ConfigError, "steps"):
        engine.sample(seed=0, steps=True, clip_sample=True)
    with refused(fastgen.ConfigError, "solver dpm++2m: clip_sample"):
        engine.sample(seed=0, steps=1, clip_sample=1)


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ({"null_class": 9}, ("settings: null_class", 9, 4)),
        ({"num_classes": 5, "null_class": None}, ("settings: num_classes", 4)),
        ({"num_classes": None, "null_class": None}, ("settings: num_classes", None, 4)),
        ({"null_class": None, "guidance_scale": 3.0}, ("settings: guidance_scale", "null_class")),
        ({"variance": "learned_range"}, ("settings: variance", "learned_range", 2, 1)),
        ({"class_names": ["one"]}, ("settings: class_names", 1, 3)),
    ],
)
def test_settings_must_fit_the_network(settings: dict, about: tuple) -> None:
    with refused(fastgen.ConfigError, *about):
        engine_of(**settings)


def test_tables_that_do_not_fit_together_take_turns() -> None:
    engine = engine_of()
    engine.loop = Loop(
        engine.network, engine.shape, device=engine.device, labelled=True, null_label=3, pool_rows=8
    )
    call = {"seeds": [1, 2], "labels": [0, None], "guidance_scale": 2.0, "steps": 5}  # two tables of 5 rows
    torch.testing.assert_close(engine.sample(**call), engine_of().sample(**call), rtol=0, atol=ATOL)


def test_a_stream_may_end_in_another_thread(engine: DiffusionEngine) -> None:
    stream = engine.stream(2, seed=6)
    beginner = threading.Thread(target=lambda: next(stream))
    beginner.start()
    beginner.join()
    stream.close()
    done: list[object] = []
    caller = threading.Thread(target=lambda: done.append(engine.sample(seed=1)), daemon=True)
    caller.start()
    caller.join(timeout=60)
    assert done


def test_options_of_the_engine_are_checked(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    with refused(fastgen.ConfigError, "max_batch", 0):
        fastgen.load(folder, max_batch=0)
    with refused(fastgen.ConfigError, "graph", "recorded", "cuda"):
        fastgen.load(folder, graph="cuda")


def test_a_missing_triton_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise RuntimeError("fused kernels need triton")

    monkeypatch.setattr("fastgen_kernels.select", missing)
    with refused(fastgen.FastgenError, None, "triton"):
        engine_of()


def test_models_without_classes() -> None:
    plain = engine_of(plain=True)
    assert plain.sample(seed=0).shape == (1, 1, 8, 8)
    with refused(fastgen.ConfigError, "labels"):
        plain.sample(labels=1)
    with refused(fastgen.ConfigError, "guidance_scale", 1):
        plain.sample(guidance_scale=2)


def test_models_without_a_null_class() -> None:
    engine = engine_of(num_classes=4, null_class=None)
    assert engine.sample(seed=0, labels=3).shape == (1, 1, 8, 8)
    with refused(fastgen.ConfigError, "labels", 3):
        engine.sample(seed=0)


def test_stream_ends_with_the_sample(engine: DiffusionEngine) -> None:
    previews = list(engine.stream(6, seed=2, steps=4, labels=1))
    assert [p.step for p in previews] == list(range(1, 9))  # two rounds of a batch of four
    assert {p.total for p in previews} == {8}
    assert torch.equal(previews[-1].images, engine.sample(6, seed=2, steps=4, labels=1))
    assert not torch.equal(previews[0].images, previews[1].images)
    assert (previews[0].images[4:] == 0).all()  # not begun: grey


def test_a_stream_given_up_frees_the_engine(engine: DiffusionEngine) -> None:
    want = engine.sample(2, seed=5)
    stream = engine.stream(2, seed=6)
    next(stream)
    with refused(fastgen.FastgenError):
        engine.sample()
    stream.close()
    assert torch.equal(engine.sample(2, seed=5), want)


def test_callback_sees_every_step(engine: DiffusionEngine) -> None:
    seen = []
    result = engine.sample(2, seed=1, steps=3, callback=lambda step, total, x: seen.append((step, total, x)))
    assert [(s, t) for s, t, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(seen[-1][2], result)


def test_an_error_in_a_callback_leaves_the_engine_whole(engine: DiffusionEngine) -> None:
    want = engine.sample(2, seed=5)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.sample(6, callback=fail)
    assert torch.equal(engine.sample(2, seed=5), want)


def test_output_types(engine: DiffusionEngine) -> None:
    pt = engine.sample(2, seed=4)
    array = engine.sample(2, seed=4, output_type="np")
    np.testing.assert_allclose(array[..., 0], (pt[:, 0].numpy() + 1) / 2)
    assert engine.sample(2, seed=4, output_type="pil")[1].size == (8, 8)


def test_threads_queue(engine: DiffusionEngine) -> None:
    want = [engine.sample(2, seed=s, steps=3) for s in range(6)]
    got: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda s=s: got.update({s: engine.sample(2, seed=s, steps=3)}))
        for s in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[s], want[s]) for s in range(6))


def test_request_repeats_a_call(engine: DiffusionEngine) -> None:
    request = engine.request(2, labels=[0, None], solver="ddim", eta=0.3)
    assert torch.equal(engine.sample(**request.to_dict()), engine.sample(**request.to_dict()))
    assert request.to_dict()["eta"] == 0.3
    assert len(set(request.seeds)) == 2


def test_recorded_engine_captures_once(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    eager, recorded = fastgen.load(folder), fastgen.load(folder, graph="recorded")
    for call in ({"steps": 4}, {"steps": 7, "solver": "ddim", "eta": 1.0}, {"solver": "ddpm", "steps": 5}):
        both = [
            e.sample(4, seed=1, labels=[0, 1, 2, None], guidance_scale=2.0, **call) for e in (eager, recorded)
        ]
        assert torch.equal(*both)
    (captured,) = recorded.describe()["captured"]
    assert (captured["batch"], captured["guided"]) == (4, True)
    assert captured["seconds"] > 0


def test_describe_is_plain_data(engine: DiffusionEngine) -> None:
    import json

    facts = json.loads(json.dumps(engine.describe()))
    assert facts["device"] == "cpu"
    assert facts["dtype"] == "float32"
    assert facts["reverse_step"] == "reference"
    assert facts["classes"] == 3
    assert len(facts["sha256"]) == 64


def test_sample_and_stream_take_the_same_arguments() -> None:
    sample = set(inspect.signature(DiffusionEngine.sample).parameters)
    stream = set(inspect.signature(DiffusionEngine.stream).parameters)
    assert sample - stream == {"callback", "progress", "output_type"}
    assert stream <= sample


def test_device_and_dtype_are_checked(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    with refused(fastgen.ConfigError, "device", "tpu"):
        fastgen.load(folder, device="tpu")
    with refused(fastgen.ConfigError, "dtype", "int8"):
        fastgen.load(folder, dtype="int8")
    assert fastgen.load(folder, dtype="bfloat16").sample(seed=0).dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_and_follows_its_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    compiled = fastgen.load(folder, device="cpu", compile=True)
    fused = fastgen.load(folder, device="cpu")
    for _ in range(2):
        got, want = (engine.sample(1, seed=3, steps=2) for engine in (compiled, fused))
        # Two evaluations, each off by roundings of float32 in sums of other orders.
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        with torch.no_grad():
            for engine in (compiled, fused):
                engine.network.conv_out.bias += 0.25
    assert not torch.equal(fused.sample(1, seed=3, steps=2), want)
    said = compiled.describe()
    assert said["blocks"] == said["convolutions"] == "compiled by torch.compile"
    assert compiled.verify().passed
    with refused(ConfigError, "compile", "yes"):
        fastgen.load(folder, device="cpu", compile="yes")
