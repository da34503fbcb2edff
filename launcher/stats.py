"""``--stats``: exits by kind and address, and what each device process did."""

from __future__ import annotations

from launcher.logs import printable
from protocol.messages import ExitCount, MachineStats

# Rows of the table for people; the file has all of them.
_ROWS = 30


def as_text(stats: MachineStats) -> str:
    """A table of the most frequent exits with count, share and time, and one of devices."""
    seconds = stats.nanoseconds / 1e9
    total = sum(row.count for row in stats.exits)
    lines = [
        f"{stats.run_returns} returns of KVM_RUN, {total} of them exits to be handled, "
        f"in {seconds:.2f} s"
    ]
    if stats.exits:
        lines += [
            "",
            f"  {'exit':<12} {'address':>18}  {'of':<14} {'count':>9} {'share':>7}"
            f" {'total ms':>10} {'us each':>8}",
        ]
    for row in stats.exits[:_ROWS]:
        lines.append(_exit_line(row, total))
    if len(stats.exits) > _ROWS:
        rest = sum(row.count for row in stats.exits[_ROWS:])
        lines.append(f"  and {rest} at {len(stats.exits) - _ROWS} other places")
    if stats.devices:
        lines += ["", f"  {'device':<12} {'state':<12} counters"]
    for device in stats.devices:
        lines.append(f"  {device.name:<12} {device.state:<12} {_counters(device.counters)}")
    return "\n".join(lines)


def as_json(stats: MachineStats, machine: str, reason: str, startup: dict[str, float]) -> str:
    """The same for programs; ``startup`` is milliseconds since the launcher's start by phase."""
    import json  # the start of a machine does not wait for it

    found = {
        "machine": machine,
        "ended": reason,
        "startup_ms": startup,
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
    return json.dumps(found, indent=2) + "\n"


def _counters(counters: dict[str, int]) -> str:
    # What never happened is left out. The names come from a process that is not believed.
    known = ((printable(name.encode()), count) for name, count in sorted(counters.items()))
    return ", ".join(f"{name} {count}" for name, count in known if count) or "nothing counted"


def _exit_line(row: ExitCount, total: int) -> str:
    return (
        f"  {row.kind:<12} {_address(row.address):>18}  {row.device:<14} {row.count:>9} "
        f"{row.count / total:>7.1%} {row.nanoseconds / 1e6:>10.3f} "
        f"{row.nanoseconds / row.count / 1000:>8.2f}"
    )


def _address(address: int) -> str:
    # vmm.exits counts under this what is beyond its table.
    return "elsewhere" if address == (1 << 64) - 1 else f"{address:#x}"
