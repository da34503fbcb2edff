"""The bare-metal guest of tests/kernels/soak, and the other half of it: who types to it, reads it,
and knows what its disk must hold."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.api import VM
from tests.soak.harness import PATIENCE, Gap, GuestClock, Problem, Verdict
from tests.support.guest import ENTRY, build

SECTORS, SECTOR = 4096, 512

EVENT_IDX, INDIRECT_DESC = 1, 2
"""Features that the guest wants, for its word ``mode``."""

_IMAGE = Path(__file__).parent.parent / "kernels" / "x86_64_soak.raw"
# The guest's parameter block: magic, then mode, wait and count (tests/kernels/README.md).
_PARAMETERS = 8

# Seconds between two lines that are typed while nothing comes (arbitrary).
_PACE = 0.002

_MASK = (1 << 64) - 1
_GAP = struct.Struct("<QQQ")

FROM_GUEST, FROM_HOST = 1, 2
"""Who says a line."""


class Bare:
    """The soak guest on ``hypervisor``, with ``features``, sleeping or looking; ``seed`` decides
    what it does, ``patience`` when a request is lost (seconds; 0 for its own). ``kinds`` are put
    in the place of the devices of that name, all of which are held by ``isolation``."""

    devices = ("blk0", "rng0", "console0")
    expected = ""

    def __init__(
        self,
        seed: int,
        hypervisor: str,
        *,
        features: int = EVENT_IDX | INDIRECT_DESC,
        sleep: bool = True,
        patience: int = 0,
        kinds: dict[str, str] | None = None,
        isolation: str = "jail",
    ) -> None:
        self._isolation = isolation
        self._seed = seed & 0xFFFFFFFF
        self._hypervisor = hypervisor
        self._words = (features | patience << 8, int(sleep), self._seed)
        self._kinds = {"blk": "blk", "rng": "rng", "console": "console"} | (kinds or {})
        self._console: _Console | None = None
        self._begun = 0.0
        self._ended = 0.0

    def options(self, folder: Path) -> dict[str, Any]:
        """See harness.Guest."""
        build()
        image = bytearray(_IMAGE.read_bytes())
        assert image[_PARAMETERS : _PARAMETERS + 4] == b"PARM"
        struct.pack_into("<III", image, _PARAMETERS + 4, *self._words)
        (folder / "guest.raw").write_bytes(image)
        self._disk = folder / "disk.img"
        self._disk.write_bytes(bytes(SECTORS * SECTOR))
        self._socket = folder / "console"
        self._socket.unlink(missing_ok=True)
        self._serial = folder / "serial"
        kinds = self._kinds
        return {
            "binary": folder / "guest.raw",
            "entry": ENTRY,
            "mem": "64M",
            "hypervisor": self._hypervisor,
            "isolation": self._isolation,
            "stdout": self._serial.open("wb"),
            "devices": [
                f"{kinds['blk']},path={self._disk},id=blk0",
                f"{kinds['console']},backend=socket,path={self._socket},id=console0",
                f"{kinds['rng']},id=rng0",
            ],
        }

    def begin(self, vm: VM) -> None:
        """See harness.Guest."""
        self._begun = self._wait_for("begun")
        self._console = _Console(self._socket, self._seed)

    def end(self, vm: VM) -> None:
        """See harness.Guest."""
        assert self._console is not None
        self._console.end()
        with contextlib.suppress(Problem):  # the guest found something, and told
            self._ended = self._wait_for("ended")
        vm.wait(PATIENCE)
        self._console.join(PATIENCE)

    def verdict(self) -> Verdict:
        """See harness.Guest."""
        assert self._console is not None
        said = self._serial.read_text(errors="replace")
        verdict = Verdict(errors=re.findall(r"FAILED: (.*)", said))
        counts = {
            what: int(count)
            for what, count in re.findall(r"(\w+) (\d+)(?= |$)", said, re.MULTILINE)
        }
        if "soak: done" not in said:
            verdict.errors = verdict.errors or [f"the guest did not finish: {said[-500:]!r}"]
            for words in verdict.errors:
                verdict.lost += "lost" in words
                verdict.corrupted += "differs" in words
            verdict.errors += filter(None, [self._console.error])
            verdict.errors.append(self._console.state())
            return verdict
        kinds = ("reads", "writes", "zeroes", "flushes")
        verdict.requests = {
            "blk0": sum(counts[kind] for kind in kinds),
            "rng0": counts["entropy"],
            "console0": counts["said"],
        }
        self._check_console(verdict, counts)
        return verdict

    def close(self) -> None:
        """See harness.Guest."""
        if self._console is not None:
            self._console.close()

    def _wait_for(self, what: str) -> float:
        # The time at which the guest was there.
        deadline = time.monotonic() + PATIENCE
        while f"soak: {what}" not in (said := self._serial.read_text(errors="replace")):
            if time.monotonic() >= deadline or "FAILED" in said:
                raise Problem(f"the guest never {what}")
            time.sleep(0.001)
        return time.monotonic()

    def _check_console(self, verdict: Verdict, counts: dict[str, int]) -> None:
        # Lines, then the table of the disk, then the gaps.
        console = self._console
        assert console is not None
        table, gaps = SECTORS * 4, counts["gaps"] * _GAP.size
        verdict.errors += filter(None, [console.error])
        if console.lines != counts["said"]:
            verdict.lost += max(0, counts["said"] - console.lines)
            verdict.errors.append(f"{counts['said']} lines were said, {console.lines} came")
        if console.typed != counts["heard"]:
            verdict.lost += max(0, console.typed - counts["heard"])
            verdict.errors.append(f"{console.typed} lines were typed, {counts['heard']} heard")
        if len(console.rest) != table + gaps:
            verdict.errors.append(f"{len(console.rest)} bytes of tables, not {table + gaps}")
            return
        sequences = struct.unpack(f"<{SECTORS}I", console.rest[:table])
        for sector in wrong_sectors(self._disk.read_bytes(), self._seed, sequences):
            verdict.corrupted += 1
            verdict.errors.append(f"sector {sector} of the image is not what was written last")
        verdict.gaps = self._gaps(console.rest[table:])

    def _gaps(self, data: bytes) -> list[Gap]:
        said = self._serial.read_text()
        begun, ended = (
            int(high, 16) << 32 | int(low, 16)
            for high, low in re.findall(r"soak: (?:begun|ended) (\w+):(\w+)", said)
        )
        slots = re.search(r"slots disk (\d+) entropy (\d+) console (\d+)", said)
        assert slots is not None
        names = dict(zip(map(int, slots.groups()), self.devices, strict=True))
        clock = GuestClock((begun, self._begun), (ended, self._ended))
        return [clock.gap(names[slot], begin, end) for slot, begin, end in _GAP.iter_unpack(data)]


class _Console(threading.Thread):
    """The host's end of the console: types lines, and compares those that come with what they must
    be. ``rest`` is what comes behind the last that was right."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._socket.setblocking(False)
        self._seed = seed
        self._is_ending, self._has_ended = threading.Event(), False
        self.lines = self.typed = 0
        self.error: str | None = None
        self.rest = bytearray()
        self.start()

    def end(self) -> None:
        """Type a full stop behind the line that is under way."""
        self._is_ending.set()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def run(self) -> None:
        """Until the machine hangs up."""
        wanted, typing = line(FROM_GUEST, self._seed, 0), b""
        while True:
            if not typing:
                typing = self._next()
            _, room, _ = select.select([], [self._socket] if typing else [], [], 0)
            if room:
                try:
                    typing = typing[self._socket.send(typing) :]
                except OSError:
                    return
            if not select.select([self._socket], [], [], _PACE)[0]:
                continue
            try:
                data = self._socket.recv(65536)
            except OSError:
                return
            if not data:
                return
            self.rest += data
            while self.rest.startswith(wanted):
                del self.rest[: len(wanted)]
                self.lines += 1
                wanted = line(FROM_GUEST, self._seed, self.lines)
            if not self._is_ending.is_set() and not wanted.startswith(self.rest):
                got = bytes(self.rest[: len(wanted)])
                self.error = self.error or f"line {self.lines} is {got!r}, not {wanted!r}"

    def state(self) -> str:
        """How far it is, for who looks for what went wrong."""
        is_there = "listens" if self.is_alive() else "has ended"
        rest = bytes(self.rest[:80])
        return f"the console {is_there}: {self.lines} lines and {rest!r}, {self.typed} typed"

    def _next(self) -> bytes:
        if self._is_ending.is_set():
            if self._has_ended:
                return b""
            self._has_ended = True
            return b".\n"
        self.typed += 1
        return line(FROM_HOST, self._seed, self.typed - 1)


def line(who: int, seed: int, number: int) -> bytes:
    """Line ``number`` of ``who``: the number, a space, letters that the seed decides. As
    tests/kernels/soak/console.c."""
    x = _step(seed ^ who << 32 ^ number)
    return b"%08x %s\n" % (number, bytes([ord("a") + (x >> 45) % 26]) * ((x >> 33) % 65))


def sector_content(seed: int, sector: int, sequence: int) -> bytes:
    """What write ``sequence`` put there; zeros for 0. As tests/kernels/soak/disk.c."""
    if not sequence:
        return bytes(SECTOR)
    x = _step(seed ^ sector << 32 ^ sequence)
    first, filling = 0x6B616F73 << 32 | sector, x ^ x >> 29
    return struct.pack("<64Q", first, sequence, *[filling] * 61, first ^ sequence ^ filling)


def wrong_sectors(image: bytes, seed: int, sequences: Sequence[int]) -> list[int]:
    """The sectors of ``image`` that are not what the write of that number put there."""
    return [
        sector
        for sector, sequence in enumerate(sequences)
        if image[sector * SECTOR : (sector + 1) * SECTOR] != sector_content(seed, sector, sequence)
    ]


def _step(x: int) -> int:
    return (x * 6364136223846793005 + 1442695040888963407) & _MASK
