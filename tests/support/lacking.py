"""``python -m tests.support.lacking PART… -- COMMAND…``: COMMAND on a host that lacks parts of the
jail, because the kernel says so: by a system call filter, which all its children inherit."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Sequence

# <linux/sched.h>
_FLAGS = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "mount": 0x00020000,
}
# <seccomp.h>
_ALLOW, _ERRNO, _MASKED_EQ = 0x7FFF0000, 0x00050000, 7


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def lack(parts: Sequence[str]) -> None:
    """From now on this process, and whoever it starts, goes without ``parts``."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    filter_ = ctypes.c_void_p(seccomp.seccomp_init(_ALLOW))
    for part in parts:
        if part == "landlock":
            call = seccomp.seccomp_syscall_resolve_name(b"landlock_create_ruleset")
            done = seccomp.seccomp_rule_add(filter_, _ERRNO | errno.EOPNOTSUPP, call, 0)
        else:
            flag = _FLAGS[part]
            call = seccomp.seccomp_syscall_resolve_name(b"unshare")
            when = _Comparison(0, _MASKED_EQ, flag, flag)
            done = seccomp.seccomp_rule_add_array(
                filter_, _ERRNO | errno.EPERM, call, 1, ctypes.byref(when)
            )
        assert done == 0, part
    assert seccomp.seccomp_load(filter_) == 0


if __name__ == "__main__":
    split = sys.argv.index("--")
    lack(sys.argv[1:split])
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])
