"""The device's half of the control conversation, and what ends a device process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol import messages
from protocol.errors import BadInput, HostError, ProtocolError
from protocol.messages import PROTOCOL_VERSION, STATE_VERSION
from tests.support.device_host import DeviceHost
from tests.support.odd_devices import Config

Boot = Callable[..., DeviceHost]

ROGUE = "tests.support.odd_devices:Rogue"
KEEPER = "tests.support.odd_devices:Keeper"
SAVER = "tests.support.odd_devices:Saver"


def test_a_refusal_ends_the_device_and_its_log_says_why(boot: Boot) -> None:
    host = boot("null", start=False)
    host.hand_over()
    host.expect(messages.Hello)
    host.channel.send(messages.Refused("protocol 1 does not fit the VMM's protocol 2"))

    assert host.wait() == ProtocolError.exit_status
    assert "E the VMM refuses this device: protocol 1 does not fit" in host.log()


@pytest.mark.parametrize(
    ("protocol", "state", "complaint"),
    [
        (9, STATE_VERSION, f"protocol version 9 of the VMM is not {PROTOCOL_VERSION}"),
        (PROTOCOL_VERSION, 9, f"state version 9 of the VMM is not {STATE_VERSION}"),
    ],
)
def test_a_welcome_with_another_version_is_not_accepted(
    boot: Boot, protocol: int, state: int, complaint: str
) -> None:
    host = boot("null", start=False)
    host.hand_over()
    host.expect(messages.Hello)
    host.channel.send(messages.Welcome(protocol, state))

    assert host.wait() == ProtocolError.exit_status
    assert complaint in host.log()


def test_anything_but_an_answer_to_hello_ends_the_device(boot: Boot) -> None:
    host = boot("null", start=False)
    host.hand_over()
    host.expect(messages.Hello)
    host.channel.send(messages.Ping(), 1)

    assert host.wait() == ProtocolError.exit_status
    assert "Ping is no answer to Hello" in host.log()


def test_a_second_welcome_ends_the_device(boot: Boot) -> None:
    host = boot("null")
    host.channel.send(messages.Welcome(PROTOCOL_VERSION, STATE_VERSION))

    assert host.wait() == ProtocolError.exit_status
    assert "Welcome makes no sense after the seal" in host.log()


def test_a_launcher_that_gives_up_before_the_handover_is_no_error(boot: Boot) -> None:
    host = boot("null", start=False)
    host.handover.close()

    assert host.wait() == 0
    assert host.log() == ""


def test_a_handover_without_a_doorbell_is_refused_by_name(boot: Boot) -> None:
    host = boot("null", start=False)
    (missing,) = host.kicks.values()
    host.kicks.clear()
    host.hand_over()
    os.close(missing)

    assert host.wait() == HostError.exit_status
    assert "E the launcher did not hand over kick0" in host.log()


def test_a_kind_that_is_not_in_the_table_is_bad_input(boot: Boot) -> None:
    host = boot("null", start=False)
    host.hand_over(kind="nul")

    assert host.wait() == BadInput.exit_status
    assert "did you mean null?" in host.log()


@pytest.mark.parametrize(
    ("deed", "complaint"),
    [
        ("raise", "E bug: IndexError: list index out of range, in "),
        ("write-too-much", "E bug: ValueError: more written than a chain has room for"),
    ],
)
def test_a_mistake_of_the_device_itself_ends_it_and_tells_where(
    boot: Boot, deed: str, complaint: str
) -> None:
    host = boot("rogue", Config(deed), register=ROGUE)
    host.start()
    host.drivers[0].add([b"go"])
    host.publish()

    assert host.wait() == 1
    assert complaint in host.log()
    assert "queue.py" in host.log()


@pytest.mark.parametrize("deed", ["in-order", "reverse"])
def test_kept_chains_come_back_when_the_device_says_so(boot: Boot, deed: str) -> None:
    host = boot("keeper", Config(deed), register=KEEPER)
    host.start()
    heads = [host.drivers[0].add([], [8]) for _ in range(4)]
    host.publish()
    while host.expect(messages.ConfigChanged).config != b"\4":
        pass
    assert host.drivers[0].used_idx == 0

    host.request(messages.WriteConfig(0, b""), messages.ConfigChanged)

    used = host.collect(4)
    assert [item.head for item in used] == (heads if deed == "in-order" else heads[::-1])
    assert {item.data for item in used} == {b"kept"}


def test_a_chain_from_before_a_reset_is_left_alone(boot: Boot) -> None:
    # Hazard 13: the device completes late, when the memory may be anybody's.
    host = boot("keeper", Config("late"), register=KEEPER)
    host.start()
    host.drivers[0].add([], [8])
    host.publish()
    host.expect(messages.ConfigChanged)
    host.stop()
    host.start()

    host.request(messages.WriteConfig(0, b""), messages.ConfigChanged)

    assert host.drivers[0].used_idx == 0


def test_a_storm_of_kicks_starves_no_request(boot: Boot) -> None:
    # Hazard 35. The guest rings as fast as it can, and keeps the ring full.
    host = boot("null")
    host.start(size=64)
    driver = host.drivers[0]
    for _ in range(50):
        while driver.pending < 64:
            driver.add([b"x"])
        driver.publish()
        for _ in range(10):
            host.kick()
        host.request(messages.Ping(), messages.Done)
        driver.collect()
    host.stop()


def test_a_traced_device_writes_kicks_chains_interrupts_and_messages(
    boot: Boot, tmp_path: Path
) -> None:
    path = tmp_path / "trace"
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        host = boot("null", trace=fd)
        host.start()
        host.send([b"four"], [3])
        host.kick()
        while not host.counters()["requestq.kicks"]:
            pass
        assert host.quit() == 0
    finally:
        os.close(fd)

    rows = [line.split("\t") for line in path.read_text().splitlines()]
    told = [(who, kind, what) for _, _, who, kind, what in rows]
    assert ("device0", "message", "Start") in told
    assert ("device0", "kick", "requestq") in told
    assert ("device0", "chain", "requestq 0 readable=4 writable=3 done") in told
    assert ("device0", "interrupt", "requestq") in told
    assert [row for row in rows if row[3] == "chain" and int(row[1]) > 0]


# ── successors ────────────────────────────────────────────────────────────────────────


def start_again(host: DeviceHost, state: bytes, expect: type) -> object:
    """Start on the rings and the journal as they are."""
    return host.request(messages.Start(1 << 32, host.setups(), state), expect)


def test_what_is_in_flight_when_a_device_is_quiesced_comes_again(boot: Boot) -> None:
    host = boot("keeper", Config("late"), register=KEEPER)
    host.start()
    head = host.drivers[0].add([], [8])
    host.publish()
    assert host.expect(messages.ConfigChanged).config == b"\1"

    assert host.request(messages.Quiesce(), messages.Quiesced).state == b""

    assert host.journal.queue(0).region[16 + 16 * head] == 1
    start_again(host, b"", messages.Done)
    while not host.events:
        host.request(messages.Ping(), messages.Done)
    assert host.events == [messages.ConfigChanged(b"\2")]  # it has seen the chain again


def test_state_goes_from_one_process_to_the_next(boot: Boot) -> None:
    host = boot("saver", Config("hello"), register=SAVER)
    host.start()

    state = host.request(messages.Quiesce(), messages.Quiesced).state
    assert state == b"\x01hello"
    start_again(host, state, messages.Done)

    assert host.send(writable=[16]).data == b"hello"


def test_device_that_was_never_started_leaves_nothing(boot: Boot) -> None:
    host = boot("saver", Config("hello"), register=SAVER)

    assert host.request(messages.Quiesce(), messages.Quiesced).state == b""


def test_state_that_makes_no_sense_is_refused_and_the_rings_are_left_alone(boot: Boot) -> None:
    host = boot("saver", Config("hello"), register=SAVER)
    host.start()
    host.request(messages.Quiesce(), messages.Quiesced)

    failed = start_again(host, b"\x02hello", messages.Failed)

    assert failed == messages.Failed("state of 6 bytes: of another version")
    start_again(host, b"", messages.Done)
    assert host.send(writable=[16]).data == b""


def test_device_that_takes_no_state_says_so(boot: Boot) -> None:
    host = boot("keeper", Config(), register=KEEPER)
    host.start()
    host.request(messages.Quiesce(), messages.Quiesced)

    failed = start_again(host, b"state", messages.Failed)

    assert failed == messages.Failed("state of 5 bytes: this device takes no state over")


def test_failing_device_answers_and_writes_nothing(boot: Boot) -> None:
    host = boot("rng", start=False)
    host.hand_over(failing=True)
    host.greet()
    host.start()

    used = host.send(writable=[16])

    assert used.data == b""
