"""What every process of a machine is told and handed: specs, guest memory and doorbells."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from launcher import limits
from launcher.backend import SOFTWARE
from launcher.plan import Plan, PlannedDevice
from protocol import codec, doorbell, journal
from protocol.memory import Region, create_memfd
from protocol.specs import DeviceSlot, DeviceSpec, Guard, MachineSpec, Successor
from vmm import memory_map

if TYPE_CHECKING:
    from protocol.faults import Board


class Generation:
    """One process of a device to be: its number, its endpoint, and its doorbells.

    The VMM and the process get duplicates; ours are closed by :meth:`close`. One that ``relays``
    has a doorbell besides for each kick, which the VMM does not get. ``alive`` and ``ended`` are a
    pipe that carries nothing: the process gets the reading end, and the VMM the other, to see when
    the last reader is gone.
    """

    def __init__(self, device: PlannedDevice, number: int, directory: str, *, relays: bool) -> None:
        self.number = number
        self.endpoint = os.path.join(directory, f"{device.name}.{number}")
        self._resources = ExitStack()
        self.bells = {name: self._bell() for name in device.bells}
        kicks = [index for index, _ in enumerate(device.queues)] if relays else []
        self.relays = {f"relay{index}": self._bell() for index in kicks}
        self.alive, self.ended = map(self._own, os.pipe())

    def _bell(self) -> int:
        return self._own(doorbell.create())

    def _own(self, fd: int) -> int:
        self._resources.callback(os.close, fd)
        return fd

    def close(self) -> None:
        """Close what is ours of that, once."""
        self._resources.close()


class Wiring:
    """The shared descriptors of one machine, its sockets being in ``directory``; closes them.

    ``boards`` are those of the devices (protocol.faults), where faults may be injected."""

    def __init__(self, plan: Plan, name: str, directory: str) -> None:
        self._plan = plan
        self._name = name
        self._directory = directory
        self._resources = ExitStack()
        # On a software CPU devices work on rings of their own, behind the guest's memory.
        self._all_have_shadows = plan.backend.name == SOFTWARE
        has_shadows = any(map(self._has_shadow, plan.devices))
        size = memory_map.file_size(plan.options.memory, shadows=has_shadows)
        self._memory = self._own(create_memfd(f"vibevmm-{name}", size))
        self._bounce = {
            device.name: self._own(
                create_memfd(f"vibevmm-{name}-{device.name}-bounce", _bounce_region(device).size)
            )
            for device in plan.devices
            if device.is_bounced
        }
        self._journals = {
            device.name: self._own(journal.create(f"vibevmm-{name}-{device.name}", device.queues))
            for device in plan.devices
        }
        self.boards: dict[str, Board] = {}
        self._boards: dict[str, int] = {}
        if plan.options.allow_inject:
            self._make_boards()
        self._firsts = {device.name: self._generation(device, 1) for device in plan.devices}
        self.serial, theirs = socket.socketpair()
        self.serial.setblocking(False)
        self._resources.callback(self.serial.close)
        self._vmm_serial = self._own(theirs.detach())

    def _make_boards(self) -> None:
        from protocol import faults

        for device in self._plan.devices:
            name = device.name
            self._boards[name] = self._own(faults.create(f"vibevmm-{self._name}-{name}-faults"))
            self.boards[name] = faults.Board(self._boards[name])
            self._resources.callback(self.boards[name].close)

    @property
    def endpoint(self) -> str:
        """The VMM's socket for the launcher."""
        return os.path.join(self._directory, "vmm")

    def guard(self, keyboard: int, termios: bytes) -> tuple[bytes, dict[str, int]]:
        """Payload and descriptors of the VMM's first handover. ``termios`` is what terminal
        ``keyboard`` was like, or empty."""
        spec = Guard((*self._plan.streams.cleanup, self._directory), termios)
        return codec.pack(codec.to_plain(spec)), {"terminal": keyboard} if termios else {}

    def for_vmm(self, pidfds: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
        """Payload and descriptors of its second. ``pidfds`` are the devices' by name."""
        plan, options = self._plan, self._plan.options
        spec = MachineSpec(
            name=self._name,
            hypervisor=plan.backend.name,
            memory_size=options.memory,
            cpus=options.cpus,
            boot=plan.boot,
            devices=tuple(self._slot(device) for device in plan.devices),
            endpoint=self.endpoint,
            on_reboot=options.on_reboot,
            hang_after=int(options.hang_after * 1000),
            stats=options.stats is not None,
            log=options.log.of("vmm"),
            strict=options.isolation.strict,
        )
        fds = {"memory": self._memory, "serial": self._vmm_serial, "kernel": plan.kernel}
        if plan.initrd is not None:
            fds["initrd"] = plan.initrd
        for name, first in self._firsts.items():
            fds |= {f"{name}.{bell}": fd for bell, fd in first.bells.items()}
            fds[f"{name}.ended"] = first.ended
            fds[f"{name}.pidfd"] = pidfds[name]
            fds[f"{name}.journal"] = self._journals[name]
        fds |= {f"{name}.bounce": fd for name, fd in self._bounce.items()}
        return codec.pack(codec.to_plain(spec)), fds

    def first(self, device: PlannedDevice) -> Generation:
        """That with which the machine starts, to be closed once it was handed over."""
        return self._firsts[device.name]

    def successor(
        self, device: PlannedDevice, number: int, pidfd: int, *, waits: bool, by_hand: bool = False
    ) -> tuple[Generation, bytes, dict[str, int]]:
        """A further generation, the caller's to close, and payload and descriptors of the VMM's
        handover for it, which ``waits`` to be switched to, or does not."""
        made = self._new(device, number)
        spec = Successor(device.name, device.kind, number, made.endpoint, waits, by_hand)
        fds = {"pidfd": pidfd, "ended": made.ended, **made.bells}
        return made, codec.pack(codec.to_plain(spec)), fds

    def for_device(
        self, device: PlannedDevice, generation: Generation, *, failing: bool = False
    ) -> tuple[bytes, dict[str, int]]:
        """Payload and descriptors of the handover of a process of ``device``; one that is
        ``failing`` answers every request with an error."""
        options = self._plan.options
        spec = DeviceSpec(
            name=device.name,
            kind=device.kind,
            config=device.model.config,
            generation=generation.number,
            endpoint=generation.endpoint,
            regions=self._regions(device),
            journal=self._plan.journal_sizes(device.name),
            failing=failing,
            log=options.log.of(device.process_name),
            isolation=device.isolation,
            on_violation=device.on_violation,
            largest_chain=memory_map.LARGEST_CHAIN if device.is_bounced else 0,
            process=device.process_name,
            sharing=len(self._plan.processes.get(device.process_name, (device,))),
        )
        fds = {
            "memory": self._bounce.get(device.name, self._memory),
            "journal": self._journals[device.name],
            "alive": generation.alive,
            **generation.bells,
            **generation.relays,
            **device.fds,
        }
        if device.name in self._boards:
            fds["faults"] = self._boards[device.name]
        return codec.pack(codec.to_plain(spec)), fds

    def limits(self, process: str) -> dict[str, str]:
        """What the devices of ``process`` may use, by what they share with the machine and the
        threads that they have."""
        devices = self._plan.processes.get(process, ())
        files = {self._bounce.get(device.name, self._memory) for device in devices}
        return limits.of_device(
            sum(os.fstat(fd).st_size for fd in files), sum(device.threads for device in devices)
        )

    def _regions(self, device: PlannedDevice) -> tuple[Region, ...]:
        if device.is_bounced:
            return (_bounce_region(device),)
        memory = self._plan.options.memory
        has_shadow = self._has_shadow(device)
        shadows = [memory_map.shadow_region(memory, device.slot)] if has_shadow else []
        return (*memory_map.regions(memory), *shadows)

    def _has_shadow(self, device: PlannedDevice) -> bool:
        return self._all_have_shadows or device.is_mediated

    def close(self) -> None:
        """Close everything; who was handed a duplicate keeps it."""
        self._resources.close()

    def _own(self, fd: int) -> int:
        self._resources.callback(os.close, fd)
        return fd

    def _generation(self, device: PlannedDevice, number: int) -> Generation:
        made = self._new(device, number)
        self._resources.callback(made.close)
        return made

    def _new(self, device: PlannedDevice, number: int) -> Generation:
        # A software CPU's thread rings kicks. Who is in no jail of ours could make it wait there.
        relays = self._all_have_shadows and device.model.connects
        return Generation(device, number, self._directory, relays=relays)

    def _slot(self, device: PlannedDevice) -> DeviceSlot:
        return DeviceSlot(
            name=device.name,
            kind=device.kind,
            device_id=device.model.device_id,
            slot=device.slot,
            gsi=device.gsi,
            queues=device.queues,
            owing=device.owing,
            generation=self._firsts[device.name].number,
            endpoint=self._firsts[device.name].endpoint,
            bounced=device.is_bounced,
            mediated=device.is_mediated,
        )


def _bounce_region(device: PlannedDevice) -> Region:
    return memory_map.bounce_region(len(device.queues))
