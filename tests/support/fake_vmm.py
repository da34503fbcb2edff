"""``python -m tests.support.fake_vmm FD``: speaks a VMM's part of the protocol, runs no guest.

What it does is chosen by the machine's name, up to the first dash; see BEHAVIOURS.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from protocol import codec, fds
from protocol.channel import Channel, new_context, wait_any
from protocol.messages import (
    TO_VMM,
    Attach,
    DeviceReport,
    Done,
    Ended,
    ExitCount,
    Failed,
    GetMachineStats,
    MachineReady,
    MachineStats,
    Pause,
    PressPowerButton,
    Resume,
    StopMachine,
)
from protocol.specs import Guard as GuardSpec
from protocol.specs import MachineSpec
from vmm.guard import Guard

STATS = MachineStats(
    3,
    2_000_000,
    (
        ExitCount("port write", 0x3F8, "serial", 2, 4000),
        ExitCount("mmio read", 0xA00000, "nobody", 1, 900),
    ),
    (DeviceReport("rng0", "running", {"chains": 7}),),
)


class FakeVmm:
    """Binds, attaches, says it is ready, and then behaves."""

    def __init__(self) -> None:
        self.handover = socket.socket(fileno=int(sys.argv[1]))
        told, got = fds.receive(self.handover), fds.receive(self.handover)
        if told is None:
            sys.exit(0)
        self.guard = Guard(codec.from_plain(GuardSpec, codec.unpack(told.payload)), told.fds)
        if got is None:
            self.orphaned()
            return
        self.fds = got.fds
        self.spec = codec.from_plain(MachineSpec, codec.unpack(got.payload))
        self.behaviour = self.spec.name.partition("-")[0]
        self.serial = socket.socket(fileno=self.fds["serial"])
        self.context = new_context()
        self.channel = Channel(self.context, TO_VMM)

    def run(self) -> int:
        if self.behaviour == "stillborn":
            print("C there is something wrong with me", file=sys.stderr)
            return 3
        self.channel.bind(self.spec.endpoint)
        fds.send(self.handover, b"bound", {})
        self.answer()
        if self.behaviour == "slow":
            self.wait_for_death()
        self.channel.send(MachineReady({"machine built": 5, "devices ready": 9}, ("net",)))
        BEHAVIOURS[self.behaviour](self)
        while self.answer():
            pass
        return 0

    def answer(self) -> bool:
        """Answer one request; whether there will be more."""
        while (envelope := self.channel.wait(0.05)) is None:
            if select.select([self.handover], [], [], 0)[0]:
                self.orphaned()
        match envelope.message:
            case Attach():
                self.channel.send(Done(), envelope.sequence)
            case GetMachineStats():
                self.channel.send(STATS, envelope.sequence)
            case Pause() | Resume():
                self.channel.send(Done(), envelope.sequence)
            case PressPowerButton() if self.behaviour == "buttonless":
                self.channel.send(Failed("this machine has no power button"), envelope.sequence)
            case PressPowerButton():
                self.channel.send(Done(), envelope.sequence)
                if self.behaviour == "polite":
                    self.end("power-off")
            case StopMachine() if self.behaviour == "deaf":
                time.sleep(60)
            case StopMachine():
                self.channel.send(STATS, envelope.sequence)
                self.handover.recv(64)  # the launcher's farewell, when it has the answer
                return False
        return True

    def orphaned(self) -> None:
        self.guard.clean_up()
        os._exit(1)

    def end(self, reason: str, detail: str = "") -> None:
        self.channel.send(Ended(reason, detail))

    def echo(self) -> None:
        """Print what is typed, in brackets, until the launcher stops us."""
        serial, handover = self.serial.fileno(), self.handover.fileno()
        while True:
            asked, ready = wait_any([self.channel], [serial, handover], None)
            if asked and not self.answer():
                break
            if handover in ready:
                self.orphaned()
            if serial in ready and (data := self.serial.recv(4096)):
                self.serial.sendall(b"[" + data + b"]")
        sys.exit(0)

    def flood(self, blocks: int = 64) -> None:
        """Print more than a pipe holds, then power off."""
        for _ in range(blocks):
            self.serial.sendall(b"0123456789abcdef" * 256)
        self.end("power-off")

    def chat(self) -> None:
        """Log what a terminal must not see, then power off."""
        print("I all is \x1b[31mwell\x07", file=sys.stderr, flush=True)
        self.end("power-off")

    def rude(self) -> None:
        """Say what a terminal must not see, and what is not said by us."""
        self.channel.send(Failed("\x1b[2Jno\nvibevmm: refused forgery"))
        self.end("died", "\x1b]0;title\x07\nrip=0x10\nvibevmm: forgery\r" + "x" * 50_000)

    def crash(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def device(self) -> None:
        """Do as the VMM does when the first device dies: tell the launcher."""
        self.wait_for_death()
        self.end("host-error", "a device ended before it was ready")

    def wait_for_death(self) -> None:
        """Of the first device."""
        pidfd = self.fds[f"{self.spec.devices[0].name}.pidfd"]
        select.select([pidfd], [], [])


BEHAVIOURS: dict[str, Callable[[FakeVmm], None]] = {
    "poweroff": lambda vmm: vmm.end("power-off"),
    "reset": lambda vmm: vmm.end("reset"),
    "panic": lambda vmm: vmm.end("panic", "the guest panicked"),
    "died": lambda vmm: vmm.end("died", "triple fault\nrip=0x10"),
    "hosterror": lambda vmm: vmm.end("host-error", "KVM said no"),
    "chat": FakeVmm.chat,
    "crash": FakeVmm.crash,
    "deaf": lambda vmm: None,
    "device": FakeVmm.device,
    "echo": FakeVmm.echo,
    "flood": FakeVmm.flood,
    "spill": lambda vmm: vmm.flood(32),  # no more than pipe and launcher hold together
    "rude": FakeVmm.rude,
    "idle": lambda vmm: None,
    "polite": lambda vmm: None,
    "slow": lambda vmm: None,  # to say that the guest runs, which a device has died of already
    "buttonless": lambda vmm: None,
}

if __name__ == "__main__":
    sys.exit(FakeVmm().run())
