"""The source of entropy."""

from __future__ import annotations

from collections.abc import Callable

from devices.rng import Config
from tests.support.device_host import DeviceHost

Boot = Callable[..., DeviceHost]


def test_every_answer_is_full_and_fresh(boot: Boot) -> None:
    host = boot("rng")
    host.start()

    answers = [host.send([], [20, 12]).data for _ in range(50)]

    assert {len(answer) for answer in answers} == {32}
    assert len(set(answers)) == 50


def test_what_is_asked_beyond_the_limit_is_answered_in_part(boot: Boot) -> None:
    # Hazards 7 and 9: 15 MiB wanted, in a place of one; the host allocates what it decides.
    host = boot("rng", Config(max_bytes=100))
    host.start()
    driver = host.drivers[0]
    for index in range(15):
        driver.write_descriptor(index, 0xB0_0000, 1 << 20, 3 if index < 14 else 2, index + 1)
    host.memory.write(0xB0_0000, bytes(1 << 20))
    driver.adopt(0)
    host.publish()

    (used,) = host.collect(1)

    assert used.written == 100
    assert host.memory.read(0xB0_0000 + 100, 1000) == bytes(1000)


def test_readable_buffers_are_ignored(boot: Boot) -> None:
    host = boot("rng")
    host.start()

    assert host.send([b"seed"], [8]).written == 8
    assert host.send([b"seed"]).written == 0
