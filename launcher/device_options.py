"""Device strings: ``blk,/images/a.img,readonly=on`` to a kind, a name and its Config.

Keys and types come from the dataclass that each device has for its options; nothing about a
single kind of device is known here.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any, Literal

from launcher.options import suggestion
from launcher.policy import OnDeath
from protocol.errors import BadInput
from protocol.specs import LEVELS, ON_VIOLATION, Isolation, OnViolation
from vmm.memory_map import parse_size

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}\Z")
"""Names of machines and devices: they become file names and parts of messages."""

# int() would take much more: other scripts' digits, underscores, blanks, other bases.
_NUMBER = re.compile(r"-?(?:[0-9]+|0[xX][0-9a-fA-F]+)")

# Options that are short for --device with a kind.
_KINDS = {"--disk": "blk", "--console": "console", "--net": "net"}
_BOOLS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Request:
    """A device as it was asked for. ``option`` is how; a key of None is the implicit first."""

    option: str
    kind: str
    settings: tuple[tuple[str | None, str | None], ...]


def parse(option: str, text: str) -> Request:
    """Take ``KIND[,KEY=VALUE…]`` apart; for --disk, --console and --net the kind is given by the
    option.

    A doubled comma is a comma in a value. A key without ``=`` is a switch that is on.
    """
    kind = _KINDS.get(option, "")
    if not kind:
        kind, _, text = text.partition(",")  # it has no comma to double
    if not kind:
        raise BadInput(option, "which kind of device?")
    return Request(option, kind, parse_settings(option, text))


def parse_settings(option: str, text: str) -> tuple[tuple[str | None, str | None], ...]:
    """Take the ``KEY=VALUE[,KEY=VALUE…]`` of a device apart, as :func:`parse` does."""
    items = [item.replace("\0", ",") for item in text.replace(",,", "\0").split(",")]
    settings: list[tuple[str | None, str | None]] = []
    for position, item in enumerate(items):
        key, equals, value = item.partition("=")
        # A path such as /a=b.img is no key with a value: keys are plain words.
        if equals and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", key):
            settings.append((key, value))
        elif position == 0:
            if item:
                settings.append((None, item))
        elif item:
            settings.append((item, None))
        else:
            raise BadInput(option, f"{text!r} has a comma too many")
    return tuple(settings)


def quoted(text: str) -> str:
    """``text`` as a part of a device string."""
    return text.replace(",", ",,")


def from_table(option: str, table: Mapping[str, object]) -> Request:
    """The same from a TOML table: ``{kind = "blk", path = "a.img", readonly = true}``."""
    given = dict(table)
    kind = _KINDS.get(option) or given.pop("kind", None)
    if not isinstance(kind, str) or not kind:
        raise BadInput(option, "a table needs the key 'kind'")
    settings: list[tuple[str | None, str | None]] = []
    for key, value in given.items():
        if isinstance(value, bool):
            settings.append((key, "on" if value else "off"))
        elif isinstance(value, int | str):
            settings.append((key, str(value)))
        else:
            raise BadInput(option, f"{key}: a string, a number or true or false is expected")
    return Request(option, kind, tuple(settings))


@dataclass(frozen=True, slots=True)
class Common:
    """What every device may be told: a ``name`` (its key is ``id``), what its death means, how it
    is held (None: as ``--isolation`` says), what it costs to break out, and the name of the
    process that it shares with others (None: it has one of its own)."""

    name: str | None = None
    on_death: OnDeath = OnDeath.RESTART
    isolation: Isolation | None = None
    on_violation: OnViolation = "kill"
    process: str | None = None


def configure(request: Request, config: type[Any]) -> tuple[Common, Any]:
    """What is common to all devices, and a ``config`` with the other settings.

    BadInput for a key that it has not, one given twice, a wrong value, one that is missing.
    """
    hints = typing.get_type_hints(config)
    known = [field.name for field in fields(config)]
    option = request.option
    values: dict[str, Any] = {}
    common: dict[str, Any] = {}
    for key, text in request.settings:
        wanted = (key or (known[0] if known else "")).replace("-", "_")
        if key is None and not known:
            raise BadInput(option, f"{request.kind} takes no value such as {text!r}")
        if wanted not in known and wanted not in COMMON:
            hint = suggestion(wanted, [*known, *COMMON])
            raise BadInput(option, f"{request.kind} has no key {wanted!r}{hint}")
        if wanted in values or wanted in common:
            raise BadInput(option, f"{wanted} is given twice")
        if wanted in COMMON:
            field_name, read = _COMMON[wanted]
            common[wanted] = (field_name, read(option, text or ""))
            continue
        values[wanted] = _value(f"{option}: {wanted}", hints[wanted], text)
    for field in fields(config):
        if field.name not in values and not has_default(field):
            raise BadInput(option, f"{request.kind} needs {field.name}=…")
    try:
        return Common(**dict(common.values())), config(**values)
    except ValueError as error:
        raise BadInput(option, str(error)) from error


def settings(config: Any) -> dict[str, str]:
    """What ``config``, a device's options, is set to, as a device string has it."""
    texts = {field.name: _as_text(getattr(config, field.name)) for field in fields(config)}
    return {name: text for name, text in texts.items() if text}


def changed(request: Request, config: type[Any], before: Mapping[str, str]) -> Any:
    """A ``config`` with the settings, and for the rest with those of ``before`` that it knows.
    BadInput as :func:`configure`; ``id`` and ``on-death`` stay."""
    given = {(key or "").replace("-", "_") for key, _ in request.settings}
    if any(key is None for key, _ in request.settings):
        raise BadInput(request.option, "an option is KEY=VALUE here")
    if fixed := sorted(given.intersection(COMMON)):
        raise BadInput(request.option, f"{fixed[0].replace('_', '-')} stays what it is")
    kept = {field.name for field in fields(config)} - given
    inherited = tuple((name, text) for name, text in before.items() if name in kept)
    return configure(replace(request, settings=(*inherited, *request.settings)), config)[1]


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def _name(option: str, text: str) -> str:
    if not NAME.match(text):
        raise BadInput(option, f"id {text!r} is not letters, digits, - and _, 31 at most")
    return text


def _on_death(option: str, text: str) -> OnDeath:
    try:
        return OnDeath(text)
    except ValueError:
        choices = ", ".join(choice.value for choice in OnDeath)
        raise BadInput(f"{option}: on-death", f"{text!r} is not one of {choices}") from None


def isolation(option: str, text: str) -> Isolation:
    """``none``, ``jail`` or ``bounce``, the latter two with ``+strict``; else BadInput."""
    for level in LEVELS:
        if text == level:
            return Isolation(level)
        if level != "none" and text == f"{level}+strict":
            return Isolation(level, strict=True)
    choices = ", ".join(LEVELS)
    raise BadInput(option, f"{text!r} is not one of {choices}, or jail+strict, bounce+strict")


def _isolation(option: str, text: str) -> Isolation:
    return isolation(f"{option}: isolation", text)


def _on_violation(option: str, text: str) -> OnViolation:
    for known in ON_VIOLATION:
        if text == known:
            return known
    choices = ", ".join(ON_VIOLATION)
    raise BadInput(f"{option}: on-violation", f"{text!r} is not one of {choices}")


def _process(option: str, text: str) -> str:
    if not NAME.match(text):
        raise BadInput(option, f"process {text!r} is not letters, digits, - and _, 31 at most")
    return text


_COMMON: Mapping[str, tuple[str, Callable[[str, str], object]]] = {
    "id": ("name", _name),
    "on_death": ("on_death", _on_death),
    "isolation": ("isolation", _isolation),
    "on_violation": ("on_violation", _on_violation),
    "process": ("process", _process),
}
COMMON = tuple(_COMMON)
"""The keys of :class:`Common`."""


def _value(where: str, wanted: Any, text: str | None) -> Any:
    origin = typing.get_origin(wanted)
    if origin in (types.UnionType, typing.Union):
        (wanted,) = (kind for kind in typing.get_args(wanted) if kind is not type(None))
        return _value(where, wanted, text)
    if wanted is bool:
        return _bool(where, text)
    if text is None or text == "":
        raise BadInput(where, "needs a value")
    if origin is Literal:
        choices = typing.get_args(wanted)
        if text not in choices:
            raise BadInput(where, f"{text!r} is not one of {', '.join(choices)}")
        return text
    if wanted is int:
        return _int(where, text)
    return text


def _bool(where: str, text: str | None) -> bool:
    if text is None:
        return True
    if text.lower() not in _BOOLS:
        raise BadInput(where, f"{text!r} is neither on nor off")
    return _BOOLS[text.lower()]


def _int(where: str, text: str) -> int:
    if text.lower().startswith("0x"):
        return number(where, text)
    if (value := parse_size(text, where)) >= 1 << 64:
        raise BadInput(where, f"not a number of 64 bits: {text}")
    return value


def number(where: str, text: str) -> int:
    """A number of 64 bits, decimal or hexadecimal with 0x."""
    if not _NUMBER.fullmatch(text):
        raise BadInput(where, f"{text!r} is not a number such as 4096 or 0x1000")
    # Python makes no numbers of thousands of digits; none of 64 bits has a hundred.
    value = -1 if len(text) > 100 else int(text, 16 if "x" in text.lower() else 10)
    if not 0 <= value < 1 << 64:
        raise BadInput(where, f"not a number of 64 bits: {text}")
    return value


def has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING
