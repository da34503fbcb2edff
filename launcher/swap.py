"""What is to take a running device's place: found, configured and compared, before it starts."""

from __future__ import annotations

from dataclasses import replace

from devices import kinds
from devices.runtime.device import AnyDevice
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
    if why := _why_another(before, after):
        raise BadInput("--impl", f"{kind}: {why}")
    asked = device_options.parse("--device", f"{kind},{request.settings}")
    config = device_options.changed(replace(asked, option=option), after.config_type, before.config)
    return replace(before, kind=kind, option=option, device=after, config=config, fds={})


def _why_another(before: PlannedDevice, after: type[AnyDevice]) -> str | None:
    # What the machine was built for: the guest has seen it, and the journal is laid out by it.
    if after.device_id != before.device.device_id:
        return f"a device of type {int(after.device_id)}, not {int(before.device.device_id)}"
    ours, theirs = before.queues, tuple(queue.size for queue in after.queues)
    if len(ours) != len(theirs):
        return f"it has {len(theirs)} queues, and {before.name} has {len(ours)}"
    for index, (size, other) in enumerate(zip(ours, theirs, strict=True)):
        if other > size:
            return f"queue {index} has {other} entries, and there is room for {size}"
    return None
