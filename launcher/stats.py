"""``--stats``: exits by kind and address, and what each device process did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from launcher.logs import printable
from protocol.messages import DeviceReport, ExitCount, MachineStats
from protocol.virtio import Mmio
from vmm.memory_map import VIRTIO_SLOT_SIZE, VIRTIO_WINDOW, VIRTIO_WINDOW_SIZE

if TYPE_CHECKING:
    from resource import struct_rusage

# Rows of the table for people; the file has all of them.
_ROWS = 12

# The two registers that a driver writes for every request, or for a batch of them.
_DATA_PATH = (Mmio.QUEUE_NOTIFY, Mmio.INTERRUPT_ACK)


@dataclass(frozen=True, slots=True)
class Process:
    """One of the machine's processes, and what it used: seconds of CPU, bytes at its peak."""

    name: str
    pid: int
    cpu: float
    peak: int


def processes(pids: Mapping[str, int], usages: Mapping[str, struct_rusage]) -> list[Process]:
    """The launcher first, then its children: ``pids`` and what the kernel counted, by name."""
    return [
        Process(name, pids[name], usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        for name, usage in usages.items()
    ]


def add_counters(stats: MachineStats, counters: Mapping[str, Mapping[str, int]]) -> MachineStats:
    """``stats`` with more counters of devices, by the devices' names."""
    devices = tuple(
        replace(device, counters=device.counters | dict(counters.get(device.name, {})))
        for device in stats.devices
    )
    return replace(stats, devices=devices)


def as_text(stats: MachineStats, tree: Sequence[Process] = ()) -> str:
    """A table of the most frequent exits with count, share and time, the exits of the data path,
    and what each process did; ``tree`` is known when the run is over."""
    seconds = stats.nanoseconds / 1e9
    total = sum(row.count for row in stats.exits)
    lines = [
        f"{stats.run_returns} returns of KVM_RUN, {total} of them exits to be handled, "
        f"in {seconds:.2f} s"
    ]
    if stats.exits:
        lines += [
            "",
            f"  {'exit':<12} {'address':>12}  {'of':<26} {'count':>9} {'share':>7}"
            f" {'total ms':>10} {'us each':>8}",
        ]
    for row in stats.exits[:_ROWS]:
        lines.append(_exit_line(row, total))
    if len(stats.exits) > _ROWS:
        rest = sum(row.count for row in stats.exits[_ROWS:])
        lines.append(f"  and {rest} at {len(stats.exits) - _ROWS} other places")
    if stats.devices:
        lines += ["", f"  {_data_path(stats)}"]
        lines += ["", f"  {'device':<12} {'state':<12} counters"]
    for device in stats.devices:
        lines += _device_lines(device)
    if tree:
        lines += ["", f"  {'process':<14} {'pid':>8} {'CPU ms':>8} {'peak MiB':>9}"]
    for depth, process in enumerate(tree):
        branch = "" if depth == 0 else "└─ " if depth == len(tree) - 1 else "├─ "
        lines.append(
            f"  {branch + process.name:<14} {process.pid:>8} {process.cpu * 1000:>8.0f}"
            f" {process.peak / (1 << 20):>9.1f}"
        )
    return "\n".join(lines)


def as_json(
    stats: MachineStats,
    machine: str,
    reason: str,
    startup: dict[str, float],
    tree: Sequence[Process] = (),
) -> str:
    """The same for programs; ``startup`` is milliseconds since the launcher's start by phase."""
    import json  # the start of a machine does not wait for it

    found = {
        "machine": machine,
        "ended": reason,
        "startup_ms": startup,
        **as_plain(stats),
        "processes": [
            {
                "name": process.name,
                "pid": process.pid,
                "cpu_seconds": process.cpu,
                "peak_bytes": process.peak,
            }
            for process in tree
        ],
    }
    return json.dumps(found, indent=2) + "\n"


def as_plain(stats: MachineStats) -> dict[str, Any]:
    """What the VMM reported, as what JSON knows."""
    return {
        "seconds": stats.nanoseconds / 1e9,
        "run_returns": stats.run_returns,
        "exits": [
            {
                "kind": row.kind,
                "address": row.address,
                "device": row.device,
                "count": row.count,
                "nanoseconds": row.nanoseconds,
            }
            for row in stats.exits
        ],
        "devices": [
            {"name": device.name, "state": device.state, "counters": device.counters}
            for device in stats.devices
        ],
    }


def _device_lines(device: DeviceReport) -> list[str]:
    # A queue's counters are named QUEUE.COUNTER: a line for the device's own, one for each queue.
    groups: dict[str, list[str]] = {"": []}
    for key, count in sorted(device.counters.items()):
        # What never happened is left out. The names come from a process that is not believed.
        if count:
            group, _, name = printable(key.encode()).rpartition(".")
            groups.setdefault(group, []).append(f"{name} {count}")
    own = ", ".join(groups.pop("")) or "nothing counted"
    return [
        f"  {device.name:<12} {device.state:<12} {own}",
        *(f"    {queue:<23} {', '.join(counters)}" for queue, counters in groups.items()),
    ]


def _data_path(stats: MachineStats) -> str:
    # What passes between guest and devices by eventfd alone, and what of it exited all the same.
    exits = sum(row.count for row in stats.exits if _register(row) in _DATA_PATH)
    kicks, interrupts = (
        sum(
            count
            for device in stats.devices
            for name, count in device.counters.items()
            if name.endswith(f".{what}")
        )
        for what in ("kicks", "interrupts")
    )
    return f"data path: {kicks} kicks, {interrupts} interrupts, {exits} exits"


def _register(row: ExitCount) -> Mmio | None:
    offset = row.address - VIRTIO_WINDOW
    if not row.kind.startswith("mmio") or not 0 <= offset < VIRTIO_WINDOW_SIZE:
        return None
    try:
        return Mmio(offset % VIRTIO_SLOT_SIZE)
    except ValueError:
        return None


def _exit_line(row: ExitCount, total: int) -> str:
    register = _register(row)
    # As the specification writes it: QUEUE_DESC_LOW is QueueDescLow.
    name = register.name.title().replace("_", "") if register is not None else ""
    return (
        f"  {row.kind:<12} {_address(row.address):>12}  {f'{row.device} {name}':<26}"
        f" {row.count:>9} {row.count / total:>7.1%} {row.nanoseconds / 1e6:>10.3f} "
        f"{row.nanoseconds / row.count / 1000:>8.2f}"
    )


def _address(address: int) -> str:
    # vmm.exits counts under this what is beyond its table.
    return "elsewhere" if address == (1 << 64) - 1 else f"{address:#x}"
