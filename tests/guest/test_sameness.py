"""Every guest is the same on every backend: what it prints, how often and for what it leaves for
the VMM, and what its devices see. Where backends differ, a table says by how much, and why.

Doorbells, InterruptACK, HLT, and whatever an interrupt controller or its timer is asked are exits
on no backend, and so in no table.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from protocol.virtio import Mmio
from tests.support.bare import require_kvm
from tests.support.guest import KERNELS, build
from tests.support.guests import GUESTS, KVM, PROCESSOR, SOFTWARE
from tests.support.vibevmm import vibevmm
from vmm.hypervisor.detect import kvm_is_software as is_software
from vmm.memory_map import VIRTIO_SLOT_SIZE, VIRTIO_WINDOW

# What software KVM makes of guests.
SOFTWARE_LACKS = {
    "traps": "software KVM cannot emulate INT3 and INT n",
    "rings": "software KVM does not come back from a bare guest's ring 3",
}

# The lab's processor is QEMU's translator, KVM or not. Of these it makes, in a few lines, what no
# processor does: an error code of vector * 16 + 2, #GP for #SS, a reserved bit that is none.
TRANSLATOR_DIFFERS = ("faults", "traps", "rings")

# Lines in which Unicorn's processor is not one of silicon (each checked: it has to be so).
UNICORN_DIFFERS = {
    "faults": {
        "the same by the stack's segment: vector 12 error 0 ring 0 stack same": (
            "the same by the stack's segment: vector 13 error 0 ring 0 stack same"
        ),
    },
    # It lets programs use ports, of which the backend makes that nothing happens.
    "rings": {"out: vector 13 error 0 ring 3 stack rsp0\n  at +0": "out: nothing"},
    # It keeps CR8 for itself; the local APIC does not see it.
    "apic": {"without, from 2: 21": "without, from 0: 2"},
}

Place = tuple[str, int, str]
"""Kind and address of an exit, and who answered."""

A_LETTER: Place = ("port write", 0x3F8, "serial")

# Exits that KVM has more of than the software CPU, beside letters of UNICORN_DIFFERS.
KVM_HAS_MORE: dict[str, dict[Place, int]] = {
    # REP INSB of 64 into a page that ends after 16. KVM reads ahead what it cannot store.
    "strings": {("port read", 0x3FF, "serial"): 64 - 16},
}

# Exits of guests that ask until something has happened: as many as there is time for.
POLLS: dict[str, Place] = {"serial_echo": ("port read", 0x3FD, "serial")}

# Those that drive a virtio device.
WITH_DEVICES = (
    *("broken_ring", "demo_looking", "demo_interrupts", "config"),
    *("virtio_echo", "execute", "stream"),
)

# Of a queue's counters: a kick that comes while the device looks at the queue is none of its own.
DEPENDS_ON_TIME = ("kicks",)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run."""

    status: int
    printed: str
    errors: str
    exits: Counter[Place]
    devices: dict[str, dict[str, int]]


@cache
def run_of(name: str, backend: str, isolation: str = "jail") -> Run:
    """The guest ``name`` on ``backend``, its devices held so; run once for all tests."""
    guest = GUESTS[name]
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats.json"
        done = vibevmm(
            *guest.options(Path(folder)),
            *("--hypervisor", backend, "--isolation", isolation, "--stats", str(stats)),
            typed=guest.typed,
        )
        found = json.loads(stats.read_text())
    rows = found["exits"]
    return Run(
        done.returncode,
        done.stdout,
        done.stderr,
        Counter({(row["kind"], row["address"], row["device"]): row["count"] for row in rows}),
        {device["name"]: device["counters"] for device in found["devices"]},
    )


def require(name: str, backend: str) -> None:
    """Skip the test, with the reason, where that guest does not run, or not as on silicon."""
    build()
    if backend == KVM:
        require_kvm()
        if name in SOFTWARE_LACKS and is_software():
            pytest.skip(SOFTWARE_LACKS[name])
        if name in TRANSLATOR_DIFFERS and is_translator():
            pytest.skip("this host's processor is QEMU's translator, which differs from silicon")
    else:
        pytest.importorskip("unicorn", reason="the Unicorn engine is not installed")
    if name.startswith("arm64") and not (KERNELS / f"{name}.raw").exists():
        pytest.skip(f"{name}.raw is not built: that needs clang, lld and llvm")


def on_both(name: str) -> tuple[Run, Run]:
    """The guest ``name`` on KVM and on the software CPU; skips where one of them cannot be."""
    require(name, KVM)
    require(name, SOFTWARE)
    if is_translator():
        pytest.skip("this host's processor is QEMU's translator, in which another takes too long")
    return run_of(name, KVM), run_of(name, SOFTWARE)


def is_translator() -> bool:
    """Whether this is the lab."""
    return "TCG" in Path("/proc/cpuinfo").read_text()


def marks(name: str, *backends: str) -> list[pytest.MarkDecorator]:
    # Whole machines: `make test-fast` has others of them.
    slow = [pytest.mark.slow] * (GUESTS[name].is_slow or KVM not in backends)
    return slow + [pytest.mark.kvm] * (KVM in backends)


ON_EACH = [
    pytest.param(name, backend, marks=marks(name, backend))
    for name, guest in GUESTS.items()
    for backend in guest.backends
]
ON_BOTH = [
    pytest.param(name, marks=marks(name, *guest.backends))
    for name, guest in GUESTS.items()
    if guest.backends == (KVM, SOFTWARE)
]


def test_every_guest_is_listed(tmp_path: Path) -> None:
    build()
    listed = {part for guest in GUESTS.values() for part in guest.options(tmp_path)}
    # The demo guest is told what to do before it is an image; the others are of test_reboot.py,
    # test_by_hand.py and tests/soak.
    others = {"x86_64_demo", "x86_64_ask", "x86_64_soak", "arm64_reboot"}
    images = {str(path) for path in KERNELS.glob("*.raw") if path.stem not in others}
    assert images <= listed
    assert {path.stem for path in (KERNELS / "cpu").glob("*.txt")} == set(PROCESSOR)


@pytest.mark.parametrize(("name", "backend"), ON_EACH)
def test_guest_prints_what_it_should(name: str, backend: str) -> None:
    require(name, backend)
    guest = GUESTS[name]
    wanted = guest.prints
    if backend == SOFTWARE:
        for silicon, unicorn in UNICORN_DIFFERS.get(name, {}).items():
            assert silicon in wanted
            wanted = wanted.replace(silicon, unicorn)

    run = run_of(name, backend)

    assert run.status == guest.status, run.errors
    assert guest.without_console(run.printed) == guest.without_console(wanted)
    if guest.exits:
        assert run.exits == Counter(guest.exits)
    for (device, counter), count in guest.counters.items():
        assert run.devices[device][counter] == count, (device, counter)


@pytest.mark.parametrize("name", ON_BOTH)
def test_guest_exits_as_often_and_for_the_same(name: str) -> None:
    on_kvm, on_software = on_both(name)
    kvm, software, devices = on_kvm.exits, on_software.exits, set(on_kvm.devices)

    # What a driver reads of its device is memory on KVM, and an exit where none is read-only.
    reads = {place for place in kvm | software if place[0] == "mmio read" and place[2] in devices}
    assert not reads & set(kvm)
    assert bool(reads) == bool(devices)
    left_out = reads | {POLLS.get(name)}
    expected = software + Counter(KVM_HAS_MORE.get(name, {}))
    for silicon, unicorn in UNICORN_DIFFERS.get(name, {}).items():
        expected[A_LETTER] += len(silicon) - len(unicorn)
    assert but_for(left_out, kvm) == but_for(left_out, expected)
    registers = {
        (address - VIRTIO_WINDOW) % VIRTIO_SLOT_SIZE for _, address, who in kvm if who in devices
    }
    assert not registers & {Mmio.QUEUE_NOTIFY, Mmio.INTERRUPT_ACK}


def but_for(left_out: set[Place | None], exits: Counter[Place]) -> dict[Place, int]:
    """The rest of ``exits``."""
    return {place: count for place, count in exits.items() if place not in left_out}


@pytest.mark.parametrize("name", ON_BOTH)
def test_devices_see_the_same(name: str) -> None:
    on_kvm, on_software = on_both(name)
    kvm, software = on_kvm.devices, on_software.devices

    assert set(kvm) == set(software)
    for device in kvm:
        left_out = set(DEPENDS_ON_TIME)
        if not GUESTS[name].sleeps:
            # A driver that looks wants no interrupts, and the device asks its ring for that. A
            # mediator wants all of them, and it is the mediator that asks the driver's ring.
            left_out.add("interrupts")
            for key in kvm[device]:
                if key.endswith(".interrupts"):
                    queue = key.removesuffix("interrupts")
                    assert kvm[device][key] == 0
                    assert software[device][key] == software[device][f"{queue}batches"]
        assert without(kvm[device], left_out) == without(software[device], left_out)


@pytest.mark.parametrize(
    ("name", "backend"),
    [one for one in ON_EACH if one.values[0] in WITH_DEVICES],
)
def test_guest_and_devices_see_the_same_where_a_device_works_on_copies(
    name: str, backend: str
) -> None:
    require(name, backend)
    originals, copies = run_of(name, backend), run_of(name, backend, "bounce")

    assert copies.status == originals.status
    guest = GUESTS[name]
    assert guest.without_console(copies.printed) == guest.without_console(originals.printed)
    # An interrupt handler that finds two answers at once has read InterruptStatus once.
    reads = {place for place in originals.exits + copies.exits if place[0] == "mmio read"}
    left_out = reads | {POLLS.get(name)}
    assert but_for(left_out, copies.exits) == but_for(left_out, originals.exits)
    for device, counters in originals.devices.items():
        # As above: who looks wants none.
        ignored = set(DEPENDS_ON_TIME) | (set() if GUESTS[name].sleeps else {"interrupts"})
        assert without(copies.devices[device], ignored) == without(counters, ignored)


def without(counters: dict[str, int], left_out: set[str]) -> dict[str, int]:
    """But for those of queues that are left out."""
    return {key: count for key, count in counters.items() if key.rpartition(".")[2] not in left_out}
