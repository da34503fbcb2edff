"""What is left of a run when its processes are gone: statistics, a trace, a last message."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from functools import partial

from launcher import stats
from launcher.host import Streams
from launcher.logs import Logs, harmless
from launcher.outcome import Outcome
from launcher.plan import Plan
from launcher.run import Outputs
from launcher.spawn import Child
from launcher.startup import Startup
from launcher.trace import Traces
from protocol.log import Level
from protocol.messages import MachineStats


def message(text: str) -> bytes:
    """``text`` as a line of ours on the user's terminal."""
    return f"vibevmm: {harmless(text)}\n".encode()


def counted(measured: MachineStats, streams: Streams) -> MachineStats:
    """``measured``, and what a device's stream came to, which is for the launcher to count."""
    return stats.add_counters(measured, {b.end.name: b.counters for b in streams.bridges})


class Report:
    """Of the machine ``name``; ``processes`` are those that it had last, by name."""

    def __init__(
        self, plan: Plan, name: str, startup: Startup, outputs: Outputs, logs: Logs, traces: Traces
    ) -> None:
        self._plan = plan
        self._name = name
        self._startup = startup
        self._outputs = outputs
        self._logs = logs
        self._traces = traces

    def write(
        self, ended: Outcome, measured: MachineStats | None, processes: Mapping[str, Child]
    ) -> int:
        """Write everything that was asked for; the exit status."""
        options = self._plan.options
        written = [
            self._written("--trace", options.trace, partial(self._write_trace, processes)),
            self._written(
                "--stats", options.stats, partial(self._write_stats, ended, measured, processes)
            ),
        ]
        if ended.message:
            self._outputs.messages.write(message(ended.message))
        for line in self._logs.tail(ended.culprit):
            self._outputs.messages.write(f"    {line}\n".encode())
        return ended.status or (0 if all(written) else 3)

    def _written(self, option: str, path: str | None, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            self._outputs.messages.offer(message(f"{option}: {path}: {error.strerror}"))
            return False
        return True

    def _write_trace(self, processes: Mapping[str, Child]) -> None:
        if skipped := self._traces.write(_pids(processes)):
            self._logs.note(Level.WARN, f"{skipped} lines of the trace made no sense")

    def _write_stats(
        self, ended: Outcome, measured: MachineStats | None, processes: Mapping[str, Child]
    ) -> None:
        if measured is None or self._plan.options.stats is None:
            return
        found = counted(measured, self._plan.streams)
        if self._outputs.stats is None:
            self._outputs.messages.offer(message(stats.as_text(found, _tree(processes))))
            return
        phases = self._startup.phases
        text = stats.as_json(found, self._name, ended.reason, phases, _tree(processes))
        with open(os.dup(self._outputs.stats), "w", encoding="utf-8") as file:
            file.write(text)


def _pids(processes: Mapping[str, Child]) -> dict[str, int]:
    return {"launcher": os.getpid(), **{name: child.pid for name, child in processes.items()}}


def _tree(processes: Mapping[str, Child]) -> list[stats.Process]:
    usages = {"launcher": resource.getrusage(resource.RUSAGE_SELF)}
    usages |= {name: child.usage for name, child in processes.items() if child.usage is not None}
    return stats.processes(_pids(processes), usages)
