"""Every guest that we have but Linux, as ``vibevmm`` runs it, and what is to come of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.support.bare import assembled
from tests.support.guest import DEMO, ECHO, EXECUTE, KERNELS, STREAM, WATCH_CONFIG, demo
from tests.support.listings import BREAK_THE_RING, PANIC
from tests.support.listings import ECHO as SERIAL_ECHO
from tests.support.vibevmm import every_device, raw
from vmm.memory_map import MMIO_CONSOLE

KVM, SOFTWARE = "kvm", "software"

# A virtual disk with a function in each sector.
_SECTOR, _SECTORS = 512, 32


@dataclass(frozen=True, slots=True)
class Guest:
    """``options`` for it, with its files in a folder; what it prints, and the exit status.

    ``counters`` are some that a device has to end with, by device and counter; ``exits`` are all
    of a guest that only one backend runs, by kind, address and who answers. With ``sleeps`` it
    waits for its devices by interrupt. ``console`` is what its console says of that: it comes to
    the same terminal at any time, in the middle of a line, too.
    """

    options: Callable[[Path], list[str]]
    prints: str
    status: int = 0
    typed: str = ""
    counters: Mapping[tuple[str, str], int] = field(default_factory=dict)
    exits: Mapping[tuple[str, int, str], int] = field(default_factory=dict)
    sleeps: bool = False
    console: str = ""
    is_slow: bool = False
    backends: tuple[str, ...] = (KVM, SOFTWARE)

    def without_console(self, printed: str) -> str:
        """What else was ``printed``."""
        assert self.console in printed
        return printed.replace(self.console, "", 1)


def _image(name: str, entry: str, memory: str) -> Callable[[Path], list[str]]:
    path = KERNELS / f"{name}.raw"
    return lambda _: ["--binary", str(path), "--entry", entry, "--mem", memory]


_pc = partial(_image, entry="0x100000", memory="64M")
_arm64 = partial(_image, entry="0x10000", memory="128M")

PROCESSOR = ("faults", "traps", "rings", "strings", "mmio", "selfmod", "pit", "apic")
"""Those that try the processor; their texts stand beside their sources."""


def text(name: str) -> str:
    """What the guest of ``PROCESSOR`` prints on a processor of silicon."""
    return (KERNELS / "cpu" / f"{name}.txt").read_text()


def _demo(mode: int, *more: str, sleep: bool = True, count: int = 0) -> Callable[[Path], list[str]]:
    # With a device of every kind, unless the options say which.
    def options(folder: Path) -> list[str]:
        return [*raw(folder, demo(mode, sleep=sleep, count=count)), *(more or every_device(folder))]

    return options


def _execute(folder: Path) -> list[str]:
    disk = folder / "code.img"
    # mov $number, %eax; ret
    code = (b"\xb8" + struct.pack("<I", 0x1234567 * n) + b"\xc3" for n in range(1, _SECTORS + 1))
    disk.write_bytes(b"".join(function.ljust(_SECTOR, b"\xcc") for function in code))
    return [*raw(folder, demo(EXECUTE, sleep=True, count=1000)), "--disk", str(disk)]


def _listing(code: str, *more: str) -> Callable[[Path], list[str]]:
    return lambda folder: [*raw(folder, assembled(code)), *more]


_HELLO = "Hello from the demo guest, over virtio-console\n"


def _demo_text(way: str) -> str:
    return f"""demo: a guest of Vibe-VMM, waiting for devices by {way}
{_HELLO}demo: console0 took 48 bytes
demo: blk0 wrote 64 sectors, read them back, verified
demo: rng0 gave 2 times 32 bytes, which differ
demo: done
"""


_DEMO_COUNTERS = {
    ("blk0", "reads"): 64,
    ("blk0", "writes"): 64,
    ("blk0", "flushes"): 1,
    ("blk0", "requestq.chains"): 129,
}

GUESTS: dict[str, Guest] = {
    "hello_serial": Guest(_pc("x86_64_hello_serial"), "Hello World\n"),
    "hello_mmio": Guest(_pc("x86_64_hello_mmio"), "Hello World\n"),
    **{name: Guest(_pc(f"x86_64_{name}"), text(name)) for name in PROCESSOR},
    "panic": Guest(_listing(PANIC), "", status=1),
    "serial_echo": Guest(_listing(SERIAL_ECHO), ">from afar: ", typed="from afar: q"),
    "broken_ring": Guest(_listing(BREAK_THE_RING, "--device", "rng"), "R3"),
    "demo_looking": Guest(
        _demo(DEMO, sleep=False),
        _demo_text("looking"),
        counters=_DEMO_COUNTERS,
        console=_HELLO,
        is_slow=True,
    ),
    "demo_interrupts": Guest(
        _demo(DEMO),
        _demo_text("interrupt"),
        counters=_DEMO_COUNTERS,
        sleeps=True,
        console=_HELLO,
        is_slow=True,
    ),
    "config": Guest(_demo(WATCH_CONFIG, count=200), "", is_slow=True),
    "virtio_echo": Guest(
        _demo(ECHO, "--serial", "none", "--console", "terminal"),
        "from afar: q",
        typed="from afar: q",
        counters={("console0", "input_bytes"): 12, ("console0", "output_bytes"): 12},
        sleeps=True,
        is_slow=True,
    ),
    # Code that a device keeps rewriting runs as it is now.
    "execute": Guest(
        _execute, "demo: ran 1000 pages of code from the disk\n", sleeps=True, is_slow=True
    ),
    # Each request is a handshake of two: the driver suppresses interrupts and asks for them again
    # with EVENT_IDX. A lost one is a hang, which the time limit ends.
    "stream": Guest(
        _demo(STREAM, count=10_000),
        "",
        counters={("blk0", "reads"): 10_000},
        sleeps=True,
        is_slow=True,
    ),
    "arm64_hello": Guest(
        _arm64("arm64_hello"),
        "Hello World\n",
        exits={("mmio write", MMIO_CONSOLE, "mmio-console"): len("Hello World\n")},
        backends=(SOFTWARE,),
    ),
    # Besides what it prints: it sets OUT2, enables the interrupt, and reads the key.
    "arm64_machine": Guest(
        _arm64("arm64_machine"),
        "1SUUUVsGTT?k\n",
        typed="k",
        exits={
            ("mmio write", MMIO_CONSOLE, "mmio-console"): len("1SUUUVsGTT?k\n"),
            ("mmio write", MMIO_CONSOLE + 4, "mmio-console"): 1,
            ("mmio write", MMIO_CONSOLE + 1, "mmio-console"): 1,
            ("mmio read", MMIO_CONSOLE, "mmio-console"): 1,
        },
        backends=(SOFTWARE,),
    ),
}
