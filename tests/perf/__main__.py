"""``make bench``: every figure, with the kind of host it was measured on. Asserts nothing."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import import_module

# Name on the command line, module, what it says.
FIGURES = {
    "exits": ("tests.perf.exits", "exits to user space: the Python vCPU loop against C"),
    "kick": ("tests.perf.kick", "kick to interrupt: the null device against two eventfds in C"),
    "startup": ("tests.perf.startup", "from the command to the first guest instruction"),
    "recovery": ("tests.perf.recovery", "a disk killed and swapped under load, and QEMU's"),
    "isolation": ("tests.perf.isolation", "a disk at each level of isolation"),
    "lane": ("tests.perf.lane", "a disk served in C against one served in Python, and no virtio"),
    "net": ("tests.perf.net", "packets through a network interface and its tap, and a tap alone"),
    "testpmd": ("tests.perf.testpmd", "DPDK's testpmd on our interface, and on its own"),
    "vhost": ("tests.perf.vhost", "our disk against qemu-storage-daemon's, over vhost-user"),
    "memory": ("tests.perf.memory", "proportional set size, three devices, idle"),
    "ring": ("tests.perf.ring_bench", "the ring engine against a copy of 4 KiB a chain"),
    "software": ("tests.perf.software", "the software CPU, and Linux on it against QEMU's TCG"),
    "mediator": ("tests.perf.mediator_bench", "a ring behind a mediator against the ring alone"),
}
LAB = "in the lab, by `make lab CMD='python -m tests.perf.lab_boot'`: power-on to /init"


def main(names: list[str]) -> int:
    """Measure ``names``, or everything."""
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        print(f"no such figure: {unknown[0]}; there are {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    print(f"host: {_host()}")
    for name in names or FIGURES:
        module, title = FIGURES[name]
        measure: Callable[[], dict[str, object]] = import_module(module).measure
        print(f"\n{name}: {title}", flush=True)
        for key, value in measure().items():
            print(f"  {key}: {json.dumps(value, ensure_ascii=False)}", flush=True)
    print(f"\n{LAB}")
    return 0


def _host() -> str:
    kvm = "no KVM"
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        from vmm.hypervisor.kvm import Kvm

        with Kvm() as opened:
            kvm = "software KVM" if opened.capabilities.software else "hardware KVM"
    return f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, {kvm}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
