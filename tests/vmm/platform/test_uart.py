"""The 16550: what the data sheet promises, and what Linux's 8250 driver asks of it."""

from __future__ import annotations

import threading

import pytest

from vmm.platform.uart import BACKLOG_SIZE, FIFO_SIZE, Uart16550

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

OUT2, LOOP = 0x08, 0x10


class Port:
    """A serial port, with what came out of it and how its interrupt line moved."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.line: list[bool] = []
        self.rooms = 0
        self.uart = Uart16550(self.sent.extend, self.line.append, self._room)

    def _room(self) -> None:
        self.rooms += 1

    def get(self, register: int) -> int:
        return self.uart.read(register, 1)

    def put(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def drain(self) -> bytes:
        found = bytearray()
        while self.get(LSR) & 0x01:
            found.append(self.get(RBR))
        return bytes(found)


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def live(port: Port) -> Port:
    """A port as a driver leaves it: FIFO on, trigger 14, OUT2 opens the interrupt line."""
    port.put(FCR, 0xC1)
    port.put(MCR, OUT2)
    return port


def test_what_is_written_to_thr_reaches_the_sink_in_order(port: Port) -> None:
    for byte in b"Hello":
        port.put(THR, byte)

    assert port.sent == b"Hello"
    assert port.get(LSR) == 0x60


def test_divisor_is_kept_behind_dlab_and_never_transmitted(port: Port) -> None:
    port.put(LCR, 0x83)
    port.put(DLL, 0x01)
    port.put(DLM, 0x02)

    assert (port.get(DLL), port.get(DLM), port.get(LCR)) == (1, 2, 0x83)
    port.put(LCR, 0x03)
    assert (port.get(RBR), port.get(IER), port.sent) == (0, 0, b"")


def test_registers_keep_only_the_bits_they_have(port: Port) -> None:
    for register, expected in ((IER, 0x0F), (MCR, 0x1F), (SCR, 0xFF), (LCR, 0xFF)):
        port.put(register, 0xFF)
        assert port.get(register) == expected


def test_read_only_registers_ignore_writes(port: Port) -> None:
    port.put(LSR, 0)
    port.put(MSR, 0)

    assert (port.get(LSR), port.get(MSR)) == (0x60, 0xB0)


def test_linux_8250_autoconfig_finds_a_16550a(port: Port) -> None:
    """The steps of drivers/tty/serial/8250/8250_port.c, autoconfig and autoconfig_16550a."""
    port.put(IER, 0)
    assert port.get(IER) == 0
    port.put(IER, 0x0F)
    assert port.get(IER) & 0x0F == 0x0F
    port.put(IER, 0)
    port.put(MCR, LOOP | 0x0A)
    assert port.get(MSR) & 0xF0 == 0x90
    port.put(MCR, 0)
    port.put(LCR, 0xBF)
    port.put(LCR, 0)
    port.put(FCR, 0x01)
    assert port.get(IIR) >> 6 == 3
    # Neither a 16750 (64-byte FIFO), nor an XScale (UUE in IER).
    port.put(LCR, 0x80)
    port.put(FCR, 0x21)
    assert port.get(IIR) & 0x20 == 0
    port.put(LCR, 0)
    port.put(IER, 0x40)
    assert port.get(IER) & 0x40 == 0


def test_received_bytes_are_read_in_order_through_the_fifo(live: Port) -> None:
    text = bytes(range(40))

    assert live.uart.receive(text) == 40

    assert live.drain() == text
    assert live.get(RBR) == 0


def test_without_fifo_one_byte_at_a_time_waits_for_the_guest(port: Port) -> None:
    port.uart.receive(b"ab")

    assert port.get(IIR) == 0x01
    assert (port.get(RBR), port.get(RBR)) == (ord("a"), ord("b"))


def test_a_full_backlog_takes_what_fits_and_reports_room_later(live: Port) -> None:
    text = bytes(i % 251 for i in range(BACKLOG_SIZE + FIFO_SIZE + 100))

    taken = live.uart.receive(text)
    assert taken == BACKLOG_SIZE
    taken += live.uart.receive(text[taken:])
    assert (taken, live.uart.writable()) == (BACKLOG_SIZE + FIFO_SIZE, 0)
    assert live.rooms == 0

    assert live.get(RBR) == text[0]
    assert (live.rooms, live.uart.writable()) == (1, 1)
    assert live.drain() == text[1:taken]
    assert live.rooms == 1


def test_receive_interrupt_is_one_edge_until_the_fifo_is_empty(live: Port) -> None:
    live.put(IER, 0x01)

    live.uart.receive(b"ab")
    assert live.line == [True]
    assert live.get(IIR) == 0xCC
    live.get(RBR)
    assert live.line == [True]
    live.get(RBR)

    assert live.line == [True, False]
    assert live.get(IIR) == 0xC1
    live.uart.receive(b"c")
    assert live.line == [True, False, True]


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_at_the_trigger_level_data_available_replaces_the_timeout(
    port: Port, fcr: int, trigger: int
) -> None:
    port.put(FCR, fcr)
    port.put(IER, 0x01)

    port.uart.receive(b"x" * (trigger - 1))
    assert port.get(IIR) == (0xC1 if trigger == 1 else 0xCC)
    port.uart.receive(b"x")

    assert port.get(IIR) == 0xC4


def test_transmitter_interrupt_comes_when_enabled_and_goes_when_read(live: Port) -> None:
    live.put(IER, 0x02)
    assert live.line == [True]
    assert live.get(IIR) == 0xC2
    assert live.line == [True, False]
    assert live.get(IIR) == 0xC1

    live.put(THR, 0x41)
    assert live.line == [True, False, True]
    assert live.get(IIR) == 0xC2
    assert live.line == [True, False, True, False]


def test_reenabling_the_transmitter_interrupt_raises_it_again(live: Port) -> None:
    """Linux's test for UARTs that do not reassert it (serial8250_do_startup)."""
    live.put(IER, 0x02)
    assert live.get(IIR) & 0x0F == 0x02
    live.put(IER, 0)
    live.put(IER, 0x02)

    assert live.get(IIR) & 0x0F == 0x02


def test_interrupts_are_identified_in_order_of_urgency(live: Port) -> None:
    live.put(MCR, LOOP)
    for _ in range(FIFO_SIZE + 1):
        live.put(THR, 0x55)
    live.put(MCR, LOOP | OUT2)
    live.put(IER, 0x0F)

    assert live.get(IIR) == 0xC6
    assert live.get(LSR) & 0x02
    assert live.get(IIR) == 0xC4
    live.drain()
    assert live.get(IIR) == 0xC2
    assert live.get(IIR) == 0xC0
    live.get(MSR)
    assert live.get(IIR) == 0xC1


def test_the_line_is_closed_without_out2_and_in_loopback(port: Port) -> None:
    port.put(IER, 0x02)
    assert port.line == []

    port.put(MCR, OUT2)
    assert port.line == [True]
    port.put(MCR, OUT2 | LOOP)
    assert port.line == [True, False]


def test_loopback_returns_bytes_and_lines_and_keeps_the_outside_waiting(live: Port) -> None:
    live.put(MCR, LOOP | 0x0F)
    live.uart.receive(b"outside")
    live.put(THR, ord("i"))

    assert (live.drain(), live.sent) == (b"i", b"")
    assert live.get(MSR) & 0xF0 == 0xF0
    live.put(MCR, 0)
    assert live.drain() == b"outside"


def test_loopback_overruns_when_the_fifo_is_full_and_says_so_once(live: Port) -> None:
    live.put(MCR, LOOP)
    for byte in range(FIFO_SIZE + 3):
        live.put(THR, byte)

    assert live.get(LSR) == 0x63
    assert live.get(LSR) == 0x61
    assert live.drain() == bytes(range(FIFO_SIZE))


def test_modem_deltas_tell_what_changed_and_clear_when_read(port: Port) -> None:
    port.put(MCR, LOOP | 0x04)
    assert port.get(MSR) & 0x0F == 0x0B
    # RI counts only where it falls.
    port.put(MCR, LOOP)

    assert port.get(MSR) == 0x04
    assert port.get(MSR) == 0x00


@pytest.mark.parametrize("fcr", [0x03, 0x00])
def test_clearing_or_switching_the_fifo_drops_what_is_in_it(live: Port, fcr: int) -> None:
    live.put(MCR, LOOP)
    live.put(THR, 0x41)

    live.put(FCR, fcr)

    assert live.get(LSR) & 0x01 == 0


def test_wide_accesses_meet_each_register_in_order(port: Port) -> None:
    port.uart.write(SCR - 1, 2, 0x5A00)
    port.uart.write(THR, 2, 0x0141)

    assert (port.sent, port.get(IER), port.get(SCR)) == (b"A", 1, 0x5A)
    assert port.uart.read(LSR, 4) == 0xFF5A_B060


def test_input_from_another_thread_loses_and_repeats_nothing(live: Port) -> None:
    text = bytes(i % 256 for i in range(50_000))
    room = threading.Event()
    live.uart._on_room = room.set

    def type_it() -> None:
        rest = text
        while rest:
            room.clear()
            rest = rest[live.uart.receive(rest) :]
            if rest:
                room.wait(10)

    typist = threading.Thread(target=type_it)
    typist.start()
    found = bytearray()
    while len(found) < len(text) and (typist.is_alive() or live.get(LSR) & 0x01):
        found += live.drain()
    typist.join()

    assert found == text
