"""What every process of a machine is told and handed: specs, guest memory and doorbells."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from launcher.backend import SOFTWARE
from launcher.plan import Plan, PlannedDevice
from protocol import codec, doorbell
from protocol.memory import Region, create_memfd
from protocol.specs import DeviceSlot, DeviceSpec, Guard, MachineSpec
from vmm import memory_map

GENERATION = 1
"""Of every device: none of ours is started twice in a run."""


class Wiring:
    """The shared descriptors of one machine, its sockets being in ``directory``; closes them."""

    def __init__(self, plan: Plan, name: str, directory: str) -> None:
        self._plan = plan
        self._name = name
        self._directory = directory
        self._resources = ExitStack()
        # On a software CPU devices work on rings of their own, behind the guest's memory.
        self._has_shadows = plan.backend.name == SOFTWARE
        size = memory_map.file_size(plan.options.memory, shadows=self._has_shadows)
        self._memory = self._own(create_memfd(f"vibevmm-{name}", size))
        self._doorbells = {
            device.name: {
                **{f"kick{queue}": self._own(doorbell.create()) for queue in range(device.queues)},
                "call": self._own(doorbell.create()),
            }
            for device in plan.devices
        }
        self.serial, theirs = socket.socketpair()
        self.serial.setblocking(False)
        self._resources.callback(self.serial.close)
        self._vmm_serial = self._own(theirs.detach())

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
            stats=options.stats is not None,
            log=options.log.of("vmm"),
        )
        fds = {"memory": self._memory, "serial": self._vmm_serial, "kernel": plan.kernel}
        if plan.initrd is not None:
            fds["initrd"] = plan.initrd
        for name, bells in self._doorbells.items():
            fds |= {f"{name}.{bell}": fd for bell, fd in bells.items()}
            fds[f"{name}.pidfd"] = pidfds[name]
        return codec.pack(codec.to_plain(spec)), fds

    def for_device(self, device: PlannedDevice) -> tuple[bytes, dict[str, int]]:
        """Payload and descriptors of the handover of ``device``."""
        options = self._plan.options
        spec = DeviceSpec(
            name=device.name,
            kind=device.kind,
            config=codec.pack(codec.to_plain(device.config)),
            generation=GENERATION,
            endpoint=self._device_endpoint(device),
            regions=self._regions(device),
            log=options.log.of(device.name),
        )
        fds = {"memory": self._memory, **self._doorbells[device.name], **device.fds}
        return codec.pack(codec.to_plain(spec)), fds

    def _regions(self, device: PlannedDevice) -> tuple[Region, ...]:
        memory = self._plan.options.memory
        shadows = [memory_map.shadow_region(memory, device.slot)] if self._has_shadows else []
        return (*memory_map.regions(memory), *shadows)

    def close(self) -> None:
        """Close everything; who was handed a duplicate keeps it."""
        self._resources.close()

    def _own(self, fd: int) -> int:
        self._resources.callback(os.close, fd)
        return fd

    def _device_endpoint(self, device: PlannedDevice) -> str:
        return os.path.join(self._directory, f"{device.name}.{GENERATION}")

    def _slot(self, device: PlannedDevice) -> DeviceSlot:
        return DeviceSlot(
            name=device.name,
            kind=device.kind,
            device_id=device.device.device_id,
            slot=device.slot,
            gsi=device.gsi,
            queues=device.queues,
            generation=GENERATION,
            endpoint=self._device_endpoint(device),
        )
