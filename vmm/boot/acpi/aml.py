"""Bytecode for ACPI's namespace: the few terms that a DSDT without methods needs.

Every function returns the bytes of one term; a ``label`` is one name of up to four characters.
Encodings are those of the ACPI specification 6.4: chapter 20.2 for terms, 6.4 for resource
descriptors, 19.6 (EISAID) for device ids.
"""

from __future__ import annotations

import struct

_ZERO, _ONE = b"\x00", b"\x01"
_NAME, _SCOPE, _BUFFER, _PACKAGE = b"\x08", b"\x10", b"\x11", b"\x12"
_DEVICE = b"\x5b\x82"
_STRING = b"\x0d"

_END_TAG = b"\x79\x00"  # a checksum of 0 counts as right


def integer(value: int) -> bytes:
    """An integer constant from 0 to 2^64 - 1, in its shortest form."""
    if value in (0, 1):
        return _ONE if value else _ZERO
    for prefix, format_ in ((0x0A, "<BB"), (0x0B, "<BH"), (0x0C, "<BI")):
        if value < 1 << 8 * (struct.calcsize(format_) - 1):
            return struct.pack(format_, prefix, value)
    return struct.pack("<BQ", 0x0E, value)


def string(text: str) -> bytes:
    """An ASCII string constant."""
    return _STRING + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """``PNP0501`` as the number that device ids of three letters and four digits become."""
    packed = int(text[3:], 16)
    for letter, shift in zip(text[:3], (26, 21, 16), strict=True):
        packed |= (ord(letter) - ord("@")) << shift
    return integer(int.from_bytes(packed.to_bytes(4, "big"), "little"))


def package(*elements: bytes) -> bytes:
    """A package of at most 255 terms."""
    return _PACKAGE + _with_length(bytes([len(elements)]) + b"".join(elements))


def name(label: str, value: bytes) -> bytes:
    """Name (label, value)."""
    return _NAME + _segment(label) + value


def scope(label: str, *body: bytes) -> bytes:
    """Scope (label) { body }."""
    return _SCOPE + _with_length(_segment(label) + b"".join(body))


def device(label: str, *body: bytes) -> bytes:
    """Device (label) { body }."""
    return _DEVICE + _with_length(_segment(label) + b"".join(body))


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }: a buffer that ends with the end tag."""
    data = b"".join(descriptors) + _END_TAG
    return _BUFFER + _with_length(integer(len(data)) + data)


def io(port: int, length: int) -> bytes:
    """IO (Decode16, port, port, 1, length): fixed ports."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, length)


def irq(number: int) -> bytes:
    """IRQNoFlags () {number}: an ISA line, edge-triggered and active high."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32_fixed(address: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, address, length)."""
    return struct.pack("<BHBII", 0x86, 9, 1, address, length)


def interrupt(gsi: int) -> bytes:
    """Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}."""
    consumer, edge = 1 << 0, 1 << 1
    return struct.pack("<BHBBI", 0x89, 6, consumer | edge, 1, gsi)


def _segment(label: str) -> bytes:
    # A name of one segment: up to four characters, padded with "_".
    return label.ljust(4, "_").encode("ascii")


def _with_length(body: bytes) -> bytes:
    # PkgLength: it counts itself. Up to 63 in one byte; otherwise the first byte has the number
    # of bytes that follow and the lowest four bits, and each of those has eight bits more. Three
    # could follow; two are enough for 1 MiB, where there is no room for such a table.
    if len(body) + 1 < 1 << 6:
        return bytes([len(body) + 1]) + body
    for more in (1, 2):
        length = len(body) + 1 + more
        if length < 1 << 4 + 8 * more:
            return bytes([more << 6 | length & 0xF]) + (length >> 4).to_bytes(more, "little") + body
    raise ValueError(f"{len(body)} bytes are too long for one AML term")
