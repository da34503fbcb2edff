"""The table of kinds, and what a class must be to stand in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from devices import kinds
from devices.blk import Blk
from devices.runtime.device import Device, virtqueue
from protocol.errors import BadInput
from protocol.ring import Chain
from tests.support.odd_devices import Config


def test_a_kind_is_found_by_its_name() -> None:
    assert kinds.find("blk") is Blk
    assert [queue.name for queue in Blk.queues] == ["requestq"]


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("block", "did you mean blk?"),
        ("usb", "there are blk, blk-mapped, console"),
        ("", "there are blk"),
    ],
)
def test_an_unknown_kind_is_bad_input_with_a_hint(kind: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        kinds.find(kind)

    assert str(caught.value).startswith("--device: ")
    assert hint in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_queue_has_a_size_that_the_specification_allows(size: int) -> None:
    with pytest.raises(ValueError, match=f"no {size} entries"):
        virtqueue(0, size=size)


def test_queues_are_numbered_without_a_gap() -> None:
    with pytest.raises(TypeError, match="without a gap"):

        class Gap(Device[Config]):
            @virtqueue(1, size=8)
            def requestq(self, chain: Chain) -> int:
                return 0


def test_options_are_a_dataclass() -> None:
    with pytest.raises(TypeError, match="wants a dataclass"):

        class Odd(Device[int]):
            pass


@pytest.fixture
def odd_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a module of that text that can be imported; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(text: str) -> str:
        name = f"odd_module_{len(list(tmp_path.iterdir()))}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return make


def test_any_module_may_bring_a_device() -> None:
    assert kinds.find("devices.rng:Rng").__name__ == "Rng"
    assert kinds.find("devices.rng").__name__ == "Rng"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("no.such:Thing", "'no.such' cannot be imported: ModuleNotFoundError"),
        (".relative", "cannot be imported: TypeError"),
        (":Rng", "cannot be imported: ValueError"),
        ("devices.rng:Blk", "has no device class 'Blk'"),
        ("devices.rng:Config", "has no device class 'Config'"),
        ("devices.rng:os", "has no device class 'os'"),
        ("devices.runtime.device:Device", "has no device class 'Device'"),
        ("devices.runtime.device", "has not one device class but none"),
        ("tests.support.odd_devices", "add :CLASS"),
    ],
)
def test_what_is_no_device_is_refused_with_the_reason(kind: str, why: str) -> None:
    with pytest.raises(BadInput, match=re.escape(why)):
        kinds.find(kind, "--impl")


@pytest.mark.parametrize("text", ["1/0", "import sys; sys.exit(0)", "def"])
def test_module_that_fails_fails_nobody_else(odd_module: Callable[[str], str], text: str) -> None:
    with pytest.raises(BadInput, match="cannot be imported"):
        kinds.find(f"{odd_module(text)}:Thing", "--impl")


DEVICE = """
from dataclasses import dataclass
from devices.runtime.device import Device
from protocol.virtio import DeviceId
import beside

@dataclass(frozen=True)
class Config:
    number: int = {number}

class Mine(Device[Config]):
    device_id = DeviceId.NULL
    said = beside.SAID
"""


def test_a_file_is_found_by_its_path_with_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("SAID = 'hello'")
    path = tmp_path / "rng.py"  # the name of a module of ours, with whose it is not mixed up
    path.write_text(DEVICE.format(number=7))

    found = kinds.find(str(path), "--impl")

    assert found.config_type().number == 7
    assert found.said == "hello"  # type: ignore[attr-defined]
    assert kinds.find(f"{path}:Mine").__module__ == str(path)
    assert kinds.label(str(path), found) == "mine"
    monkeypatch.chdir(tmp_path)
    assert kinds.whole("rng.py:Mine") == f"{path}:Mine"
    assert kinds.whole("blk-mapped") == "blk-mapped"
    sys.modules.pop(str(path))


def test_a_file_that_is_not_there_is_bad_input() -> None:
    with pytest.raises(BadInput, match="cannot be imported: FileNotFoundError"):
        kinds.find("nowhere/mine.py")


def test_a_module_without_a_dot_is_one_where_that_may_be(
    odd_module: Callable[[str], str],
) -> None:
    name = odd_module("from devices.rng import Rng\nclass One(Rng): ...\n")

    assert kinds.find(name, is_bare=True).__name__ == "One"
    assert kinds.find("rng", is_bare=True).__name__ == "Rng"
    with pytest.raises(BadInput, match="is not a kind of device"):
        kinds.find(name)
    with pytest.raises(BadInput, match="is not a kind of device"):
        kinds.find("nonsense", is_bare=True)


def test_a_path_may_have_a_colon_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a:b" / "mine.py"

    assert kinds.whole(str(path)) == str(path)
    assert kinds.whole(f"{path}:Mine") == f"{path}:Mine"
