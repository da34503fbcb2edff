"""Fixtures of the device tests: real device processes, and nothing left of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from devices import blk, net
from tests.support.device_host import DeviceHost
from tests.support.leaks import none_left

Boot = Callable[..., DeviceHost]

# Of the disk that a test gets when it does not make its own.
DISK_SIZE = 1 << 20


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with none_left():
        yield


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of random bytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(DISK_SIZE))
    return path


@pytest.fixture
def boot(tmp_path: Path, image: Path, _no_leaks: None) -> Iterator[Boot]:
    """Start a device process of a kind; see DeviceHost for the arguments. A blk gets a disk, a
    net an Ethernet."""
    with ExitStack() as stack:
        count = 0

        def start(kind: str, config: object = None, **options: Any) -> DeviceHost:
            nonlocal count
            folder = tmp_path / f"device{count}"
            folder.mkdir()
            count += 1
            if kind.startswith("blk") and config is None:
                config = blk.Config(str(image))
            if kind == "net" and config is None:
                config = net.Config(join=str(folder / "lan"))
            return stack.enter_context(DeviceHost(kind, folder, config, **options))

        yield start
