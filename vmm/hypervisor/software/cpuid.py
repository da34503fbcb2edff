"""What the software CPU says of itself: an old, simple core that does all that the engine can.

The engine (QEMU's translator, 5.0) has no AVX, and says what it has through its own CPUID, of
which the features are kept. The rest is chosen so that a stock kernel does what is right here:

- Model 0x1C of family 6, a core that executes in order: kernels know that it cannot speculate, and
  leave out what guards others against that (nothing here speculates on the guest's behalf).
- Leaf 0x15 tells the frequency of the TSC, which is the host's own counter, and of the local APIC's
  timer; so nothing has to be calibrated against the 8254, and the TSC is a stable clock.

Leaves and bits: Intel SDM, volume 2A, CPUID.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

TIMER_HZ = 25_000_000
"""Ticks a second of the local APIC's timer: the "core crystal clock" of leaf 0x15."""

Leaf = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

# EAX, the highest leaf; EBX, ECX, EDX: GenuineIntel.
_VENDOR: Leaf = (0x16, 0x756E_6547, 0x6C65_746E, 0x4965_6E69)
# Family 6, model 0x1C, stepping 10.
_SIGNATURE = 1 << 16 | 6 << 8 | 0xC << 4 | 10
_BRAND = b"Vibe-VMM software CPU".ljust(48, b"\0")

# Leaf 1, ECX and EDX.
_X2APIC, _TSC_DEADLINE, _HYPERVISOR, _MONITOR = 1 << 21, 1 << 24, 1 << 31, 1 << 3
_MCE, _APIC, _MTRR, _MCA, _HTT = 1 << 7, 1 << 9, 1 << 12, 1 << 14, 1 << 28
# Leaf 6, EAX: the APIC's timer runs in every sleep. Leaf 7, EBX: IA32_TSC_ADJUST is there.
_ARAT, _TSC_ADJUST = 1 << 2, 1 << 1
# Leaf 0x8000_0007, EDX: the TSC runs in every sleep, at one speed.
_INVARIANT_TSC = 1 << 8
# Leaf 0x15: the ratio of the TSC to the crystal, as a number of thousandths.
_THOUSAND = 1000


def answers(native: Mapping[int, Leaf], tsc_hz: Callable[[], int]) -> Callable[[int, int], Leaf]:
    """CPUID of leaf and subleaf, given what the engine would say and the TSC's frequency."""

    def answer(leaf: int, subleaf: int) -> Leaf:
        match leaf:
            case 0:
                return _VENDOR
            case 1:
                _, ebx, ecx, edx = native[leaf]
                ecx = ecx & ~(_X2APIC | _TSC_DEADLINE | _MONITOR) | _HYPERVISOR
                edx = edx & ~(_MCE | _MTRR | _MCA | _HTT) | _APIC
                # CLFLUSH of 64 bytes, one processor, APIC id 0.
                return _SIGNATURE, ebx & 0xFF00 | 1 << 16, ecx, edx
            case 6:
                return _ARAT, 0, 0, 0
            case 7 if subleaf == 0:
                _, ebx, _, _ = native[leaf]
                return 0, ebx | _TSC_ADJUST, 0, 0
            case 0x15:
                return _THOUSAND, tsc_hz() * _THOUSAND // TIMER_HZ, TIMER_HZ, 0
            case 0x4000_0000:
                return 0x4000_0000, *_words(b"Vibe-VMM soft")
            case 0x8000_0000:
                return 0x8000_0008, 0, 0, 0
            case 0x8000_0002 | 0x8000_0003 | 0x8000_0004:
                part = _BRAND[(leaf - 0x8000_0002) * 16 :]
                return int.from_bytes(part[:4], "little"), *_words(part[4:])
            case 0x8000_0001:
                return native[leaf]
            case 0x8000_0008:  # how wide addresses are
                return native[leaf][0], 0, 0, 0
            case 0x8000_0007:
                return 0, 0, 0, _INVARIANT_TSC
        return 0, 0, 0, 0

    return answer


def _words(text: bytes) -> tuple[int, int, int]:
    # As three registers have them, lowest byte first.
    first, second, third = (
        int.from_bytes(text[at : at + 4].ljust(4, b"\0"), "little") for at in (0, 4, 8)
    )
    return first, second, third
