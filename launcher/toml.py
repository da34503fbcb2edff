"""TOML files that a user wrote, or somebody else: of a bounded size, and read in a bounded time."""

from __future__ import annotations

import os
import stat
from typing import Any

from protocol.errors import BadInput

# Bytes of a file, and dots of a line (both arbitrary; what people write has a few hundred, and
# some). For a dotted key tomllib takes the square of its parts: of 20,000, ten seconds.
_MAX_FILE, _MAX_DOTS = 1 << 20, 100


def load(path: str) -> dict[str, Any]:
    """What is in the file ``path``; BadInput, naming it."""
    try:
        # Not held up by a FIFO without a writer.
        with open(path, "rb", opener=lambda at, how: os.open(at, how | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadInput(path, "this is not a regular file")
            found = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise BadInput(path, error.strerror or str(error)) from error
    except ValueError as error:  # a path with a null byte
        raise BadInput(path, str(error)) from error
    if len(found) > _MAX_FILE:
        raise BadInput(path, "a file of options has at most 1 MiB")
    for number, line in enumerate(found.splitlines(), 1):
        if line.count(b".") > _MAX_DOTS:
            raise BadInput(path, f"line {number} has more than {_MAX_DOTS} dots")
    return parse(found, path)


def parse(text: bytes, where: str) -> dict[str, Any]:
    """What ``text`` says; BadInput, naming ``where`` it is from."""
    import tomllib  # only who has a file pays for it

    try:
        return tomllib.loads(text.decode())
    except ValueError as error:  # also what is not UTF-8, and a number that is too long
        raise BadInput(where, str(error)) from error
    except RecursionError as error:
        raise BadInput(where, "nested too deeply") from error
