"""Statistics for people and for programs."""

from __future__ import annotations

import json

from launcher.stats import as_json, as_text
from protocol.messages import DeviceReport, ExitCount, MachineStats

STATS = MachineStats(
    run_returns=101,
    nanoseconds=2_500_000_000,
    exits=(
        ExitCount("port write", 0x3F8, "serial", 75, 750_000),
        ExitCount("mmio write", 0xA01070, "blk0", 25, 1_000_000),
    ),
    devices=(DeviceReport("blk0", "running", {"reads": 7, "writes": 0, "\x1b[2J": 1}),),
)


def test_table_has_count_share_and_time() -> None:
    lines = as_text(STATS).splitlines()

    assert lines[0] == "101 returns of KVM_RUN, 100 of them exits to be handled, in 2.50 s"
    assert lines[3].split() == ["port", "write", "0x3f8", "serial", "75", "75.0%", "0.750", "10.00"]
    assert lines[4].split()[2:] == ["0xa01070", "blk0", "25", "25.0%", "1.000", "40.00"]


def test_counters_that_are_zero_are_left_out_and_names_are_harmless() -> None:
    assert as_text(STATS).splitlines()[-1].split(maxsplit=2)[2] == "\\x1b[2J 1, reads 7"


def test_guest_that_did_nothing_has_statistics_too() -> None:
    assert as_text(MachineStats(0, 0, (), ())).startswith("0 returns of KVM_RUN")


def test_many_addresses_are_summed_up() -> None:
    rows = tuple(ExitCount("mmio read", address, "nobody", 2, 10) for address in range(50))

    assert as_text(MachineStats(100, 1, rows, ())).endswith("  and 40 at 20 other places")


def test_file_has_all_of_it() -> None:
    found = json.loads(as_json(STATS, "vm", "power-off", {"ready": 300.5}))

    assert found["machine"] == "vm"
    assert found["startup_ms"] == {"ready": 300.5}
    assert found["exits"][1] == {
        "kind": "mmio write",
        "address": 0xA01070,
        "device": "blk0",
        "count": 25,
        "nanoseconds": 1_000_000,
    }
    assert found["devices"][0]["counters"]["writes"] == 0
