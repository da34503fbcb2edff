"""Booting an arm64 machine: the Image, its device tree, raw binaries, and a CPU's first state."""

from vmm.boot.arm64.plan import Arm64Plan, describe, plan
from vmm.boot.placing import load

__all__ = ["Arm64Plan", "describe", "load", "plan"]
