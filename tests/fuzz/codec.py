"""Target ``codec``: frames from a hostile peer, of each kind of conversation, and specs.

Anything but a message is a ProtocolError; a message is what it is encoded to.
"""

from __future__ import annotations

import typing
from dataclasses import fields, is_dataclass
from typing import Any

from protocol import codec, control, messages, specs
from protocol.errors import ProtocolError

CONVERSATIONS = (
    messages.FROM_DEVICE,
    messages.TO_DEVICE,
    messages.FROM_VMM,
    messages.TO_VMM,
    control.TO_LAUNCHER,
    control.FROM_LAUNCHER,
)
_CONTROL = 4  # the first of those with clients
SPECS = (specs.DeviceSpec, specs.MachineSpec, specs.Guard, specs.Volunteer, specs.Wish)


def run(data: bytes) -> None:
    """The first byte is the conversation, the rest a frame."""
    which, frame = data[0] if data else 0, data[1:]
    try:
        if which % 8 < len(CONVERSATIONS):
            _message(frame, CONVERSATIONS[which % 8], is_control=which % 8 >= _CONTROL)
        elif which % 8 == 6:
            spec = SPECS[which // 8 % len(SPECS)]
            found = codec.from_plain(spec, codec.unpack(frame))
            _check_types(found)
            assert codec.from_plain(spec, codec.unpack(codec.pack(codec.to_plain(found)))) == found
        else:
            plain = codec.unpack(frame)
            assert codec.unpack(codec.pack(plain)) == plain or plain != plain
    except ProtocolError as error:
        str(error)


def _message(frame: bytes, allowed: tuple[type, ...], *, is_control: bool) -> None:
    found = codec.decode(frame, allowed)
    assert type(found.message) in allowed
    _check_types(found.message)
    again = codec.encode(found.message, found.sequence, found.generation)
    assert codec.decode(again, allowed) == found
    if is_control:
        assert control.decode(control.encode(found.message, found.sequence), allowed).message == (
            found.message
        )


def _check_types(value: object) -> None:
    # Of what has the type of no field but its own: True passes for 1 in every comparison.
    hints = typing.get_type_hints(type(value))
    for field in fields(value):
        held = getattr(value, field.name)
        if hints[field.name] in (int, bool, str, bytes):
            assert type(held) is hints[field.name], field.name
        if hints[field.name] is int:
            assert 0 <= held < 1 << 64, field.name


def _example(wanted: Any, number: int = 1) -> object:
    """A plain value that passes for a ``wanted``, with ``number`` for every number in it."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        return {field.name: _example(hints[field.name], number) for field in fields(wanted)}
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return [_example(arguments[0], number)]
    if origin is dict:
        return {"a": _example(arguments[1], number)}
    if arguments:
        return _example(arguments[0], number)  # the other one is None
    return {int: number, bool: True, str: "a", bytes: b"a"}[wanted]


def _seeds() -> dict[str, bytes]:
    found = {
        "deep": bytes([7]) + b"\x91" * 600 + b"\xc0",
        "huge": bytes([7]) + b"\xdd\xff\xff\xff\xff",
    }
    for number, allowed in enumerate(CONVERSATIONS):
        version = control.CONTROL_VERSION if number >= _CONTROL else 0
        for kind in allowed:
            for one in (1, True):
                frame = codec.pack([kind.__name__, 1, version, _example(kind, one)])
                found[f"{number}-{kind.__name__}-{one}"] = bytes([number]) + frame
    for number, kind in enumerate(SPECS):
        found[f"spec-{kind.__name__}"] = bytes([6 + 8 * number]) + codec.pack(_example(kind))
    return found


SEEDS = _seeds()
