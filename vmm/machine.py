"""The machine: what stays while its guest resets, and the lives that it leads one after another.

::

    memory, seats, shadow rings, counters      Machine, from the handover to the end
    ├── VM, vCPUs, board, bus, registers       Life 1 ──reset──► Life 2 ──reset──► …

A life ends once, for the first reason that anybody gives. If that is a reset, and the machine is
one that comes back from it, the main thread calls :meth:`Machine.reboot`; else it is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from protocol.memory import GuestMemory
from protocol.messages import MachineStats
from protocol.specs import MachineSpec
from protocol.trace import Trace
from vmm import memory_map
from vmm.exits import CountingHandler, Counts, Place, TracingHandler, report
from vmm.hypervisor.base import ExitHandler, Hypervisor
from vmm.life import RESET, End, Life
from vmm.platform import ports
from vmm.seat import Seat
from vmm.survey import Survey

PLACES = (
    Place("port", ports.COM1, ports.COM1_LENGTH, "serial"),
    Place("port", ports.RTC_INDEX, 2, "rtc"),
    Place("port", ports.I8042_DATA, 1, "i8042"),
    Place("port", ports.I8042_COMMAND, 1, "i8042"),
    Place("port", ports.PM1A_EVENT, ports.PM1A_EVENT_LENGTH, "pm"),
    Place("port", ports.PM1A_CONTROL, ports.PM1A_CONTROL_LENGTH, "pm"),
    Place("port", ports.ACPI_RESET, 1, "pm"),
    Place("port", ports.PVPANIC, 1, "pvpanic"),
    Place("mmio", memory_map.MMIO_CONSOLE, memory_map.MMIO_CONSOLE_SIZE, "mmio-console"),
)


class Machine:
    """One virtual machine, from its spec; ``fds`` are the descriptors that came with the spec.

    ``console`` takes what the guest prints, ``on_room`` hears that it can take input again,
    ``on_end`` (on any thread) that :attr:`end` or :attr:`is_to_reboot` may have changed.
    """

    def __init__(
        self,
        spec: MachineSpec,
        fds: Mapping[str, int],
        hypervisor: Hypervisor,
        console: Callable[[bytes], None],
        on_room: Callable[[], None],
        on_end: Callable[[], None],
        trace: Trace | None = None,
    ) -> None:
        self._spec = spec
        self._fds = fds
        self._hypervisor = hypervisor
        self._trace = trace
        self.memory = GuestMemory(fds["memory"], memory_map.regions(spec.memory_size))
        self._new_life = partial(Life, spec, fds, hypervisor, self.memory, console, on_room, on_end)
        self.life = self._new_life(used=False)
        """The present one."""
        self.reboots = 0
        self._paused = False
        self._returns_before = 0
        self._seats: list[tuple[Seat, GuestMemory]] = []
        self._places = list(PLACES)
        self._counts = [Counts() for _ in range(spec.cpus)]
        self._started_ns = time.monotonic_ns()

    # ── its devices ───────────────────────────────────────────────────────────────────

    def plug_in(self, seat: Seat) -> None:
        """Give the device of ``seat``, in which somebody sits who has said hello, its registers,
        doorbells and interrupt line."""
        rings = self.memory
        if seat.slot.bounced:
            region = memory_map.bounce_region(len(seat.slot.queues))
            rings = GuestMemory(self._fds[f"{seat.name}.bounce"], (region,))
        elif seat.slot.mediated or not self._hypervisor.capabilities.coherent:
            shadow = memory_map.shadow_region(self._spec.memory_size, seat.slot.slot)
            rings = GuestMemory(self._fds["memory"], (shadow,))
        gpa = memory_map.slot_address(seat.slot.slot)
        self._places.append(Place("mmio", gpa, memory_map.VIRTIO_SLOT_SIZE, seat.name))
        self._seats.append((seat, rings))
        self.life.plug_in(seat, rings)

    def rings(self) -> list[tuple[Seat, GuestMemory]]:
        """Every device, and the memory in which the rings lie that its process works on."""
        return list(self._seats)

    # ── running it ────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Let the guest run, which has booted."""
        self._started_ns = time.monotonic_ns()
        self.life.start(self._handler)

    def _handler(self, cpu: int, bus: ExitHandler) -> ExitHandler:
        handler = bus
        if self._trace:
            handler = TracingHandler(handler, self._trace, cpu)
        if self._spec.stats:
            handler = CountingHandler(handler, self._counts[cpu])
        return handler

    @property
    def end(self) -> End | None:
        """Why the guest runs no more, if so. A reset that it comes back from is no end."""
        end = self.life.end
        return None if end is not None and self._comes_back_from(end) else end

    @property
    def is_to_reboot(self) -> bool:
        """Whether the guest wants a reset, and is out of every vCPU."""
        end = self.life.end
        return end is not None and self._comes_back_from(end) and self.life.is_left

    def _comes_back_from(self, end: End) -> bool:
        return end.reason == RESET and self._spec.on_reboot == "reset"

    def reboot(self) -> float | None:
        """The next life, when :attr:`is_to_reboot`, with the device processes that are there; the
        seconds since the guest wanted it. None while some device is not quiet: ``on_end`` hears
        when one is, and this is to be called again.

        Guest memory is as the guest left it, but for what booting puts there.
        """
        before = self.life
        assert before.end is not None
        before.wait()
        if not before.quiet():
            return None
        before.close()
        self.life = self._new_life(used=True)
        self._returns_before += before.run_returns
        self.reboots += 1
        for seat, rings in self._seats:
            self.life.plug_in(seat, rings)
        if self._paused:
            self.life.pause()
        self.life.start(self._handler)
        return time.monotonic() - before.end.at

    def pause(self) -> str:
        """Take the vCPUs out of the guest and hold them, after a reset too (Life.pause)."""
        late = self.life.pause()
        self._paused = not late
        return late

    def resume(self) -> None:
        """Let the vCPUs go on."""
        self._paused = False
        self.life.resume()

    def stop(self) -> None:
        """Take the vCPUs out of the guest, and wait for their threads."""
        self.life.finish("stopped", "stopped from outside")
        self.life.wait()

    def survey(self, on_answer: Callable[[], None]) -> Survey:
        """Ask every device for its counters, for :meth:`stats`."""
        return Survey((seat for seat, _ in self._seats), on_answer)

    def stats(self, survey: Survey) -> MachineStats:
        """What happened so far, with what devices have answered to ``survey``."""
        return MachineStats(
            run_returns=self._returns_before + self.life.run_returns,
            nanoseconds=time.monotonic_ns() - self._started_ns,
            exits=report(self._counts, self._places),
            devices=survey.reports(),
        )

    def close(self) -> None:
        """Release the machine; its vCPUs must have stopped."""
        self.life.close()
        for memory in {id(rings): rings for _, rings in self._seats}.values():
            memory.close()
        self.memory.close()
