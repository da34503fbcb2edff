"""The register page: what a guest reads of a virtio-mmio device, without an exit.

Reads in virtio-mmio have no side effects, so a page of memory answers them: mapped read-only
into the guest where the hypervisor can, read through :meth:`RegisterPage.read` where it cannot
or while the page is away. The page is the VMM's own anonymous memory, which no device process
can reach.
"""

from __future__ import annotations

import mmap
import threading

from protocol.memory import PAGE_SIZE
from protocol.ring import atomic
from protocol.virtio import Mmio
from vmm.hypervisor.base import Vm

CONFIG_SIZE = PAGE_SIZE - Mmio.CONFIG


class RegisterPage:
    """4 KiB of registers at guest address ``gpa``; in memory slot ``slot`` if that is given.

    All stores are C atomics under one lock, so a guest never sees half of one.
    """

    def __init__(self, vm: Vm, gpa: int, slot: int | None) -> None:
        self.lock = threading.RLock()
        self._vm = vm
        self._gpa = gpa
        self._slot = slot
        self._memory = mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._memory)
        self._show()

    def read(self, offset: int, size: int) -> int:
        """``size`` bytes at ``offset``, for an access that left the guest."""
        with self.lock:
            return int.from_bytes(self._view[offset : offset + size], "little")

    def store(self, register: int, value: int) -> None:
        """Store the 32-bit ``register``."""
        with self.lock:
            atomic.store32(self._view, register, value)

    def load(self, register: int) -> int:
        """The 32-bit ``register`` as the guest would read it."""
        return atomic.load32(self._view, register)

    def config(self, size: int) -> bytes:
        """The first ``size`` bytes of the configuration space."""
        return bytes(self._view[Mmio.CONFIG : Mmio.CONFIG + size])

    def set_config(self, config: bytes) -> bool:
        """Make ``config`` the configuration space; True if that changed it.

        What does not fit one aligned 32-bit store takes the page from the guest, changes it
        and the generation, and gives it back: meanwhile reads exit, and wait here for the lock.
        The generation alone would not do: a guest may read it, be preempted, read half of the
        old and half of the new configuration, and find the generation unchanged.
        """
        config = config[:CONFIG_SIZE].ljust(-(-min(len(config), CONFIG_SIZE) // 4) * 4, b"\0")
        with self.lock:
            start = int(Mmio.CONFIG)
            words = [
                offset
                for offset in range(0, len(config), 4)
                if config[offset : offset + 4] != self._view[start + offset : start + offset + 4]
            ]
            if not words:
                return False
            if len(words) > 1:
                self._hide()
            for offset in words:
                word = int.from_bytes(config[offset : offset + 4], "little")
                atomic.store32(self._view, start + offset, word)
            generation = (self.load(Mmio.CONFIG_GENERATION) + 1) & 0xFFFF_FFFF
            atomic.store32(self._view, int(Mmio.CONFIG_GENERATION), generation)
            if len(words) > 1:
                self._show()
            return True

    def close(self) -> None:
        """Take the page from the guest, for good. A device may still tell of a change: that goes
        into memory that nobody sees, and which goes with the page itself."""
        with self.lock:
            self._hide()
            self._slot = None

    def _show(self) -> None:
        if self._slot is not None:
            self._vm.map_ram(self._slot, self._gpa, self._view, read_only=True)

    def _hide(self) -> None:
        if self._slot is not None:
            self._vm.unmap(self._slot)
