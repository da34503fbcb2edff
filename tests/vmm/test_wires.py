"""Doorbells of one process after the other, led to the guest."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol import doorbell
from protocol.virtio import Mmio
from vmm.mediation.pump import Pump
from vmm.wires import DirectWires, MediatedWires, PumpedWires

GPA = 0xA0_3000


class FakeVm:
    """What is connected now."""

    def __init__(self) -> None:
        self.kicks: dict[tuple[int, int, int], int] = {}
        self.calls: dict[int, int] = {}
        self.watched: dict[int, Callable[[], None]] = {}
        self.writes: list[tuple[int, int, int]] = []

    def add_ioeventfd(self, fd: int, address: int, size: int, value: int) -> None:
        assert self.kicks.setdefault((address, size, value), fd) == fd

    def remove_ioeventfd(self, fd: int, address: int, size: int, value: int) -> None:
        assert self.kicks.pop((address, size, value)) == fd

    def add_irqfd(self, fd: int, gsi: int) -> None:
        self.calls[fd] = gsi

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        assert self.calls.pop(fd) == gsi

    def on_write(self, address: int, size: int, value: int, callback: object) -> None:
        self.writes.append((address, size, value))

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def forget(self, fd: int) -> None:
        del self.watched[fd]


@pytest.fixture
def bells() -> Iterator[list[dict[str, int]]]:
    made = [{name: doorbell.create() for name in ("call", "kick0", "kick1")} for _ in range(2)]
    yield made
    for each in made:
        for fd in each.values():
            os.close(fd)


def spoil(fd: int) -> None:
    """Fill a doorbell and make it block, as a device can before its seal."""
    os.eventfd_write(fd, (1 << 64) - 2)
    os.set_blocking(fd, True)


def test_direct_wires_move_to_the_next_process(bells: list[dict[str, int]]) -> None:
    vm, interrupts = FakeVm(), list[None]()
    wires = DirectWires(cast(Any, vm), GPA, 11, 2, lambda: interrupts.append(None))
    for each in bells:
        spoil(each["call"])  # which nobody here rings

    for each in bells:
        wires.connect(each)
        assert vm.kicks == {
            (GPA + Mmio.QUEUE_NOTIFY, 4, queue): each[f"kick{queue}"] for queue in (0, 1)
        }
        assert vm.calls == {each["call"]: 11}

    # What the first published, and did not live to tell, is told.
    assert len(interrupts) == 1


def test_mediated_wires_move_to_the_next_process(bells: list[dict[str, int]]) -> None:
    vm = FakeVm()
    led: list[Mapping[str, int]] = []
    device = SimpleNamespace(connect=led.append, complete=lambda: None, kick=lambda queue: None)
    wires = MediatedWires(cast(Any, vm), GPA, cast(Any, device), 2)

    for each in bells:
        wires.connect(each)
        assert list(vm.watched) == [each["call"]]
        assert led[-1] is each

    assert vm.writes == [(GPA + Mmio.QUEUE_NOTIFY, 4, 0), (GPA + Mmio.QUEUE_NOTIFY, 4, 1)]
    assert doorbell.drain(bells[1]["call"]) == 1


@pytest.mark.parametrize("kind", ["mediated", "pumped"])
def test_doorbells_that_a_device_has_made_to_block_do_so_no_more(
    bells: list[dict[str, int]], kind: str
) -> None:
    vm, pump = cast(Any, FakeVm()), Pump("device", 2, print)
    device = cast(Any, SimpleNamespace(connect=print, complete=print, kick=print))
    wires = {
        "mediated": MediatedWires(vm, GPA, device, 2),
        "pumped": PumpedWires(cast(Any, FakeVm()), GPA, 11, pump),
    }[kind]
    for each in bells:
        for fd in each.values():
            os.set_blocking(fd, True)

    for each in bells:
        wires.connect(each)

    for each in bells:
        for fd in each.values():
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    pump.close()


def test_a_pump_s_own_doorbells_are_led_to_the_guest_and_stay(bells: list[dict[str, int]]) -> None:
    vm, pump = FakeVm(), Pump("device", 2, print)
    wires = PumpedWires(cast(Any, vm), GPA, 11, pump)

    for each in bells:
        wires.connect(each)
        assert vm.kicks == {
            (GPA + Mmio.QUEUE_NOTIFY, 4, queue): kick for queue, kick in enumerate(pump.kicks)
        }
        assert vm.calls == {pump.line: 11}

    pump.close()
    assert not {*pump.kicks, pump.line} & {fd for each in bells for fd in each.values()}
