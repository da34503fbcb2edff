"""Builds ``vmm.hypervisor.software._engine`` from engine.c and arm64.c; its declarations are
their headers'.

Unicorn itself is not needed to build: its functions are found in its library when a machine is
made, and what they look like is in ``unicorn.py``.
"""

from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent


def _declarations(name: str) -> str:
    header = (_HERE / name).read_text()
    return header.partition("/* cdef begin */")[2].partition("/* cdef end */")[0]


# Answered by Python; the GIL is taken for them. `engine` is the handle of a vCPU.
_CALLBACKS = """
    extern "Python" {
        uint32_t software_on_port_read(void *uc, uint32_t port, int size, void *vcpu);
        void software_on_port_write(void *uc, uint32_t port, int size, uint32_t value, void *vcpu);
        int software_on_cpuid(void *uc, void *vcpu);
        uint64_t software_on_read(void *vcpu, uint64_t gpa, unsigned size);
        void software_on_write(void *vcpu, uint64_t gpa, unsigned size, uint64_t value);
        bool software_on_bad_access(
            void *uc, int access, uint64_t gpa, int size, int64_t value, void *vcpu);
        bool software_arm64_ask(uint32_t what, uint32_t syndrome, void *vcpu);
    }
"""

ffi = FFI()
ffi.cdef(_declarations("engine.h") + _declarations("arm64.h") + _CALLBACKS)
ffi.set_source(
    "vmm.hypervisor.software._engine",
    '#include "arm64.h"',
    sources=[f"vmm/hypervisor/software/{name}.c" for name in ("engine", "arm64", "waker")],
    depends=[f"vmm/hypervisor/software/{name}.h" for name in ("engine", "arm64")],
    include_dirs=["vmm/hypervisor/software"],
    libraries=["pthread"],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
