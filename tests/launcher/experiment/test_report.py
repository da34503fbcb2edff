"""Tables of samples that are known."""

from __future__ import annotations

import csv
import json

import pytest

from launcher.experiment import report, surface
from launcher.experiment.matrix import Cell
from launcher.experiment.measures import phases, stalls
from launcher.experiment.results import Results
from tests.launcher.experiment.conftest import samples

TABLE = """\
# Results

21 runs in an order by seed 7, hypervisor auto, on a host.
Medians, in brackets the 95% interval of each by bootstrap.

## blk

|  | jail | bounce |
|---|---:|---:|
| attacks contained | 0 of 1 | 1 of 1 |
| guest memory readable | 64 MiB | 0 |
| guest memory writable | 64 MiB | 0 |
| system calls allowed | 33 | 33 |
| message types reachable | 8 | 8 |
| trusted code, lines | 1,000 | 2,000 |
| throughput, read-1, requests/s | 2,000 [1,000, 3,000] | 750 [500, 1,000] |
| latency, median, read-1, µs | 100 [100, 100] | 200 [200, 200] |
| latency, 99th percentile, read-1, µs | 100 [100, 100] | 200 [200, 200] |
| CPU of the device, read-1, µs/request | 10 [10, 10] | 10 [10, 10] |
| CPU of the VMM, guest included, read-1, µs/request | 20 [20, 20] | 20 [20, 20] |
| exits, read-1, per request | 0 [0, 0] | 0 [0, 0] |
| stall that the guest sees, kill, ms | 20 [20, 20] | 20 [20, 20] |
| stall that the guest sees, swap, ms | 20 [20, 20] | 20 [20, 20] |
| nobody serves, kill, ms | 17 [17, 17] | 17 [17, 17] |
| nobody serves, swap, ms | 17 [17, 17] | 17 [17, 17] |

## Attacks

| attack | jail | bounce |
|---|---:|---:|
| peek | succeeded: 4096 bytes of a canary \\| all | contained: 4096 bytes of a canary \\| all |
"""


def test_table_for_people(results: Results) -> None:
    report.write(results)

    printed = (results.path / "tables" / "results.md").read_text()

    assert printed.startswith(TABLE)
    assert f"{surface.trusted_command('bounce')}  # bounce\n" in printed
    assert printed.endswith(
        "## Not measured\n\n- load read-1: blk, bounce, #3: the host has run out of something\n"
    )


def test_tables_for_programs_have_the_same(results: Results) -> None:
    report.write(results)

    whole = json.loads((results.path / "tables" / "results.json").read_text())
    with (results.path / "tables" / "results.csv").open() as file:
        lines = list(csv.DictReader(file))

    (fast,) = (
        row
        for row in whole["rows"]
        if (row["measure"], row["isolation"]) == ("throughput", "bounce")
    )
    assert fast["unit"] == "requests/s"
    assert (fast["count"], fast["median"], fast["low"], fast["high"]) == (2, 750, 500, 1000)
    assert len(lines) == len(whole["rows"])
    assert {line["median"] for line in lines if line["measure"] == "calls"} == {"33"}
    assert [attack["verdict"] for attack in whole["attacks"]] == ["contained", "succeeded"]
    assert [each["isolation"] for each in whole["errors"]] == ["bounce"]


@pytest.mark.parametrize(
    ("fault", "steps"),
    [
        ("kill", {"notice": 1, "start": 16, "attach": 1, "first answer": 2}),
        ("swap", {"nobody serves": 17, "first answer": 3}),
    ],
)
def test_phases_of_a_recovery_are_what_the_guest_waits_for(
    fault: str, steps: dict[str, float]
) -> None:
    raw = samples(Cell("fault", fault, "blk", "jail", "own", 1))

    assert list(phases(raw)) == [steps, steps]
    assert stalls(raw) == [20, 20]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (12.345, "12.3"), (1234.5, "1,234")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert report.number(value) == text


@pytest.mark.parametrize("level", surface.TRUSTED)
def test_command_counts_the_lines_that_the_table_has(level: str) -> None:
    import subprocess

    counted = subprocess.run(
        surface.trusted_command(level), shell=True, cwd=surface.ROOT, capture_output=True, text=True
    )

    assert counted.stderr == ""
    assert int(counted.stdout) == surface.trusted_lines(level) > 100
