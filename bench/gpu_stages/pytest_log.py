"""A pytest plugin that appends every test's outcome to the file of results: `-p bench.gpu_stages.pytest_log`.

The environment variable FASTGEN_GPU_RESULTS names the file. With pytest-xdist the controller writes, not the workers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from .stage import append

NAME = "FASTGEN_GPU_RESULTS"


class Log:
    """Writes one line for every test that ended, and one for every file that cannot be collected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.collected = False

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
        # A test that passes is known after its call; one that does not even begin, after its set-up.
        if report.when != "call" and report.passed:
            return
        facts: dict[str, Any] = {"outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.failed:
            facts["outcome"] = "failed" if report.when == "call" else "error"
            facts["error"] = str(report.longrepr)[-3000:]
        elif report.skipped:
            facts["reason"] = str(report.longrepr)[-300:]
        self.add("test", report.nodeid, **facts)


def pytest_configure(config: pytest.Config) -> None:
    if NAME in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Log(Path(os.environ[NAME])))
