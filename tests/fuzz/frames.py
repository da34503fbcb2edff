"""Target ``frames``: the bytes of a hostile peer, in pieces of any size, put together to frames.

However they are cut, the frames are the same, as far as the first that is too large; and no more is
kept than a frame and a piece.
"""

from __future__ import annotations

from protocol.channel import LENGTH, Frames
from protocol.codec import MAX_MESSAGE
from protocol.errors import ProtocolError


def run(data: bytes) -> None:
    """The first byte is how large the pieces are, the rest what comes in them."""
    step, data = 1 + (data[0] if data else 0) ** 2, data[1:]
    frames = Frames()
    got: list[bytes | None] = []
    for at in range(0, len(data), step):
        frames.add(data[at : at + step])
        try:
            while frames.is_whole:
                got.append(frames.take())
        except ProtocolError:
            got.append(None)
            break
        assert frames.take() is None
        assert len(frames._bytes) < LENGTH.size + MAX_MESSAGE
    assert got == _expected(data)


def _expected(data: bytes) -> list[bytes | None]:
    found: list[bytes | None] = []
    while len(data) >= LENGTH.size:
        (size,) = LENGTH.unpack_from(data)
        if size > MAX_MESSAGE:
            return [*found, None]
        frame, rest = data[LENGTH.size : LENGTH.size + size], data[LENGTH.size + size :]
        if len(frame) < size:
            break
        found.append(frame)
        data = rest
    return found


def _seeds() -> dict[str, bytes]:
    some = b"".join(LENGTH.pack(len(frame)) + frame for frame in (b"abc", b"", b"x" * 300))
    return {
        **{f"by-{step}": bytes([step]) + some for step in (0, 1, 3, 255)},
        "half": b"\x02" + some[:-1],
        "large": b"\x02" + some + LENGTH.pack(MAX_MESSAGE + 1),
    }


SEEDS = _seeds()
