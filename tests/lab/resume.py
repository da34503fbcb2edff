"""A pytest plugin: what passed before the lab's machine locked up is not run again in the next.

The machine cannot write to the host's files. A line for each test that passed leaves it by a port,
at whose other end is the file ``VIBE_LAB_PASSED``; the next machine can read that.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest


class Resume:
    """Deselects the tests named in ``passed``, and writes the names of further ones to ``port``."""

    def __init__(self, passed: Path, port: Path) -> None:
        # The last line may lack its end.
        self._passed = frozenset(passed.read_text().split("\n")[:-1])
        self._port = port.open("wb", 0)
        self._failed: set[str] = set()

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        done = [item for item in items if item.nodeid in self._passed]
        items[:] = [item for item in items if item.nodeid not in self._passed]
        config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._failed.add(report.nodeid)
        elif report.when == "teardown" and report.nodeid not in self._failed:
            self._port.write(report.nodeid.encode() + b"\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self._passed:
            session.exitstatus = pytest.ExitCode.OK  # it locked up behind the last one


def pytest_configure(config: pytest.Config) -> None:
    """With ``-p tests.lab.resume``, which `make lab` gives."""
    (port,) = glob.glob("/dev/vport*p3")
    config.pluginmanager.register(Resume(Path(os.environ["VIBE_LAB_PASSED"]), Path(port)))
