"""docs/protocol.md says what protocol/messages.py and protocol/specs.py say, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from protocol import codec, lifecycle, messages, specs

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()

DIRECTIONS = {
    "From a device to the VMM": messages.FROM_DEVICE,
    "From the VMM to a device": messages.TO_DEVICE,
    "From the VMM to the launcher": messages.FROM_VMM,
    "From the launcher to the VMM": messages.TO_VMM,
}
PARTS = (messages.QueueSetup, messages.ExitCount, messages.DeviceReport)
SPECS = (
    specs.DeviceSpec,
    specs.Isolation,
    specs.MachineSpec,
    specs.Guard,
    specs.Groups,
    specs.Leftover,
    specs.DeviceSlot,
    specs.Successor,
    specs.Forward,
    specs.UplinkSpec,
    specs.BootSpec,
    specs.Fork,
    specs.Forked,
    specs.Volunteer,
    specs.Wish,
    specs.Granted,
    specs.Notice,
)

# Name to its fields, each with its type, in order.
Table = dict[str, dict[str, str]]


@pytest.mark.parametrize("heading", DIRECTIONS)
def test_direction_has_exactly_its_messages_with_their_fields(heading: str) -> None:
    told = table(heading)

    assert told == declared(DIRECTIONS[heading])


@pytest.mark.parametrize("heading", DIRECTIONS)
def test_event_request_or_reply_is_said_of_every_message(heading: str) -> None:
    kinds = {cells[1] for cells in rows(heading)}

    assert kinds <= {"event", "request", "reply", "event or reply"}


def test_requests_name_replies_that_the_other_side_may_send() -> None:
    for requests, replies in (
        ("From the VMM to a device", messages.FROM_DEVICE),
        ("From the launcher to the VMM", messages.FROM_VMM),
    ):
        for name, kind, _, what in rows(requests):
            if kind == "request":
                named = set(re.findall(r"`(\w+)`", what))
                assert named, f"{name} does not say its reply"
                assert named <= {reply.__name__ for reply in replies}


def test_parts_of_messages_are_told_with_their_fields() -> None:
    assert table("Parts of messages") == declared(PARTS)


def test_every_class_of_the_messages_file_is_told_somewhere() -> None:
    told = {*PARTS, *(message for direction in DIRECTIONS.values() for message in direction)}

    assert {cls for cls in vars(messages).values() if is_dataclass(cls)} == told


def test_specs_are_told_with_their_fields() -> None:
    assert table("Handovers") == declared(SPECS)


def test_every_class_of_the_specs_file_is_told() -> None:
    own = {
        cls
        for cls in vars(specs).values()
        if isinstance(cls, type) and cls.__module__ == "protocol.specs"
    }

    assert own == set(SPECS)


def test_numbers_are_those_of_the_messages_file() -> None:
    assert f"`PROTOCOL_VERSION` is {messages.PROTOCOL_VERSION} and" in PAGE
    assert f"`STATE_VERSION` is {messages.STATE_VERSION}." in PAGE
    assert f"{codec.MAX_MESSAGE} bytes a message (`MAX_MESSAGE`)" in PAGE


def test_life_of_a_device_is_drawn_as_in_the_code() -> None:
    assert lifecycle.__doc__ is not None
    picture = [line.strip() for line in lifecycle.__doc__.partition("::")[2].strip().splitlines()]

    drawn = [line.strip() for line in section("The life of a device").splitlines()]

    assert "\n".join(picture) in "\n".join(drawn)


def declared(classes: tuple[type, ...]) -> Table:
    """What the code says. The files have postponed annotations, so types are text already."""
    return {cls.__name__: dict(cls.__annotations__) for cls in classes}


def table(heading: str) -> Table:
    """What the page says under ``heading``: the tables whose first cell is a class's name."""
    return {
        cells[0].strip("`"): dict(field(cell) for cell in re.findall(r"`([^`]+)`", told(cells)))
        for cells in rows(heading)
        if re.fullmatch(r"`[A-Z]\w+`", cells[0])
    }


def told(cells: list[str]) -> str:
    """The cell with the fields: behind the name, and what kind of message it is if that is said."""
    return cells[2] if len(cells) == 4 else cells[1]


def field(text: str) -> tuple[str, str]:
    name, _, kind = text.partition(": ")
    return name, kind


def rows(heading: str) -> Iterator[list[str]]:
    """The rows of the tables under ``heading``, without their heads; ``\\|`` is a bar in a cell."""
    for line in section(heading).splitlines():
        if line.startswith("| `"):
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            yield [cell.strip().replace("\\|", "|") for cell in cells]


def section(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
