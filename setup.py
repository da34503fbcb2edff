"""Names the C extensions; everything else about the build is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=[
        "protocol/ring/build.py:ffi",
        "protocol/ring/build.py:faults",
        "vmm/hypervisor/kvm/build.py:ffi",
        "vmm/mediation/build.py:ffi",
        "vmm/hypervisor/software/build.py:ffi",
        "devices/runtime/files/build.py:ffi",
        "jail/build.py:ffi",
    ]
)
