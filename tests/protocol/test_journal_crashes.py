"""The engine crashed at each of its points, twice in a row; and engines with one step wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ring import Ring, faults
from protocol.ring.build import fault_declarations
from tests.support.crashes import (
    SCRIPTS,
    Device,
    Engine,
    Photograph,
    Script,
    Violation,
    explore,
    live,
    world,
)

ENGINE = Engine(faults.Ring, faults.set_hook)
SOURCES = Path(__file__).parents[2] / "protocol" / "ring"


@cache
def crashes(script: str) -> dict[str, int]:
    return explore(SCRIPTS[script], ENGINE)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("point", faults.POINTS)
def test_a_crash_loses_nothing_and_repeats_nothing_at(point: str, script: str) -> None:
    # A first device begins the journal and a second one recovers, so every point is behind some
    # store of one of the two.
    assert crashes(script)[point] > 0


steps = st.one_of(
    st.sampled_from(["offer", "collect", 1, 2]),
    st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True).map(tuple),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    script=st.builds(
        Script,
        size=st.sampled_from([2, 4]),
        requests=st.integers(1, 6),
        steps=st.lists(steps, max_size=10),
        batch=st.integers(1, 3),
        start=st.sampled_from([0, 1, 0xFFFD, 0xFFFF]),
        positions=st.booleans(),
    )
)
def test_a_crash_loses_nothing_and_repeats_nothing_whatever_went_before(script: Script) -> None:
    assert explore(script, ENGINE).total() > 0


@pytest.mark.parametrize("point", faults.POINTS)
def test_a_process_killed_there_leaves_what_the_photograph_shows(point: str) -> None:
    with world(SCRIPTS["out of order"]) as there:
        before = there.photograph("")
        photographs = live(there, ENGINE, first=True)
        if point.startswith("recover"):
            before = next(one for one in photographs if one.point == "push_used_idx")
            there.put_back(before)
            photographs = live(there, ENGINE)
        expected = next(one for one in photographs if one.point == point)
        there.put_back(before)

        child = os.fork()
        if not child:
            try:
                faults.set_hook(lambda at: at == point and os.kill(os.getpid(), signal.SIGKILL))
                device = Device(there, ENGINE)
                if not point.startswith("recover"):
                    device.play()
                device.serve()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)

        assert os.WIFSIGNALED(status)
        left: Photograph = there.photograph(point)
        assert (left.memory, left.journal) == (expected.memory, expected.journal)
        there.put_back(expected)  # the notes of the driver that lived in the child
        live(there, ENGINE)


# Engines with one step left out or moved: sources changed before they are compiled.

Edit = tuple[str, str, str]  # file, what stands there once, what is to stand there


def store(name: str) -> str:
    """The statement in the sources that makes the store ``name``."""
    return next(
        found[0]
        for file in ("ring.c", "journal.c")
        for found in re.finditer(r"STORE\((\w+),[^;]*;", (SOURCES / file).read_text())
        if found[1] == name
    )


def without(name: str) -> list[Edit]:
    if name == "push_element":
        element = "*elem = (struct virtq_used_elem){done[i].head, done[i].written};"
        return [("ring.c", element, "(void)elem;")]
    file = "ring.c" if name == "push_used_idx" else "journal.c"
    return [(file, store(name), f"REACHED({name});")]


def swapped(first: str, second: str) -> list[Edit]:
    one, other = store(first), store(second)
    return [
        ("journal.c", one, "@"),
        ("journal.c", other, one),
        ("journal.c", "@", other),
    ]


PREPARE = """    if (ring->journal.region)
        journal_prepare(&ring->journal, done, count, ring->used_idx, position);
"""
SETTLE = """    if (ring->journal.region)
        journal_settle(&ring->journal, done, count, ring->used_idx);
"""
PUBLISH = f"    {store('push_used_idx')}\n"
CLEAR = f"""    for (uint32_t i = 0; i < count; i++)
        {store("push_clear")}
"""
RECOVER = f"    {store('recover_used_idx')}\n"

# What these store is for a driver that lives. No successor reads it: whoever attaches arms it anew,
# and looks at the ring once it has. So leaving it out is nothing that a crash could show; that it
# is not left out, test_ring_notifications.py wants.
HARMLESS = {"kicks_enable", "kicks_disable"}

WRONG: dict[str, list[Edit]] = {
    **{f"without {name}": without(name) for name in faults.POINTS if name not in HARMLESS},
    "pop: flag before counter": swapped("pop_counter", "pop_inflight"),
    "begin: version first": swapped("begin_desc_num", "begin_version"),
    "push: used.idx before the elements": [
        ("ring.c", PUBLISH, ""),
        (
            "ring.c",
            "    uint16_t before = ring->used_idx;\n",
            "    uint16_t before = ring->used_idx;\n"
            "    STORE(push_used_idx, &ring->used->idx, (uint16_t)(before + count));\n",
        ),
    ],
    "push: used.idx before list and position": [
        ("ring.c", PUBLISH, ""),
        ("ring.c", PREPARE, PUBLISH + PREPARE),
    ],
    "push: used.idx after everything": [
        ("ring.c", PUBLISH, ""),
        ("ring.c", SETTLE, SETTLE + PUBLISH),
    ],
    "push: flags before used.idx": [
        ("journal.c", CLEAR, ""),
        (
            "journal.c",
            "    journal->current ^= 1;\n",
            CLEAR + "    journal->current ^= 1;\n",
        ),
    ],
    "push: the journal's used_idx before the flags": [
        ("journal.c", CLEAR, ""),
        (
            "journal.c",
            f"    {store('push_journal_idx')}\n",
            f"    {store('push_journal_idx')}\n" + CLEAR,
        ),
    ],
    "push: the slot that counts": [("journal.c", "journal->current ^= 1;", "")],
    "recover: used_idx before the flags": [
        ("journal.c", RECOVER, ""),
        ("journal.c", "    /* Finish what push", RECOVER + "    /* Finish what push"),
    ],
    "recover: in order of heads": [
        ("journal.c", "    qsort(leftovers, count, sizeof(*leftovers), by_counter);\n", "")
    ],
    "recover: counters from 0": [("journal.c", "leftovers[count - 1].counter + 1 : 0", "0 : 0")],
    "recover: nothing is resubmitted": [
        ("journal.c", "journal->leftover_count = count;", "journal->leftover_count = 0;")
    ],
    "recover: at avail.idx": [
        (
            "ring.c",
            "ring->in_flight = ring->journal.leftover_count;",
            "ring->in_flight = (uint16_t)(queue.avail_idx - queue.used_idx);",
        )
    ],
}


def built(edits: list[Edit], directory: Path) -> Engine:
    """The engine with its sources changed, compiled and loaded."""
    for file in SOURCES.glob("[!_]*.[ch]"):
        shutil.copy(file, directory)
    for file, old, new in edits:
        path = directory / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has not one {old!r}"
        path.write_text(text.replace(old, new))
    library = directory / "engine.so"
    sources = [directory / name for name in ("ring.c", "journal.c", "faults.c")]
    options = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-DRING_FAULT_POINTS"]
    subprocess.run(["cc", *options, *sources, "-o", library], check=True, timeout=60)
    ffi = FFI()
    ffi.cdef(fault_declarations())
    lib: Any = ffi.dlopen(str(library))

    class Changed(Ring):
        _ffi, _lib = ffi, lib

    kept: list[Any] = []

    def set_hook(hook: Callable[[str], object] | None) -> None:
        called = lambda _context, point: hook(faults.POINTS[point])  # noqa: E731
        kept[:] = [ffi.callback("ring_fault_hook", called) if hook else ffi.NULL]
        lib.ring_set_fault_hook(kept[0], ffi.NULL)

    return Engine(Changed, set_hook)


def explore_all(engine: Engine) -> None:
    for script in SCRIPTS.values():
        explore(script, engine)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("edits", WRONG.values(), ids=WRONG)
def test_an_engine_breaks_a_promise(edits: list[Edit], tmp_path: Path) -> None:
    engine = built(edits, tmp_path)

    with pytest.raises(Violation):
        explore_all(engine)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_same_engine_unchanged_breaks_none(tmp_path: Path) -> None:
    assert explore(SCRIPTS["batch"], built([], tmp_path)) == crashes("batch")
