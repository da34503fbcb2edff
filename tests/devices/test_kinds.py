"""The table of kinds, and what a class must be to stand in it."""

from __future__ import annotations

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
