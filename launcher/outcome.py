"""How a run ended: the exit status, and what the user is told."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.messages import Ended


@dataclass(frozen=True, slots=True)
class Outcome:
    """``status`` is the launcher's exit status, ``reason`` a word for --stats, ``message`` for
    the user (empty: nothing needs to be said), ``culprit`` the process whose log explains it."""

    status: int
    reason: str
    message: str = ""
    culprit: str = ""


# What messages.Ended says, to exit status and words before its detail. A guest that resets has
# done with this machine, as one that powers off: both are orderly ends.
_ENDS = {
    "power-off": (0, ""),
    "reset": (0, ""),
    "stopped": (0, ""),
    "panic": (1, "the guest panicked"),
    "died": (1, ""),
    "bad-input": (2, ""),
    "host-error": (3, ""),
}


def from_vmm(ended: Ended) -> Outcome:
    """The outcome that the VMM reports."""
    status, words = _ENDS.get(ended.reason, (3, f"the VMM ended with {ended.reason!r}: "))
    if status == 0:
        return Outcome(0, ended.reason)
    message = words if ended.reason == "panic" else words + ended.detail
    return Outcome(status, ended.reason, message, "vmm" if status == 3 else "")


def stopped(by: str) -> Outcome:
    """The user wanted it to end."""
    return Outcome(0, "stopped", f"stopped by {by}")


def timed_out(seconds: float) -> Outcome:
    """--timeout."""
    return Outcome(4, "timed-out", f"--timeout: stopped after {seconds:g} s")


def process_died(name: str, how: str) -> Outcome:
    """A process of ours ended though nobody wanted it to."""
    return Outcome(3, "vmm-died" if name == "vmm" else "device-died", f"{name} {how}", name)
