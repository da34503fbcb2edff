"""Mediators called on the vCPU's thread, beside a device that is hostile."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from protocol import doorbell
from protocol.errors import VibeError
from tests.support.mediated import Mediated, mediated
from vmm.mediation import MediatorBroken
from vmm.mediation.device import OnVcpu


@dataclass
class OnOneThread:
    """``bells`` are the device's doorbells; what was interrupted for, and told of."""

    them: Mediated
    bells: dict[str, int]
    here: OnVcpu
    interrupts: list[None]
    faults: list[VibeError]

    def ask(self) -> None:
        self.them.driver.add([b"request"], [16])
        self.them.driver.publish()
        self.here.kick(0)

    def answer(self) -> None:
        for chain in self.them.device.pop():
            self.them.device.push([(chain.head, chain.writable.write(b"answer"))])
        self.here.complete()


@pytest.fixture
def one() -> Iterator[OnOneThread]:
    bells = {name: doorbell.create() for name in ("kick0", "call")}
    interrupts, faults = list[None](), list[VibeError]()
    here = OnVcpu(lambda: interrupts.append(None), faults.append)
    here.connect(bells)
    with mediated(16, arena=0x1_0000) as them:
        yield OnOneThread(them, bells, here, interrupts, faults)
        here.close()
    for fd in bells.values():
        os.close(fd)


def test_a_full_doorbell_is_one_that_rings(one: OnOneThread) -> None:
    os.eventfd_write(one.bells["kick0"], (1 << 64) - 2)
    one.here.serve({0: one.them.mediator})

    one.ask()
    one.answer()

    assert [used.data for used in one.them.driver.collect()] == [b"answer"]
    assert one.interrupts
    assert not one.faults


def test_nobody_reads_the_doorbell_of_a_device(one: OnOneThread) -> None:
    one.here.serve({0: one.them.mediator})
    doorbell.ring(one.bells["call"])

    one.here.complete()

    assert doorbell.drain(one.bells["call"]) == 1


def test_who_broke_its_ring_is_told_of_once_and_its_successor_is_not(one: OnOneThread) -> None:
    one.here.serve({0: one.them.mediator})
    one.ask()
    one.them.device_memory.write(one.them.shadow.used + 2, struct.pack("<H", 9))

    for _ in range(3):
        one.here.complete()
        one.here.kick(0)

    (fault,) = one.faults
    assert isinstance(fault, MediatorBroken)

    with mediated(16, arena=0x1_0000) as after_reset:
        again = OnOneThread(after_reset, one.bells, one.here, [], one.faults)
        one.here.serve({0: after_reset.mediator})
        again.ask()
        again.answer()
        assert [used.data for used in after_reset.driver.collect()] == [b"answer"]
        one.here.serve({})
    assert len(one.faults) == 1
