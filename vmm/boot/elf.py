"""ELF kernels: a vmlinux, or another 64-bit x86 file that is linked for physical addresses.

Where the file has the note XEN_ELFNOTE_PHYS32_ENTRY it is entered there, as the PVH ABI says
(Xen, docs/misc/pvh.pandoc); otherwise at its ELF entry in 64-bit mode, with a zero page as for
a bzImage. A program for an operating system has no such note, and one of the marks below.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import IO, cast

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment
from elftools.elf.segments import Segment as ProgramHeader

from protocol.memory import Region
from vmm.boot.image import Image
from vmm.boot.kernel import Kernel, Kind
from vmm.boot.segment import Segment, is_ram

# Xen, include/public/elfnote.h: the 32-bit physical entry point.
XEN_ELFNOTE_PHYS32_ENTRY = 18

# Arbitrary; a vmlinux has five or six. The parser makes an object of each.
_MOST_PROGRAM_HEADERS = 64
# Arbitrary; a vmlinux has half a kilobyte of notes.
_MOST_NOTES = 1 << 16

# Program headers (ELF gABI, "Program Header") that ask for somebody who is not there before a
# kernel runs. A file with a PVH entry may have them: FreeBSD's kernel is linked with room for the
# first two (sys/conf/ldscript.amd64).
_PROGRAM_MARKS = {
    "PT_INTERP": "it asks for an interpreter",
    "PT_DYNAMIC": "it is linked dynamically",
    "PT_TLS": "it has thread-local storage",
}

# What the parser raises on a damaged file: its own errors, and those of the library inside it.
_PARSER_ERRORS = (ELFError, ConstructError)


class _File(io.RawIOBase):
    """The seekable stream that the parser wants, with a position of its own."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._image.size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._image.size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        # Far behind the end an offset need not be one that the system call takes.
        data = self._image.read(self._position, wanted) if wanted else b""
        self._position += len(data)
        return data


def read_elf(image: Image, regions: Sequence[Region]) -> Kernel:
    """Check the headers and place the segments; BadInput if it is damaged, for another machine
    or does not fit."""
    try:
        file = ELFFile(cast("IO[bytes]", _File(image)))
        _check_machine(image, file)
        if file.num_segments() > _MOST_PROGRAM_HEADERS:
            raise image.bad(f"it has {file.num_segments()} program headers; a kernel has few")
        headers = list(file.iter_segments())
        segments = tuple(_segments(image, headers))
        note = _phys32_entry(image, headers)
        if note is None:
            _check_no_program(image, file, headers)
        entry = file["e_entry"] if note is None else note
    except _PARSER_ERRORS as error:
        raise image.bad(f"the file is a damaged ELF file: {error}") from error
    _check_places(image, segments, entry, regions)
    kind = Kind.ELF if note is None else Kind.PVH
    return Kernel(kind, kind.value, segments, entry)


def _check_machine(image: Image, file: ELFFile) -> None:
    if file.elfclass != 64:
        raise image.bad("this is a 32-bit ELF file; a 64-bit kernel is needed")
    if not file.little_endian or file["e_machine"] != "EM_X86_64":
        raise image.bad(f"this ELF file is for {file.get_machine_arch()}, not for x86-64")
    if file["e_type"] not in ("ET_EXEC", "ET_DYN"):
        raise image.bad("this ELF file is not a linked program")


def _check_no_program(image: Image, file: ELFFile, headers: Sequence[ProgramHeader]) -> None:
    kinds = {header["p_type"] for header in headers}
    marks = [mark for kind, mark in _PROGRAM_MARKS.items() if kind in kinds]
    if file["e_type"] == "ET_DYN":
        marks.append("it has no address of its own")
    if marks:
        raise image.bad(f"this ELF file is a program, not a kernel: {marks[0]}")


def _segments(image: Image, headers: Sequence[ProgramHeader]) -> Iterator[Segment]:
    for number, header in enumerate(headers):
        if header["p_type"] == "PT_LOAD" and header["p_memsz"]:
            if header["p_filesz"] > header["p_memsz"]:
                raise image.bad(f"segment {number} is larger in the file than in memory")
            part = image.part(header["p_offset"], header["p_filesz"])
            yield Segment(f"kernel segment {number}", header["p_paddr"], part, header["p_memsz"])


def _phys32_entry(image: Image, headers: Sequence[ProgramHeader]) -> int | None:
    for header in headers:
        if not isinstance(header, NoteSegment):
            continue
        if header["p_filesz"] > _MOST_NOTES:
            raise image.bad(f"it has {header['p_filesz']} bytes of notes; a kernel has few")
        for note in header.iter_notes():
            # The parser has names for some types, and numbers for the others.
            kind = cast("str | int", note["n_type"])
            if note["n_name"] == "Xen" and kind == XEN_ELFNOTE_PHYS32_ENTRY:
                return int.from_bytes(note["n_descdata"], "little")
    return None


def _check_places(
    image: Image, segments: Sequence[Segment], entry: int, regions: Sequence[Region]
) -> None:
    if not segments:
        raise image.bad("this ELF file has nothing to load")
    for segment in segments:
        if not is_ram(regions, segment.gpa, segment.size):
            ranges = ", ".join(f"{region.gpa:#x}-{region.end:#x}" for region in regions)
            raise image.bad(
                f"its segment at {segment.gpa:#x}-{segment.end:#x} is not in memory, "
                f"which is {ranges}; give more --mem, or link it for physical addresses in there"
            )
    if not any(segment.gpa <= entry < segment.end for segment in segments):
        raise image.bad(f"its entry {entry:#x} is in none of its segments")
