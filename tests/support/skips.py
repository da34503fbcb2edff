"""What a test does without, and is skipped for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from protocol.errors import HostError


@contextmanager
def unless_there_is_a_kernel() -> Iterator[None]:
    """Skipped if a kernel of Debian's, or what is made of it in there, cannot be had."""
    try:
        yield
    except HostError as error:
        pytest.skip(f"Debian's kernel cannot be had: {error}")
