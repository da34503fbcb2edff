"""The frames of the control interface: ours come through, and nobody else's do."""

from __future__ import annotations

import pytest

from protocol import codec, control
from protocol.control import BadMessage, Describe, Event, Failed, Kill


def test_what_is_encoded_is_decoded() -> None:
    event = Event(3, "recovered", "blk0", 2, 77, 1_000_000, 5, 12, {"spare": 4}, "of SIGKILL")

    envelope = control.decode(control.encode(event), control.FROM_LAUNCHER)

    assert envelope.message == event
    assert envelope.sequence == 0


@pytest.mark.parametrize("version", [0, control.CONTROL_VERSION + 1])
def test_another_version_is_told_from_ours_whatever_else_it_says(version: int) -> None:
    frame = codec.pack(["Teleport", 7, version, {"where": "home"}])

    with pytest.raises(BadMessage, match=f"control version {version} there") as caught:
        control.decode(frame, control.TO_LAUNCHER)

    assert caught.value.sequence == 7


@pytest.mark.parametrize(
    ("frame", "sequence"),
    [
        (b"", 0),
        (b"\xc1", 0),
        (b"\x91" * 2000, 0),  # arrays in arrays
        (b"x" * (codec.MAX_MESSAGE + 1), 0),
        (codec.pack(["Kill", 7, control.CONTROL_VERSION, {}]), 7),
        (codec.pack(["Kill", 7, control.CONTROL_VERSION, {"device": 1}]), 7),
        (codec.pack(["Kill", -1, control.CONTROL_VERSION, {"device": "blk0"}]), 0),
        (control.encode(Failed(2, "no"), 7), 7),
        (control.encode(Kill("blk0"), 7) + b"\0", 0),
    ],
)
def test_garbage_is_bad_and_keeps_its_number_if_it_has_one(frame: bytes, sequence: int) -> None:
    with pytest.raises(BadMessage) as caught:
        control.decode(frame, control.TO_LAUNCHER)

    assert caught.value.sequence == sequence


def test_requests_and_what_comes_back_have_no_name_in_common() -> None:
    names = [cls.__name__ for cls in (*control.TO_LAUNCHER, *control.FROM_LAUNCHER)]

    assert len(names) == len(set(names))
    assert Describe in control.TO_LAUNCHER
