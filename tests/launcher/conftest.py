"""Fixtures of the launcher's tests: no test leaves anything behind, and files to start from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leaks import none_left


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
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of our own, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vibe-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)
