"""Ring engine alone: chains popped and pushed in batches of 32, against copying 4 KiB a chain.

``python tests/perf/ring_bench.py`` prints the rates. Chains are block reads as Linux makes
them: 16 bytes of header, 4 KiB of data, 1 byte of status. Both loops are C, run in turn in one
process, and the median of the rounds counts; the same through Python stands beside them.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from cffi import FFI  # noqa: E402

from protocol.ring import Ring  # noqa: E402
from protocol.ring.build import declarations  # noqa: E402
from tests.support.driver import INDIRECT, NEXT, WRITE, Driver  # noqa: E402
from tests.support.ring_pair import attach, guest_memory  # noqa: E402

BATCH = 32
SIZE = 128
# A round is some milliseconds and there are enough of them for a steady median; both arbitrary.
ROUNDS = 15
BATCHES = 4000
PYTHON_BATCHES = 200

LOOPS = """
uint64_t bench_ring(struct ring *ring, uint16_t *avail_idx, uint32_t batches);
uint64_t bench_copy(uint8_t *to, const uint8_t *from, uint32_t batches);
"""

DATA = 0x10_0000
TABLES = 0x8_0000


def measure() -> dict[str, float]:
    """Chains per second of each loop, and the ratios of the engine to the copy."""
    rates: dict[str, list[float]] = {"direct": [], "indirect": [], "python": [], "copy": []}
    with TemporaryDirectory() as directory:
        ffi, lib = _compile(Path(directory))
        with guest_memory() as memory:
            queues = {
                "direct": queue(Driver(memory, SIZE, base=0x1000), indirect=False),
                "indirect": queue(Driver(memory, SIZE, base=0x2_0000), indirect=True),
            }
            for _ in range(ROUNDS):
                for name, driver in queues.items():
                    rates[name].append(_engine(ffi, lib, driver))
                rates["copy"].append(_copy(ffi, lib))
                with attach(queues["direct"]) as ring:
                    rates["python"].append(_python(queues["direct"], ring))
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "engine_chains_per_second": median["direct"],
        "engine_indirect_chains_per_second": median["indirect"],
        "python_chains_per_second": median["python"],
        "copy_4k_per_second": median["copy"],
        "ratio": median["direct"] / median["copy"],
        "ratio_indirect": median["indirect"] / median["copy"],
        "ratio_python": median["python"] / median["copy"],
    }


def _compile(directory: Path) -> tuple[Any, Any]:
    engine = ROOT / "protocol" / "ring"
    builder = FFI()
    builder.cdef(declarations() + LOOPS)
    builder.set_source(
        "_ring_bench",
        '#include "ring.h"' + LOOPS,
        sources=[
            str(engine / "ring.c"),
            str(engine / "journal.c"),
            str(Path(__file__).with_suffix(".c")),
        ],
        include_dirs=[str(engine)],
        extra_compile_args=["-std=gnu11", "-O2"],
    )
    path = builder.compile(tmpdir=str(directory))
    spec = importlib.util.spec_from_file_location("_ring_bench", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, module.lib


def queue(driver: Driver, *, indirect: bool) -> Driver:
    """Fill the avail ring of ``driver``, once for all: every batch uses the same 32 heads in the
    same order."""
    for slot in range(SIZE):
        chain = slot % BATCH
        data = DATA + 0x2000 * chain
        first, table = 3 * chain, -1
        if indirect:
            first, table = 0, TABLES + 48 * chain
            driver.write_descriptor(chain, table, 48, INDIRECT, 0)
        driver.write_descriptor(first, data, 16, NEXT, first + 1, table=table)
        driver.write_descriptor(
            first + 1, data + 0x1000, 4096, NEXT | WRITE, first + 2, table=table
        )
        driver.write_descriptor(first + 2, data + 16, 1, WRITE, 0, table=table)
        driver.write16(driver.avail + 4 + 2 * slot, chain if indirect else 3 * chain)
    return driver


def _engine(ffi: Any, lib: Any, driver: Driver) -> float:
    memory = driver.memory
    with ffi.from_buffer(memory.whole) as mapping:
        regions = [(r.gpa, r.size, mapping + r.offset) for r in memory.regions]
        config = (driver.desc, driver.avail, driver.used, SIZE, False, True)
        ring = lib.ring_new(
            ffi.new("struct ring_config *", config),
            ffi.new("struct ring_region[]", regions),
            len(regions),
            ffi.new("enum ring_error *"),
        )
        idx = mapping + memory.offset(driver.avail + 2, 2)
        elapsed = lib.bench_ring(ring, ffi.cast("uint16_t *", idx), BATCHES)
        lib.ring_free(ring)
    if not elapsed:
        raise RuntimeError("a batch was not whole")
    return float(BATCHES * BATCH / elapsed * 1e9)


def _copy(ffi: Any, lib: Any) -> float:
    to, source = ffi.new("uint8_t[]", BATCH * 4096), ffi.new("uint8_t[]", BATCH * 4096)
    return float(BATCHES * BATCH / lib.bench_copy(to, source, BATCHES) * 1e9)


def _python(driver: Driver, ring: Ring) -> float:
    start = time.perf_counter()
    for _ in range(PYTHON_BATCHES):
        driver.write16(driver.avail + 2, (driver.avail_idx + BATCH) & 0xFFFF)
        ring.push([(chain.head, chain.writable.size) for chain in ring.pop(BATCH)])
    return PYTHON_BATCHES * BATCH / (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
