"""What is to take a running device's place: looked at, opened, and given to the supervisor::

    look: does it fit the place? ──► open what it names ──► supervisor.swap

Each of the two may be done by somebody else's code, and takes as long as that takes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from devices import kinds
from launcher import device_options, scout
from launcher.device_options import Request
from launcher.host import Host
from launcher.model import Model
from launcher.plan import Plan, PlannedDevice
from launcher.scout import Found, Opened, Scouts
from launcher.supervisor import Done, Served, Supervisor
from protocol import control as wire
from protocol.errors import BadInput, HostError, VibeError


class Swaps:
    """Of the devices of ``plan``, by ``scouts``."""

    def __init__(self, plan: Plan, scouts: Scouts) -> None:
        self._plan = plan
        self._scouts = scouts
        # Devices for which something is looked at, or opened: what is locked then is that of one
        # successor.
        self._busy: set[str] = set()

    def begin(self, supervisor: Supervisor, request: wire.Swap, done: Done) -> None:
        """Do what ``request`` says, and tell ``done`` how that went; VibeError."""
        name = request.device
        why = supervisor.why_busy(name)
        if why is not None or name in self._busy:
            raise HostError(why or "another successor is on its way")
        before, option = supervisor.device(name), f"swap of {name}"
        if (why := supervisor.why_bound(name)) is not None:
            raise BadInput(option, why)
        kind = request.implementation or before.kind
        asked = Request(option, kind, device_options.parse_settings(option, request.settings))
        self._busy.add(name)
        self._scouts.send(
            scout.looking(asked, "--impl", before.place(self._plan.backend)),
            partial(self._looked, supervisor, before, asked, done),
        )

    def _looked(
        self,
        supervisor: Supervisor,
        before: PlannedDevice,
        asked: Request,
        done: Done,
        found: Found[Model] | VibeError,
    ) -> None:
        if isinstance(found, VibeError):
            self._busy.remove(before.name)
            done(found)
            return
        model, _ = found
        kind = asked.kind if asked.kind in kinds.table() else model.implementation
        after = replace(before, kind=kind, option=asked.option, model=model, fds={})
        host = Host(after.name, self._plan.streams, self._plan.locks)
        self._scouts.send(
            scout.opening(kind, model.config, after.option, host, waits=model.connects),
            partial(self._opened, supervisor, before, after, done),
        )

    def _opened(
        self,
        supervisor: Supervisor,
        before: PlannedDevice,
        after: PlannedDevice,
        done: Done,
        found: Found[Opened] | VibeError,
    ) -> None:
        self._busy.remove(before.name)
        if isinstance(found, VibeError):
            self._keep(before, after)
            done(found)
            return
        after.fds.update(found[1])
        try:
            self._plan.locks.name(after.name, after.option)
        except BadInput as error:
            self._keep(before, after)
            done(error)
            return

        def told(served: Served | VibeError) -> None:
            if isinstance(served, VibeError):
                self._keep(before, after)
            else:
                self._keep(after, before)
            done(served)

        supervisor.swap(before.name, after, told)

    def _keep(self, kept: PlannedDevice, other: PlannedDevice) -> None:
        other.close()
        self._plan.locks.keep_only(kept.name, list(kept.fds.values()))
