"""Names the C extensions, and builds the guest that belongs to the package; everything else about
the build is in pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

GUESTS = Path(__file__).parent / "tests" / "kernels" / "build.sh"


class BuildWithGuest(build_py):
    """What `vibevmm experiment` loads devices with is compiled as the extensions are."""

    def run(self) -> None:
        """Build it, then copy it with the rest."""
        if GUESTS.exists():
            subprocess.run([GUESTS], check=True)
        super().run()


setup(
    cmdclass={"build_py": BuildWithGuest},
    cffi_modules=[
        "protocol/ring/build.py:ffi",
        "protocol/ring/build.py:faults",
        "vmm/hypervisor/kvm/build.py:ffi",
        "vmm/mediation/build.py:ffi",
        "vmm/hypervisor/software/build.py:ffi",
        "devices/runtime/files/build.py:ffi",
        "devices/runtime/tap/build.py:ffi",
        "devices/lanes/build.py:ffi",
        "devices/lanes/build.py:faults",
        "protocol/jail/build.py:ffi",
        "protocol/mapping/build.py:ffi",
    ],
)
