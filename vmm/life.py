"""One life of a machine: from power-on, or a reset, to the next reset or the end.

What a reset sets back is here, and is made anew for each life, so that nothing of it can be
forgotten: the VM and its vCPUs, interrupt controllers and timers, the buses with the platform
devices on them, the registers of every virtio device. What outlives a reset is the machine's
(vmm.machine): guest memory, the seats of the devices and who sits there, the counters.

::

    made ──plug_in──► start ──somebody says why it ends──► is_left ──quiet, close──► the next
             (of every seat)                          (no vCPU is in the guest)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import cast

from protocol import doorbell
from protocol import fds as descriptors
from protocol.errors import GuestDied, VibeError
from protocol.memory import GuestMemory
from protocol.specs import MachineSpec
from protocol.virtio import Mmio
from vmm import memory_map
from vmm.boot import architecture
from vmm.boot.hardware import Hardware, VirtioMmio
from vmm.boot.placing import load
from vmm.bus import Bus
from vmm.hypervisor.base import ExitHandler, Hypervisor, MediatedVm, Stop, Vcpu, Vm
from vmm.mediation import Arena, NativeHook
from vmm.mediation.device import MediatedDevice, OnVcpu
from vmm.mediation.pump import Pump
from vmm.platform.board import board_of
from vmm.platform.power import Reason
from vmm.seat import Seat, Wires
from vmm.transport.mmio import MmioTransport
from vmm.transport.page import RegisterPage
from vmm.wires import DirectWires, MediatedWires, PumpedWires

log = logging.getLogger(__name__)

# Memory slots: RAM takes the first few, register pages those from here on, one each.
_FIRST_PAGE_SLOT = 8

# Seconds that a vCPU thread has to leave the guest after its kick. It may be waiting for a
# device that does not answer, so longer than that takes.
_VCPU_DEADLINE = 15.0

RESET = "reset"
_POWER = {Reason.POWER_OFF: "power-off", Reason.RESET: RESET, Reason.PANIC: "panic"}
_STOPS = {Stop.POWERED_OFF: "power-off", Stop.RESET: RESET}


@dataclass(frozen=True, slots=True)
class End:
    """Why a life ended: a word of messages.Ended, a sentence or a dump, time.monotonic()."""

    reason: str
    detail: str
    at: float = field(default_factory=time.monotonic)


class Line:
    """An interrupt line, as far as the VMM itself raises it: edges only."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def pulse(self) -> None:
        """One edge."""
        self._vm.set_irq(self._gsi, True)
        self._vm.set_irq(self._gsi, False)


class Life:
    """A VM that has booted what ``spec`` says, from the descriptors in ``fds``, into ``memory``,
    which is zero so far or was ``used`` by a life before.

    ``console`` takes what the guest prints, ``on_room`` hears that it can take input again, both
    on a vCPU's thread; ``on_end`` (on any) hears that it ended, and that the last vCPU is out.
    """

    def __init__(
        self,
        spec: MachineSpec,
        fds: Mapping[str, int],
        hypervisor: Hypervisor,
        memory: GuestMemory,
        console: Callable[[bytes], None],
        on_room: Callable[[], None],
        on_end: Callable[[], None],
        *,
        used: bool,
    ) -> None:
        self.end: End | None = None
        self.vm = hypervisor.create_vm(spec.cpus)
        self.bus = Bus()
        board = board_of(spec.boot.architecture)
        self.board = board(self.bus, self.vm.set_irq, console, self._power, on_room)
        self._capabilities = hypervisor.capabilities
        self._memory = memory
        self._on_end = on_end
        # Of what ends and what holds the vCPUs; they wait on it while they are held.
        self._lock = threading.Condition()
        self._paused = False
        self._held: set[str] = set()
        self._inside = 0
        self._transports: list[MmioTransport] = []
        self._pages: list[RegisterPage] = []
        self._acks: list[int] = []
        self._mediated: list[MediatedDevice] = []
        self._threads: list[threading.Thread] = []
        self._resets: list[Future[None]] | None = None
        for slot, region in enumerate(memory.regions):
            ram = memory.whole[region.offset : region.offset + region.size]
            self.vm.map_ram(slot, region.gpa, ram)
        self._boot(spec, fds, used)

    # ── putting it together ───────────────────────────────────────────────────────────

    def _boot(self, spec: MachineSpec, fds: Mapping[str, int], used: bool) -> None:
        plan = architecture.plan(
            spec.boot,
            fds["kernel"],
            fds.get("initrd"),
            Hardware(
                spec.memory_size,
                spec.cpus,
                tuple(VirtioMmio(device.slot, device.gsi) for device in spec.devices),
            ),
            unpack=self._capabilities.translated,
        )
        load(plan, self._memory, used=used)
        for index in range(spec.cpus):
            self.vm.create_vcpu(index)
        plan.cpu.enter(self.vm.vcpus[0])

    def plug_in(self, seat: Seat, rings: GuestMemory) -> None:
        """Give the device of ``seat`` its registers, doorbells and interrupt line. The rings that
        its process works on lie in ``rings``."""
        slot = seat.slot
        gpa = memory_map.slot_address(slot.slot)
        read_only = self._capabilities.read_only_slots
        page = RegisterPage(self.vm, gpa, _FIRST_PAGE_SLOT + slot.slot if read_only else None)
        line = Line(self.vm, slot.gsi)
        backend: Seat | MediatedDevice = seat
        wires: Wires
        if slot.bounced or slot.mediated or not self._capabilities.coherent:
            backend, wires = self._mediate(seat, line, rings)
        else:
            wires = DirectWires(self.vm, gpa, slot.gsi, len(slot.queues), line.pulse)
        transport = MmioTransport(page, backend, line, seat.config)
        seat.on_broken = transport.needs_reset
        seat.on_config = transport.config_changed
        with page.lock:
            # It may have changed since the transport was made, and was told to the one before.
            transport.config_changed(seat.config)
        self.bus.add_mmio(gpa, memory_map.VIRTIO_SLOT_SIZE, transport)
        seat.connect(wires)
        self._ignore_acknowledgements(gpa)
        self._pages.append(page)
        self._transports.append(transport)

    def _mediate(self, seat: Seat, line: Line, rings: GuestMemory) -> tuple[MediatedDevice, Wires]:
        slot, gpa = seat.slot, memory_map.slot_address(seat.slot.slot)
        count = len(slot.queues)
        hook = None
        if not self._capabilities.coherent:
            hook = NativeHook(*cast(MediatedVm, self.vm).written_hook())
        mediated = MediatedDevice(seat, self._memory, rings, hook, _arena if slot.bounced else None)
        self._mediated.append(mediated)
        if self._capabilities.coherent:
            mediated.runner = pump = Pump(seat.name, count, mediated.broken)
            return mediated, PumpedWires(self.vm, gpa, slot.gsi, pump)
        mediated.runner = here = OnVcpu(line.pulse, mediated.broken)
        return mediated, MediatedWires(cast(MediatedVm, self.vm), gpa, here, count)

    def _ignore_acknowledgements(self, gpa: int) -> None:
        # An acknowledgement of "used buffer" alone needs no answer, so nobody reads this one.
        ack = doorbell.create()
        self._acks.append(ack)
        self.vm.add_ioeventfd(ack, gpa + Mmio.INTERRUPT_ACK, 4, 1)

    # ── running it ────────────────────────────────────────────────────────────────────

    def start(self, handler: Callable[[int, ExitHandler], ExitHandler]) -> None:
        """Let the vCPUs run, each on a thread of its own. ``handler`` is told a vCPU's number and
        the bus, and says who answers its exits."""
        self._inside = len(self.vm.vcpus)
        for vcpu in self.vm.vcpus:
            thread = threading.Thread(
                target=self._run,
                args=(vcpu, handler(vcpu.index, self.bus)),
                name=f"vcpu{vcpu.index}",
            )
            self._threads.append(thread)
            thread.start()

    def _run(self, vcpu: Vcpu, handler: ExitHandler) -> None:
        try:
            while self.end is None:
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
        with self._lock:
            self._inside -= 1
        self._on_end()

    def _power(self, reason: Reason) -> None:
        self.finish(_POWER[reason], reason.value)

    def finish(self, reason: str, detail: str) -> None:
        """It ends, for the first reason that anybody gives. From any thread."""
        with self._lock:
            if self.end is not None:
                return
            self.end = End(reason, detail)
            self._lock.notify_all()
        for vcpu in self.vm.vcpus:
            vcpu.kick()
        self._on_end()

    def _hold(self) -> None:
        # On a vCPU's thread, out of the guest: stay for as long as the machine is paused.
        with self._lock:
            self._held.add(threading.current_thread().name)
            self._lock.notify_all()
            self._lock.wait_for(lambda: not self._paused or self.end is not None)
            self._held.discard(threading.current_thread().name)

    def pause(self) -> str:
        """Take the vCPUs out of the guest and hold them; done when it returns. If one does not
        come in time its thread's name is the answer, and nobody is held.

        Devices finish what is in their queues. The guest's clocks are the host's, and go on: a
        timer that came due meanwhile fires when the machine is resumed.
        """
        with self._lock:
            self._paused = True
            if self.end is not None:
                return ""  # and perhaps there is nobody to kick any more
        for vcpu in self.vm.vcpus:
            vcpu.kick()
        wanted = {thread.name for thread in self._threads}
        with self._lock:
            if self._lock.wait_for(
                lambda: self._held >= wanted or self.end is not None, _VCPU_DEADLINE
            ):
                return ""
            late = min(wanted - self._held)
        self.resume()
        return late

    def resume(self) -> None:
        """Let the vCPUs go on."""
        with self._lock:
            self._paused = False
            self._lock.notify_all()

    @property
    def is_left(self) -> bool:
        """Whether it ended, and no vCPU is in the guest or in an exit of it any more."""
        return self.end is not None and not self._inside

    @property
    def run_returns(self) -> int:
        """How many times its vCPUs have left the guest for user space."""
        return sum(vcpu.run_returns for vcpu in self.vm.vcpus)

    def wait(self) -> None:
        """Wait for the vCPUs' threads, after :meth:`finish`."""
        for thread in self._threads:
            thread.join(_VCPU_DEADLINE)
            if thread.is_alive():
                log.error("%s does not leave the guest", thread.name)

    # ── its end ───────────────────────────────────────────────────────────────────────

    def quiet(self) -> bool:
        """Whether every device was reset, as by its driver, and touches guest memory no more.

        That begins when it is first asked for, and ``on_end`` hears of each: all at once, and each
        on a thread of its own, so that one which hangs until it is killed holds up nobody else. No
        vCPU may run.
        """
        if self._resets is None:
            pool = ThreadPoolExecutor(len(self._transports) or 1, "reset")
            self._resets = [pool.submit(transport.reset) for transport in self._transports]
            pool.shutdown(wait=False)
            for reset in self._resets:
                reset.add_done_callback(lambda _: self._on_end())
        if not all(reset.done() for reset in self._resets):
            return False
        for reset in self._resets:
            reset.result()
        return True

    def close(self) -> None:
        """Release what it had; no vCPU may run. Devices may still tell of themselves."""
        wait(self._resets or ())
        for page in self._pages:
            page.close()
        for mediated in self._mediated:
            mediated.close()
        self.vm.close()
        descriptors.close_all(self._acks)
        self._acks.clear()


def _arena(queue: int) -> Arena:
    return Arena(memory_map.arena_address(queue), memory_map.ARENA_SIZE)
