"""Target ``elf``: ELF files, damaged and forged."""

from __future__ import annotations

from tests.fuzz import kernels
from tests.support.boot_files import (
    ET_DYN,
    PT_INTERP,
    PT_NOTE,
    PT_TLS,
    Elf,
    elf32,
    xen_note,
)


def run(data: bytes) -> None:
    """A file, but for the magic number, which is put in."""
    kernels.check(b"\x7fELF" + data[4:])


SEEDS = {
    "plain": Elf().build(),
    "two": Elf(load=[(0x100_0000, b"\xf4" * 8, 4096), (0x200_0000, b"", 64)]).build(),
    "pvh": Elf(notes=xen_note(18, 0x100_0000)).build(),
    "notes": Elf(notes=xen_note(6, 1) + xen_note(18, 0x100_0000), others=[PT_NOTE]).build(),
    "program": Elf(others=[PT_INTERP, PT_TLS], type=ET_DYN).build(),
    "32-bit": elf32(),
}
