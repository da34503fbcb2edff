"""Tests of what every backend does run on each of them: those that ask for the fixture ``backend``,
but for one that is marked ``kvm`` itself, because it is about what only KVM does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.bare import BACKEND


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        kvm = pytest.param("kvm", marks=pytest.mark.kvm)
        is_kvms = metafunc.definition.get_closest_marker("kvm")
        metafunc.parametrize("backend", [kvm] if is_kvms else [kvm, "software"], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which backend bare machines are made of; a module asks for it with ``usefixtures``."""
    before = BACKEND.set(request.param)
    yield request.param
    BACKEND.reset(before)
