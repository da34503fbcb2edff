"""Boot protocols: from a file to segments in guest memory and a CPU's first state.

::

    plan(boot, kernel, initrd, hardware) -> BootPlan      looks, checks, writes nothing
    describe(plan) -> lines for --dry-run
    load(plan, memory)                                    copies
    plan.cpu.regs(), plan.cpu.set_up(sregs)               the boot CPU's first state
"""

from vmm.boot.hardware import Hardware, VirtioMmio
from vmm.boot.kernel import Kind
from vmm.boot.plan import BootPlan, describe, load, plan

__all__ = ["BootPlan", "Hardware", "Kind", "VirtioMmio", "describe", "load", "plan"]
