"""The load guest's other half: its clock, its tape, its image."""

from __future__ import annotations

import struct

import pytest

from launcher.experiment.file import Load
from launcher.experiment.guest import Clock, program, read_tape
from protocol.errors import HostError
from protocol.virtio import DeviceId
from tests.support import guest

MARKS = [1_000_000 * i for i in range(8)] + [1_000_000_000 + 1_000_000 * i for i in range(8)]
LATE = [0.004, 0.001, 0.0, 0.003, 0.002, 0.001, 0.005, 0.002] * 2
# A guest of 2 GHz, whose cycle 0 is second 50.
HEARD = [50 + mark / 2e9 + late for mark, late in zip(MARKS, LATE, strict=True)]


def test_clock_takes_the_marks_that_are_least_late() -> None:
    clock = Clock.of(MARKS, HEARD)

    assert clock.time(0) == pytest.approx(50.0, abs=1e-9)
    assert clock.time(2_000_000_000) == pytest.approx(51.0, abs=1e-9)


def test_tape_is_read_in_our_time() -> None:
    header = struct.pack("<8s3Q16Q", b"VIBELOAD", 2, 5, 1, *MARKS)
    records = struct.pack("<4Q", 2_000_000, 4_000_000, 3_000_000, 6_000_000)

    tape = read_tape(header.ljust(4096, b"\0") + records + bytes(64), HEARD)

    assert tape.given == pytest.approx([50.001, 50.0015])
    assert tape.answered == pytest.approx([50.002, 50.003])
    assert (tape.dropped, tape.failed) == (5, 1)


def test_tape_that_was_not_written() -> None:
    with pytest.raises(HostError, match="no tape"):
        read_tape(bytes(8192), HEARD)


@pytest.mark.parametrize(
    ("load", "kind", "words"),
    [
        (Load("read", 1, 512), DeviceId.BLOCK, (0, 1, 1, 512)),
        (Load("write", 64, 4096), DeviceId.BLOCK, (1, 1, 64, 4096)),
        (Load("read", 8, 256), DeviceId.ENTROPY, (2, 1, 8, 256)),
    ],
)
def test_image_is_told_its_load(load: Load, kind: DeviceId, words: tuple[int, ...]) -> None:
    guest.build()

    assert struct.unpack_from("<4s4I", program(load, kind), 8) == (b"PARM", *words)
