"""Builds ``devices.runtime.files._files``: two calls, their flags as the host has them."""

from cffi import FFI

ffi = FFI()
ffi.cdef("""
    #define FALLOC_FL_KEEP_SIZE ...
    #define FALLOC_FL_PUNCH_HOLE ...
    #define FALLOC_FL_ZERO_RANGE ...
    typedef int... off_t;
    int fallocate(int fd, int mode, off_t offset, off_t len);
    #define SOCK_CLOEXEC ...
    #define SOCK_NONBLOCK ...
    int accept4(int sockfd, void *addr, void *addrlen, int flags);
""")
ffi.set_source(
    "devices.runtime.files._files",
    "#include <fcntl.h>\n#include <sys/socket.h>",
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
