"""The software backend: a processor made of the Unicorn engine, on any host.

Of the machine everything but the processor and its interrupt controllers is what it is under KVM:
the same buses, transports and boot protocols. An engine is one processor; two would not see each
other's atomic accesses.
"""

from vmm.hypervisor.software.system import Software

__all__ = ["Software"]
