"""Dataclasses to msgpack and back, strictly: the types in a class are the schema.

An unknown field, a missing one, a wrong type, a value out of range, too large a message or
trailing bytes are a ProtocolError that names the place; nothing is coerced and nothing is
guessed. Understood types: int (0 to 2^64 - 1), bool, str, bytes, IntEnum, dataclasses,
``Literal`` of strings, ``T | None``, ``tuple[T, ...]`` and ``dict[str, T]``.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any, TypeVar, cast

import msgpack

from protocol.errors import ProtocolError

T = TypeVar("T")

MAX_MESSAGE = 64 * 1024
"""Bytes of the largest message; the largest real one, a report of all exits, is far below it."""

_U64 = (1 << 64) - 1
# Generous for every message in messages.py, and small against what a hostile peer could ask for.
_MAX_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded message with its place in the conversation."""

    message: Any
    sequence: int
    generation: int


def encode(message: object, sequence: int = 0, generation: int = 0) -> bytes:
    """The frame for ``message``; ProtocolError if it would be larger than MAX_MESSAGE."""
    frame = pack([type(message).__name__, sequence, generation, to_plain(message)])
    if len(frame) > MAX_MESSAGE:
        raise ProtocolError(f"{type(message).__name__} of {len(frame)} bytes is over {MAX_MESSAGE}")
    return frame


def decode(frame: bytes, allowed: Iterable[type]) -> Envelope:
    """The message in ``frame``, which must be one of the classes in ``allowed``."""
    name, sequence, generation, body = parts(frame)
    for found in allowed:
        if found.__name__ == name:
            return Envelope(from_plain(found, body), sequence, generation)
    raise ProtocolError(f"message {name[:40]!r} is not allowed here")


def parts(frame: bytes) -> tuple[str, int, int, Any]:
    """Name, sequence, generation and fields in ``frame``, of whatever message it is."""
    if len(frame) > MAX_MESSAGE:
        raise ProtocolError(f"message of {len(frame)} bytes is over {MAX_MESSAGE}")
    plain = unpack(frame)
    if not isinstance(plain, list) or len(plain) != 4:
        raise ProtocolError("a message is an array of four")
    name, sequence, generation, body = plain
    return (
        _typed(str, name, "name"),
        _unsigned(sequence, "sequence"),
        _unsigned(generation, "generation"),
        body,
    )


def pack(plain: object) -> bytes:
    """msgpack bytes of plain values."""
    return cast(bytes, msgpack.packb(plain, use_bin_type=True))


def unpack(data: bytes) -> Any:
    """Plain values of msgpack bytes; ProtocolError for anything but exactly one value."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {error}") from error


def to_plain(value: object) -> Any:
    """``value`` as what msgpack knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, IntEnum):
        return int(value)
    return value


def from_plain(wanted: type[T], plain: object, where: str = "") -> T:
    """``plain`` as a ``wanted``; ProtocolError names the field that is wrong."""
    return cast(T, _convert(wanted, plain, where or wanted.__name__))


def _convert(wanted: Any, plain: object, where: str) -> Any:
    origin = typing.get_origin(wanted)
    if origin in (types.UnionType, typing.Union):
        return _optional(wanted, plain, where)
    if origin is tuple:
        item = typing.get_args(wanted)[0]
        return tuple(
            _convert(item, value, f"{where}[{index}]")
            for index, value in enumerate(_typed(list, plain, where))
        )
    if origin is dict:
        item = typing.get_args(wanted)[1]
        return {
            _typed(str, key, f"{where} key"): _convert(item, value, f"{where}[{key!r}]")
            for key, value in _typed(dict, plain, where).items()
        }
    if origin is typing.Literal:
        if _typed(str, plain, where) not in typing.get_args(wanted):
            raise ProtocolError(f"{where}: {str(plain)[:40]!r} is not one of its words")
        return plain
    if is_dataclass(wanted):
        return _dataclass(cast(type, wanted), plain, where)
    if isinstance(wanted, type) and issubclass(wanted, IntEnum):
        try:
            return wanted(_unsigned(plain, where))
        except ValueError as error:
            raise ProtocolError(f"{where}: {error}") from error
    if wanted is int:
        return _unsigned(plain, where)
    return _typed(wanted, plain, where)


def _dataclass(wanted: type, plain: object, where: str) -> Any:
    given = _typed(dict, plain, where)
    schema, required = _schema(wanted)
    for name in given:
        if name not in schema:
            raise ProtocolError(f"{where}: unknown field {str(name)[:40]!r}")
    for name in required:
        if name not in given:
            raise ProtocolError(f"{where}: field {name!r} is missing")
    return wanted(
        **{name: _convert(schema[name], value, f"{where}.{name}") for name, value in given.items()}
    )


@cache
def _schema(wanted: type) -> tuple[dict[str, Any], tuple[str, ...]]:
    hints = typing.get_type_hints(wanted)
    required = tuple(
        field.name
        for field in fields(wanted)
        if field.default is MISSING and field.default_factory is MISSING
    )
    return {field.name: hints[field.name] for field in fields(wanted)}, required


def _optional(wanted: Any, plain: object, where: str) -> Any:
    if plain is None:
        return None
    (inner,) = (kind for kind in typing.get_args(wanted) if kind is not type(None))
    return _convert(inner, plain, where)


def _typed(wanted: type, plain: object, where: str) -> Any:
    # type() and not isinstance(): True is an int to isinstance, and must not pass for one.
    if type(plain) is not wanted:
        raise ProtocolError(f"{where}: {wanted.__name__} expected, got {type(plain).__name__}")
    return plain


def _unsigned(plain: object, where: str) -> int:
    number: int = _typed(int, plain, where)
    if not 0 <= number <= _U64:
        raise ProtocolError(f"{where}: {number} is not a 64-bit unsigned number")
    return number
