"""The one door to KVM's ioctls, except for KVM_RUN, which has its own in the vCPU's loop."""

from __future__ import annotations

import errno
import os
from typing import Any

from protocol.errors import HostError
from vmm.hypervisor.kvm._kvm import lib


def call(fd: int, name: str, argument: Any = 0) -> int:
    """ioctl ``name`` (of ``<linux/kvm.h>``) on a descriptor of ours; what it returned.

    ``argument`` is a number or a pointer into memory that cffi keeps alive during the call, so
    the kernel never sees a dangling one. HostError naming the ioctl when the kernel refuses.
    """
    invoke = lib.kvm_call_number if isinstance(argument, int) else lib.kvm_call
    while True:
        result: int = invoke(fd, getattr(lib, name), argument)
        if result >= 0:
            return result
        # Creating a VM sleeps interruptibly, and says so instead of starting again.
        if result != -errno.EINTR:
            raise HostError(f"{name}: {os.strerror(-result)}")
