"""What an experiment is: a TOML file, read and checked before anything is started."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from typing import Any, Literal

from devices import kinds
from launcher import device_options, toml
from launcher.attack.table import ATTACKS
from launcher.backend import BACKENDS
from launcher.experiment.faults import FAULTS
from launcher.options import suggestion
from protocol.errors import BadInput
from protocol.specs import LEVELS
from protocol.virtio import DeviceId

GROUPINGS = ("own", "shared")
"""Each device in a process of its own; or the measured one in one with a console and entropy."""

Operation = Literal["read", "write"]

ALL = "all"
"""In the place of a list of attacks: all that there are."""

# Of a device's keys: those that differ from cell to cell.
_OURS = ("id", "isolation", "path", "process")

# Limits, all arbitrary but the depth (the guest's queues) and the size (virtio-blk's SIZE_MAX).
_MOST = {"repetitions": 10_000, "strikes": 1000, "depth": 64, "size": 256 * 1024}
_LONGEST = 3600.0

_DEFAULT = "default.toml"


@dataclass(frozen=True, slots=True)
class Load:
    """``depth`` requests of ``size`` bytes in flight at any time. An entropy device is read."""

    operation: Operation = "read"
    depth: int = 32
    size: int = 4096


LOADS = {
    "read-1": Load("read", 1),
    "read-32": Load("read", 32),
    "write-1": Load("write", 1),
    "write-32": Load("write", 32),
}
"""Loads that need not be described: of 4 KiB, at a depth of 1 and of 32."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A matrix: each of ``devices``, at each level of ``isolation`` and in each ``grouping``, under
    each of ``loads`` and ``faults``, so many ``repetitions``.

    A load is measured for ``seconds``. A fault strikes a machine ``strikes`` times, while it is
    under the load ``under``; a device hangs when it has done nothing for ``hang_after`` seconds.
    ``attacks`` are carried out once a level and grouping; with ``surface``, what a device can reach
    is measured as often.
    """

    devices: tuple[str, ...] = ("blk",)
    isolation: tuple[str, ...] = LEVELS
    grouping: tuple[str, ...] = ("own",)
    loads: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    surface: bool = False
    repetitions: int = 3
    seconds: float = 1.0
    strikes: int = 5
    under: str = "read-32"
    hang_after: float = 0.4
    hypervisor: str = "auto"
    load: dict[str, Load] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """The same as a TOML file has it, and as JSON keeps it."""
        plain = asdict(self)
        plain["hang-after"] = plain.pop("hang_after")
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in plain.items()}  # fmt: skip

    def load_of(self, name: str) -> Load:
        """What a load of that name is."""
        return {**LOADS, **self.load}[name]


_KEYS = {each.name.replace("_", "-"): each.name for each in fields(Experiment)}


def default() -> str:
    """The experiment that is taken when no file is named."""
    return resources.files(__package__).joinpath(_DEFAULT).read_text()


def read(path: str | None) -> Experiment:
    """The experiment in the file ``path``, or the default; BadInput, naming the key, if that is
    none."""
    if path is None:
        return from_plain(toml.parse(default().encode(), _DEFAULT), _DEFAULT)
    return from_plain(toml.load(path), path)


def from_plain(table: Mapping[str, Any], where: str) -> Experiment:
    """The experiment that ``table`` describes; BadInput, beginning with ``where``."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise BadInput(where, f"unknown key {key!r}{suggestion(key, _KEYS)}")
        values[_KEYS[key]] = _READERS[key](_Key(where, key), value)
    experiment = Experiment(**values)
    _check(experiment, where)
    return experiment


class _Key:
    # A key of the file, for messages.

    def __init__(self, where: str, key: str) -> None:
        self.name = f"{where}: {key}"
        self.key = key

    def wrong(self, why: str) -> BadInput:
        return BadInput(self.name, why)

    def word(self, value: object, known: Collection[str]) -> str:
        if not isinstance(value, str):
            raise self.wrong(f"{value!r} is no text")
        if value not in known:
            raise self.wrong(f"there is no {value!r}{suggestion(value, known)}")
        return value


def _texts(key: _Key, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise key.wrong(f"{value!r} is no list of texts")
    if twice := [each for each in value if value.count(each) > 1]:
        raise key.wrong(f"{twice[0]!r} is given twice")
    return tuple(value)


def _words(known: Collection[str]) -> Any:
    return lambda key, value: tuple(key.word(each, known) for each in _texts(key, value))


def _attacks(key: _Key, value: object) -> tuple[str, ...]:
    return tuple(ATTACKS) if value == ALL else _words(ATTACKS)(key, value)


def _count(key: _Key, value: object) -> int:
    most = _MOST[key.key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise key.wrong(f"{value!r} is no number from 1 to {most}")
    return value


def _seconds(key: _Key, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise key.wrong(f"{value!r} is no number of seconds")
    if not 0 < value <= _LONGEST:
        raise key.wrong(f"{value!r} is not more than 0 and up to {_LONGEST:g} seconds")
    return float(value)


def _switch(key: _Key, value: object) -> bool:
    if not isinstance(value, bool):
        raise key.wrong(f"{value!r} is neither true nor false")
    return value


def _text(key: _Key, value: object) -> str:
    if not isinstance(value, str):
        raise key.wrong(f"{value!r} is no text")
    return value


def _devices(key: _Key, value: object) -> tuple[str, ...]:
    found = _texts(key, value)
    for text in found:
        for name, _ in device_options.parse(key.name, text).settings:
            if name in _OURS:
                raise key.wrong(f"{text!r}: {name} is for the experiment to say")
        device_id(text, key.name)
    return found


def _own_loads(key: _Key, value: object) -> dict[str, Load]:
    if not isinstance(value, dict):
        raise key.wrong("tables are expected: [load.NAME]")
    found: dict[str, Load] = {}
    for name, table in value.items():
        if not device_options.NAME.match(name):
            raise key.wrong(f"{name!r} is no name for a load")
        if not isinstance(table, dict):
            raise key.wrong(f"{name} is no table")
        values: dict[str, Any] = {}
        for word, given in table.items():
            inner = _Key(f"{key.name}.{name}", word)
            if word == "operation":
                values[word] = inner.word(given, ("read", "write"))
            elif word in ("depth", "size"):
                values[word] = _count(inner, given)
            else:
                near = suggestion(word, ("operation", "depth", "size"))
                raise BadInput(f"{key.name}.{name}", f"unknown key {word!r}{near}")
        if values.get("size", 512) % 512:
            raise BadInput(f"{key.name}.{name}: size", "is no multiple of 512")
        found[name] = Load(**values)
    return found


_READERS: dict[str, Any] = {
    "devices": _devices,
    "isolation": _words(LEVELS),
    "grouping": _words(GROUPINGS),
    "loads": _texts,
    "faults": _words(FAULTS),
    "attacks": _attacks,
    "surface": _switch,
    "repetitions": _count,
    "seconds": _seconds,
    "strikes": _count,
    "under": _text,
    "hang-after": _seconds,
    "hypervisor": lambda key, value: key.word(value, BACKENDS),
    "load": _own_loads,
}


def device_id(text: str, where: str = "--device") -> DeviceId:
    """The type of the device that the device string ``text`` names; BadInput if that has none
    that can be loaded."""
    request = device_options.parse(where, with_path(text, "/image", where))
    device = kinds.find(request.kind, where)
    device_options.configure(request, device.config_type)
    if device.device_id not in (DeviceId.BLOCK, DeviceId.ENTROPY):
        raise BadInput(where, f"{request.kind!r} cannot be loaded: disks and entropy devices can")
    return device.device_id


def with_path(text: str, path: str, where: str = "devices") -> str:
    """The device string ``text``, with the image ``path`` if it is a disk."""
    kind, _, rest = text.partition(",")
    device = kinds.find(kind, where)
    disk = [f"path={device_options.quoted(path)}"] if device.device_id == DeviceId.BLOCK else []
    return ",".join([kind, *disk, *filter(None, [rest])])


def _check(experiment: Experiment, where: str) -> None:
    known = {**LOADS, **experiment.load}
    for key in ("devices", "isolation", "grouping"):
        if not getattr(experiment, key):
            raise BadInput(f"{where}: {key}", "a matrix of nothing: name at least one")
    for name in experiment.loads:
        _Key(where, "loads").word(name, known)
    used = list(experiment.loads)
    if experiment.faults or experiment.surface:
        used.append(_Key(where, "under").word(experiment.under, known))
    for device in experiment.devices:
        if device_id(device) == DeviceId.ENTROPY:
            for name in used:
                if known[name].operation == "write":
                    raise BadInput(f"{where}: loads", f"{name!r} writes, and {device!r} only reads")
    if "shared" in experiment.grouping and "swap" in experiment.faults:
        raise BadInput(
            f"{where}: faults", "'swap': one of several in a process (grouping 'shared') has none"
        )
    if not (used or experiment.attacks):
        raise BadInput(where, "a matrix of nothing: name loads, faults or attacks, or surface=true")
