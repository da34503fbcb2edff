"""What is to take a running device's place: found, configured and compared, before it starts."""

from __future__ import annotations

from dataclasses import replace

from devices import kinds
from launcher import device_options
from launcher.plan import PlannedDevice
from protocol.control import Swap
from protocol.errors import BadInput


def planned(request: Swap, before: PlannedDevice) -> PlannedDevice:
    """What ``request`` wants in the place of ``before``, not opened yet; BadInput if it is no
    device, or none that the guest's driver could go on with."""
    option = f"swap of {before.name}"
    kind = request.implementation or before.kind
    after = kinds.find_again(kind, "--impl")
    if kind not in kinds.KINDS:
        kind = f"{after.__module__}:{after.__qualname__}"
    why = why_another(before, int(after.device_id), tuple(queue.size for queue in after.queues))
    if why is not None:
        raise BadInput("--impl", f"{kind}: {why}")
    asked = device_options.parse("--device", f"{kind},{request.settings}")
    kept = device_options.settings(before.config)
    config = device_options.changed(replace(asked, option=option), after.config_type, kept)
    return replace(before, kind=kind, option=option, device=after, config=config, fds={})


def why_another(before: PlannedDevice, device_id: int, queues: tuple[int, ...]) -> str | None:
    """Why a device of type ``device_id`` with ``queues`` (their sizes) is none that could take the
    place of ``before``; None if it could. The guest has seen what the machine was built for, and
    the journal is laid out by it."""
    if device_id != before.device.device_id:
        return f"a device of type {device_id}, not {int(before.device.device_id)}"
    ours = before.queues
    if len(ours) != len(queues):
        return f"it has {len(queues)} queues, and {before.name} has {len(ours)}"
    for index, (size, other) in enumerate(zip(ours, queues, strict=True)):
        if other > size:
            return f"queue {index} has {other} entries, and there is room for {size}"
    return None
