"""Which hypervisor backend a machine gets, and why: ``--hypervisor``."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Literal

from protocol.errors import BadInput, HostError
from protocol.specs import Architecture
from vmm.hypervisor import detect

Name = Literal["kvm", "software"]

KVM: Name = "kvm"
SOFTWARE: Name = "software"
AUTO = "auto"
BACKENDS = (AUTO, KVM, SOFTWARE)

INSTALL = "pip install 'vibe-vmm[software]'"
_NO_ENGINE = f"the software CPU needs the Unicorn engine: {INSTALL}"


@dataclass(frozen=True, slots=True)
class Backend:
    """``name`` is kvm or software; ``why`` a reason that can follow it in a sentence.

    ``is_fallback``: the software CPU would be right for the guest, and its engine is not there.
    """

    name: Name
    why: str
    is_fallback: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def choose(wanted: str, *, architecture: Architecture, kernel: bool, cpus: int) -> Backend:
    """The backend for a guest of ``architecture``, which is a ``kernel`` or a raw binary, and has
    ``cpus``.

    BadInput for KVM where it cannot run the guest, and for more CPUs than the backend has;
    HostError if the one that is wanted is not there.
    """
    if why := _why_not_kvm(architecture):
        if wanted == KVM:
            raise BadInput("--hypervisor", f"kvm, but {why}; software can run it")
        found = Backend(SOFTWARE, why if wanted == AUTO else "as asked for")
    elif wanted == AUTO:
        found = _auto(kernel)
    else:
        found = Backend(SOFTWARE if wanted == SOFTWARE else KVM, "as asked for")
    if found.name == SOFTWARE:
        if not detect.has_engine():
            raise HostError(_NO_ENGINE)
        if cpus > 1:
            because = "" if wanted == SOFTWARE else f" (taken because {found.why})"
            raise BadInput("--cpus", f"{cpus}: the software CPU{because} is one CPU")
    return found


def _why_not_kvm(architecture: Architecture) -> str:
    # KVM runs guests of the host's own architecture; ours knows x86-64 only.
    host = platform.machine()
    if architecture == host == "x86_64":
        return ""
    if architecture == "x86_64":
        return f"the guest is x86-64, and this host {host}"
    return f"the guest is {architecture}, and KVM runs x86-64 guests here"


def _auto(kernel: bool) -> Backend:
    if not detect.kvm_opens():
        # Without either, what is said is what is wrong with KVM: that is the better of the two.
        if not detect.has_engine():
            return Backend(KVM, f"nothing else is here; {_NO_ENGINE}", is_fallback=True)
        return Backend(SOFTWARE, f"{detect.KVM} does not open here")
    if not detect.kvm_is_software():
        return Backend(KVM, f"{detect.KVM} is hardware")
    if not kernel:
        return Backend(KVM, f"{detect.KVM} is software KVM, enough for a raw binary")
    why = f"{detect.KVM} is software KVM, on which kernels do not boot"
    if detect.has_engine():
        return Backend(SOFTWARE, why)
    return Backend(KVM, f"{why}; {_NO_ENGINE}", is_fallback=True)
