"""A machine that beats lives; one that does not is given up, once it had its time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.run import BEAT, Heartbeat, LabLockedUp


def test_silence_is_given_up_after_its_time_and_not_before(tmp_path: Path) -> None:
    console = tmp_path / "console"
    patient, hasty = Heartbeat(console, silence=1000), Heartbeat(console, silence=0)

    patient.check()

    with pytest.raises(LabLockedUp, match="locked up"):
        hasty.check()


def test_a_beat_begins_the_time_anew_and_other_words_do_not(tmp_path: Path) -> None:
    console = tmp_path / "console"
    heartbeat = Heartbeat(console, silence=0)
    console.write_bytes(BEAT + b"\n")

    heartbeat.check()

    console.write_bytes(BEAT + b"\nwatchdog: BUG: soft lockup\n")
    with pytest.raises(LabLockedUp):
        heartbeat.check()
