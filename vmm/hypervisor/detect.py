"""What this host has to run guests with, found out without loading a backend."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

KVM = "/dev/kvm"


def kvm_opens(path: str = KVM) -> bool:
    """Whether /dev/kvm is there and may be opened: tried, for a container can have the node, with
    permissions that say yes, and be refused."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def kvm_is_software(cpuinfo: str = "/proc/cpuinfo", modules: str = "/sys/module") -> bool:
    """Whether KVM here interprets kernel code: its module is kvm_pvm, or the processor has
    neither VMX nor SVM for another module to use."""
    if Path(modules, "kvm_pvm").is_dir():
        return True
    flags: set[str] = set()
    for line in Path(cpuinfo).read_text().splitlines():
        if line.startswith("flags"):
            flags.update(line.split(":", 1)[1].split())
            break
    return not flags & {"vmx", "svm"}


def has_engine() -> bool:
    """Whether the engine of the software backend is installed."""
    return find_spec("unicorn") is not None
