"""Builds ``devices.runtime.tap._tap``: the kernel's structures and numbers, as it has them."""

from pathlib import Path

from cffi import FFI

_HEADER = (Path(__file__).parent / "tap.h").read_text()

ffi = FFI()
ffi.cdef(_HEADER.partition("/* cdef begin */")[2].partition("/* cdef end */")[0])
ffi.set_source(
    "devices.runtime.tap._tap",
    '#include "tap.h"\n#include <sys/ioctl.h>\n#include <linux/if_tun.h>',
    sources=["devices/runtime/tap/tap.c"],
    depends=["devices/runtime/tap/tap.h"],
    include_dirs=["devices/runtime/tap"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
