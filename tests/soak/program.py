"""The program that loads a disk inside of Linux (io.c), built."""

from __future__ import annotations

from pathlib import Path

from tests.support.packages import CACHE, output

_SOURCE = Path(__file__).with_name("io.c")


def program() -> Path:
    """Its file, linked statically; HostError if it cannot be built."""
    built = CACHE / "io"
    if not built.exists() or built.stat().st_mtime < _SOURCE.stat().st_mtime:
        CACHE.mkdir(exist_ok=True)
        half_done = built.with_suffix(".new")
        output(["gcc", "-O2", "-static", "-Wall", "-Werror", "-o", str(half_done), str(_SOURCE)])
        half_done.rename(built)
    return built
