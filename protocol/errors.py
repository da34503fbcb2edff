"""Errors that people and processes see, each with the exit status it leads to.

Exit statuses of ``vibevmm run``: 0 the guest powered off, 1 the guest died or
panicked, 2 bad input, 3 the host cannot, 4 timed out.
"""

from __future__ import annotations


class VibeError(Exception):
    """Base of every error that this program raises on purpose."""

    exit_status = 3


class BadInput(VibeError):
    """What the user asked for cannot be; names the option or field.

    ``BadInput("--mem", "0 is not a size")`` reads ``--mem: 0 is not a size``.
    """

    exit_status = 2

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class HostError(VibeError):
    """The host lacks or refuses something; the text says what to do about it."""


class GuestDied(VibeError):
    """The guest cannot go on: triple fault, emulation failure, failed entry, panic."""

    exit_status = 1


class ProtocolError(VibeError):
    """The other process said something that the protocol does not allow."""


class Unheard(ProtocolError):
    """The other process does not read what it is sent; or it dies, and its sockets are closed a
    moment before anybody can tell."""


class DeviceGone(VibeError):
    """The device process is dead, fenced, or did not answer before its deadline."""
