"""What tests of whole machines share: each backend, and a run directory of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bare import BACKENDS, require_backend
from tests.support.leaks import none_left


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend that works here."""
    require_backend(request.param)
    return str(request.param)


@pytest.fixture(params=["jail", pytest.param("bounce", marks=pytest.mark.slow)])
def isolation(request: pytest.FixtureRequest) -> str:
    """How devices are held: on guest memory, and on copies. ("none" is no other path.)"""
    return str(request.param)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's machines, and nobody else's, have their run directories. In the end no
    process and no descriptor is left."""
    with tempfile.TemporaryDirectory(prefix="vibe-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        with none_left():
            yield Path(directory)
