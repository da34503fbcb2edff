"""``vibevmm doctor``: what this host can do for us, what it cannot, and what to do about that.

Nothing is changed and no root is needed; what only root could find out is said to be unknown.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from devices.lanes import why_no_uring
from launcher.backend import AUTO, INSTALL, choose
from protocol import jail
from protocol.errors import BadInput, VibeError
from protocol.jail import cgroup, probe
from protocol.specs import PARTS
from vmm.boot.architecture import X86_64
from vmm.hypervisor import detect

OK, LIMITED, MISSING = "ok", "limited", "missing"

_CLONE_NEWUSER = 0x1000_0000
_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing: ``verdict`` is ok, limited or missing; ``advice`` is empty when it is ok."""

    name: str
    verdict: str
    found: str
    advice: str = ""


_HELP = """\
usage: vibevmm doctor [--json]

What this host can do, what it cannot, and what to do about that.

Options:
  --json                      for programs: name, verdict (ok, limited, missing), found, advice"""


def text(argv: Sequence[str]) -> str:
    """All findings, with ``--json`` for programs; with ``--help``, what there is to ask."""
    if "--help" in argv or "-h" in argv:
        return _HELP
    for word in argv:
        if word != "--json":
            raise BadInput(word, "vibevmm doctor takes --json or nothing")
    findings = [check() for check in CHECKS]
    if argv:
        return json.dumps([asdict(finding) for finding in findings], indent=2)
    return as_text(findings)


def as_text(findings: Sequence[Finding]) -> str:
    """One line a finding, and one more for what to do."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<8} {finding.name:<16} {finding.found}")
        if finding.advice:
            lines.append(f"{'':<25} -> {finding.advice}")
    return "\n".join(lines)


def check_host() -> Finding:
    """Kernel, processor and Python."""
    found = (
        f"Linux {platform.release()} on {platform.machine()}, Python {platform.python_version()}"
    )
    if platform.machine() != "x86_64":
        return Finding("host", LIMITED, found, "guests run on x86-64 hosts so far")
    return Finding("host", OK, found)


def check_kvm() -> Finding:
    """/dev/kvm: whether it opens, whether hardware is behind it, and what it offers."""
    try:
        from vmm.hypervisor.kvm import Kvm

        kvm = Kvm()
    except BadInput as error:
        return Finding("KVM", MISSING, f"{error.where}: no permission", error.why)
    except (VibeError, ImportError) as error:
        return Finding("KVM", MISSING, str(error), "build with `make`, or use `make lab`")
    offers = kvm.capabilities
    kvm.close()
    parts = ("irqchip", "ioeventfd", "irqfd", "read_only_slots", "immediate_exit")
    lacking = [part for part in parts if not getattr(offers, part)]
    kind = "software" if offers.software else "hardware"
    found = f"{kind}, API 12, up to {offers.max_cpus} CPUs"
    if lacking:
        return Finding(
            "KVM", LIMITED, f"{found}, without {', '.join(lacking)}", "a newer kernel has them"
        )
    if offers.software:
        advice = "small guests run on it, and kernels on the software CPU"
        return Finding("KVM", LIMITED, found, advice)
    return Finding("KVM", OK, found)


def check_software() -> Finding:
    """The software CPU: whether its engine is installed, and what `--hypervisor auto` takes."""
    taken = choose(AUTO, kernel=True, architecture=X86_64, cpus=1)
    found = f"for a kernel, auto takes {taken}"
    if not detect.has_engine():
        return Finding("software CPU", LIMITED, found, f"for guests on any host: {INSTALL}")
    return Finding("software CPU", OK, f"Unicorn, 1 CPU; {found}")


def check_vfio() -> Finding:
    """Whether devices of the host could be assigned to a guest."""
    groups = _count("/sys/kernel/iommu_groups")
    if not os.path.exists("/dev/vfio/vfio"):
        return Finding("VFIO", MISSING, "no /dev/vfio/vfio", "load the module: modprobe vfio-pci")
    if not groups:
        return Finding(
            "VFIO",
            MISSING,
            "no IOMMU groups",
            "switch the IOMMU on in the firmware, and boot with intel_iommu=on or amd_iommu=on",
        )
    if not os.access("/dev/vfio/vfio", os.R_OK | os.W_OK):
        return Finding("VFIO", LIMITED, f"{groups} IOMMU groups", "no permission on /dev/vfio/vfio")
    return Finding("VFIO", OK, f"{groups} IOMMU groups")


def check_tun() -> Finding:
    """Tap interfaces, for network devices."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Finding("tun", LIMITED, "no permission on /dev/net/tun", "as root: chmod 0666 it")
    except OSError as error:
        return Finding(
            "tun", MISSING, f"/dev/net/tun: {error.strerror}", "load the module: modprobe tun"
        )
    return Finding("tun", OK, "/dev/net/tun opens")


def check_seccomp() -> Finding:
    """System call filters, which every device process is sealed with."""
    actions = _read("/proc/sys/kernel/seccomp/actions_avail").split()
    wanted = {"kill_process", "trap", "errno", "allow"}
    if not actions:
        return Finding(
            "seccomp",
            MISSING,
            "not in this kernel",
            "devices do not start without CONFIG_SECCOMP_FILTER",
        )
    if missing := wanted - set(actions):
        return Finding(
            "seccomp", LIMITED, f"without {', '.join(sorted(missing))}", "Linux 4.14 has all"
        )
    return Finding("seccomp", OK, ", ".join(actions))


def check_io_uring() -> Finding:
    """What a disk's engine=io_uring takes: tried, and closed again."""
    with open(os.devnull, "rb") as file:
        why = why_no_uring(file.fileno())
    if not why:
        return Finding("io_uring", OK, "can be made, and restricted")
    advice = (
        "disks have engine=sync; Linux 5.10 has it, sysctl kernel.io_uring_disabled=0 allows it"
    )
    return Finding("io_uring", LIMITED, why, advice)


def check_jail() -> Finding:
    """What device processes are held by, tried as whoever asks."""
    lacks = probe.lacks()
    if not lacks:
        return Finding("jail", OK, f"whole: {', '.join(PARTS)}")
    found = "without " + ", ".join(f"{part} ({why})" for part, why in lacks.items())
    return Finding(
        "jail", LIMITED, found, "devices run all the same; isolation=jail+strict would not"
    )


def check_cgroup() -> Finding:
    """Whether a machine's devices would get cgroups: tried, and taken back."""
    why = cgroup.why_not()
    if not why:
        return Finding("cgroup", OK, f"version 2: {', '.join(cgroup.CONTROLLERS)}")
    return Finding(
        "cgroup",
        LIMITED,
        why,
        "systemd-run --user --scope -p Delegate=yes vibevmm …, or be root; with controllers of "
        "version 1, boot with systemd.unified_cgroup_hierarchy=1",
    )


def check_landlock() -> Finding:
    """The ABI version of Landlock (kernel documentation: userspace-api/landlock)."""
    try:
        return Finding("Landlock", OK, f"ABI {jail.landlock_version()}")
    except OSError as error:
        why = error.strerror or ""
    advice = "Linux 5.13 has it; boot with lsm=landlock,… where it is built in but off"
    return Finding("Landlock", MISSING, why, advice)


def check_user_namespaces() -> Finding:
    """Whether an ordinary user may make user namespaces: tried, in a child."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        os._exit(0 if libc.unshare(_CLONE_NEWUSER) == 0 else ctypes.get_errno() & 0xFF)
    _, status = os.waitpid(child, 0)
    failure = os.waitstatus_to_exitcode(status)
    if failure == 0:
        return Finding("user namespaces", OK, "can be made")
    advice = "sysctl user.max_user_namespaces above 0"
    for knob in (
        "kernel.unprivileged_userns_clone=1",
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ):
        path, _, good = knob.partition("=")
        value = _read(f"/proc/sys/{path.replace('.', '/')}")
        if value and value != good:
            advice = f"sysctl -w {knob}"
    return Finding("user namespaces", MISSING, os.strerror(failure), advice)


def check_descriptors() -> Finding:
    """A machine with 15 devices needs about 400; more is a matter of asking, up to the hard limit
    (launcher.plan)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 512:
        return Finding("open files", LIMITED, f"{soft}, at most {hard}", "ulimit -n 1024")
    return Finding("open files", OK, f"{soft}, at most {hard}")


def check_locked_memory() -> Finding:
    """VFIO locks all of a guest's memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", OK, "unlimited")
    advice = "enough without VFIO; for that, ulimit -l above the guest's memory"
    return Finding("locked memory", LIMITED, f"{soft >> 10} KiB", advice)


def check_memory() -> Finding:
    """What guests can have."""
    sizes = dict(line.split(":") for line in _read("/proc/meminfo").splitlines())
    total, free = (int(sizes[key].split()[0]) >> 10 for key in ("MemTotal", "MemAvailable"))
    found = f"{free} MiB of {total} MiB available"
    if free < 256:
        return Finding("memory", LIMITED, found, "give guests little: --mem 64M")
    return Finding("memory", OK, found)


def check_cpus() -> Finding:
    """Processors that we may use."""
    count = len(os.sched_getaffinity(0))
    if count == 1:
        advice = "guest and devices take turns; figures will be low"
        return Finding("CPUs", LIMITED, "1", advice)
    return Finding("CPUs", OK, str(count))


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_host,
    check_kvm,
    check_software,
    check_vfio,
    check_tun,
    check_seccomp,
    check_io_uring,
    check_jail,
    check_cgroup,
    check_landlock,
    check_user_namespaces,
    check_descriptors,
    check_locked_memory,
    check_memory,
    check_cpus,
)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _count(path: str) -> int:
    try:
        return len(os.listdir(path))
    except OSError:
        return 0
