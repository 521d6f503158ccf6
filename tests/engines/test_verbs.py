"""Every verb of every engine: captured it gives the same bits, its reference is the same work, it can be exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.engines import FlowEngine
from fastgen.engines.base import Engine
from fastgen.engines.verb import Verb
from tests.engines import gans, stylegans
from tests.engines.flows import make as flow_case
from tests.engines.styles import engine as style_engine
from tests.small import checkpoint

Maker = Callable[..., Engine]


def diffusion(folder: Path, **options: Any) -> Engine:
    engine = fastgen.load(checkpoint(folder / "m"), device="cpu", **options)
    assert isinstance(engine, Engine)
    return engine


def flow(name: str) -> Maker:
    return lambda folder, **options: FlowEngine.from_module(flow_case(name).flow, device="cpu", **options)


ENGINES: dict[str, Maker] = {
    "diffusion": diffusion,
    "flow of images": flow("glow"),
    "flow of labelled images": flow("glow, everything else"),
    "flow of rows": flow("vector_flow"),
    "gan": lambda folder, **options: gans.make("dcgan concat", **options),
    "stylegan": lambda folder, **options: stylegans.make("stylegan, of labels", **options),
    "stylegan2": lambda folder, **options: stylegans.make("stylegan2", **options),
    "style of adain": lambda folder, **options: style_engine("adain", **options),
    "style of microast": lambda folder, **options: style_engine("microast", **options),
}


@pytest.fixture(params=ENGINES)
def maker(request: pytest.FixtureRequest) -> Maker:
    return ENGINES[request.param]


def test_a_captured_verb_gives_the_bits_of_the_uncaptured_one(maker: Maker, tmp_path: Path) -> None:
    engine, plain = maker(tmp_path, graph="recorded"), maker(tmp_path, graph=False)
    for count in (3, 4, 1):  # the buffers of a larger batch serve the smaller ones
        generator = torch.Generator().manual_seed(count)
        for name, verb in plain.verbs().items():
            tensors = verb.trial(count, generator)
            whole = [torch.cat([v, v[:1].expand(4 - count, *v.shape[1:])]) for v in tensors]
            got, want = engine.call(name, *tensors), plain.call(name, *(whole if count == 3 else tensors))
            for one, other in zip(got, want, strict=True):
                assert torch.equal(one, other[:count]), name


def test_names_of_tensors_are_those_that_there_are(maker: Maker, tmp_path: Path) -> None:
    engine = maker(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name, verb in engine.verbs().items():
        tensors = verb.trial(2, generator)
        assert verb.name == name
        assert len(tensors) == len(verb.arguments) == len(set(verb.arguments))
        results = engine.call(name, *tensors)
        assert len(results) == len(verb.results) == len(set(verb.results))
        assert all(len(value) == 2 for value in (*tensors, *results))


def test_the_reference_is_the_same_work(maker: Maker, tmp_path: Path) -> None:
    engine = maker(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name, verb in engine.verbs().items():
        tensors = verb.trial(3, generator)
        got, want = engine.call(name, *tensors), verb.plain(engine.networks, *tensors)
        for one, other in zip(got, want, strict=True):
            scale = float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * max(scale, 1.0), msg=name)


class Reference(nn.Module):
    """A verb's reference as a module, for the exporter."""

    def __init__(self, networks: nn.ModuleDict, verb: Verb) -> None:
        super().__init__()
        self.networks, self.verb = networks, verb

    def forward(self, tensors: tuple[Tensor, ...], noise: Tensor | None) -> tuple[Tensor, ...]:
        return self.verb.plain(self.networks, *tensors, noise=noise)


@pytest.mark.slow
def test_the_reference_can_be_exported(maker: Maker, tmp_path: Path) -> None:
    """As one graph; what ONNX has no operation for (integers within floats of a row) is the exporter's to replace."""
    engine = maker(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name, verb in engine.verbs().items():
        tensors = verb.trial(2, generator)
        noise = None if verb.noise is None else verb.noise(*tensors)
        with torch.no_grad():
            program = torch.export.export(Reference(engine.networks, verb), (tensors, noise), strict=False)
            got, want = program.module()(tensors, noise), verb.plain(engine.networks, *tensors, noise=noise)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, msg=name)
