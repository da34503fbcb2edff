"""A ring behind a mediator against the ring alone: chains per second, in batches of 32.

The chains are those of ``ring_bench``. Both loops are C in one thread, so that what is measured
is the work and not the waking of somebody; they run in turn, and the median of the rounds
counts. The same through Python stands beside them: a batch, and one chain at a time.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cffi import FFI

from protocol.ring import Ring
from tests.perf.ring_bench import BATCH, BATCHES, PYTHON_BATCHES, ROUNDS, SIZE, queue
from tests.support.driver import Driver
from tests.support.mediated import attach, memories, shadow_ring
from vmm.mediation import Mediator, NativeHook, lay_out
from vmm.mediation.build import declarations

ROOT = Path(__file__).resolve().parents[2]

LOOPS = """
void bench_hook(void *context, uint64_t gpa, uint64_t length);
uint64_t bench_ring(struct ring *ring, uint16_t *avail_idx, uint32_t batches);
uint64_t bench_mediated(struct mediator *mediator, struct ring *device, uint16_t *avail_idx,
                        uint32_t batches);
"""

# For 32 indirect chains of three segments at once.
SHADOW_SIZE = 128


def measure() -> dict[str, object]:
    """Millions of chains per second of each loop, and what a mediator adds to a chain."""
    rates: dict[str, list[float]] = {}
    with TemporaryDirectory() as directory:
        ffi, lib = _compile(Path(directory))
        for _ in range(ROUNDS):
            for kind in ("direct", "indirect"):
                for loop in ("alone", "mediated"):
                    rate = _native(ffi, lib, mediated=loop == "mediated", kind=kind)
                    rates.setdefault(f"{loop} {kind}", []).append(rate)
            for count in (BATCH, 1):
                rates.setdefault(f"python {count}", []).append(_python(ffi, lib, count))
    median = {name: statistics.median(values) for name, values in rates.items()}
    added = {
        kind: 1e9 / median[f"mediated {kind}"] - 1e9 / median[f"alone {kind}"]
        for kind in ("direct", "indirect")
    }
    return {
        "ring alone, million chains/s": _millions(median["alone direct"]),
        "mediated, million chains/s": _millions(median["mediated direct"]),
        "ratio": round(median["mediated direct"] / median["alone direct"], 2),
        "ring alone, indirect, million chains/s": _millions(median["alone indirect"]),
        "mediated, indirect, million chains/s": _millions(median["mediated indirect"]),
        "ratio, indirect": round(median["mediated indirect"] / median["alone indirect"], 2),
        "added to a chain, ns": {kind: round(value) for kind, value in added.items()},
        "kick and complete from Python, 32 chains a batch, µs a chain": round(
            1e6 / median[f"python {BATCH}"], 2
        ),
        "one chain a batch, µs a chain": round(1e6 / median["python 1"], 2),
    }


def _millions(rate: float) -> float:
    return round(rate / 1e6, 2)


def _compile(directory: Path) -> tuple[Any, Any]:
    engine, mediation, here = ROOT / "protocol/ring", ROOT / "vmm/mediation", Path(__file__).parent
    sources = (
        engine / "ring.c",
        engine / "journal.c",
        mediation / "mediator.c",
        mediation / "arena.c",
        mediation / "pump.c",
        here / "ring_bench.c",
        here / "mediator_bench.c",
    )
    builder = FFI()
    builder.cdef(declarations() + LOOPS)
    builder.set_source(
        "_mediator_bench",
        '#include "pump.h"' + LOOPS,
        sources=[str(source) for source in sources],
        include_dirs=[str(engine), str(mediation)],
        extra_compile_args=["-std=gnu11", "-O2"],
    )
    path = builder.compile(tmpdir=str(directory))
    spec = importlib.util.spec_from_file_location("_mediator_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, module.lib


def _native(ffi: Any, lib: Any, *, mediated: bool, kind: str) -> float:
    with memories() as (guest, shadow_memory, device_memory):
        driver = queue(Driver(guest, SIZE), indirect=kind == "indirect")
        shadow = lay_out(shadow_memory.gpa, SHADOW_SIZE)
        with (
            ffi.from_buffer(guest.whole) as mapping,
            ffi.from_buffer(shadow_memory.view) as window,
            ffi.from_buffer(device_memory.whole) as device_mapping,
        ):
            config = (driver.desc, driver.avail, driver.used, SIZE, False, True)
            regions = [(r.gpa, r.size, mapping + r.offset) for r in guest.regions]
            idx = ffi.cast("uint16_t *", mapping + guest.offset(driver.avail + 2, 2))
            if not mediated:
                ring = _ring(ffi, lib, config, regions)
                elapsed = lib.bench_ring(ring, idx, BATCHES)
                lib.ring_free(ring)
                return _rate(elapsed)
            shadow_config = (shadow.desc, shadow.avail, shadow.used, shadow.size, False, False)
            told = ffi.new("uint64_t *")
            hook = ffi.addressof(lib, "bench_hook")
            memory = (shadow_memory.gpa, len(shadow_memory.view), window)
            mediator = lib.mediator_new(
                ffi.new(
                    "struct mediator_config *", (config, shadow_config, memory, 0, 0, hook, told)
                ),
                ffi.new("struct ring_region[]", regions),
                len(regions),
                ffi.new("struct mediator_outcome *"),
            )
            regions = [(r.gpa, r.size, device_mapping + r.offset) for r in device_memory.regions]
            ring = _ring(ffi, lib, shadow_config, regions)
            elapsed = lib.bench_mediated(mediator, ring, idx, BATCHES)
            lib.mediator_free(mediator)
            lib.ring_free(ring)
            return _rate(elapsed)


def _ring(ffi: Any, lib: Any, config: tuple[Any, ...], regions: list[tuple[Any, ...]]) -> Any:
    return lib.ring_new(
        ffi.new("struct ring_config *", config),
        ffi.new("struct ring_region[]", regions),
        len(regions),
        ffi.new("enum ring_error *"),
    )


def _rate(elapsed: int) -> float:
    if not elapsed:
        raise RuntimeError("a batch was not whole")
    return BATCHES * BATCH / elapsed * 1e9


def _python(ffi: Any, lib: Any, count: int) -> float:
    # The mediator's two calls alone: the device's part is not the VMM's time.
    told = ffi.new("uint64_t *")
    hook = NativeHook(
        int(ffi.cast("uintptr_t", ffi.addressof(lib, "bench_hook"))),
        int(ffi.cast("uintptr_t", told)),
    )
    with memories() as (guest, shadow_memory, device_memory):
        driver = queue(Driver(guest, SIZE), indirect=False)
        shadow = lay_out(shadow_memory.gpa, SHADOW_SIZE)
        with (
            attach(driver, shadow, shadow_memory, hook) as mediator,
            shadow_ring(device_memory, shadow) as device,
        ):
            turns = PYTHON_BATCHES * BATCH // count
            return turns * count / sum(_turn(driver, mediator, device, count) for _ in range(turns))


def _turn(driver: Driver, mediator: Mediator, device: Ring, count: int) -> float:
    driver.write16(driver.avail + 2, (driver.avail_idx + count) & 0xFFFF)
    start = time.perf_counter()
    mediator.kick()
    between = time.perf_counter()
    device.push([(chain.head, chain.writable.size) for chain in device.pop(count)])
    resumed = time.perf_counter()
    mediator.complete()
    return between - start + time.perf_counter() - resumed
