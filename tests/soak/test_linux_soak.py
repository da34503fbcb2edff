"""A short soak of Linux, and proof that what is looked for would be found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import linux, report, schedule
from tests.soak.harness import Gap, Outcome, run
from tests.soak.linux import Linux
from tests.support.skips import unless_there_is_a_kernel

pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A disk that drops one write behind the file system, and says that it was done.
LIAR = """
from devices.blk import Blk

class Liar(Blk):
    lies = 1

    def _write(self, sector, request, data):
        if sector >= 32 << 11 and self.lies:
            self.lies -= 1
            return
        super()._write(sector, request, data)
"""


@pytest.fixture(autouse=True)
def _kernel() -> None:
    with unless_there_is_a_kernel():
        linux.image_of()


def soak(folder: Path, steps: list[schedule.Step]) -> Outcome:
    return run(Linux("software"), steps, folder)


def test_linux_notices_neither_deaths_nor_swaps(tmp_path: Path) -> None:
    steps = schedule.draw(4, {"kill": 12, "hang": 2, "swap": 6}, Linux.devices, 0.4)

    outcome = soak(tmp_path, steps)

    assert not outcome.problems
    assert all(outcome.verdict.requests[what] for what in ("raw", "files", "entropy", "lines"))
    assert outcome.seen["recovered"] > 6
    assert outcome.seen["swapped"] == 6
    assert {gap.device for gap in outcome.verdict.gaps} == set(Linux.devices)
    assert "stalls   none" not in report.text(outcome)


def test_one_write_that_is_not_done_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "liar.py").write_text(LIAR)
    monkeypatch.syspath_prepend(str(tmp_path))

    outcome = soak(tmp_path, [schedule.Step(1.0, "blk0", "swap", "liar:Liar")])

    assert any("wrong 1" in problem for problem in outcome.problems), outcome.problems


def test_one_line_that_is_missing_or_comes_twice_is_found() -> None:
    lines = [linux.line(number) for number in range(9)] + ["the end"]

    def complaints(said: list[str]) -> list[str]:
        return linux.check_lines("\n".join(said), 9)

    assert complaints(lines) == []
    assert complaints([*lines[:4], *lines[5:]])
    assert complaints([*lines[:4], *lines[3:]])
    assert complaints(lines[:4])
    assert complaints([*lines[:8], "the end"])


def test_stalls_are_told_by_our_clock() -> None:
    said = "soak: begun 1000000\r\nsoak: ended 3000000\r\nsoak: stall rng0 500000 until 2000000\r\n"

    # The guest's clock is half as fast.
    assert linux.stalls(said, 10.0, 14.0) == [Gap("rng0", 11.0, 12.0)]
