"""Builds ``devices.runtime.files._files``: fallocate, its flags as the host has them."""

from cffi import FFI

ffi = FFI()
ffi.cdef("""
    #define FALLOC_FL_KEEP_SIZE ...
    #define FALLOC_FL_PUNCH_HOLE ...
    #define FALLOC_FL_ZERO_RANGE ...
    typedef int... off_t;
    int fallocate(int fd, int mode, off_t offset, off_t len);
""")
ffi.set_source(
    "devices.runtime.files._files",
    "#include <fcntl.h>",
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
