"""Style-based generators of other projects: the same images of the same styles and noise; pickles stay unexecuted."""

from __future__ import annotations

import argparse
import pickle
import random
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.converters import CONVERTERS, build, detect, from_module
from fastgen.converters.gans.styles import taps_of
from fastgen.errors import CheckpointError, ConfigError, FastgenError
from tests.refusals import refused

from .stylegan_layouts import (
    W1,
    W2,
    EasyDict,
    Saved,
    draw_persistent,
    draw_style_based,
    draw_stylegan2,
    flat,
    layer,
    persistent,
    persistent_w,
    style_based,
    style_of,
    stylegan2,
    w_of,
    write_persistent,
)

# float64: some twenty layers of values of size 1 to 100.
EXACT = 1e-10


def converted(path: Path, name: str, assume: dict[str, Any] | None = None, variant: str | None = None) -> Any:
    converter = detect(path)
    assert converter is not None
    assert converter.name == name
    return converter.read(path, variant, assume or {})


def network(path: Path, name: str, assume: dict[str, Any] | None = None, variant: str | None = None) -> Any:
    """The generator that a file becomes, in float64."""
    return build(converted(path, name, assume, variant), torch.float64)["generator"]


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """In float64: what the converter multiplies is not rounded to float32 then."""
    return {name: value.double() for name, value in state.items()}


def close(found: Tensor, expected: Tensor) -> bool:
    assert found.shape == expected.shape
    assert float(expected.std()) > 0.1
    return float((found - expected).abs().max()) < EXACT * float(expected.abs().max())


def latents(width: int, count: int = 2) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(2, width, dtype=torch.float64) for _ in range(count)]


# rosinality/style-based-gan-pytorch


def test_style_based_gan_pytorch(tmp_path: Path) -> None:
    """The average of a training file, at the resolution that was trained; truncation, and mixing at each block."""
    state = doubled(style_based(0))
    path = saved(
        {"generator": style_based(1), "g_running": state, "discriminator": {}, "g_optimizer": {"state": {}}},
        tmp_path / "train_step-4.model",
    )
    made = network(path, "style-based-gan-pytorch")
    assert made.config.shape == (3, 32, 32)
    noise = [torch.randn(2, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]
    first, second = (style_of(state, z) for z in latents(W1))
    ours = [made.mapping(z) for z in latents(W1)]
    assert close(ours[0], first)
    mean = made.w_mean
    for psi in (1.0, 0.7, 0.0):
        expected = draw_style_based(state, [mean + psi * (first - mean)] * 4, noise, 3)
        assert close(made.synthesis(made.truncate(ours[0], psi), noise), expected)
    ws = [made.truncate(w) for w in ours]
    for block in range(5):
        mixed = torch.cat([ws[0][:, : 2 * block], ws[1][:, 2 * block :]], 1)
        expected = draw_style_based(state, [first] * block + [second] * (4 - block), noise, 3)
        assert close(made.synthesis(mixed, noise), expected)


def test_style_based_gan_pytorch_in_float32(tmp_path: Path) -> None:
    """As its files are: what is multiplied is rounded once."""
    state = style_based(0)
    made: Any = build(converted(saved(state, tmp_path / "a.model"), "style-based-gan-pytorch"))["generator"]
    assert made.w_mean.dtype == torch.float32
    z = latents(W1, 1)[0]
    noise = [torch.randn(2, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]
    expected = draw_style_based(state, [style_of(state, z)] * 4, noise, 3)
    found = made.synthesis(made.truncate(made.mapping(z.float())), [n.float() for n in noise])
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_other_resolutions_and_weights(tmp_path: Path) -> None:
    """size takes another block's image; the variant the weights that are not averaged; a state dict by itself."""
    states = {"generator": doubled(style_based(1)), "g_running": doubled(style_based(0))}
    path = saved(states, tmp_path / "a.model")
    z = latents(W1, 1)[0]
    for variant, size, last in (("generator", 8, 1), ("g_running", 64, 4), ("g_running", 4, 0)):
        made = network(path, "style-based-gan-pytorch", {"size": size}, variant)
        noise = [torch.randn(1, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]
        styles = [style_of(states[variant], z)] * 5
        expected = draw_style_based(states[variant], styles, noise, last)
        assert close(made.synthesis(made.truncate(made.mapping(z)), noise), expected)
    alone = network(saved(states["g_running"], tmp_path / "b.model"), "style-based-gan-pytorch")
    assert torch.equal(alone(z), network(path, "style-based-gan-pytorch")(z))
    for size in (128, 12):
        with refused(ConfigError, f"{path}: size"):
            converted(path, "style-based-gan-pytorch", {"size": size}, "generator")
    untrained = saved(style_based(0, trained=-1), tmp_path / "c.model")
    with refused(ConfigError, untrained):
        converted(untrained, "style-based-gan-pytorch")
    assert network(untrained, "style-based-gan-pytorch", {"size": 16}).config.size == 16


def test_the_mean_of_styles(tmp_path: Path) -> None:
    """Of as many z as are asked for, which are those of the seeds 0, 1, ..."""
    from fastgen_kernels.noise import normals

    state = style_based(0)
    path = saved(state, tmp_path / "a.model")
    made = network(path, "style-based-gan-pytorch", {"mean_samples": 1500})
    z = normals(range(1500), 0, "initial", (W1,)).double()
    # The mean is taken of w in float32.
    assert float((made.w_mean - style_of(state, z).mean(0)).abs().max()) < 1e-5
    assert torch.equal(made.w_mean, network(path, "style-based-gan-pytorch", {"mean_samples": 1500}).w_mean)


def test_a_style_based_file_that_does_not_fit(tmp_path: Path) -> None:
    state = style_based(0)
    path = tmp_path / "a.model"
    name = "generator.progression.1.conv1.2.weight"
    other = torch.tensor([[1.0, 3, 1], [3, 9, 3], [1, 3, 1]]).expand(8, 1, 3, 3).clone()
    for key, value, error in (
        (name, other, ConfigError),
        (name, None, CheckpointError),
        ("generator.progression.2.conv2.conv.bias", None, CheckpointError),
        ("generator.progression.2.conv2.conv.bias", torch.ones(3), CheckpointError),
        ("generator.progression.1.noise1.weight_orig", None, CheckpointError),
        ("extra.weight", torch.ones(2), CheckpointError),
    ):
        changed = {n: v for n, v in {**state, key: value}.items() if v is not None}
        with pytest.raises(error) as caught:
            converted(saved(changed, path), "style-based-gan-pytorch")
        assert str(path) in str(caught.value.argument)


# rosinality/stylegan2-pytorch


@pytest.mark.parametrize("average", [True, False])
def test_stylegan2_pytorch(average: bool, tmp_path: Path) -> None:
    """A training file, arguments of its script and all, or one with latent_avg; truncation, mixing at each layer."""
    state, mean = stylegan2(0), torch.randn(W2)
    content: dict[str, Any] = {"g": stylegan2(1), "g_ema": state, "d": {}, "args": argparse.Namespace(iter=3)}
    path = saved({**content, **({"latent_avg": mean} if average else {})}, tmp_path / "000100.pt")
    made = network(path, "stylegan2-pytorch")
    assert made.config.shape == (3, 16, 16)
    if average:
        assert torch.equal(made.w_mean, mean.double())
    assert all(torch.equal(n, state[f"noises.noise_{i}"].double()) for i, n in enumerate(made.noises))
    noise = [torch.randn(2, 1, *shape, dtype=torch.float64) for shape in made.noise_shapes]
    first, second = (w_of(state, z) for z in latents(W2))
    ours = [made.mapping(z) for z in latents(W2)]
    assert close(ours[0], first)
    for psi in (1.0, 0.5, 0.0):
        w = made.w_mean + psi * (first - made.w_mean)
        expected = draw_stylegan2(state, w[:, None].expand(-1, made.num_ws, -1), noise)
        assert close(made.synthesis(made.truncate(ours[0], psi), noise), expected)
    for i in range(made.num_ws + 1):
        halves = first[:, None].expand(-1, i, -1), second[:, None].expand(-1, made.num_ws - i, -1)
        mixed = [made.truncate(w) for w in ours]
        found = made.synthesis(torch.cat([mixed[0][:, :i], mixed[1][:, i:]], 1), noise)
        assert close(found, draw_stylegan2(state, torch.cat(halves, 1), noise))


def test_options_of_stylegan2_pytorch(tmp_path: Path) -> None:
    """lr_mlp is a factor of the mapping; a live module is told by its names; the mean of other numbers of z."""
    state = stylegan2(0)
    path = saved({"g_ema": state}, tmp_path / "a.pt")
    z = latents(W2, 1)[0]
    slower = {n: 0.5 * v if n.startswith("style.") else v for n, v in state.items()}
    made = network(path, "stylegan2-pytorch", {"lr_mlp": 0.005})
    assert close(made.mapping(z), w_of(slower, z))
    wider = network(path, "stylegan2-pytorch", {"truncation_mean": 100})
    assert not torch.equal(wider.w_mean, network(path, "stylegan2-pytorch").w_mean)
    report = converted(
        saved({"g_ema": state, "latent_avg": torch.zeros(W2)}, path), "stylegan2-pytorch"
    ).report
    assert not any("truncation_mean" in line for line in report.assumed)


class Named(torch.nn.Module):
    """A module with tensors by their names in a file."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            owner: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor)


@pytest.mark.parametrize("kind", ["style-based-gan-pytorch", "stylegan2-pytorch"])
def test_live_modules(kind: str, tmp_path: Path) -> None:
    state = style_based(0) if kind.startswith("style-") else stylegan2(0)
    made: Any = build(from_module(Named(state)), torch.float64)["generator"]
    z = latents(made.config.latent, 1)[0]
    assert torch.equal(made(z), network(saved(state, tmp_path / "a.pt"), kind)(z))


def test_a_stylegan2_file_that_does_not_fit(tmp_path: Path) -> None:
    state = stylegan2(0)
    path = tmp_path / "a.pt"
    for key, value, error in (
        ("convs.2.conv.weight", None, CheckpointError),
        ("convs.3.activate.bias", None, CheckpointError),
        ("to_rgbs.1.bias", None, CheckpointError),
        ("noises.noise_4", torch.ones(1, 1, 8, 8), CheckpointError),
        ("to_rgbs.0.upsample.kernel", torch.ones(3, 3), ConfigError),
        ("iwt.ll", torch.ones(2, 2), CheckpointError),
    ):
        changed = {n: v for n, v in {**state, key: value}.items() if v is not None}
        with pytest.raises(error) as caught:
            build(converted(saved(changed, path), "stylegan2-pytorch"))
        assert str(path) in str(caught.value.argument)


def test_taps() -> None:
    for taps in ((1, 3, 3, 1), (1, 2, 1), (1,), (2, 3, 3, 2), (1, 5, 10, 10, 5, 1)):
        row = torch.tensor(taps, dtype=torch.float32)
        assert taps_of(torch.outer(row, row) / row.sum() ** 2, "x") == taps
        assert taps_of(4 * row / row.sum(), "x") == taps
    for kernel in (
        torch.eye(3),
        torch.tensor([[1.0, 2], [2, 5]]),
        torch.tensor([1.0, -1]),
        torch.zeros(2, 2),
    ):
        with refused(ConfigError, "x"):
            taps_of(kernel, "x")
    for kernel in (torch.zeros(0), torch.zeros(1, 1, 1), torch.tensor([float("nan")])):
        with refused(CheckpointError, "x"):
            taps_of(kernel, "x")


# NVlabs

PERSISTENT: dict[str, dict[str, Any]] = {
    "plain": {},
    "classes": {"classes": 3},
    "clamp": {"clamp": 1.5},
    "no noise": {"noise": False},
    "one resolution": {"widths": (6,)},
}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the source text of a pickle was executed."""
    path = tmp_path / "executed"
    monkeypatch.setenv("FASTGEN_TEST_MARK", str(path))
    return path


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [*((kind, 4) for kind in PERSISTENT), *(("plain", protocol) for protocol in (2, 3, 5))],
)
def test_nvlabs(kind: str, protocol: int, tmp_path: Path, mark: Path) -> None:
    """Truncation with a cutoff, mixing at each style; the source text in the pickle is not executed."""
    options = PERSISTENT[kind]
    theirs = persistent(0, **options)
    content = {
        "G": persistent(1, **options),
        "D": None,
        "G_ema": theirs,
        "training_set_kwargs": EasyDict(a=1),
    }
    path = write_persistent(tmp_path / "network-snapshot-000100.pkl", content, protocol)
    made = network(path, "nvlabs")
    assert not mark.exists()
    state, clamp = flat(theirs), options.get("clamp")
    labels = torch.tensor([0, 2]) if "classes" in options else None
    first, second = (persistent_w(state, z, labels) for z in latents(7))
    ours = [made.mapping(z, labels) for z in latents(7)]
    assert close(ours[0], first)
    mean, count = state["mapping.w_avg"].double(), made.num_ws

    def expected(*styles: tuple[Tensor, int]) -> Tensor:
        ws = torch.cat([w[:, None].expand(-1, n, -1) for w, n in styles], 1)
        return draw_persistent(state, ws, options.get("noise", True), clamp)

    noise = list(made.noises)
    for psi, cutoff in ((1.0, None), (0.6, None), (0.6, 1), (0.0, 2)):
        pulled = mean + psi * (first - mean)
        cut = count if cutoff is None else cutoff
        found = made.synthesis(made.truncate(ours[0], psi, cutoff), noise)
        assert close(found, expected((pulled, cut), (first, count - cut)))
    ws = [made.truncate(w) for w in ours]
    for i in range(count + 1):
        found = made.synthesis(torch.cat([ws[0][:, :i], ws[1][:, i:]], 1), noise)
        assert close(found, expected((first, i), (second, count - i)))
    assert torch.equal(made.synthesis(ws[0], None), made.synthesis(ws[0], noise)) == (
        not options.get("noise", True)
    )


def test_the_weights_of_nvlabs_that_are_not_averaged(tmp_path: Path) -> None:
    one, other = persistent(0), persistent(1)
    path = write_persistent(tmp_path / "a.pkl", {"G": one, "G_ema": other})
    z = latents(7, 1)[0]
    alone = network(write_persistent(tmp_path / "b.pkl", {"G": one}), "nvlabs")
    assert torch.equal(network(path, "nvlabs", variant="G")(z), alone(z))
    assert not torch.equal(network(path, "nvlabs")(z), alone(z))
    for variant in ("D", "H"):
        with refused(ConfigError, "variant"):
            converted(path, "nvlabs", variant=variant)
    with refused(CheckpointError, path):
        converted(write_persistent(path, {"D": one}), "nvlabs")


def test_a_model_of_nvlabs_in_an_engine(tmp_path: Path, mark: Path) -> None:
    """Loaded from its path: pictures of seeds, as the network makes them; what was assumed is reported."""
    path = write_persistent(tmp_path / "network-final.pkl", {"G_ema": persistent(0)})
    engine: Any = fastgen.load(str(path), device="cpu", dtype="float32")
    assert not mark.exists()
    first = engine.sample(seeds=[3, 4], truncation_psi=0.5)
    assert first.shape == (2, 3, 16, 16)
    assert torch.equal(engine.sample(seeds=[4], truncation_psi=0.5)[0].isfinite().all(), torch.tensor(True))
    assert "eps" in " ".join(engine.describe()["converted"]["assumed"])
    assert engine.settings.noise_mode == "const"


REFUSED: dict[str, tuple[str, Any]] = {
    "resnet": ("architecture of SynthesisBlock", "resnet"),
    "another activation": ("activation of SynthesisLayer", "swish"),
    "an activated affine": ("activation of FullyConnectedLayer", "relu"),
    "no z": ("z_dim of MappingNetwork", 0),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_options_of_nvlabs_that_are_not_supported(kind: str, tmp_path: Path) -> None:
    name, value = REFUSED[kind]
    path = write_persistent(tmp_path / "a.pkl", {"G_ema": persistent(0, changes={name: value})})
    with pytest.raises(ConfigError) as caught:
        converted(path, "nvlabs")
    assert str(path) in str(caught.value.argument)


def test_stylegan3_is_refused_by_its_name(tmp_path: Path, mark: Path) -> None:
    synthesis = layer(
        "SynthesisNetwork", {}, {"input": layer("SynthesisInput", {"weight": torch.ones(2, 2)})}
    )
    other = layer("Generator", {}, {"synthesis": synthesis, "mapping": layer("MappingNetwork")})
    path = write_persistent(tmp_path / "stylegan3-t.pkl", {"G_ema": other})
    with refused(ConfigError, f"{path}: G_ema", "StyleGAN3"):
        converted(path, "nvlabs")
    unknown = layer("Generator", {}, {"synthesis": layer("SecretNetwork")})
    write_persistent(path, {"G_ema": unknown})
    with refused(ConfigError, f"{path}: G_ema", "SecretNetwork"):
        converted(path, "nvlabs")
    assert not mark.exists()


class Writes:
    """What a pickle would write a file with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "written")


class Evaluates(Writes):
    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.path)!r}, 'w').write('x')",)


@pytest.mark.parametrize("kind", [Writes, Evaluates])
@pytest.mark.parametrize("place", ["beside", "before", "within", "in a storage", "alone"])
def test_a_pickle_that_would_write_a_file(kind: Any, place: str, tmp_path: Path, mark: Path) -> None:
    """Refused wherever it stands, and the file is not written."""
    evil, good = kind(mark), persistent(0)
    path = tmp_path / "a.pkl"
    if place == "alone":
        path.write_bytes(pickle.dumps({"G_ema": evil}))
        with refused(CheckpointError, path):
            fastgen.load(str(path))
        assert not mark.exists()
        return
    if place == "in a storage":
        good.state["_buffers"]["x"] = Nested(evil)
    if place == "within":
        good.state["resolution"] = evil
    content = {"G_ema": good, "other": evil} if place == "beside" else {"G_ema": good}
    if place == "before":
        content = {"augment_pipe": layer("AugmentPipe", p=evil), **content}
    write_persistent(path, content)
    assert detect(path) is CONVERTERS["nvlabs"]
    with refused(CheckpointError, path):
        fastgen.load(str(path))
    assert not mark.exists()


class Nested:
    """A tensor whose storage is a pickle of something else."""

    def __init__(self, evil: Any, data: bytes | None = None) -> None:
        self.data = pickle.dumps(evil) if data is None else data

    def __reduce__(self) -> tuple:
        storage = StorageOf(self.data)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1,), (1,), False, {})


class StorageOf:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple:
        return torch.storage._load_from_bytes, (self.data,)


@pytest.mark.parametrize("value", [Counter("a"), torch.nn.Linear(2, 2), random.Random, Saved])
def test_a_pickle_of_unknown_classes(value: Any, tmp_path: Path, mark: Path) -> None:
    path = write_persistent(tmp_path / "a.pkl", {"G_ema": persistent(0), "other": value})
    kind = value if isinstance(value, type) else type(value)
    with refused(CheckpointError, path, f"{kind.__module__}.{kind.__qualname__}"):
        converted(path, "nvlabs")
    assert not mark.exists()


def test_a_pickle_of_tensorflow(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81.")
    with refused(CheckpointError, path):
        converted(path, "nvlabs")


def test_truncated_pickles(tmp_path: Path, mark: Path) -> None:
    """At any length it is refused: as no whole pickle, or where the names do not stand in it yet, as unknown."""
    whole = write_persistent(tmp_path / "a.pkl", {"G_ema": persistent(0, widths=(6, 4))}).read_bytes()
    path = tmp_path / "cut.pkl"
    for length in (0, 1, 20, 200, 1000, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with refused(CheckpointError, path):
            fastgen.load(str(path))
    assert not mark.exists()


HEAD = b"\x80\x04ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
BY_HAND: dict[str, bytes] = {
    "a function's attributes": HEAD + b"}X\x08\x00\x00\x00_functionK\x01sb.",
    "attributes by the other door": HEAD + b"N}X\x08\x00\x00\x00_functionK\x01s\x86b.",
    "a function as a class": HEAD + b")\x81.",
    "an argument that is none": HEAD + b"K\x01\x85R.",
    "an object without state": HEAD + b"}X\x04\x00\x00\x00typeX\x05\x00\x00\x00classs\x85R.",
    "an extension": HEAD + b"\x82\x01.",
    "a persistent name": HEAD + b"X\x01\x00\x00\x00aQ.",
    "a list": HEAD + b"0].",
    "a dotted name": b"\x80\x04X\x17\x00\x00\x00torch_utils.persistenceX\x09\x00\x00\x00os.system\x93.",
    "attributes of a dictionary's class": HEAD + b"0cdnnlib.util\nEasyDict\n}X\x01\x00\x00\x00aK\x01sb.",
}


NAMED = b"\x80\x04\x8c\x17torch_utils.persistence0"
NESTED = b")" + b"\x85" * 300_000
COSTLY: dict[str, bytes] = {
    "tuples as a key": NAMED + b"}" + NESTED + b"Ns.",
    "tuples by the memo": NAMED + b"})" + b"q\x000h\x00\x85" * 300_000 + b"Ns.",
    "tuples that a build leaves alone": NAMED + b"})" + b"\x85Nb" * 300_000 + b"Ns.",
    "tuples as sizes": NAMED + b"}ctorch\nSize\nq\x000)" + b"q\x010h\x00h\x01\x85\x85R" * 100_000 + b"Ns.",
    "a set of tuples": NAMED + b"\x8f(" + NESTED + b"\x90.",
    "a number of the memo": NAMED + b"}r" + struct.pack("<I", 1 << 27) + b".",
    "a number of the memo as text": NAMED + b"}p134217728\n.",
    "a long text": NAMED + b"}\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "a long frame": NAMED + b"}\x95" + struct.pack("<Q", 1 << 40) + b".",
}


def test_pickles_that_cost_more_than_their_size(tmp_path: Path) -> None:
    """In a process of its own, which they would end or make large."""
    paths = [tmp_path / f"{kind}.pkl" for kind in COSTLY]
    for path, data in zip(paths, COSTLY.values(), strict=True):
        path.write_bytes(data)
    code = (
        "import resource, sys\n"
        "from fastgen.converters import restricted\n"
        "from fastgen.errors import CheckpointError\n"
        "from pathlib import Path\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        restricted.read(Path(path))\n"
        "    except CheckpointError as error:\n"
        "        print(error.argument, flush=True)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=300
    )
    *refusals, grown = done.stdout.splitlines()
    assert refusals == list(map(str, paths)), done.stderr
    assert done.returncode == 0
    assert int(grown) < 300_000  # KiB


def test_a_storage_that_would_end_the_process(tmp_path: Path) -> None:
    """The pickles within a storage are looked over like the one around them."""
    good = persistent(0)
    good.state["_buffers"]["x"] = Nested(None, b"\x80\x02}" + NESTED + b"Ns.")
    path = write_persistent(tmp_path / "a.pkl", {"G_ema": good})
    with refused(CheckpointError, path):
        converted(path, "nvlabs")


@pytest.mark.parametrize("kind", BY_HAND)
def test_pickles_written_by_hand(kind: str, tmp_path: Path) -> None:
    from fastgen.converters.restricted import NAMES

    before = {name: getattr(value, "_function", None) for name, value in NAMES.items()}
    path = tmp_path / "a.pkl"
    path.write_bytes(BY_HAND[kind])
    with refused(CheckpointError, path):
        converted(path, "nvlabs")
    assert {name: getattr(value, "_function", None) for name, value in NAMES.items()} == before


def test_tensors_that_reach_out_of_their_storage(tmp_path: Path) -> None:
    """Sizes, strides and offsets of a pickle are compared with what it holds."""
    path = tmp_path / "a.pkl"
    for size, stride, offset in (
        ((3, 3), (3, 1), 0),
        ((2,), (1,), 3),
        ((10**6,), (0,), 0),
        ((2,), (10**12,), 0),
        ((2, 2), (1,), 0),
    ):
        good = persistent(0)
        good.state["_buffers"]["x"] = Claims(torch.ones(4), size, stride, offset)
        write_persistent(path, {"G_ema": good})
        with pytest.raises(CheckpointError) as caught:
            converted(path, "nvlabs")
        assert str(caught.value.argument) in (str(path), f"{path}: x")


class Claims:
    def __init__(self, held: Tensor, size: Any, stride: Any, offset: int) -> None:
        self.all = held, size, stride, offset

    def __reduce__(self) -> tuple:
        held, size, stride, offset = self.all
        return torch._utils._rebuild_tensor_v2, (StorageHolder(held), offset, size, stride, False, {})


class StorageHolder:
    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __reduce__(self) -> Any:
        return self.held.storage().__reduce__()


def test_networks_within_themselves(tmp_path: Path) -> None:
    one = persistent(0, widths=(6,))
    one.state["_modules"]["again"] = one.state["_modules"]["synthesis"]
    inner = layer("SynthesisBlock")
    for _ in range(40):
        inner = layer("SynthesisBlock", {}, {"a": inner, "b": inner})
    one.state["_modules"]["deep"] = inner
    path = write_persistent(tmp_path / "a.pkl", {"G_ema": one})
    with refused(CheckpointError, path):
        converted(path, "nvlabs")


def test_damaged_pickles(tmp_path: Path, mark: Path) -> None:
    """With a few bytes changed it is read or refused, by an error of ours."""
    whole = write_persistent(tmp_path / "a.pkl", {"G_ema": persistent(0, widths=(4,))}).read_bytes()
    generator = random.Random(0)
    path = tmp_path / "b.pkl"
    refusals = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(3):
            data[generator.randrange(200, len(data))] = generator.randrange(256)
        path.write_bytes(bytes(data))
        try:
            build(converted(path, "nvlabs"))
        except FastgenError:
            refusals += 1
    assert refusals > 10
    assert not mark.exists()
