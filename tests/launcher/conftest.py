"""Fixtures of the launcher's tests: no test leaves anything behind, and files to start from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher import api
from launcher.api import VM
from tests.support.leaks import none_left
from tests.support.machines import Start


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def binary(tmp_path: Path) -> str:
    """A raw binary of one page: HLT, everywhere."""
    path = tmp_path / "guest.raw"
    path.write_bytes(b"\xf4" * 4096)
    return str(path)


@pytest.fixture
def start(begin: Start) -> Start:
    """Machines that pretend and are ready, for as long as a test runs."""

    def started(behaviour: str, *devices: str, **options: bool) -> VM:
        machine = begin(behaviour, *devices, **options)
        machine.wait_ready()
        return machine

    return started


@pytest.fixture
def begin(binary: str, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """The same, that may not be ready yet."""
    monkeypatch.setattr(api, "_MODULE", "tests.support.fake_launcher")
    with ExitStack() as machines:

        def begun(behaviour: str, *devices: str, **options: bool) -> VM:
            made = VM(name=behaviour, binary=binary, entry=0x10000, devices=devices, **options)
            return machines.enter_context(made)

        yield begun


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of our own, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vibe-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)
