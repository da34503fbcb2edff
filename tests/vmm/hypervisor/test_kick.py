"""Stopping a vCPU from outside: no kick is lost, whenever it comes."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.bare import CODE, DEADLINE, Runner, bare_machine
from vmm.hypervisor.base import Stop

pytestmark = pytest.mark.usefixtures("backend")

STARTED_PORT = 0xF5
SPIN = """
    e6 f5  # out 0xf5, al
    eb fe  # jmp to itself
"""
READ = """
    e4 f5  # in al, 0xf5
    f4     # hlt
"""


def test_kick_before_run_stops_it_before_the_first_instruction() -> None:
    with bare_machine(SPIN) as machine:
        machine.vcpu.kick()

        stop = machine.run()

        assert (stop, machine.bus.accesses) == (Stop.KICKED, [])
        assert machine.vcpu.get_regs().rip == CODE


def test_kick_during_run_breaks_into_a_guest_that_never_exits() -> None:
    with bare_machine(SPIN) as machine:
        spinning = threading.Event()
        machine.bus.on_port[STARTED_PORT] = spinning.set
        runner = machine.start(machine.vcpu)
        assert spinning.wait(DEADLINE)

        machine.vcpu.kick()

        assert runner.result() is Stop.KICKED
        assert machine.vcpu.get_regs().rip == CODE + 2


@pytest.mark.kvm
def test_kick_between_exits_lets_the_answered_access_complete_first() -> None:
    with bare_machine(READ) as machine:
        machine.bus.answers = [0x5A]
        # From another thread, while this one is in the handler.
        machine.bus.on_port[STARTED_PORT] = lambda: in_a_thread(machine.vcpu.kick)

        stop = machine.run()

        regs = machine.vcpu.get_regs()
        assert (stop, regs.rax & 0xFF, regs.rip) == (Stop.KICKED, 0x5A, CODE + 2)


def in_a_thread(action: object) -> None:
    thread = threading.Thread(target=action)  # type: ignore[arg-type]
    thread.start()
    thread.join(DEADLINE)


def test_one_return_answers_all_kicks_so_far_and_the_next_run_goes_on() -> None:
    with bare_machine(READ) as machine:
        machine.vcpu.kick()
        machine.vcpu.kick()

        assert machine.run() is Stop.KICKED
        assert machine.run() is Stop.HALTED


def test_kick_that_meets_another_stop_is_kept_for_the_next_run() -> None:
    with bare_machine("f4") as machine:
        runner = machine.start(machine.vcpu)
        assert runner.result() is Stop.HALTED
        machine.vcpu.kick()

        assert machine.run() is Stop.KICKED


@pytest.mark.kvm
def test_kick_stops_a_cpu_that_waits_for_its_start() -> None:
    with bare_machine("f4", irqchip=True, cpus=2) as machine:
        runner = machine.start(machine.vcpus[1])

        machine.vcpus[1].kick()

        assert runner.result() is Stop.KICKED


def test_kick_stops_a_halted_cpu() -> None:
    halt = """
        e6 f5  # out 0xf5, al
        f4     # hlt
        eb fe  # jmp to itself
    """
    with bare_machine(halt, irqchip=True) as machine:
        about_to_halt = threading.Event()
        machine.bus.on_port[STARTED_PORT] = about_to_halt.set
        runner = machine.start(machine.vcpu)
        assert about_to_halt.wait(DEADLINE)

        machine.vcpu.kick()

        assert runner.result() is Stop.KICKED


def test_kick_works_where_all_signals_were_blocked_before_the_thread_began() -> None:
    with bare_machine(SPIN) as machine:
        spinning = threading.Event()
        machine.bus.on_port[STARTED_PORT] = spinning.set
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        runner = machine.start(machine.vcpu)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert spinning.wait(DEADLINE)

        machine.vcpu.kick()

        assert runner.result() is Stop.KICKED


@pytest.mark.kvm
def test_another_signal_does_not_stop_the_guest() -> None:
    with bare_machine(SPIN) as machine, storm_of_signals() as storm_over:
        spinning = threading.Event()
        machine.bus.on_port[STARTED_PORT] = spinning.set
        runner = machine.start(machine.vcpu)
        assert spinning.wait(DEADLINE)
        returns = machine.vcpu.run_returns

        storm_over(runner, lambda: machine.vcpu.run_returns > returns + 10)

        assert runner.is_alive()
        machine.vcpu.kick()
        assert runner.result() is Stop.KICKED


@pytest.mark.kvm
def test_kick_that_falls_into_the_look_at_its_own_flag_is_not_lost() -> None:
    class KickedRightBehindTheFirstLook:
        exit_reason = 0

        def __init__(self) -> None:
            self.flag = 0

        @property
        def immediate_exit(self) -> int:
            seen, self.flag = self.flag, 1
            return seen

        @immediate_exit.setter
        def immediate_exit(self, value: int) -> None:
            self.flag = value

    with bare_machine("f4") as machine:
        real, machine.vcpu._run = machine.vcpu._run, KickedRightBehindTheFirstLook()
        try:
            first = machine.vcpu._interrupted(errno.EINTR)
            second = machine.vcpu._interrupted(errno.EINTR)
        finally:
            machine.vcpu._run = real

    assert (first, second) == (False, True)


@contextlib.contextmanager
def storm_of_signals() -> Iterator[Callable[[Runner, Callable[[], bool]], None]]:
    """A function that sends a thread signals until something is so."""

    def storm_over(runner: Runner, enough: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not enough():
            assert time.monotonic() < end, "signals did not interrupt the guest"
            signal.pthread_kill(runner.ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        yield storm_over
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_thousand_kicks_at_any_moment_each_stop_the_guest() -> None:
    # The kicker waits for nothing but the runner's previous return, so that kicks fall before,
    # in and behind the entry to the guest. A lost one is a hang, which the deadline ends.
    kicks = 1000
    with bare_machine("eb fe  # jmp to itself") as machine:
        returned = threading.Semaphore(0)

        def run_again_and_again() -> None:
            for _ in range(kicks):
                assert machine.vcpu.run(machine.bus) is Stop.KICKED
                returned.release()

        runner = threading.Thread(target=run_again_and_again, daemon=True)
        runner.start()
        for _ in range(kicks):
            machine.vcpu.kick()
            assert returned.acquire(timeout=DEADLINE)
        runner.join(DEADLINE)

        assert not runner.is_alive()


def test_kick_after_close_does_nothing() -> None:
    with bare_machine("f4") as machine:
        vcpu = machine.vcpu

    vcpu.kick()
