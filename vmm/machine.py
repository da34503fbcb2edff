"""The machine: memory, vCPUs, platform and transports, put together and run.

Each vCPU has a thread that calls ``vcpu.run(handler)``. Whatever ends the guest is noted once,
by whichever thread sees it first; then every vCPU is kicked out of the guest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

from protocol import doorbell
from protocol import fds as descriptors
from protocol.errors import GuestDied, VibeError
from protocol.lifecycle import State
from protocol.memory import GuestMemory
from protocol.messages import DeviceReport, ExitCount, GetStats, MachineStats
from protocol.specs import MachineSpec
from protocol.trace import Trace
from protocol.virtio import Mmio
from vmm import memory_map
from vmm.boot import architecture
from vmm.boot.hardware import Hardware, VirtioMmio
from vmm.boot.placing import load
from vmm.bus import Bus
from vmm.exits import CountingHandler, Place, TracingHandler, report
from vmm.hypervisor.base import ExitHandler, Hypervisor, MediatedVm, Stop, Vcpu, Vm
from vmm.mediation import NativeHook
from vmm.mediation.device import MediatedDevice
from vmm.platform import ports
from vmm.platform.board import board_of
from vmm.platform.power import Reason
from vmm.remote import DEADLINE, RemoteDevice
from vmm.seat import Seat, Wires
from vmm.transport.mmio import MmioTransport
from vmm.transport.page import RegisterPage
from vmm.wires import DirectWires, MediatedWires

log = logging.getLogger(__name__)

# Memory slots: RAM takes the first few, register pages those from here on, one each.
_FIRST_PAGE_SLOT = 8

# Seconds that a vCPU thread has to leave the guest after its kick. It may be waiting for a
# device that does not answer, so longer than that takes.
_VCPU_DEADLINE = 15.0

_POWER = {Reason.POWER_OFF: "power-off", Reason.RESET: "reset", Reason.PANIC: "panic"}
_STOPS = {Stop.POWERED_OFF: "power-off", Stop.RESET: "reset"}

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


@dataclass(frozen=True, slots=True)
class End:
    """Why the guest runs no more: a word of messages.Ended, and a sentence or a dump."""

    reason: str
    detail: str


class Line:
    """An interrupt line, as far as the VMM itself raises it: edges only."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def pulse(self) -> None:
        """One edge."""
        self._vm.set_irq(self._gsi, True)
        self._vm.set_irq(self._gsi, False)


class Machine:
    """One virtual machine, from its spec; ``fds`` are the descriptors that came with the spec.

    ``console`` takes what the guest prints, ``on_room`` hears that it can take input again,
    ``on_end`` (on any thread) that it ended.
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
        self._on_end = on_end
        # Of what ends and what holds the vCPUs; they wait on it while they are held.
        self._lock = threading.Condition()
        self._paused = False
        self._held: set[str] = set()
        self.end: End | None = None
        self.stopping = False
        self.vm = hypervisor.create_vm(spec.cpus)
        self.bus = Bus()
        board = board_of(spec.boot.architecture)
        self.board = board(self.bus, self.vm.set_irq, console, self._power, on_room)
        self.memory = GuestMemory(fds["memory"], memory_map.regions(spec.memory_size))
        self.seats: list[Seat] = []
        self._places = list(PLACES)
        self._pages: list[RegisterPage] = []
        self._acks: list[int] = []
        self._shadows: list[GuestMemory] = []
        self._mediated: list[MediatedDevice] = []
        self._counting: list[CountingHandler] = []
        self._threads: list[threading.Thread] = []
        self._started_ns = time.monotonic_ns()
        for slot, region in enumerate(self.memory.regions):
            ram = self.memory.whole[region.offset : region.offset + region.size]
            self.vm.map_ram(slot, region.gpa, ram)
        self._load()

    # ── putting it together ───────────────────────────────────────────────────────────

    def _load(self) -> None:
        hardware = Hardware(
            self._spec.memory_size,
            self._spec.cpus,
            tuple(VirtioMmio(device.slot, device.gsi) for device in self._spec.devices),
        )
        plan = architecture.plan(
            self._spec.boot,
            self._fds["kernel"],
            self._fds.get("initrd"),
            hardware,
            unpack=self._hypervisor.capabilities.translated,
        )
        load(plan, self.memory)
        for index in range(self._spec.cpus):
            self.vm.create_vcpu(index)
        plan.cpu.enter(self.vm.vcpus[0])

    def plug_in(self, seat: Seat) -> None:
        """Give the device of ``seat``, in which somebody sits who has said hello, its registers,
        doorbells and interrupt line."""
        slot = seat.slot
        gpa = memory_map.slot_address(slot.slot)
        read_only = self._hypervisor.capabilities.read_only_slots
        page = RegisterPage(self.vm, gpa, _FIRST_PAGE_SLOT + slot.slot if read_only else None)
        line = Line(self.vm, slot.gsi)
        backend: Seat | MediatedDevice = seat
        wires: Wires = DirectWires(self.vm, gpa, slot.gsi, len(slot.queues))
        if not self._hypervisor.capabilities.coherent:
            backend = self._mediate(seat, line)
            wires = MediatedWires(cast(MediatedVm, self.vm), gpa, backend, len(slot.queues))
        transport = MmioTransport(page, backend, line, seat.config)
        seat.on_config = transport.config_changed
        seat.on_broken = transport.needs_reset
        self.bus.add_mmio(gpa, memory_map.VIRTIO_SLOT_SIZE, transport)
        seat.connect(wires)
        self._ignore_acknowledgements(gpa)
        self._pages.append(page)
        self._places.append(Place("mmio", gpa, memory_map.VIRTIO_SLOT_SIZE, slot.name))
        self.seats.append(seat)

    def _mediate(self, seat: Seat, line: Line) -> MediatedDevice:
        region = memory_map.shadow_region(self._spec.memory_size, seat.slot.slot)
        shadow = GuestMemory(self._fds["memory"], (region,))
        self._shadows.append(shadow)
        hook = NativeHook(*cast(MediatedVm, self.vm).written_hook())
        mediated = MediatedDevice(seat, self.memory, shadow, line.pulse, hook)
        mediated.on_broken = lambda reason: seat.on_broken(reason)
        self._mediated.append(mediated)
        return mediated

    def _ignore_acknowledgements(self, gpa: int) -> None:
        # An acknowledgement of "used buffer" alone needs no answer, so nobody reads this one.
        ack = doorbell.create()
        self._acks.append(ack)
        self.vm.add_ioeventfd(ack, gpa + Mmio.INTERRUPT_ACK, 4, 1)

    def rings(self) -> list[tuple[Seat, GuestMemory]]:
        """Every device, and the memory in which the rings lie that its process works on."""
        return list(zip(self.seats, self._shadows or [self.memory] * len(self.seats), strict=True))

    # ── running it ────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Let the vCPUs run, each on a thread of its own."""
        self._started_ns = time.monotonic_ns()
        for vcpu in self.vm.vcpus:
            thread = threading.Thread(
                target=self._run, args=(vcpu, self._handler(vcpu)), name=f"vcpu{vcpu.index}"
            )
            self._threads.append(thread)
            thread.start()

    def _handler(self, vcpu: Vcpu) -> ExitHandler:
        handler: ExitHandler = self.bus
        if self._trace:
            handler = TracingHandler(handler, self._trace, vcpu.index)
        if self._spec.stats:
            counting = CountingHandler(handler)
            self._counting.append(counting)
            handler = counting
        return handler

    def _run(self, vcpu: Vcpu, handler: ExitHandler) -> None:
        try:
            while not self.stopping:
                self._hold()
                stop = vcpu.run(handler)
                if stop in _STOPS:
                    self.finish(_STOPS[stop], f"the guest {stop.value}")
        except GuestDied as error:
            self.finish("died", str(error))
        except VibeError as error:
            self.finish("host-error", str(error))
        except Exception:
            log.exception("vCPU %d met an error of ours", vcpu.index)
            self.finish("host-error", f"an error in the VMM itself, on vCPU {vcpu.index}")

    def _power(self, reason: Reason) -> None:
        self.finish(_POWER[reason], reason.value)

    def finish(self, reason: str, detail: str) -> None:
        """The guest ends, for the first reason that anybody gives. From any thread."""
        with self._lock:
            if self.end is None:
                self.end = End(reason, detail)
            self.stopping = True
            self._lock.notify_all()
        for vcpu in self.vm.vcpus:
            vcpu.kick()
        self._on_end()

    def _hold(self) -> None:
        # On a vCPU's thread, out of the guest: stay for as long as the machine is paused.
        with self._lock:
            self._held.add(threading.current_thread().name)
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._paused or self.stopping)
            self._held.discard(threading.current_thread().name)

    def pause(self) -> str:
        """Take the vCPUs out of the guest and hold them; done when it returns. If one does not
        come in time its thread's name is the answer, and nobody is held.

        Devices finish what is in their queues. The guest's clocks are the host's, and go on: a
        timer that came due meanwhile fires when the machine is resumed.
        """
        with self._lock:
            self._paused = True
        for vcpu in self.vm.vcpus:
            vcpu.kick()
        wanted = {thread.name for thread in self._threads}
        with self._lock:
            if self._lock.wait_for(lambda: self._held >= wanted or self.stopping, _VCPU_DEADLINE):
                return ""
            late = min(wanted - self._held)
        self.resume()
        return late

    def resume(self) -> None:
        """Let the vCPUs go on."""
        with self._lock:
            self._paused = False
            self._lock.notify_all()

    def stop(self) -> None:
        """Take the vCPUs out of the guest, and wait for their threads."""
        self.finish("stopped", "stopped from outside")
        for thread in self._threads:
            thread.join(_VCPU_DEADLINE)
            if thread.is_alive():
                log.error("%s does not leave the guest", thread.name)

    def stats(self) -> MachineStats:
        """What happened so far. Asks every device for its counters, so not on a vCPU's thread."""
        seated = [(seat, seat.remote) for seat in self.seats]
        asked = [(*one, one[1].ask(GetStats()) if one[1] else None) for one in seated]
        until = time.monotonic() + DEADLINE
        return MachineStats(
            run_returns=sum(vcpu.run_returns for vcpu in self.vm.vcpus),
            nanoseconds=time.monotonic_ns() - self._started_ns,
            exits=self._exits(),
            devices=tuple(_report(*one, until) for one in asked),
        )

    def _exits(self) -> tuple[ExitCount, ...]:
        return report(self._counting, self._places)

    def close(self) -> None:
        """Release the machine; its vCPUs must have stopped."""
        for page in self._pages:
            page.close()
        for mediated in self._mediated:
            mediated.close()
        self.vm.close()
        descriptors.close_all(self._acks)
        for memory in (*self._shadows, self.memory):
            memory.close()


def _report(
    seat: Seat, remote: RemoteDevice | None, reply: Future[Any] | None, until: float
) -> DeviceReport:
    if remote is None or reply is None:
        return DeviceReport(seat.name, State.GONE.value, {})
    return DeviceReport(seat.name, remote.life.state.value, remote.counters(reply, until))
