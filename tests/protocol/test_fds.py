"""Handovers: descriptors arrive by name, and what is broken leaks nothing."""

import array
import os
import socket

import pytest

from protocol import codec, fds
from protocol.errors import ProtocolError


def test_descriptors_arrive_by_name_and_close_on_exec() -> None:
    ours, theirs = fds.handover_pair()
    reading, writing = os.pipe()
    with ours, theirs:
        fds.send(ours, b"spec", {"input": reading, "output": writing})
        handover = fds.receive(theirs)
    os.close(reading)
    os.close(writing)

    assert handover is not None
    assert handover.payload == b"spec"
    assert sorted(handover.fds) == ["input", "output"]
    assert not os.get_inheritable(handover.fds["input"])
    os.write(handover.fds["output"], b"x")
    assert os.read(handover.fds["input"], 1) == b"x"
    fds.close_all(handover.fds.values())


def test_more_than_the_kernel_sends_at_once_come_in_several_packets() -> None:
    ours, theirs = fds.handover_pair()
    names = [f"kick{index}" for index in range(2 * fds.MAX_DESCRIPTORS + 1)]
    with ours, theirs:
        before = fds.open_descriptors()
        fds.send(ours, b"spec", dict.fromkeys(names, 0))
        handover = fds.receive_all(theirs)

        assert handover is not None
        assert handover.payload == b"spec"
        assert list(handover.fds) == names
        fds.close_all(handover.fds.values())
        assert fds.open_descriptors() == before


def test_what_came_of_a_handover_without_an_end_is_closed() -> None:
    ours, theirs = fds.handover_pair()
    with theirs:
        before = fds.open_descriptors()
        with ours:
            fds.send(ours, b"", {"input": 0})

        assert fds.receive_all(theirs) is None
        assert fds.open_descriptors().items() <= before.items()


def test_the_end_of_the_other_side_is_none() -> None:
    ours, theirs = fds.handover_pair()
    with theirs:
        ours.close()

        assert fds.receive(theirs) is None


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["a", "b", "c"]])
def test_names_and_descriptors_must_match_and_nothing_leaks(names: list[str]) -> None:
    ours, theirs = fds.handover_pair()
    with ours, theirs:
        packet = codec.pack({"payload": b"", "names": names})
        rights = array.array("i", [0, 0])
        ours.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        before = fds.open_descriptors()

        with pytest.raises(ProtocolError, match="names for 2 descriptors"):
            fds.receive(theirs)

        assert fds.open_descriptors() == before
