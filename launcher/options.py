"""The options of ``vibevmm run``, as a table; and command lines taken apart by it.

The table is what the parser, the help, the TOML file and shell completion all read. It is
walked by hand because argparse alone takes as long to import as an interpreter to start.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import BadInput


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``value`` is what its value is called in the help; None for a switch.

    ``optional`` is for a value that may be left out, ``repeated`` for an option that adds to
    what was given before, ``in_file`` for one that a TOML file may set too. ``completes`` names
    what a shell offers for the value: ``files``, or the words themselves.
    """

    name: str
    value: str | None
    help: str
    group: str
    optional: bool = False
    repeated: bool = False
    in_file: bool = True
    completes: str = ""

    @property
    def key(self) -> str:
        """What a TOML file calls it."""
        return self.name.removeprefix("--")


_GUEST, _DEVICES, _RUN = "The guest", "Devices", "The run"

RUN_OPTIONS = (
    Option(
        "--kernel",
        "FILE",
        "kernel to boot: bzImage, 64-bit ELF vmlinux or arm64 Image, found out by looking at it",
        _GUEST,
        completes="files",
    ),
    Option(
        "--binary",
        "FILE",
        "raw 64-bit binary to run instead of a kernel; needs --entry",
        _GUEST,
        completes="files",
    ),
    Option(
        "--entry",
        "ADDRESS",
        "where a raw binary is entered, and loaded unless --load says otherwise",
        _GUEST,
    ),
    Option("--load", "ADDRESS", "where a raw binary is loaded", _GUEST),
    Option(
        "--arch",
        "WHICH",
        "x86_64 or arm64: what the guest is made for; default: what it looks like",
        _GUEST,
        completes="x86_64 arm64",
    ),
    Option("--initrd", "FILE", "initial RAM disk", _GUEST, completes="files"),
    Option("--cmdline", "TEXT", "kernel command line; default: console=ttyS0", _GUEST),
    Option("--mem", "SIZE", "guest memory, such as 64M or 2G; default: 512M", _GUEST),
    Option("--cpus", "N", "number of CPUs, 1 to 8; default: 1", _GUEST),
    Option(
        "--hypervisor",
        "WHICH",
        "kvm, software (a CPU in software, one, on any host), or auto (default): kvm where it "
        "is hardware or the guest a raw binary, and the guest x86-64, else software",
        _GUEST,
        completes="auto kvm software",
    ),
    Option(
        "--disk",
        "PATH[,KEY=VALUE…]",
        "a disk: short for --device blk,PATH…",
        _DEVICES,
        repeated=True,
        completes="files",
    ),
    Option(
        "--console",
        "[WHERE][,KEY=VALUE…]",
        "a virtio console: short for --device console,…",
        _DEVICES,
        optional=True,
        repeated=True,
    ),
    Option(
        "--net",
        "WHAT[,KEY=VALUE…]",
        "a network interface: short for --device net,…; tap=NAME, user (no root; passt), or "
        "join=FOLDER, an Ethernet of machines",
        _DEVICES,
        repeated=True,
        completes="user tap= join=",
    ),
    Option(
        "--device",
        "KIND[,KEY=VALUE…]",
        "a device in a process of its own; id=NAME names it; a comma in a value is doubled",
        _DEVICES,
        repeated=True,
    ),
    Option(
        "--help-device",
        "KIND",
        "print the keys of a kind of device, and exit",
        _DEVICES,
        in_file=False,
    ),
    Option(
        "--serial",
        "WHERE",
        "serial port: terminal (default), none, or file=PATH",
        _DEVICES,
        completes="terminal none file=",
    ),
    Option("--name", "NAME", "name of this machine; default: a short unique one", _RUN),
    Option(
        "--config",
        "FILE.toml",
        "read options from a file, named as here without the dashes; flags override it",
        _RUN,
        in_file=False,
        completes="files",
    ),
    Option(
        "--dry-run", None, "print the plan and the memory map; start nothing", _RUN, in_file=False
    ),
    Option(
        "--allow-inject",
        None,
        "faults may be injected into devices (vibevmm inject); they then run on a slower ring "
        "engine, which looks for them",
        _RUN,
        in_file=False,
    ),
    Option(
        "--isolation",
        "LEVEL",
        "what device processes can reach: jail (default), all guest memory and nothing of the "
        "host; bounce, copies of their buffers only; none, what you can; isolation=LEVEL sets it "
        "for one device; +strict refuses a host that lacks a part of the jail",
        _DEVICES,
        completes="none jail bounce jail+strict bounce+strict",
    ),
    Option(
        "--on-reboot",
        "WHAT",
        "what a guest that resets gets: reset (default), it boots again with the same device "
        "processes, or exit, the machine ends",
        _RUN,
        completes="reset exit",
    ),
    Option("--timeout", "SECONDS", "stop the machine after this long; exit status 4", _RUN),
    Option(
        "--hang-after",
        "SECONDS",
        "a device that has work and makes no progress for so long, or does not answer, is "
        "killed and restarted; 0: never; default: 10",
        _RUN,
    ),
    Option(
        "--log",
        "[PROCESS=]LEVEL",
        "none, error, warn (default), info, debug, or 0 to 4; for all, or for one of vmm, "
        "launcher and the devices",
        _RUN,
        repeated=True,
        completes="none error warn info debug",
    ),
    Option(
        "--log-file", "FILE", "write the log there, not to standard error", _RUN, completes="files"
    ),
    Option(
        "--stats",
        "[FILE.json]",
        "print exits and device counters at the end (and on SIGUSR1), or write them to a file",
        _RUN,
        optional=True,
        completes="files",
    ),
    Option(
        "--trace",
        "FILE",
        "write every event with its time; for Perfetto if FILE ends in .json",
        _RUN,
        completes="files",
    ),
)

_BY_NAME = {option.name: option for option in RUN_OPTIONS}


def split(argv: Sequence[str]) -> list[tuple[Option, str]]:
    """Options with their values, in order; ``--option value`` and ``--option=value``.

    The value of a switch, or one left out, is empty. What looks like an option of ours is never
    taken for a value, other words beginning with a dash are.
    """
    found: list[tuple[Option, str]] = []
    rest = list(argv)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        option = _BY_NAME.get(name)
        if option is None:
            raise _unknown(name)
        if option.value is None:
            if equals:
                raise BadInput(name, "takes no value")
        elif not equals and rest and _is_value(rest[0], option):
            value = rest.pop(0)
        elif not equals and not option.optional:
            raise BadInput(name, f"needs a value: {option.value}")
        found.append((option, value))
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the known words if none is near, or nothing."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def help_text(options: Sequence[Option] = RUN_OPTIONS) -> str:
    """``options``, for people."""
    lines: list[str] = []
    for group in dict.fromkeys(option.group for option in options):
        lines += ["", f"{group}:"]
        for option in (option for option in options if option.group == group):
            head = f"  {option.name} {option.value or ''}".rstrip()
            # 30 columns of names and 62 of text fit a terminal of 92, and fold in one of 80.
            texts = textwrap.wrap(option.help, 62)
            if len(head) < 29:
                texts[0] = f"{head:<30}{texts[0]}"
            else:
                texts = [head, f"{'':<30}{texts[0]}", *texts[1:]]
            first = 1 if len(head) < 29 else 2
            lines += texts[:first] + [f"{'':<30}{text}" for text in texts[first:]]
    return "\n".join(lines[1:])


def _is_value(word: str, option: Option) -> bool:
    if option.optional:
        return not word.startswith("-")
    return word.partition("=")[0] not in _BY_NAME


def _unknown(word: str) -> BadInput:
    if word.startswith("-"):
        near = difflib.get_close_matches(word, _BY_NAME, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see vibevmm run --help"
        return BadInput(word, f"no such option{hint}")
    return BadInput(repr(word), "what is this? Every argument belongs to an option")
