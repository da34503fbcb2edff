"""Writing to readers that are slow, or gone."""

from __future__ import annotations

import fcntl
import os
import pty
from pathlib import Path

from launcher.loop import Loop
from launcher.output import Output


def test_slow_reader_gets_everything_and_the_writer_never_waits() -> None:
    reading, writing = os.pipe()
    loop = Loop()
    output = Output(writing, loop)
    data = bytes(range(256)) * 2048  # more than a pipe holds

    output.write(data)
    assert output.full

    got = b""

    def read() -> None:
        nonlocal got
        got += os.read(reading, 5000)
        if len(got) == len(data):
            loop.end()

    loop.on_readable(reading, read)
    loop.run()
    assert got == data
    assert not output.full
    output.close()
    os.close(reading)
    os.close(writing)


def test_room_is_announced_once_the_reader_has_caught_up() -> None:
    reading, writing = os.pipe()
    loop = Loop()
    output = Output(writing, loop)
    output.on_room = loop.end
    output.write(bytes(256 * 1024))

    loop.on_readable(reading, lambda: os.read(reading, 65536) and None)
    loop.run()

    assert not output.full
    output.close()
    os.close(reading)
    os.close(writing)


def test_reader_that_goes_is_noticed_once_and_nothing_more_is_kept() -> None:
    reading, writing = os.pipe()
    output = Output(writing, Loop())
    gone: list[int] = []
    output.on_gone = lambda: gone.append(1)
    os.close(reading)

    output.write(b"to nobody")
    output.write(b"to nobody")

    assert gone == [1]
    output.close()
    os.close(writing)


def test_messages_to_a_reader_far_behind_are_counted_and_memory_has_a_bound() -> None:
    reading, writing = os.pipe()
    loop = Loop()
    output = Output(writing, loop)
    line = b"x" * 999 + b"\n"
    for _ in range(5000):
        output.offer(line)
    assert len(output._waiting) < 2 << 20

    got = bytearray()

    def read() -> None:
        got.extend(os.read(reading, 65536))
        if got.endswith(b"after\n"):
            loop.end()

    loop.on_readable(reading, read)
    output.on_room = lambda: output.offer(b"after\n")
    loop.run()
    output.close()
    os.close(reading)
    os.close(writing)

    *lines, told, last = bytes(got).splitlines(keepends=True)
    assert set(lines) == {line}
    assert told == b"vibevmm: %d messages were lost: nobody read them\n" % (5000 - len(lines))
    assert last == b"after\n"


def test_closing_does_not_wait_for_a_reader_once_it_is_enough() -> None:
    reading, writing = os.pipe()
    output = Output(writing, Loop())
    output.write(bytes(1 << 20))

    output.close(is_enough=lambda: True)

    os.close(reading)
    os.close(writing)


def test_regular_file_is_written_at_once(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        output = Output(file.fileno(), Loop())
        output.write(b"x" * 100_000)
        output.close()

    assert (tmp_path / "file").stat().st_size == 100_000


def test_terminal_keeps_its_flags_and_does_not_hold_us_up() -> None:
    ours, theirs = pty.openpty()
    output = Output(theirs, Loop())

    output.write(b"x" * 1_000_000)  # nobody reads

    assert output.full
    assert not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK
    output.close(0.05)
    os.close(ours)
    os.close(theirs)
