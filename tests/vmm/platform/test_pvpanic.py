"""pvpanic: what the guest's kernel reports of its death."""

from __future__ import annotations

import pytest

from vmm.platform.power import Reason
from vmm.platform.pvpanic import PvPanic


def test_reading_tells_the_two_events_that_are_understood() -> None:
    assert PvPanic(lambda _reason: None).read(0, 1) == 0b11


@pytest.mark.parametrize(("events", "asked"), [(0, []), (1, [Reason.PANIC]), (2, [])])
def test_only_a_panic_that_nobody_handles_ends_the_machine(
    events: int, asked: list[Reason]
) -> None:
    found: list[Reason] = []

    PvPanic(found.append).write(0, 1, events)

    assert found == asked


def test_a_crash_kernel_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    PvPanic(lambda _reason: None).write(0, 1, 2)

    assert "crash kernel" in caplog.text
