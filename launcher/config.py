"""What a run is to be: command line and TOML file, checked and typed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from launcher import device_options, toml
from launcher.backend import AUTO, BACKENDS
from launcher.device_options import NAME, Request, number
from launcher.options import RUN_OPTIONS, Option, split, suggestion
from protocol.errors import BadInput
from protocol.log import Level
from protocol.specs import ARCHITECTURES, ON_REBOOT, Architecture, Isolation, OnReboot
from vmm.memory_map import DEFAULT_MEMORY, check_memory_size, parse_size

MAX_CPUS = 8
DEFAULT_CMDLINE = "console=ttyS0"
"""For a kernel: messages and login on the serial port, everything else as the kernel likes it.
``panic=`` is left out: a panicked guest stands still and its last words stay readable."""

DEFAULT_HANG_AFTER = 10.0
"""Seconds. Disks that are slow for longer exist; taken for hung, they do their work twice."""

_DEVICE_OPTIONS = ("--disk", "--console", "--net", "--device")


@dataclass(frozen=True, slots=True)
class LogLevels:
    """A level for everybody and others for single processes, by name."""

    default: Level = Level.WARN
    by_process: tuple[tuple[str, Level], ...] = ()

    def of(self, process: str) -> Level:
        """The level of ``process``."""
        return dict(self.by_process).get(process, self.default)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Everything that ``vibevmm run`` was told. Paths are as given; nothing has been opened.

    ``architecture`` is None where the guest is looked at to find it out.
    ``serial`` is ``terminal``, ``none`` or ``file=PATH``. ``stats`` is None without --stats, an
    empty string to print them, else the file to write. ``timeout`` is in seconds.
    """

    kernel: str | None
    binary: str | None
    initrd: str | None
    cmdline: str
    entry: int | None
    load: int | None
    architecture: Architecture | None
    memory: int
    cpus: int
    hypervisor: str
    devices: tuple[Request, ...]
    serial: str
    name: str | None
    on_reboot: OnReboot
    timeout: float | None
    hang_after: float
    log: LogLevels
    log_file: str | None
    stats: str | None
    trace: str | None
    dry_run: bool
    allow_inject: bool
    isolation: Isolation
    help_device: str | None


Pair = tuple[Option, object]


def read(argv: Sequence[str]) -> RunOptions:
    """The options in ``argv``, with those of the --config file that ``argv`` does not name."""
    given: list[Pair] = list(split(argv))
    for option, value in given:
        _check_text(option.name, value)
    named = {option.name for option, _ in given}
    for path in [str(value) for option, value in given if option.name == "--config"]:
        given = [pair for pair in read_file(path) if pair[0].name not in named] + given
    return _typed(given)


def read_file(path: str) -> list[Pair]:
    """The options of a TOML file; lists for what may be repeated, tables for devices and log."""
    try:
        table = toml.load(path)
    except BadInput as error:
        raise BadInput("--config", str(error)) from error
    known = {option.key: option for option in RUN_OPTIONS if option.in_file}
    found: list[Pair] = []
    for key, value in table.items():
        if key not in known:
            raise BadInput("--config", f"{path}: unknown key {key!r}{suggestion(key, known)}")
        try:
            pairs = _from_file(known[key], value, f"{path}: {key}")
        except ValueError as error:  # hexadecimal is read at any length, but not written
            raise BadInput("--config", f"{path}: {key}: {error}") from error
        for _, given in pairs:
            _check_text(f"--config: {path}: {key}", given)
        found += pairs
    return found


def _check_text(where: str, value: object) -> None:
    # It becomes part of messages, paths and command lines, none of which can carry more.
    texts = [value] if not isinstance(value, Request) else [t for s in value.settings for t in s]
    for text in texts:
        if not isinstance(text, str):
            continue
        if "\0" in text:
            raise BadInput(where, f"{text!r} has a null byte in it")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadInput(where, f"{os.fsencode(text)!r} is not UTF-8") from None


def _from_file(option: Option, value: object, where: str) -> list[Pair]:
    values = value if option.repeated and isinstance(value, list) else [value]
    if option.name == "--log" and isinstance(value, dict):
        values = [f"{process}={level}" for process, level in value.items()]
    found: list[Pair] = []
    for item in values:
        if isinstance(item, dict) and option.name in _DEVICE_OPTIONS:
            found.append((option, device_options.from_table(option.name, item)))
        elif isinstance(item, bool) and option.optional:
            if item:
                found.append((option, ""))
        elif isinstance(item, str | int | float) and not isinstance(item, bool):
            found.append((option, str(item)))
        else:
            raise BadInput("--config", f"{where}: {type(item).__name__} is not expected here")
    return found


def _typed(given: Iterable[Pair]) -> RunOptions:
    texts: dict[str, str] = {}
    devices: list[Request] = []
    logs: list[str] = []
    for option, value in given:
        if option.name in _DEVICE_OPTIONS:
            parsed = isinstance(value, Request)
            devices.append(
                value if parsed else device_options.parse(option.name, str(value))  # type: ignore[arg-type]
            )
        elif option.name == "--log":
            logs.append(str(value))
        else:
            texts[option.name] = str(value)
    options = RunOptions(
        kernel=texts.get("--kernel"),
        binary=texts.get("--binary"),
        initrd=texts.get("--initrd"),
        cmdline=texts.get("--cmdline", DEFAULT_CMDLINE if "--kernel" in texts else ""),
        entry=_number(texts, "--entry"),
        load=_number(texts, "--load"),
        architecture=_architecture(texts.get("--arch")),
        memory=_memory(texts),
        cpus=_cpus(texts.get("--cpus", "1")),
        hypervisor=_hypervisor(texts.get("--hypervisor", AUTO)),
        devices=tuple(devices),
        serial=_serial(texts.get("--serial", "terminal")),
        name=_name(texts.get("--name")),
        on_reboot=_on_reboot(texts.get("--on-reboot")),
        timeout=_seconds("--timeout", texts.get("--timeout")),
        hang_after=_hang_after(texts.get("--hang-after")),
        log=_log_levels(logs),
        log_file=texts.get("--log-file"),
        stats=texts.get("--stats"),
        trace=texts.get("--trace"),
        dry_run="--dry-run" in texts,
        allow_inject="--allow-inject" in texts,
        isolation=device_options.isolation("--isolation", texts.get("--isolation", "jail")),
        help_device=texts.get("--help-device"),
    )
    if options.help_device is None:
        _check_guest(options)
    return options


def _check_guest(options: RunOptions) -> None:
    if options.kernel is None and options.binary is None:
        raise BadInput("--kernel", "what is to run? Give a kernel, or --binary with a raw binary")
    if options.kernel is not None and options.binary is not None:
        raise BadInput("--binary", "goes without --kernel: one machine runs one of them")
    if options.binary is None:
        for name, value in (("--entry", options.entry), ("--load", options.load)):
            if value is not None:
                raise BadInput(name, "goes with --binary; a kernel says where it wants to be")


def _number(texts: dict[str, str], name: str) -> int | None:
    return number(name, texts[name]) if name in texts else None


def _memory(texts: dict[str, str]) -> int:
    size = parse_size(texts["--mem"]) if "--mem" in texts else DEFAULT_MEMORY
    check_memory_size(size)
    return size


def _cpus(text: str) -> int:
    digits = text.lstrip("0")
    if not text.isascii() or not text.isdigit() or len(digits) != 1 or int(digits) > MAX_CPUS:
        raise BadInput("--cpus", f"{text!r} is not a number from 1 to {MAX_CPUS}")
    return int(digits)


def _architecture(text: str | None) -> Architecture | None:
    for known in ARCHITECTURES:
        if text == known:
            return known
    if text is None:
        return None
    raise BadInput("--arch", f"{text!r} is none{suggestion(text, ARCHITECTURES)}")


def _hypervisor(text: str) -> str:
    if text not in BACKENDS:
        raise BadInput("--hypervisor", f"{text!r} is none{suggestion(text, BACKENDS)}")
    return text


def _serial(text: str) -> str:
    if text in ("terminal", "none") or (text.startswith("file=") and text != "file="):
        return text
    raise BadInput("--serial", f"{text!r} is not terminal, none or file=PATH")


def _name(text: str | None) -> str | None:
    if text is not None and not NAME.match(text):
        raise BadInput("--name", f"{text!r} is not letters, digits, - and _, 31 at most")
    return text


def _on_reboot(text: str | None) -> OnReboot:
    for known in ON_REBOOT:
        if text in (known, None):
            return known
    raise BadInput("--on-reboot", f"{text!r} is none{suggestion(str(text), ON_REBOOT)}")


def _hang_after(text: str | None) -> float:
    if text in ("0", "0.0"):  # as VM() writes it
        return 0.0
    return _seconds("--hang-after", text) or DEFAULT_HANG_AFTER


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        # float() would take other scripts' digits, underscores and blanks, too.
        seconds = float(text) if re.fullmatch(r"[0-9.eE+-]+", text) else 0
    except ValueError:
        seconds = 0
    # A year is for ever; what cannot be waited for, such as infinity, is no time.
    if not 0 < seconds <= 365 * 24 * 3600:
        raise BadInput(option, f"{text!r} is not a number of seconds above 0")
    return seconds


def _log_levels(texts: Iterable[str]) -> LogLevels:
    default, by_process = Level.WARN, dict[str, Level]()
    for text in texts:
        process, equals, word = text.rpartition("=")
        level = _level(word)
        if equals:
            by_process[process] = level
        else:
            default = level
    return LogLevels(default, tuple(by_process.items()))


def _level(word: str) -> Level:
    for level in Level:
        if word.lower() in (level.name.lower(), str(int(level))):
            return level
    hint = suggestion(word.lower(), [level.name.lower() for level in Level])
    raise BadInput("--log", f"{word!r} is not a level from 0 to 4{hint}")
