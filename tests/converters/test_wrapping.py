"""State dicts as training scripts leave them: under keys, under prefixes, averaged, in accelerate's folders."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastgen
from fastgen.converters import CONVERTERS, Converted, Report, Tensors, detect, from_module
from fastgen.converters.diffusers.unet import recognises as unet_names
from fastgen.converters.wrapping import StateDict, choose, common_prefix, holds, within
from fastgen.errors import CheckpointError, ConfigError, FastgenError
from tests.refusals import names, refused

from .folders import saved
from .test_flow_damaged import SOURCES, rosinality

State = dict[str, Tensor]
STEM = "diffusion_pytorch_model"
MODELS = [*SOURCES, "diffusers"]


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net's folder, with config.json."""
    pytest.importorskip("diffusers")
    return saved(tmp_path_factory.mktemp("unet") / "m") / "unet"


@pytest.fixture(scope="module")
def plain(unet: Path) -> Callable[[str], State]:
    """The state dict of each of MODELS, made once."""
    made: dict[str, State] = {}

    def state(model: str) -> State:
        name = model.split()[0]
        if name in ("nflows", "zuko", "normflows") and not importlib.util.find_spec(name):
            pytest.skip(f"{name} is not installed")
        if model not in made:
            found = load_file(unet / f"{STEM}.safetensors") if model == "diffusers" else SOURCES[model][0]()
            made[model] = {key: value.detach().clone() for key, value in found.items()}
        return made[model]

    return state


def read(model: str, path: Path, variant: str | None = None) -> Converted:
    """As `fastgen.load` does: who knows the file, then its reading."""
    converter = detect(path)
    assert converter is CONVERTERS[model.split()[0]]
    return converter.read(path, variant, None if model == "diffusers" else SOURCES[model][1])


def tensors(converted: Converted) -> State:
    """Copies: a file that is written over changes what was mapped from it."""
    return {name: converted.tensors.get(name).clone() for name in converted.tensors.shapes}


def same(a: Converted, b: Converted) -> bool:
    first, second = tensors(a), tensors(b)
    return (
        a.spec.parts == b.spec.parts
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
    )


def put(state: Any, folder: Path, unet: Path, model: str) -> Path:
    """A file with `state`: of a U-Net beside its config.json."""
    folder.mkdir(exist_ok=True)
    if model == "diffusers":
        shutil.copy(unet / "config.json", folder)
    torch.save(state, folder / f"{STEM}.bin")
    return folder / f"{STEM}.bin"


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    """Other values under the same names: what must not be taken."""
    return {name: value + 1 if name.endswith(("bias", "loc")) else value for name, value in state.items()}


PREFIXES = [
    "", "flow.", "model.", "module.", "_orig_mod.", "net.", "unet.", "anything.", "ema_model.",
    "module._orig_mod.", "_orig_mod.module.", "model.flow.", "model.module._orig_mod.net.",
]  # fmt: skip
# What a file holds around a state dict, and the key under which it is found.
WRAPPINGS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, ""),
    "state_dict": (lambda s: {"state_dict": s, "lr": 0.1}, "state_dict"),
    "model": (lambda s: {"model": s, "step": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "model"),
    "model_state_dict": (lambda s: {"epoch": 1, "model_state_dict": s, "loss": torch.ones(())}, "model_state_dict"),
    "ema": (lambda s: {"ema": s}, "ema"),
    "params_ema": (lambda s: {"params": other(s), "params_ema": s}, "params_ema"),
    "model and ema": (lambda s: {"model": other(s), "ema": s, "opt": {}}, "ema"),
    "nested": (lambda s: {"state": {"nets": {"flow": s, "critic": {"a.b": torch.ones(2)}}}}, "state.nets.flow"),
    "ema within": (lambda s: {"model": other(s), "ema": {"decay": 0.99, "shadow": s}}, "ema.shadow"),
    "a key nobody knows": (lambda s: {"gen_weights_final": s}, "gen_weights_final"),
    "Lightning": (
        lambda s: {
            "epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.4.0", "state_dict": s, "lr_schedulers": [],
            "loops": {"fit_loop": {"state_dict": {}}}, "hyper_parameters": {"lr": 1e-3},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.ones(())}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}],
        },
        "state_dict",
    ),
}  # fmt: skip


def state_dicts(content: Any) -> list[StateDict]:
    """What `content` holds, as from a file."""
    return [
        StateDict(keys, Tensors({name: tuple(t.shape) for name, t in found.items()}, found.__getitem__, "x"))
        for keys, found in within(content)
    ]


@pytest.mark.parametrize("model", MODELS)
def test_every_wrapping_and_prefix_together(model: str, plain: Callable[[str], State]) -> None:
    state, recognises = plain(model), CONVERTERS[model.split()[0]].recognises or unet_names
    for prefix, (wrapping, (wrap, keys)) in itertools.product(PREFIXES, WRAPPINGS.items()):
        content, report = wrap(prefixed(state, prefix)), Report()
        found = state_dicts(content)
        assert holds(found, recognises)
        chosen = choose(found, recognises, "x", report, None, list(content)).renamed()
        assert chosen.shapes.keys() == state.keys(), (prefix, wrapping)
        assert all(torch.equal(chosen.get(name), value) for name, value in state.items()), (prefix, wrapping)
        said = " ".join(report.lines())
        quoted = prefix if "_orig_mod" not in prefix else "_orig_mod."
        assert names(said, *filter(None, (repr(keys) if keys else "", quoted))), said
        assert ("averaged weights (EMA)" in said) == ("ema" in keys + prefix), said
        if wrapping == "Lightning":
            assert names(said, "'callbacks'", "'optimizer_states'")


@pytest.mark.parametrize("model", MODELS)
def test_what_is_wrapped_is_read_as_what_is_not(
    model: str, plain: Callable[[str], State], unet: Path, tmp_path: Path
) -> None:
    """Each wrapping with a prefix, and each prefix with a wrapping, through `detect` and `read`."""
    state = plain(model)
    want = read(model, put(state, tmp_path / "plain", unet, model))
    longer = max(len(PREFIXES), len(WRAPPINGS))
    turns = itertools.islice(zip(itertools.cycle(PREFIXES), itertools.cycle(WRAPPINGS), strict=False), longer)
    for prefix, wrapping in turns:
        path = put(WRAPPINGS[wrapping][0](prefixed(state, prefix)), tmp_path / "m", unet, model)
        assert same(read(model, path), want), (prefix, wrapping)


@pytest.mark.parametrize("model", MODELS)
def test_prefixes_in_safetensors(
    model: str, plain: Callable[[str], State], unet: Path, tmp_path: Path
) -> None:
    state = {
        n: t.to(torch.uint8) if t.dtype == torch.bool else t.contiguous() for n, t in plain(model).items()
    }
    want = read(model, put(state, tmp_path / "plain", unet, model))
    shutil.copytree(tmp_path / "plain", tmp_path / "m")
    save_file(prefixed(state, "module.net."), tmp_path / "m" / "model.safetensors")
    assert same(read(model, tmp_path / "m" / "model.safetensors"), want)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("model", MODELS)
def test_accelerates_folders(
    model: str, file: str, plain: Callable[[str], State], unet: Path, tmp_path: Path
) -> None:
    state = {
        n: t.to(torch.uint8) if t.dtype == torch.bool else t.contiguous() for n, t in plain(model).items()
    }
    want = read(model, put(state, tmp_path / "plain", unet, model))
    folder = tmp_path / "checkpoint_0"
    folder.mkdir()
    (save_file if file.endswith("safetensors") else torch.save)(prefixed(state, "module."), folder / file)
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        torch.save({"state": {}}, folder / name)
    if model == "diffusers":  # whose networks are told by their config.json
        shutil.copy(unet / "config.json", folder)
    found = read(model, folder)
    assert same(found, want)
    said = " ".join(found.report.lines())
    assert names(said, "'module.'", "optimizer.bin", "random_states_0.pkl")
    assert found.spec.provenance["weights"] == [file]


def test_the_averaged_network_of_diffusers_training(unet: Path, tmp_path: Path) -> None:
    """checkpoint-500 of its scripts: unet, unet_ema and the optimiser, no scheduler."""
    shutil.copytree(unet, tmp_path / "unet")
    shutil.copytree(unet, tmp_path / "unet_ema")
    path = tmp_path / "unet_ema" / f"{STEM}.safetensors"
    averaged = other(load_file(path))
    save_file(averaged, path)
    found = read("diffusers", tmp_path)
    assert torch.equal(tensors(found)["unet.conv_in.bias"], averaged["conv_in.bias"])
    assert any(names(line, "unet_ema", "EMA") for line in found.report.assumed)
    trained = read("diffusers", tmp_path / "unet")
    assert not torch.equal(tensors(trained)["unet.conv_in.bias"], averaged["conv_in.bias"])
    shutil.rmtree(tmp_path / "unet")
    assert same(read("diffusers", tmp_path), found)


def test_several_sets_of_weights(tmp_path: Path) -> None:
    state = rosinality()
    path = tmp_path / "glow.pt"
    torch.save({"model": state, "ema": other(state)}, path)
    loc = "flow.scales.0.1.loc"
    found = read("rosinality", path)
    averaged = tensors(found)[loc]
    assert any(names(line, "'ema'", "'model'", "variant") for line in found.report.assumed)
    chosen = read("rosinality", path, "model")
    assert not torch.equal(tensors(chosen)[loc], averaged)
    assert not any("EMA" in line for line in chosen.report.lines())
    engine = fastgen.load(path, device="cpu", variant="model", assume={"img_size": 8})
    assert torch.equal(engine.flow.state_dict()["scales.0.1.loc"], tensors(chosen)[loc])
    engine.sample_to(tmp_path / "drawn.npy", 2, seed=0)
    with refused(ConfigError, tmp_path / "drawn.npy", "variant"):  # of one file, with one sha256
        fastgen.load(path, device="cpu", assume={"img_size": 8}).sample_to(tmp_path / "drawn.npy", 2, seed=0)
    with refused(ConfigError, "variant", "'fp16'", "'ema'", "'model'"):
        read("rosinality", path, "fp16")
    for several in (
        {"best": state, "last": other(state)},
        {"ema_0.99": state, "ema_0.999": other(state), "model": {**state}},
        {**prefixed(state, "a."), **prefixed(state, "b.")},
    ):
        torch.save(several, path)
        with refused(CheckpointError, path, "variant="):
            read("rosinality", path)
    torch.save(
        {**prefixed(state, "model."), **prefixed(other(state), "model_ema."), "x.y": torch.ones(1)}, path
    )
    found = read("rosinality", path)
    assert torch.equal(tensors(found)[loc], averaged)
    assert any(names(line, "x.y") for line in found.report.ignored)


def test_an_emas_own_state_dict(tmp_path: Path) -> None:
    """ema_pytorch's: the averaged model and the trained one, both under the key of the average."""
    state = rosinality()
    inside = {
        **prefixed(other(state), "ema_model."),
        **prefixed(state, "online_model."),
        "step": torch.tensor(3),
    }
    path = tmp_path / "glow.pt"
    torch.save({"step": 3, "model": state, "ema": inside, "opt": {}}, path)
    found = read("rosinality", path)
    assert any(
        names(line, "'ema.ema_model'", "'ema.online_model'", "'model'") for line in found.report.assumed
    )
    want = other(state)["blocks.0.flows.0.actnorm.loc"].flatten()
    assert torch.equal(tensors(found)["flow.scales.0.1.loc"], want)


def test_averages_without_names_are_reported(tmp_path: Path) -> None:
    """As torch_ema and diffusers' EMAModel write them: a list in the order of the parameters."""
    state = rosinality()
    torch.save({"model": state, "ema": {"shadow_params": list(state.values())}}, tmp_path / "glow.pt")
    assert any(names(line, "'ema'") for line in read("rosinality", tmp_path / "glow.pt").report.assumed)


def test_torchs_averaged_model(tmp_path: Path) -> None:
    state = {**prefixed(rosinality(), "module."), "n_averaged": torch.tensor(3)}
    torch.save(state, tmp_path / "glow.pt")
    assert any("EMA" in line for line in read("rosinality", tmp_path / "glow.pt").report.renamed)


def test_names_that_wrappers_of_inner_modules_leave(tmp_path: Path) -> None:
    state = {name.replace("coupling.", "coupling._orig_mod."): v for name, v in rosinality().items()}
    torch.save(state, tmp_path / "glow.pt")
    torch.save(rosinality(), tmp_path / "plain.pt")
    found = read("rosinality", tmp_path / "glow.pt")
    assert same(found, read("rosinality", tmp_path / "plain.pt"))
    assert any("_orig_mod." in line for line in found.report.renamed)


def test_what_was_chosen_stays_with_the_model(tmp_path: Path) -> None:
    torch.save({"ema": prefixed(rosinality(), "module.")}, tmp_path / "glow.pt")
    report = fastgen.convert(tmp_path / "glow.pt", tmp_path / "ours", assume={"img_size": 8})
    kept = fastgen.load(tmp_path / "ours", device="cpu").describe()["converted"]
    assert kept["renamed"] == report.renamed
    assert names(kept["renamed"][0], "'ema'", "'module.'", "EMA")


@pytest.mark.parametrize(
    ("state", "mentions"),
    [
        ({"state_dict": {"encoder.a.weight": torch.ones(1), "encoder.b": torch.ones(1)}, "epoch": 3},
         ("'state_dict'", "'encoder.'", "encoder.a.weight", "'epoch'")),
        ({"net.0.weight": torch.ones(2, 2), "net.0.bias": torch.ones(2)}, ("'net.0.'", "net.0.bias")),
        ({"epoch": 3, "model": [torch.ones(1)]}, ("'epoch'", "'model'")),
    ],
)  # fmt: skip
def test_where_nothing_fits_the_keys_and_prefixes_are_named(
    state: Any, mentions: tuple[str, ...], unet: Path, tmp_path: Path
) -> None:
    path = tmp_path / "what.pt"
    torch.save(state, path)
    with refused(CheckpointError, path, *mentions):
        fastgen.load(path)
    folder = tmp_path / "unet"
    torch.save(state, put(state, folder, unet, "diffusers"))
    with refused(CheckpointError, folder / f"{STEM}.bin", *mentions):
        fastgen.load(folder)
    accelerated = tmp_path / "checkpoint_0"
    accelerated.mkdir()
    torch.save(state, accelerated / "pytorch_model.bin")
    with pytest.raises(FastgenError) as caught:
        fastgen.load(accelerated)
    assert names(str(caught.value), *mentions)


def test_tensors_of_another_configuration_are_shown_beside_each_other(unet: Path, tmp_path: Path) -> None:
    state = load_file(unet / f"{STEM}.safetensors")
    changed = {name.replace("down_blocks.0", "down_blocks.7"): value for name, value in state.items()}
    path = put(changed, tmp_path / "m", unet, "diffusers")
    with refused(CheckpointError, path, "unet.down_blocks.0", "unet.down_blocks.7"):
        fastgen.load(tmp_path / "m")


def test_a_checkpoint_with_objects_names_their_classes(tmp_path: Path) -> None:
    from types import SimpleNamespace

    path = tmp_path / "glow.pt"
    torch.save({"state_dict": rosinality(), "hyper_parameters": SimpleNamespace(lr=1)}, path)
    with refused(CheckpointError, path, "types.SimpleNamespace"):
        fastgen.load(path)


def test_arguments_of_a_script_are_let_through(tmp_path: Path) -> None:
    """argparse.Namespace holds values and nothing else; what is within it is looked at as everywhere."""
    import argparse
    from types import SimpleNamespace

    path = tmp_path / "glow.pt"
    torch.save({"state_dict": rosinality(), "args": argparse.Namespace(lr=1)}, path)
    with refused(ConfigError, path, "img_size"):  # it goes on to what the weights do not say
        fastgen.load(path)
    torch.save({"state_dict": rosinality(), "args": argparse.Namespace(inner=SimpleNamespace())}, path)
    with refused(CheckpointError, path, "types.SimpleNamespace"):
        fastgen.load(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # to others in the process


class Wrapper(nn.Module):
    """A module with the tensors of rosinality's Glow, by their names."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in rosinality().items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.register_buffer(last, value)


def test_live_modules_in_wrappers() -> None:
    want = from_module(Wrapper(), {"img_size": 8})
    parallel = nn.DataParallel(Wrapper())
    inside = nn.ModuleDict({"flow": Wrapper()})
    for wrapped in (
        parallel,
        torch.compile(parallel),
        torch.optim.swa_utils.AveragedModel(Wrapper()),
        inside,
    ):
        assert same(from_module(wrapped, {"img_size": 8}), want)  # type: ignore[arg-type]


def test_objects_that_hold_themselves() -> None:
    """A pickle may hold a dictionary within itself, and thousands side by side."""
    endless: dict[str, Any] = {"a": torch.ones(1)}
    endless["inside"] = endless
    assert [keys for keys, _ in within(endless)] == [""]
    wide = {f"n{i}": {"a": torch.ones(1)} for i in range(5000)}
    assert len(list(within(wide))) < 1001
    assert common_prefix(["a.b.c", "a.b.d"]) == "a.b."
    assert common_prefix(["a.b", "c.b"]) == ""
