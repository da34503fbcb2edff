"""Statistics for people and for programs."""

from __future__ import annotations

import json

from launcher.stats import Process, add_counters, as_json, as_text
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
    assert lines[4].split()[2:] == ["0xa01070", "blk0", "Status", "25", "25.0%", "1.000", "40.00"]


def test_counters_that_are_zero_are_left_out_and_names_are_harmless() -> None:
    assert as_text(STATS).splitlines()[-1].split(maxsplit=2)[2] == "\\x1b[2J 1, reads 7"


def test_each_queue_has_a_line_of_its_own() -> None:
    counters = {"reads": 1, "rx.chains": 2, "rx.kicks": 3, "tx.chains": 4, "tx.kicks": 0}

    text = as_text(MachineStats(0, 0, (), (DeviceReport("d", "running", counters),)))

    assert [line.split() for line in text.splitlines()[-3:]] == [
        ["d", "running", "reads", "1"],
        ["rx", "chains", "2,", "kicks", "3"],
        ["tx", "chains", "4"],
    ]


def test_exits_of_the_data_path_are_named_and_counted_against_its_doorbells() -> None:
    counters = {"requestq.kicks": 9, "requestq.interrupts": 4, "other.kicks": 1}
    rows = (
        ExitCount("mmio write", 0xA01050, "blk0", 3, 1),
        ExitCount("mmio write", 0xA01064, "blk0", 2, 1),
        ExitCount("port write", 0xA050, "nobody", 7, 1),
    )

    text = as_text(MachineStats(12, 1, rows, (DeviceReport("blk0", "running", counters),)))

    assert "data path: 10 kicks, 4 interrupts, 5 exits" in text
    assert "blk0 QueueNotify" in text


def test_processes_are_a_tree_with_what_they_used() -> None:
    tree = [Process("launcher", 100, 0.05, 20 << 20), Process("vmm", 101, 0.5, 30 << 20)]

    lines = as_text(STATS, [*tree, Process("blk0", 102, 0.25, 10 << 20)]).splitlines()

    assert [line.split() for line in lines[-3:]] == [
        ["launcher", "100", "50", "20.0"],
        ["├─", "vmm", "101", "500", "30.0"],
        ["└─", "blk0", "102", "250", "10.0"],
    ]


def test_guest_that_did_nothing_has_statistics_too() -> None:
    assert as_text(MachineStats(0, 0, (), ())).startswith("0 returns of KVM_RUN")


def test_many_addresses_are_summed_up() -> None:
    rows = tuple(ExitCount("mmio read", address, "nobody", 2, 10) for address in range(50))

    assert as_text(MachineStats(100, 1, rows, ())).endswith("  and 76 at 38 other places")


def test_what_the_launcher_counted_stands_with_its_device() -> None:
    reports = tuple(DeviceReport(name, "ready", {"own": 1}) for name in ("console0", "console1"))

    found = add_counters(MachineStats(0, 0, (), reports), {"console1": {"clients": 2}})

    assert [report.counters for report in found.devices] == [{"own": 1}, {"own": 1, "clients": 2}]


def test_file_has_all_of_it() -> None:
    found = json.loads(
        as_json(STATS, "vm", "power-off", {"ready": 300.5}, [Process("vmm", 101, 0.5, 4096)])
    )

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
    assert found["processes"] == [
        {"name": "vmm", "pid": 101, "cpu_seconds": 0.5, "peak_bytes": 4096}
    ]
