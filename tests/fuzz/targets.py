"""What is fuzzed: the table, and how each kind of target is built and begun."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_SANITIZED = (
    *("-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer"),
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
)
_C_FOLDERS = ("tests/fuzz", "protocol/ring", "vmm/mediation", "devices/lanes")
_ENGINE = ("protocol/ring/ring.c", "protocol/ring/journal.c")


@dataclass(frozen=True)
class Native:
    """C ``sources``, with a harness in this folder among them; ``seeds`` is MODULE:NAME, and
    ``options`` are the compiler's."""

    sources: Sequence[str]
    seeds: str
    options: Sequence[str] = ()

    def command(self, name: str, into: Path) -> list[str]:
        """Build, with libFuzzer, ASan and UBSan, what is not built; how to begin it."""
        program = into / name
        parts = [path for folder in _C_FOLDERS for path in (ROOT / folder).glob("*.[ch]")]
        newest = max(path.stat().st_mtime for path in parts)
        if program.exists() and program.stat().st_mtime > newest:
            return [str(program)]
        build = [os.environ.get("CC", "clang"), *_SANITIZED, *self.options, "-Iprotocol/ring"]
        subprocess.run([*build, *self.sources, "-o", program], cwd=ROOT, check=True)
        return [str(program)]


@dataclass(frozen=True)
class Guided:
    """A ``function`` of a ``module`` here; beside our own packages, those in ``also`` are looked
    into, where they lead the way to ours."""

    module: str
    function: str = "run"
    seeds_name: str = "SEEDS"
    also: Sequence[str] = ()

    @property
    def seeds(self) -> str:
        """MODULE:NAME."""
        return f"{self.module}:{self.seeds_name}"

    def command(self, name: str, into: Path) -> list[str]:
        """How to begin it, under Atheris."""
        return [sys.executable, "-m", "tests.fuzz.guided", name]


TARGETS: dict[str, Native | Guided] = {
    "chain": Native(
        ("tests/fuzz/ring_fuzz.c", *_ENGINE), "tests.fuzz.ring_seeds:CHAIN", ["-DFUZZ_JOURNAL=0"]
    ),
    "journal": Native(
        ("tests/fuzz/ring_fuzz.c", *_ENGINE), "tests.fuzz.ring_seeds:JOURNAL", ["-DFUZZ_JOURNAL=1"]
    ),
    "mediation": Native(
        (
            "tests/fuzz/mediator_fuzz.c",
            "vmm/mediation/mediator.c",
            "vmm/mediation/arena.c",
            *_ENGINE,
        ),
        "tests.fuzz.mediator_seeds:MEDIATION",
    ),
    "lanes": Native(
        (
            "tests/fuzz/lanes_fuzz.c",
            *(f"devices/lanes/{part}.c" for part in ("lane", "net", "blk")),
            "devices/lanes/blk_requests.c",
            "devices/lanes/uring.c",
            *_ENGINE,
        ),
        "tests.fuzz.lanes_seeds:LANES",
        # Not position-independent: libFuzzer takes up what is compared, and addresses are, too.
        ["-no-pie", "-Wl,--wrap=ring_pop,--wrap=ring_push,--wrap=clock_gettime"],
    ),
    "frames": Guided("tests.fuzz.frames"),
    "codec": Guided("tests.fuzz.codec"),
    "vhost-user": Guided("tests.fuzz.vhost_user"),
    "blk": Guided("tests.fuzz.blk"),
    "console": Guided("tests.fuzz.console"),
    "bzimage": Guided("tests.fuzz.bzimage", also=["elftools"]),
    "elf": Guided("tests.fuzz.elf", also=["elftools"]),
    "config": Guided("tests.fuzz.options", "run_config", "CONFIG_SEEDS", also=["tomllib"]),
    "devices": Guided("tests.fuzz.options", "run_devices", "DEVICES_SEEDS"),
}
"""Targets by name."""


def write_seeds(target: Native | Guided, into: Path) -> None:
    """The first inputs, a file each, and nothing else."""
    module, _, name = target.seeds.partition(":")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for seed, data in getattr(importlib.import_module(module), name).items():
        (into / seed).write_bytes(data)
