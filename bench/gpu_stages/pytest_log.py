"""A pytest plugin that appends every test's outcome to the file of results: `-p bench.gpu_stages.pytest_log`.

The environment variable FASTGEN_GPU_RESULTS names the file. With pytest-xdist the controller writes, not the workers.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from .stage import append, device_works

NAME = "FASTGEN_GPU_RESULTS"
FAILED = pytest.StashKey[bool]()  # whether a phase of the test failed


class Log:
    """Writes one line for every test that ended, and one for every file that cannot be collected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.collected = False
        self.failed: set[str] = set()

    def add(self, kind: str, name: str, **facts: Any) -> None:
        append(self.path, {"stage": "tests", "kind": kind, "name": name, **facts})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.add("test", report.nodeid, outcome="error", error=str(report.longrepr)[-2000:])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.count(len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.count(len(ids))

    def count(self, tests: int) -> None:
        """How many tests there are to run, once."""
        if tests and not self.collected:
            self.collected = True
            self.add("fact", "collected tests", count=tests)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A worker that ends itself behind a failed test (below) is reported as that test's crash: its error is known.
        if report.when not in ("setup", "call", "teardown") and report.nodeid in self.failed:
            return
        # A test that passes is known after its call; one that does not even begin, after its set-up.
        if report.when != "call" and report.passed:
            return
        facts: dict[str, Any] = {"outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.failed:
            self.failed.add(report.nodeid)
            facts["outcome"] = "failed" if report.when == "call" else "error"
            facts["error"] = str(report.longrepr)[-3000:]
        elif report.skipped:
            facts["reason"] = str(report.longrepr)[-300:]
        self.add("test", report.nodeid, **facts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A worker in which CUDA is broken ends itself: it would fail all tests that follow, and take the others' too.

    pytest-xdist starts another one in its place.
    """
    result = yield
    if "PYTEST_XDIST_WORKER" in os.environ and item.stash.get(FAILED, False) and not device_works():
        os._exit(1)
    return result


def pytest_configure(config: pytest.Config) -> None:
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)  # where a test was when time was over
    if NAME in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Log(Path(os.environ[NAME])))
