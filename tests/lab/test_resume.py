"""What passed in a machine that locked up is not run again, and all else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.resume import Resume

pytestmark = pytest.mark.slow  # it runs pytest

Run = Callable[..., tuple[int, str]]

TESTS = """
import pytest
from pathlib import Path

ran = Path(__file__).with_name("ran")

@pytest.fixture
def untidy():
    yield
    assert False

def test_passes():
    ran.write_text(ran.read_text() + "passes ")

def test_fails():
    ran.write_text(ran.read_text() + "fails ")
    assert False

def test_leaves(untidy):
    ran.write_text(ran.read_text() + "leaves ")
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tests above in this process, as ``-p tests.lab.resume`` does; the exit status."""
    # A name of its own: all of these modules are this process's.
    (tmp_path / f"test_{tmp_path.name}.py").write_text(TESTS)
    (tmp_path / "passed").touch()

    def once(*options: str) -> tuple[int, str]:
        (tmp_path / "ran").write_text("")
        resume = Resume(tmp_path / "passed", tmp_path / "port")
        status = pytest.main(
            ["-p", "no:cacheprovider", "-c", "/dev/null", *options, str(tmp_path)],
            plugins=[resume],
        )
        with (tmp_path / "passed").open("a") as passed:
            passed.write((tmp_path / "port").read_text())
        return int(status), (tmp_path / "ran").read_text()

    return once


def test_only_what_passed_whole_is_not_run_again(run: Run) -> None:
    assert run() == (1, "passes fails leaves ")
    assert run() == (1, "fails leaves ")


def test_a_lock_up_behind_the_last_test_is_no_failure(run: Run) -> None:
    assert run("-k", "passes") == (0, "passes ")
    assert run("-k", "passes") == (0, "")


def test_a_name_that_is_cut_off_is_none(run: Run, tmp_path: Path) -> None:
    run("-k", "passes")
    passed = tmp_path / "passed"
    passed.write_text(passed.read_text().rstrip("\n"))

    assert run("-k", "passes") == (0, "passes ")
