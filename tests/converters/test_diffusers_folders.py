"""The forms in which diffusers' folders come: variants, shards, .bin, old layouts; and what is wrong with some."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastgen
from fastgen.checkpoint import file_sha256
from fastgen.cli import main
from fastgen.converters import CONVERTERS, Tensors, build, detect, save, write
from fastgen.converters.diffusers import CONVERTER
from fastgen.errors import CheckpointError, ConfigError, FastgenError
from tests.refusals import refused
from tests.small import checkpoint

from .folders import TINY, pipeline, saved

STEM = "diffusion_pytorch_model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("original") / "m")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "m"))


def tensors(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    read = CONVERTER.read(folder, variant).tensors
    return {name: read.get(name) for name in read.shapes}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].to(b[name].dtype), b[name]) for name in a)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def as_bin(folder: Path, old_format: bool = False) -> None:
    path = folder / "unet" / f"{STEM}.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"), _use_new_zipfile_serialization=not old_format)
    path.unlink()


@pytest.mark.parametrize("old_format", [False, True])
def test_bin(folder: Path, original: Path, old_format: bool) -> None:
    as_bin(folder, old_format)
    assert same(tensors(folder), tensors(original))


def test_bin_executes_nothing(folder: Path, tmp_path: Path) -> None:
    as_bin(folder)

    class Evil:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return Path.touch, (tmp_path / "touched",)

    for content in ({"conv_in.weight": Evil()}, Evil()):
        (folder / "unet" / f"{STEM}.bin").write_bytes(pickle.dumps(content, protocol=2))
        with refused(CheckpointError, folder / "unet" / f"{STEM}.bin"):
            fastgen.load(folder)
        torch.save(content, folder / "unet" / f"{STEM}.bin")
        with refused(CheckpointError, folder / "unet" / f"{STEM}.bin"):
            fastgen.load(folder)
    assert not (tmp_path / "touched").exists()


def test_variant(original: Path, tmp_path: Path) -> None:
    made = pipeline().to(torch.float16)
    made.save_pretrained(tmp_path, variant="fp16")
    engine = fastgen.load(tmp_path, variant="fp16", device="cpu")
    assert same(tensors(tmp_path, "fp16"), {n: t.half() for n, t in tensors(original).items()})
    assert engine.sample(1, seed=0, steps=2).isfinite().all()
    with refused(
        CheckpointError, tmp_path / "unet", f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", "variant="
    ):
        fastgen.load(tmp_path)
    with refused(CheckpointError, tmp_path / "unet", ".ema.safetensors"):
        fastgen.load(tmp_path, variant="ema")
    with refused(ConfigError, "variant", "fp16"):
        fastgen.load("zoo:ddpm-mnist", variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False])
def test_shards(original: Path, tmp_path: Path, variant: str | None, safe: bool) -> None:
    made = pipeline()
    made.unet.save_pretrained(
        tmp_path / "unet", max_shard_size="30KB", variant=variant, safe_serialization=safe
    )
    shutil.copytree(original / "scheduler", tmp_path / "scheduler")
    kind = "safetensors" if safe else "bin"
    shards = sorted((tmp_path / "unet").glob(f"*-of-*.{kind}"))
    assert len(shards) > 1
    assert same(tensors(tmp_path, variant), tensors(original))
    shards[1].unlink()
    with pytest.raises(
        CheckpointError, match=f"index.*names {shards[1].name}, which is not there; the download is"
    ):
        fastgen.load(tmp_path, variant=variant)


def test_an_index_stays_in_its_folder(folder: Path) -> None:
    path = folder / "unet" / f"{STEM}.safetensors"
    path.rename(folder / "outside.safetensors")
    index = path.with_suffix(".safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../outside.safetensors"}}))
    with refused(CheckpointError, folder / "unet" / f"{STEM}.safetensors.index.json"):
        fastgen.load(folder)


def test_old_layout_and_names(folder: Path, original: Path) -> None:
    """google/ddpm-cifar10-32: one folder, attention with the names of its day."""
    for path in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    path = folder / f"{STEM}.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state.items()}
    save_file(state, path)
    assert same(tensors(folder), tensors(original))
    report = CONVERTER.read(folder, None).report
    assert "have names from before diffusers 0.15" in report.renamed[0]
    change(folder / "config.json", down_block_types=["UNetResDownBlock2D", "UNetResAttnDownBlock2D"])
    assert same(tensors(folder), tensors(original))


def test_a_unet_alone(folder: Path, original: Path) -> None:
    converted = CONVERTER.read(folder / "unet", None)
    (assumed,) = converted.report.assumed
    assert assumed.startswith("no scheduler in the folder, so DDPMScheduler: num_train_timesteps=1000")
    assert fastgen.load(folder / "unet", device="cpu").settings.solver == "ddpm"
    (folder / "model_index.json").unlink()
    assert fastgen.load(folder, device="cpu").settings.solver == "ddpm"


def test_what_the_file_does_not_say_is_diffusers_default(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    network = UNet2DModel(sample_size=16, block_out_channels=(32, 32, 32, 32), layers_per_block=1).eval()
    network.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    kept = ("_class_name", "sample_size", "block_out_channels", "layers_per_block")
    (tmp_path / "config.json").write_text(json.dumps({key: raw[key] for key in kept}))
    report = CONVERTER.read(tmp_path, None).report
    for option in (
        "down_block_types=DownBlock2D,AttnDownBlock2D",
        "norm_eps=1e-05",
        "flip_sin_to_cos=True",
        "freq_shift=0",
        "downsample_padding=1",
        "attention_head_dim=8",
    ):
        assert option in report.assumed[0]
    x = torch.randn(1, 3, 16, 16)
    ours = fastgen.load(tmp_path, device="cpu").network
    with torch.no_grad():
        torch.testing.assert_close(ours(x, torch.tensor([5])), network(x, 5).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "LDMPipeline"},
            "'LDMPipeline' is not supported; supported: DDPMPipeline",
        ),
        ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "vqvae: .* supported: unet, scheduler"),
        (
            "model_index.json",
            {"unet": ["diffusers", "UNet2DConditionModel"]},
            "'UNet2DConditionModel' is not supp",
        ),
        (
            "unet/config.json",
            {"_class_name": "UNet1DModel"},
            "'UNet1DModel' is not supported; supported: UNet2DModel",
        ),
        ("unet/config.json", {"sample_size": None}, "sample_size is null"),
        ("unet/config.json", {"act_fn": "elu"}, "act_fn: expected one of silu, swish, mish"),
        (
            "unet/config.json",
            {"down_block_types": ["DownEncoderBlock2D"] * 2},
            r"down_block_types\[0\]: expected one",
        ),
        (
            "unet/config.json",
            {"class_embed_type": "projection"},
            "class_embed_type: expected one of timestep, ident",
        ),
        ("unet/config.json", {"encoder_hid_dim": 8}, "unknown key encoder_hid_dim; known: sample_size"),
        (
            "unet/config.json",
            {"norm_num_groups": 5},
            "unet/config.json: .*must be divisible by norm_num_groups 5",
        ),
        (
            "unet/config.json",
            {"block_out_channels": [8, 10**9]},
            r"block_out_channels\[1\]: expected 1 to 4096",
        ),
        ("unet/config.json", {"block_out_channels": [8, 32]}, "has shape .*, its configuration asks for"),
        ("unet/config.json", {"layers_per_block": 2}, "tensors are missing, the first is unet.down_blocks"),
        (
            "unet/config.json",
            {"mid_block_type": None},
            "do not belong to its configuration, the first is unet.mid",
        ),
        (
            "unet/config.json",
            {"class_embed_type": "identity"},
            "class_embed_type: the engine gives networks class",
        ),
        ("unet/config.json", {"out_channels": 6}, "has shape"),
        ("scheduler/scheduler_config.json", {"_class_name": "IPNDMScheduler"}, "supported: DDPMScheduler"),
        (
            "scheduler/scheduler_config.json",
            {"thresholding": 1},
            "scheduler_config.json: .*thresholding: expected bool, got int 1",
        ),
        ("fastgen.json", {"sampler": 1}, "unknown key sampler; known: num_classes"),
        ("fastgen.json", {"solver_options": [1]}, "solver_options: expected an object, got list"),
        ("fastgen.json", {"solver_options": "eta=1"}, "solver_options: expected an object, got str"),
        ("fastgen.json", {"steps": "many"}, "steps: expected int, got str 'many'"),
        ("fastgen.json", {"num_classes": 3}, "num_classes: is 3, the network embeds None"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, file: str, values: dict, message: str) -> None:
    path = folder / file
    if not path.exists():
        path.write_text("{}")
    change(path, **values)
    with pytest.raises(FastgenError, match=message) as error:
        fastgen.load(folder, device="cpu")
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", None, "unet: no config.json of the U-Net; is the download complete"),
        ("unet/config.json", b'{"_class', "not valid JSON: .*was it downloaded to the end"),
        ("unet/config.json", b"[]", "expected an object, got list"),
        ("unet/config.json", b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
        ("model_index.json", b"{", "model_index.json: not valid JSON"),
        (
            "scheduler/scheduler_config.json",
            None,
            "no scheduler/scheduler_config.json; is the download complete",
        ),
        (
            f"unet/{STEM}.safetensors",
            None,
            f"no {STEM}.safetensors or {STEM}.bin; there are no weights at all",
        ),
        (f"unet/{STEM}.safetensors", b"", "is empty; the download is incomplete"),
        (f"unet/{STEM}.safetensors", 1000, "not a whole safetensors file: .*fetch it again"),
        (f"unet/{STEM}.safetensors", -1, "not a whole safetensors file: .*fetch it again"),
        (f"unet/{STEM}.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (f"unet/{STEM}.bin", 1000, "not a whole file of torch.save|holds more than tensors, or is damaged"),
        (f"unet/{STEM}.bin", -1, "not a whole file of torch.save|holds more than tensors, or is damaged"),
    ],
)
def test_half_downloaded(folder: Path, file: str, content: bytes | int | None, message: str) -> None:
    if file.endswith(".bin"):
        as_bin(folder)
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(CheckpointError, match=message):
        fastgen.load(folder, device="cpu")


def test_what_converts_but_does_not_run(tmp_path: Path) -> None:
    saved(tmp_path / "m", TINY | {"time_embedding_type": "fourier"})
    report = fastgen.convert(tmp_path / "m", tmp_path / "ours")
    assert "time_embedding_type=fourier" in " ".join(report.mapped)
    for folder in ("m", "ours"):
        with refused(ConfigError, "time_embedding_type"):
            fastgen.load(tmp_path / folder, device="cpu")


def test_weights_that_are_not_numbers(folder: Path) -> None:
    path = folder / "unet" / f"{STEM}.safetensors"
    state = load_file(path)
    save_file({**state, "conv_in.bias": state["conv_in.bias"] * float("nan")}, path)
    with refused(CheckpointError, f"{folder / 'unet' / STEM}.safetensors: conv_in.bias"):
        fastgen.load(folder, device="cpu")


def test_our_own_folders_are_nobody_elses(tmp_path: Path) -> None:
    fastgen.convert("zoo:ddpm-mnist", tmp_path / "theirs", to="diffusers")
    fastgen.convert(tmp_path / "theirs", tmp_path / "ours")
    assert detect(tmp_path / "ours") is None
    assert detect(tmp_path / "theirs") is CONVERTERS["diffusers"]
    assert detect(tmp_path) is None
    assert detect(tmp_path / "nothing") is None
    assert fastgen.load(tmp_path / "ours", device="cpu").settings.guidance_scale == 1.5


def test_one_tensor_at_a_time(folder: Path, tmp_path: Path) -> None:
    """Loading and converting hold no second copy of a model: each tensor is let go before the next is read."""
    converted = CONVERTER.read(folder, None)
    alive: list[weakref.ref[Tensor]] = []
    largest = 0

    def get(name: str) -> Tensor:
        nonlocal largest
        tensor = converted.tensors.get(name).clone()
        alive.append(weakref.ref(tensor))
        largest = max(largest, sum(ref() is not None for ref in alive))
        return tensor

    watched = dataclasses.replace(converted, tensors=dataclasses.replace(converted.tensors, get=get))
    build(watched)
    save(tmp_path / "ours", watched.spec, watched.tensors, None)
    assert CONVERTER.write is not None
    CONVERTER.write(tmp_path / "theirs", watched.spec, watched.tensors, torch.float16)
    assert len(alive) == 3 * len(converted.tensors.shapes)  # each was read once
    assert len(alive) > 100
    assert largest <= 2


def test_written_files_are_whole_safetensors(folder: Path, tmp_path: Path) -> None:
    converted = CONVERTER.read(folder, None)
    spec = save(tmp_path / "ours", converted.spec, converted.tensors, torch.bfloat16)
    state = load_file(tmp_path / "ours" / "model.safetensors")
    assert same(state, {n: t.bfloat16() for n, t in tensors(folder).items()})
    assert spec.provenance["sha256"] == file_sha256(tmp_path / "ours" / "model.safetensors")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    huge = Tensors({"a": (2,)}, lambda name: torch.tensor([1.0, 1e6]), "x")
    with refused(CheckpointError, "x: a", "torch.float16"):
        write(tmp_path / "ours" / "model.safetensors", huge, torch.float16)
    assert same(load_file(tmp_path / "ours" / "model.safetensors"), state)  # the old file is still there


@pytest.fixture
def hub(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A hub that holds owner/model, and the patterns that were asked of it."""
    asked: list[list[str]] = []
    cache = tmp_path / "cache"

    def snapshot_download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        from fnmatch import fnmatch

        assert name == "owner/model"
        asked.append(allow_patterns)
        for path in original.rglob("*"):
            inner = str(path.relative_to(original))
            if path.is_file() and any(fnmatch(inner, pattern) for pattern in allow_patterns):
                (cache / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / inner)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_hub_ids_fetch_what_they_need(hub: list[list[str]]) -> None:
    engine = fastgen.load("owner/model", device="cpu")
    assert engine.describe()["source"] == "owner/model"
    assert len(engine.describe()["sha256"]) == 64
    assert len(hub) == 2  # the small files, then safetensors, and no .bin
    assert hub[1] == [f"unet/{STEM}.safetensors", f"unet/{STEM}-*-of-*.safetensors"]
    with pytest.raises(CheckpointError, match=f"there is {STEM}.safetensors"):
        fastgen.load("owner/model", variant="fp16", device="cpu")


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    assert main(["convert", str(folder), ours]) == 0
    out = capsys.readouterr().out
    assert "DDPMPipeline of diffusers" in out
    assert "DDPMScheduler -> solver ddpm" in out
    assert "ignored: dynamic_thresholding_ratio=0.995: no effect without thresholding" in out
    assert main(["convert", ours, theirs, "--to", "diffusers", "--dtype", "float16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == theirs
    assert {t.dtype for t in tensors(Path(theirs)).values()} == {torch.float16}
    assert (
        main(["sample", theirs, "-n", "1", "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "a.png")])
        == 0
    )
    assert main(["info", theirs, "--device", "cpu"]) == 0
    capsys.readouterr()
    for arguments, message in (
        ([str(folder), ours], "is not empty; choose another folder or overwrite"),
        ([ours, str(tmp_path / "x")], "is a fastgen model already; say to="),
        ([str(folder), str(folder), "--overwrite"], "is the source itself"),
        ([str(folder), str(tmp_path / "a.png")], "is a file; give a folder"),
        (
            [str(folder), str(tmp_path / "x"), "--to", "tf"],
            "to: expected one of fastgen, diffusers, got 'tf'",
        ),
        ([str(folder), str(tmp_path / "x"), "--dtype", "int4"], "dtype: expected one of float32, float16"),
        ([str(tmp_path / "nothing"), str(tmp_path / "x")], "no such folder"),
    ):
        assert main(["convert", *arguments]) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert not (tmp_path / "x").exists()
    assert main(["convert", str(folder), ours, "--overwrite"]) == 0


def test_averaged_weights(tmp_path: Path) -> None:
    """What training's EMAModel saves."""
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    network = pipeline().unet
    EMAModel(network.parameters(), model_cls=UNet2DModel, model_config=network.config).save_pretrained(
        tmp_path
    )
    assert "decay" in json.loads((tmp_path / "config.json").read_text())
    report = CONVERTER.read(tmp_path, None).report
    assert "decay=0.9999" in report.ignored[0]
    assert "use_ema_warmup=False" in report.ignored[0]
    assert fastgen.load(tmp_path, device="cpu").network is not None


def test_two_names_of_one_tensor(folder: Path) -> None:
    path = folder / "unet" / f"{STEM}.safetensors"
    state = load_file(path)
    name = next(n for n in state if n.endswith("to_q.weight"))
    twin = name.replace("to_q", "query")
    save_file({**state, twin: state[name].clone()}, path)
    assert "the same as" in CONVERTER.read(folder, None).report.ignored[-1]
    save_file({**state, twin: state[name] + 1}, path)
    with refused(CheckpointError, folder / "unet" / f"{STEM}.safetensors"):
        fastgen.load(folder, device="cpu")


def test_the_report_stays_with_the_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = fastgen.convert(folder, tmp_path / "ours")
    for source in (folder, tmp_path / "ours"):
        kept = fastgen.load(source, device="cpu").describe()["converted"]
        assert kept["title"] == report.title
        assert kept["ignored"] == report.ignored
        assert main(["info", str(source), "--device", "cpu"]) == 0
        assert "no effect without thresholding" in capsys.readouterr().out
    assert fastgen.load("zoo:ddpm-mnist", device="cpu").describe()["converted"] is None


def test_learned_times_and_the_schedule(tmp_path: Path) -> None:
    saved(tmp_path / "short", TINY | {"time_embedding_type": "learned", "num_train_timesteps": 500})
    with refused(ConfigError, "num_train_timesteps", "500", "1000"):
        fastgen.load(tmp_path / "short", device="cpu")
    folder = saved(tmp_path / "m", TINY | {"time_embedding_type": "learned", "num_train_timesteps": 1000})
    assert fastgen.load(folder, device="cpu").sample(1, seed=0, steps=2, solver="euler").isfinite().all()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}))
    with refused(ConfigError, "timestep_type"):
        fastgen.load(folder, device="cpu").sample(1, steps=2, solver="euler", timestep_type="continuous")
    change(path, _class_name="EulerDiscreteScheduler", timestep_type="continuous")
    with refused(ConfigError, "timestep_type"):
        fastgen.load(folder, device="cpu")


@pytest.mark.parametrize("value_range", [None, [0.0, 1.0], [-1.0, 1.0]])
def test_the_range_of_values_goes_there_and_back(tmp_path: Path, value_range: list[float] | None) -> None:
    fastgen.convert(
        checkpoint(tmp_path / "m", value_range=value_range, num_classes=3),
        tmp_path / "theirs",
        to="diffusers",
    )
    kept = json.loads((tmp_path / "theirs" / "fastgen.json").read_text())
    assert ("value_range" in kept) == (value_range != [-1, 1])  # images need no word
    fastgen.convert(tmp_path / "theirs", tmp_path / "ours")
    found = fastgen.load(tmp_path / "ours").value_range
    assert found == (None if value_range is None else tuple(value_range))
