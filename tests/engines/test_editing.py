"""Editing verbs of the diffusion engine: against a plain loop written out here, closed forms, and each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen import ConfigError, DiffusionEngine
from fastgen.diffusion import SOLVERS, process_from_config
from fastgen.diffusion.jumps import with_jumps
from fastgen.diffusion.levels import state_levels
from fastgen.diffusion.processes import AnyProcess
from fastgen.diffusion.table import Table
from fastgen.errors import ArgumentError
from fastgen_kernels import normals
from tests.refusals import refused
from tests.small import TinyNet

SHAPE = (2, 4, 6)
PROCESSES: dict[str, tuple[dict[str, Any], str]] = {
    "discrete": ({"beta_schedule": "squaredcos_cap_v2"}, "v_prediction"),
    "edm": ({"process": "edm"}, "edm"),
    "flow": ({"process": "flow", "shift": 3.0}, "velocity"),
    "ve": ({"process": "ve", "sigma_max": 20.0}, "epsilon"),
}
SEEDS = [5, 9, 2]


class Float64(nn.Module):
    """`TinyNet` in float64, called as `interpret` needs it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = TinyNet(channels).double()

    def forward(self, x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.net(x, torch.full((len(x),), t, dtype=torch.float64))
        return found


def engine_of(kind: str = "discrete", shape: tuple[int, int, int] = SHAPE, **options: Any) -> DiffusionEngine:
    schedule, prediction = PROCESSES[kind]
    return DiffusionEngine.from_module(
        TinyNet(shape[0]),
        schedule,
        prediction,
        shape,
        **{"graph": "recorded", "solver": "euler", "value_range": (-1.0, 1.0), **options},
    )


def process_of(kind: str) -> AnyProcess:
    schedule, prediction = PROCESSES[kind]
    return process_from_config(schedule | {"prediction_type": prediction})


def images(count: int = 3, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(4)) * 2 - 1


def interpret(
    table: Table,
    state: Tensor,
    seeds: list[int],
    known: tuple[Tensor, Tensor] | None = None,
    levels: np.ndarray | None = None,
    project: Tensor | None = None,
) -> Tensor:
    """`table` row by row in float64, with the engine's noise, `known` = (image, keep) put in after each.

    project: the matrix [C, C] that says which combination of channels is known.
    """
    net, shape = Float64(state.shape[1]), tuple(state.shape[1:])
    slots = [torch.zeros_like(state)] * 4
    fresh = table.stochastic

    def held(state: Tensor, row: int) -> Tensor:
        if known is None or levels is None:
            return state
        noise = normals(seeds, row if fresh else 0, "inpaint", shape, dtype=torch.float64)
        target = levels[row][0] * known[0] + levels[row][1] * noise
        if project is not None:
            target = state + torch.einsum("cd,ndhw->nchw", project, target - state)
        return known[1] * target + (1 - known[1]) * state

    state = held(state, 0)
    for i in range(len(table)):
        F = net(float(table.input_scale[i]) * state, float(table.time[i]))
        x0 = (table.p[i] * state + table.q[i] * F).clamp(-table.clip[i], table.clip[i])
        z = normals(seeds, int(table.noise_step[i]), "step", shape, dtype=torch.float64)
        terms = [state, x0, F, z, *slots]
        kept = sum(float(c) * t for c, t in zip(table.b[i], terms, strict=True))
        state = sum(float(c) * t for c, t in zip(table.a[i], terms, strict=True))
        if table.slot[i] >= 0:
            slots = [kept if k == table.slot[i] else h for k, h in enumerate(slots)]
        state = held(state, i + 1)
    return state


def close(found: Tensor, wanted: Tensor, rows: int, size: float = 1.0) -> None:
    """float32 states as large as the noise they start from, a few operations a row."""
    bound = 32 * rows * 2.0**-24 * max(1.0, size)
    assert float((found.double() - wanted.clamp(-1, 1)).abs().max()) <= bound


@pytest.mark.parametrize("solver", ["euler", "dpm++2m", "heun", "euler_a", "dpm++sde"])
@pytest.mark.parametrize("kind", PROCESSES)
def test_edit_is_the_plain_loop_from_the_middle(kind: str, solver: str) -> None:
    engine, process, given = engine_of(kind), process_of(kind), images()
    found = engine.edit(given, 0.6, seeds=SEEDS, solver=solver, steps=10)
    table = SOLVERS[solver](process, 10, begin_index=4)
    alpha, sigma = state_levels(table, process)[0]
    noise = normals(SEEDS, 0, "initial", SHAPE, dtype=torch.float64)
    wanted = interpret(table, alpha * given.double() + sigma * noise, SEEDS)
    close(found, wanted, len(table), sigma)


@pytest.mark.parametrize("solver", ["euler", "dpm++2m", "heun", "euler_a"])
@pytest.mark.parametrize("kind", PROCESSES)
def test_inpaint_is_the_plain_loop_with_known_pixels_put_in(kind: str, solver: str) -> None:
    engine, process, given = engine_of(kind), process_of(kind), images()
    mask = torch.zeros(SHAPE[1:])
    mask[1:3, 2:] = 1.0
    mask[0] = 0.25
    found = engine.inpaint(given, mask, method="replace", seeds=SEEDS, solver=solver, steps=6)
    table = SOLVERS[solver](process, 6)
    noise = table.initial_scale * normals(SEEDS, 0, "initial", SHAPE, dtype=torch.float64)
    levels = state_levels(table, process)
    keep = (1.0 - mask.double()).expand(3, *SHAPE)
    wanted = interpret(table, noise, SEEDS, (given.double(), keep), levels)
    close(found, wanted, len(table), levels[0][1])
    hard = (mask == 0).expand_as(found)
    assert torch.equal(found[hard], given[hard])


@pytest.mark.parametrize("kind", PROCESSES)
def test_repaint_is_the_plain_loop_on_a_table_with_jumps(kind: str) -> None:
    engine, process, given = engine_of(kind), process_of(kind), images()
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[:, 3:] = True
    found = engine.inpaint(given, mask, seeds=SEEDS, method="repaint", steps=6, jump_length=2, resamples=3)
    solver, options = ("ddim", {"eta": 1.0}) if kind == "discrete" else ("euler_a", {"eta": 1.0})
    table = with_jumps(SOLVERS[solver](process, 6, **options), process, 2, 3)
    assert len(table) == 6 + 2 * 2 * 2
    noise = table.initial_scale * normals(SEEDS, 0, "initial", SHAPE, dtype=torch.float64)
    levels = state_levels(table, process)
    wanted = interpret(table, noise, SEEDS, (given.double(), (~mask).double().expand(3, *SHAPE)), levels)
    close(found, wanted, len(table), levels[0][1])
    assert torch.equal(found[..., :3], given[..., :3])
    assert not torch.equal(found[..., 3:], given[..., 3:])


def test_inpaint_goes_back_and_forth_by_default() -> None:
    """With 25 steps and jumps of a fifth of them; a single step has no way back."""
    engine, given = engine_of(), images(1)
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[:, 3:] = True
    told: dict[str, Any] = {"method": "repaint", "solver": "ddim", "eta": 1.0, "steps": 25}
    by_name = engine.inpaint(given, mask, seed=3, jump_length=5, resamples=5, **told)
    assert torch.equal(engine.inpaint(given, mask, seed=3), by_name)
    for steps in (1, 3):
        assert torch.equal(engine.inpaint(given, mask, seed=3, steps=steps)[..., :3], given[..., :3])


@pytest.mark.parametrize("kind", PROCESSES)
def test_colourise_keeps_the_grey(kind: str) -> None:
    shape = (3, 5, 7)
    engine = engine_of(kind, shape)
    grey = images(3, (1, 5, 7))
    found = engine.colourise(grey, seeds=SEEDS, steps=6)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    seen = torch.einsum("c,nchw->nhw", weights, found.double())[:, None]
    # Three products, each rounded once to float32 on the way.
    assert float((seen - grey.double()).abs().max()) <= 4 * 2.0**-24
    assert found.abs().max() <= 1
    assert float((found - grey).abs().max()) > 0.05  # there are colours

    table, process = SOLVERS["euler"](process_of(kind), 6), process_of(kind)
    levels = state_levels(table, process)
    noise = table.initial_scale * normals(SEEDS, 0, "initial", shape, dtype=torch.float64)
    unit = weights / weights.norm()
    known = grey.double().expand(3, *shape)
    plain = interpret(
        table, noise, SEEDS, (known, torch.ones_like(known)), levels, project=torch.outer(unit, unit)
    ).clamp(-1, 1)
    # Where no colour leaves the range, it is the plain loop's own.
    inside = (plain.abs() < 0.999).all(1, keepdim=True).expand_as(plain)
    error = ((found.double() - plain).abs() * inside).max()
    assert float(error) <= 32 * len(table) * 2.0**-24 * max(1.0, levels[0][1])


def test_a_result_does_not_depend_on_its_batch() -> None:
    engine, given = engine_of(), images()
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:] = True
    strengths = [0.3, 0.5, 1.0]
    together = engine.edit(given, strengths, seeds=SEEDS, steps=10)
    filled = engine.inpaint(given, mask, method="replace", seeds=SEEDS, steps=5)
    for i in range(3):
        alone = engine.edit(given[i], strengths[i], seeds=SEEDS[i : i + 1], steps=10)
        assert torch.equal(alone[0], together[i])
        assert torch.equal(
            engine.inpaint(given[i], mask, method="replace", seed=SEEDS[i], steps=5)[0], filled[i]
        )
    several = engine.edit(given[0], 0.5, n=3, seed=5, steps=10)
    assert len(several) == 3
    assert torch.equal(several[0], engine.edit(given[:1], 0.5, seed=5, steps=10)[0])


def test_plain_samples_beside_held_ones() -> None:
    """In one session: a sample of which something is known does not touch those of which nothing is."""
    engine, given = engine_of(max_batch=8), images(1)
    plain = engine.sample(2, seed=0, steps=7)
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:] = True
    held = engine.resolved(1, seed=5, steps=5)
    keep = 1.0 - mask.float().expand(1, *SHAPE)
    held = engine._held(held, given, keep, None)
    with engine.session() as session:
        first = session.add(1, seed=0, steps=7)
        session.step()
        session.step()
        known = session.add_request(held)
        second = session.add(1, seed=1, steps=7)
        done = dict(session)
    assert torch.equal(done[first[0]], plain[0])
    assert torch.equal(done[second[0]], plain[1])
    assert torch.equal(done[known[0]], engine.inpaint(given, mask, method="replace", seed=5, steps=5)[0])
    assert torch.equal(engine.sample(2, seed=0, steps=7), plain)  # and leaves nothing behind


def test_captured_steps_equal_plain_ones() -> None:
    given, mask = images(), torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:] = True
    for graph in (False, "recorded"):
        engine = engine_of(graph=graph)
        found = [
            engine.edit(given, 0.5, seeds=SEEDS, steps=6),
            engine.inpaint(given, mask, method="replace", seeds=SEEDS, steps=6),
            engine.inpaint(given, mask, seeds=SEEDS, method="repaint", steps=5, jump_length=2, resamples=2),
            engine.encode(given, steps=4),
        ]
        if not graph:
            before = found
    for a, b in zip(before, found, strict=True):
        assert torch.equal(a, b)


def test_noise_as_tensors() -> None:
    """The seeds' own noise handed back gives the same bits; another gives another image."""
    engine = engine_of()
    for solver, steps in (("ddpm", 6), ("euler", 6), ("dpm++sde", 4)):
        plain = engine.sample(seeds=SEEDS, solver=solver, steps=steps)
        rows = len(SOLVERS[solver](process_of("discrete"), steps))
        noise = normals(SEEDS, 0, "initial", SHAPE)
        each = torch.stack([normals(SEEDS, i, "step", SHAPE) for i in range(rows)], 1)
        call = {"solver": solver, "steps": steps}
        assert torch.equal(engine.sample(seed=77, noise=noise, step_noise=each, **call), plain)
        assert torch.equal(engine.sample(seeds=SEEDS, step_noise=each, **call), plain)
        one = engine.sample(noise=noise[1], step_noise=each[1], **call)
        assert torch.equal(one[0], plain[1])
        assert not torch.equal(engine.sample(seeds=SEEDS, noise=-noise, **call), plain)
    given = images()
    by_seed = engine.edit(given, 0.5, seeds=SEEDS, steps=6)
    assert torch.equal(
        engine.edit(given, 0.5, seed=1, noise=normals(SEEDS, 0, "initial", SHAPE), steps=6), by_seed
    )
    mixed = engine.sample(seeds=SEEDS, solver="ddpm", steps=6, step_noise=each[:, :1].expand(3, 6, *SHAPE))
    assert mixed.isfinite().all()


def test_a_state_in_the_middle_as_noise() -> None:
    """begin_index with noise: the rest of a run, from the state that a callback saw."""
    engine, seen = engine_of(value_range=None), []
    whole = engine.sample(2, seed=3, solver="heun", steps=6, callback=lambda step, total, x: seen.append(x))
    rest = engine.sample(noise=seen[3], solver="heun", steps=6, begin_index=2)  # two rows a step
    assert torch.equal(rest, whole)
    with refused(ConfigError, "begin_index"):
        engine.sample(2, seed=3, solver="heun", steps=6, begin_index=2)


@pytest.mark.parametrize("kind", PROCESSES)
def test_encode_and_decode(kind: str) -> None:
    engine, given = engine_of(kind), images() * 0.8
    errors = [float(engine.round_trip(given, steps=30, iterations=k).rms.max()) for k in (1, 3, 8)]
    assert errors[1] < errors[0] / 3
    assert errors[2] < 0.02
    trip = engine.round_trip(given, steps=30, iterations=3)
    latents = engine.encode(given, steps=30, iterations=3)
    assert torch.equal(trip.latents, latents)
    again = engine.decode(latents, steps=30)
    assert torch.equal(again, trip.images)
    assert torch.allclose(trip.rms, (again - given).flatten(1).square().mean(1).sqrt())
    assert torch.allclose(trip.largest, (again - given).flatten(1).abs().amax(1))
    solver = "ddim" if kind == "discrete" else "euler"
    options = {"clip_sample": False} if solver == "ddim" else {}
    assert torch.equal(engine.sample(noise=latents, solver=solver, steps=30, **options), again)
    assert engine.round_trip(given, solver="heun", steps=30).rms.max() < 0.1


def test_given_timesteps_and_sigmas_in_edits_and_encodings() -> None:
    engine, given = engine_of(), images()
    times = [900, 650, 400, 150]
    found = engine.edit(given, 0.5, seeds=SEEDS, solver="ddim", timesteps=times)
    table = SOLVERS["ddim"](process_of("discrete"), timesteps=(400, 150))
    alpha, sigma = state_levels(table, process_of("discrete"))[0]
    noise = normals(SEEDS, 0, "initial", SHAPE, dtype=torch.float64)
    close(found, interpret(table, alpha * images().double() + sigma * noise, SEEDS), 2)
    latents = engine.encode(given, solver="ddim", timesteps=times, iterations=8)
    assert float((engine.decode(latents, timesteps=times) - given).abs().max()) < 0.05
    edm = engine_of("edm")
    sigmas = [20.0, 8.0, 3.0, 1.0, 0.3]
    half = edm.edit(given, 0.6, seeds=SEEDS, sigmas=sigmas)
    alone = edm.edit(given, 1.0, seeds=SEEDS, sigmas=sigmas[2:])
    assert torch.equal(half, alone)
    latents = edm.encode(given, sigmas=sigmas, iterations=20)
    assert float((edm.decode(latents, sigmas=sigmas) - given).abs().max()) < 0.05


def test_interpolation_ends_at_the_samples() -> None:
    engine = engine_of()
    found = engine.interpolate([5, 9, 2], 4, steps=5)
    assert found.shape == (9, *SHAPE)
    for place, seed in ((0, 5), (4, 9), (8, 2)):
        torch.testing.assert_close(found[place], engine.sample(seed=seed, steps=5)[0], rtol=0, atol=2e-5)
    given = images(2)
    between = engine.interpolate(images=given, frames=3, steps=20, iterations=8)
    assert between.shape == (4, *SHAPE)
    torch.testing.assert_close(between[[0, 3]], given, rtol=0, atol=0.05)
    with refused(ArgumentError, "seeds, images"):
        engine.interpolate()
    with refused(ConfigError, "seeds", 2):
        engine.interpolate([1])
    with refused(ConfigError, "images", 2):
        engine.interpolate(images=given[:1])
    with refused(ConfigError, "frames", 0):
        engine.interpolate([1, 2], 0)


def test_a_table_of_ones_own_is_cut_where_it_can_be() -> None:
    engine, given = engine_of(), images()
    process = process_of("discrete")
    by_name = engine.edit(given, 0.5, seeds=SEEDS, solver="euler", steps=8)
    table = SOLVERS["euler"](process, 8)
    assert torch.equal(engine.edit(given, 0.5, seeds=SEEDS, solver=table), by_name)
    with refused(ConfigError, "solver", "dpm++2m"):
        engine.edit(given, 0.5, solver=SOLVERS["dpm++2m"](process, 8))


def broken(change: str) -> Any:
    bad = images()
    if change == "nan":
        bad[1, 0, 0, 0] = math.nan
    return {
        "nan": bad,
        "range": images() * 1.2,
        "size": images(3, (2, 4, 7)),
        "channels": images(3, (1, 4, 6)),
        "uint8": torch.zeros(3, *SHAPE, dtype=torch.uint8),
        "array": np.zeros((3, *SHAPE)),
        "none": torch.zeros(0, *SHAPE),
    }[change]


@pytest.mark.parametrize("change", ["nan", "range", "size", "channels", "uint8", "array", "none"])
def test_wrong_images_are_named(change: str) -> None:
    engine, mask = engine_of(), torch.ones(SHAPE[1:])
    for call in (
        lambda x: engine.edit(x),
        lambda x: engine.inpaint(x, mask),
        lambda x: engine.encode(x),
        lambda x: engine.interpolate(images=x),
    ):
        with refused(ConfigError, "images"):
            call(broken(change))


@pytest.mark.parametrize(
    ("mask", "mentions"),
    [
        (torch.ones(6, 4), ("[4, 6]", "[6, 4]")),
        (torch.ones(3, 4, 6), ("[3, 4, 6]",)),
        (torch.ones(2, 1, 4, 6), ("[2, 1, 4, 6]",)),
        (torch.ones(4, 6, dtype=torch.int64), ("int64",)),
        (torch.ones(4, 6) * 255, (255,)),
        (-torch.ones(4, 6), (-1,)),
        (torch.full((4, 6), math.nan), ("nan",)),
        (torch.zeros(4, 6), (0,)),
        (np.ones((4, 6)), ("[4, 6]",)),
        (None, ("None",)),
    ],
)
def test_wrong_masks_are_named(mask: Any, mentions: tuple) -> None:
    with refused(ConfigError, "mask", *mentions):
        engine_of().inpaint(images(), mask)


@pytest.mark.parametrize(
    ("verb", "arguments", "about"),
    [
        ("edit", {"strength": 0.0}, ("strength", 0.0)),
        ("edit", {"strength": 1.5}, ("strength", 1.5)),
        ("edit", {"strength": math.nan}, ("strength", "nan")),
        ("edit", {"strength": "half"}, ("strength", "half")),
        ("edit", {"strength": [0.5, 0.5]}, ("strength", 3, 2)),
        ("edit", {"strength": 0.05, "steps": 10}, ("strength", 0.1)),
        ("edit", {"begin_index": 3}, ("begin_index",)),
        ("edit", {"n": 2}, ("n", 3, 2)),
        ("edit", {"noise": torch.zeros(2, *SHAPE)}, ("noise", 3, 2)),
        ("edit", {"noise": torch.zeros(3, 1, 4, 6)}, ("noise", "[3, 1, 4, 6]")),
        ("inpaint", {"method": "magic"}, ("method", "repaint", "magic")),
        ("inpaint", {"method": "replace", "jump_length": 3}, ("jump_length",)),
        ("inpaint", {"solver": "dpm++2m"}, ("solver", "dpm++2m", "replace")),
        ("inpaint", {"method": "repaint", "resamples": 0}, ("resamples", 0)),
        ("inpaint", {"method": "repaint", "jump_length": 25}, ("jump_length", 25)),
        ("inpaint", {"method": "repaint", "solver": "dpm++2m"}, ("solver", "dpm++2m")),
        ("inpaint", {"method": "repaint", "solver": "dpm++2m", "steps": 4}, ("solver", "dpm++2m")),
        ("inpaint", {"begin_index": 1}, ("begin_index",)),
        ("encode", {"seed": 3}, ("seed",)),
        ("round_trip", {"seeds": [1, 2, 3]}, ("seeds",)),
        ("encode", {"solver": "dpm++2m"}, ("solver", "dpm++2m")),
        ("encode", {"solver": "ddim", "eta": 0.5}, ("solver", "ddim")),
        ("encode", {"solver": "nothing"}, ("solver", "nothing")),
        ("encode", {"iterations": 0}, ("iterations", 0)),
        ("encode", {"steps": "many"}, ("steps", "many")),
        ("encode", {"clip_sample": True}, ("clip_sample",)),
    ],
)
def test_wrong_arguments_are_named(verb: str, arguments: dict[str, Any], about: tuple) -> None:
    engine = engine_of()
    with refused(ConfigError, *about):
        if verb == "inpaint":
            engine.inpaint(images(), torch.ones(SHAPE[1:]), **arguments)
        else:
            getattr(engine, verb)(images(), **arguments)


@pytest.mark.parametrize("verb", ["edit", "encode", "round_trip"])
def test_unknown_arguments_are_named(verb: str) -> None:
    with refused(ArgumentError, "foo"):
        getattr(engine_of(), verb)(images(), foo=3)


def test_iterations_are_of_images() -> None:
    with refused(ConfigError, "iterations"):
        engine_of().interpolate([1, 2], 2, iterations=3)


def test_noises_in_a_list_are_as_many_samples() -> None:
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    engine = engine_of()
    assert torch.equal(
        engine.sample(noise=list(noise), seed=0, steps=3), engine.sample(noise=noise, seed=0, steps=3)
    )


def test_wrong_noises_are_named() -> None:
    engine = engine_of()
    for name, value in (
        ("noise", torch.zeros(1, 4, 6)),
        ("noise", torch.full(SHAPE, math.inf)),
        ("noise", [1.0]),
        ("step_noise", torch.zeros(2, 5, *SHAPE)),
        ("step_noise", torch.zeros(4, *SHAPE)),
    ):
        with refused(ConfigError, name):
            engine.sample(2, solver="ddpm", steps=6, **{name: value})
    with refused(ConfigError, "noise", 3, 2):
        engine.sample(3, noise=torch.zeros(2, *SHAPE))
    with refused(ConfigError, "step_noise", 6, 4):
        engine.sample(solver="ddpm", steps=[6, 4], step_noise=torch.zeros(2, 6, *SHAPE))
    with refused(ConfigError, "latents"):
        engine.decode(torch.zeros(2, 3, 4, 6))
    with refused(ConfigError, "grey"):
        engine_of(shape=(1, 4, 6)).colourise(torch.zeros(1, 4, 6))
    colours = engine_of(shape=(3, 4, 6))
    for weights in ((1.0,), (0.5, 0.5, 0.5), (1.5, -0.25, -0.25), "abc"):
        with refused(ConfigError, "weights"):
            colours.colourise(torch.zeros(1, 4, 6), weights)
    with refused(ConfigError, "grey", "[1, 3, 4, 6]"):
        colours.colourise(torch.zeros(1, 3, 4, 6))


def test_noise_made_within_the_step_as_on_a_gpu() -> None:
    """There nothing is made ahead: the step makes its noise, that of known pixels, and takes in what was given."""
    given, mask = images(), torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:] = True
    each = torch.stack([normals(SEEDS, i, "step", SHAPE) for i in range(5)], 1)
    found = []
    for ahead in (True, False):
        engine = engine_of()
        if not ahead:
            engine.loop.noise = engine.loop.known_noise = None
        found.append(
            [
                engine.inpaint(given, mask, method="replace", seeds=SEEDS, solver="ddpm", steps=5),
                engine.inpaint(given, mask, method="replace", seeds=SEEDS, solver="dpm++2m", steps=5),
                engine.sample(seed=1, noise=given, step_noise=each, solver="ddpm", steps=5),
                engine.sample(seeds=[1, 2], solver="dpm++sde", steps=3, step_noise=each[:2]),
            ]
        )
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
