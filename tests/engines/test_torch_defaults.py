"""Another default type or device of PyTorch changes nothing: every tensor that fastgen makes says its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.checkpoint import WEIGHTS_FILE
from fastgen.cli import main
from fastgen.converters import compile_scheduler
from fastgen.engines.flow.engine import FlowEngine
from fastgen.images import save_image
from tests.converters import folders
from tests.small import SCHEDULE, TinyNet, checkpoint

from . import flows

# "meta": a tensor that is made without a device has no values, and whatever needs them fails.
DEFAULTS = [torch.float64, torch.bfloat16, "meta"]
CALL: dict[str, Any] = {"seed": 3, "labels": [0, 2], "steps": 3}
GUIDED = {"solver": "ddpm", "guidance_scale": 2.0, "guidance_rescale": 0.5, "thresholding": True}
LINES = ["--steps", "2", "--batch-size", "2", "--device", "cpu", "--quiet"]


@contextmanager
def default(of: torch.dtype | str) -> Iterator[None]:
    if isinstance(of, str):
        torch.set_default_device(of)
    else:
        torch.set_default_dtype(of)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 32 * 10).view(32, 10))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1).to(self.weight) @ self.weight


@dataclass
class Given:
    """What a caller has before: folders, networks of their own, data, a scheduler; and a place for results."""

    folder: Path
    net: nn.Module
    classifier: nn.Module
    flows: list[flows.Case]
    scheduler: Any
    out: Path = Path()

    def engine(self, process: dict, prediction: str, solver: str) -> fastgen.DiffusionEngine:
        known = {"num_classes": 10, "null_class": 10, "value_range": None, "solver": solver, "steps": 3}
        return fastgen.DiffusionEngine.from_module(self.net, process, prediction, (2, 4, 4), **known)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    import diffusers

    folder = tmp_path_factory.mktemp("given")
    checkpoint(folder / "model")
    folders.pipeline().save_pretrained(folder / "diffusers")
    (folder / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for k in range(4):
        save_image(torch.rand(1, 8, 8, generator=generator) * 2 - 1, folder / "images" / f"{k}.png")
    cases = [flows.make(name) for name in ("glow, everything else", "vector_flow", "vector_flow, masks")]
    return Given(
        folder, TinyNet(2), Noisy(), cases, diffusers.UniPCMultistepScheduler(prediction_type="v_prediction")
    )


def diffusion(given: Given) -> list[Tensor]:
    engine = fastgen.load(given.folder / "model", device="cpu")
    made = [engine.sample(2, **CALL), engine.sample(2, **CALL, **GUIDED)]
    made += [engine.sample(2, **CALL, solver=name) for name in ("heun", "unipc", "dpm++sde", "sa", "lcm")]
    made += [preview.images for preview in engine.stream(**CALL)]
    made += engine.sample_batches(2, **CALL)
    engine.sample_to(given.out / "drawn.npy", 2, **CALL)
    made.append(torch.from_numpy(np.load(given.out / "drawn.npy")))
    with engine.session() as session:
        session.add(2, **CALL)
        made += [image for _, image in sorted(session, key=lambda sample: sample.ticket)]
    assert engine.sample(1, seed=0, steps=2, output_type="np").dtype == np.float32
    assert len(engine.sample(1, seed=0, steps=2, output_type="pil")) == 1
    assert engine.verify().passed
    return made


def modules(given: Given) -> list[Tensor]:
    made = []
    for process, prediction, solver in (
        (SCHEDULE, "v_prediction", "ddim"),
        ({"process": "flow"}, "velocity", "euler"),
        ({"process": "edm"}, "edm", "heun"),
        ({"process": "vp_sde"}, "epsilon", "euler_maruyama"),
    ):
        engine = given.engine(process, prediction, solver)
        engine.guide(given.classifier)
        made.append(engine.sample(2, seed=0, labels=[1, 2], guidance_scale=2.0, classifier_scale=0.5))
    table = compile_scheduler(given.scheduler, 3)
    made.append(given.engine(SCHEDULE, "v_prediction", "ddim").sample(1, seed=0, solver=table))
    return made


def flow_verbs(given: Given) -> list[Tensor]:
    made = []
    for case in given.flows:
        engine = FlowEngine.from_module(copy.deepcopy(case.flow), device="cpu")
        latents = engine.encode(case.x, **case.given)
        made += [engine.log_prob(case.x, **case.given), *latents, engine.decode(latents, **case.given)]
        made.append(engine.sample(6, seed=0, **case.given))
        if "context" not in case.given:  # which is no part of a request
            made += engine.sample_batches(6, seed=0, **case.given)
        if engine.discrete:
            levels = (case.x * 256).floor().clamp(0, 255).to(torch.uint8)
            made.append(engine.bits_per_dim(levels, **case.given).values)
    glow = fastgen.load("zoo:glow-mnist", device="cpu")
    made.append(glow.sample(2, seed=0, labels=[1, 2]))
    made += [
        glow.log_prob(made[-1], labels=[1, 2]),
        glow.interpolate(made[-1][:1], made[-1][1:], 3, labels=1),
    ]
    return made


def training(given: Given) -> list[Tensor]:
    images = ["--data", str(given.folder / "images"), "--size", "8", "--widths", "8,8"]
    assert main(["train", str(given.out / "unet"), *images, *LINES]) == 0
    table = ["--model", "vector_flow", "--data", "two-moons", "--widths", "8"]
    assert main(["train", str(given.out / "flow"), *table, *LINES]) == 0
    return [content(given.out / name / WEIGHTS_FILE) for name in ("unet", "flow")]


def converters(given: Given) -> list[Tensor]:
    engine = fastgen.load(given.folder / "diffusers", device="cpu")
    fastgen.convert(given.folder / "diffusers", given.out / "ours")
    fastgen.convert(given.out / "ours", given.out / "theirs", to="diffusers")
    written = [
        given.out / "ours" / WEIGHTS_FILE,
        given.out / "theirs" / "unet" / "diffusion_pytorch_model.safetensors",
    ]
    return [engine.sample(1, seed=0, steps=2), *map(content, written)]


def content(path: Path) -> Tensor:
    """uint8: a file's bytes."""
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


@pytest.mark.parametrize("work", [diffusion, modules, flow_verbs, training, converters])
def test_another_default_changes_nothing(
    work: Callable[[Given], list[Tensor]], given: Given, tmp_path: Path
) -> None:
    def results(name: str) -> list[Tensor]:
        given.out = tmp_path / name
        given.out.mkdir()
        return work(given)

    wanted = results("plain")
    for of in DEFAULTS:
        with default(of):
            got = results(str(of))
        assert len(got) == len(wanted)
        for k, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert (a.dtype, a.device) == (b.dtype, b.device), (of, k)
            assert torch.equal(a, b), (of, k)
