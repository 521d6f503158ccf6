"""Engines in threads, in forked and in spawned processes, in a pickle."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen import DiffusionEngine
from fastgen.errors import ArgumentError
from tests.refusals import refused
from tests.small import checkpoint

from . import children

THREADS, CALLS = 8, 100


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model")


def draw(engine: DiffusionEngine, call: int) -> Tensor:
    """Call number `call`: another seed, count, label, solver and weight of guidance each time."""
    solver = ("ddim", "dpm++2m", "ddpm")[call % 3]
    labels = None if call % 4 == 3 else call % 3
    guidance = 1.0 if labels is None else 1.0 + call % 2
    images = engine.sample(
        1 + call % 3, seed=call, labels=labels, solver=solver, steps=1 + call % 3, guidance_scale=guidance
    )
    assert isinstance(images, Tensor)
    return images


@pytest.mark.slow
def test_threads_get_what_one_gets(model: Path) -> None:
    engine = fastgen.load(model, device="cpu")
    want = [draw(engine, call) for call in range(CALLS)]
    together = threading.Barrier(THREADS)

    def every_call(first: int) -> list[bool]:
        together.wait()
        calls = [(first * 13 + k) % CALLS for k in range(CALLS)]  # no two threads make the same call at once
        return [torch.equal(draw(engine, call), want[call]) for call in calls]

    with ThreadPoolExecutor(THREADS) as pool:
        equal = [e for results in pool.map(every_call, range(THREADS)) for e in results]
    assert len(equal) == THREADS * CALLS
    assert all(equal)


def fork(work) -> int:  # type: ignore[no-untyped-def]
    """`work` in a forked process; its exit code."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def forks_while_idle(folder: Path) -> int:
    """With OpenMP's threads at work before the fork, which do not come along."""
    torch.set_num_threads(2)
    engine = fastgen.load(folder, device="cpu")
    want = engine.sample(64, seed=1, labels=0, steps=3)
    torch.nn.functional.silu(torch.randn(3_000_000))

    def work() -> None:
        got = engine.sample(64, seed=1, labels=0, steps=3)
        torch.testing.assert_close(got, want)
        assert torch.get_num_threads() == 1

    code = fork(work)
    assert torch.get_num_threads() == 2
    assert torch.equal(engine.sample(64, seed=1, labels=0, steps=3), want)
    return code


def forks_in_a_call(folder: Path) -> int:
    """While another thread holds the lock, in the midst of a step."""
    engine = fastgen.load(folder, device="cpu")
    want = engine.sample(2, seed=1, steps=3)
    under_way, go_on = threading.Event(), threading.Event()

    def hold(step: int, total: int, images: Tensor) -> None:
        under_way.set()
        go_on.wait()

    thread = threading.Thread(target=lambda: engine.sample(2, seed=5, steps=3, callback=hold))
    thread.start()
    under_way.wait()
    try:
        return fork(lambda: check_equal(engine.sample(2, seed=1, steps=3), want))
    finally:
        go_on.set()
        thread.join()


def forks_in_a_stream(folder: Path) -> int:
    """Its own stream cannot go on in the child, which is told so; a new call can be made there."""
    engine = fastgen.load(folder, device="cpu")
    want = engine.sample(2, seed=1, steps=3)
    stream = engine.stream(2, seed=5, steps=3)
    next(stream)

    def work() -> None:
        with refused(fastgen.FastgenError):
            next(stream)
        check_equal(engine.sample(2, seed=1, steps=3), want)

    code = fork(work)
    assert sum(1 for _ in stream) == 2  # in the parent it does
    return code


def check_equal(got: object, want: object) -> None:
    assert isinstance(got, Tensor)
    assert isinstance(want, Tensor)
    assert torch.equal(got, want)


@pytest.mark.parametrize("work", [forks_while_idle, forks_in_a_call, forks_in_a_stream])
def test_a_forked_process_can_draw(tmp_path: Path, model: Path, work) -> None:  # type: ignore[no-untyped-def]
    code, said = children.run(tmp_path / "output", work, model)
    assert code == 0, said


def test_on_a_gpu_a_forked_process_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fastgen.load(model, device="cpu")
    engine.device = torch.device("cuda", 0)
    engine._forked()
    with refused(fastgen.FastgenError, None, "cuda:0", "spawn"):
        engine.sample(1)


def load_and_draw(folder: Path, answers) -> None:  # type: ignore[no-untyped-def]
    answers.send(draw(fastgen.load(folder, device="cpu"), 7).tolist())


@pytest.fixture
def spawned(model: Path) -> Iterator[list]:
    context = multiprocessing.get_context("spawn")
    answers, answer = context.Pipe(duplex=False)
    process = context.Process(target=load_and_draw, args=(model, answer))
    process.start()
    answer.close()  # the child's is the only one: the pipe ends where it dies
    try:
        assert answers.poll(children.PATIENCE), "no answer"
        yield answers.recv()
    except EOFError:
        process.join()
        pytest.fail(f"the child ended with exit code {process.exitcode} and no answer")
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_spawned_process_can_load(model: Path, spawned: list) -> None:
    torch.testing.assert_close(torch.tensor(spawned), draw(fastgen.load(model, device="cpu"), 7))


@pytest.mark.parametrize("packed", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_says_that_it_cannot_be_packed(model: Path, packed) -> None:  # type: ignore[no-untyped-def]
    with refused(ArgumentError):
        packed(fastgen.load(model, device="cpu"))
