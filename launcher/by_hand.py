"""``vibevmm device run``: this process becomes a device of a machine that runs.

::

    control interface:  Enlist ──► may it?, the options that the device has now
    door (a socket):    Volunteer ──► DeviceSpec and descriptors ──► Device.open, here ──► serve

It has a terminal, the user's rights and no seal, so that it can be debugged; what it is asked it
may answer late (vmm.remote.BY_HAND_DEADLINE).
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from devices import kinds
from devices.runtime import entry
from devices.runtime.device import AnyDevice
from devices.runtime.loop import Loop
from devices.runtime.seal import Seal
from launcher import client, device_options, model, verbs, vhost_user
from launcher.logs import harmless
from launcher.model import Place
from launcher.wishes import AskingHost
from protocol import codec, fds, log
from protocol import control as wire
from protocol.errors import BadInput, HostError, VibeError
from protocol.specs import DeviceSpec, Notice, Volunteer

_COMMAND = verbs.DEVICE_RUN.name
_MAX_PACKET = 64 * 1024


def run(implementation: str | None, given: Mapping[str, str]) -> int:
    """Be ``implementation``, with the options ``given`` to ``vibevmm device run``. Does not return
    once there is a device; VibeError for what is wrong before."""
    if implementation is None:
        raise BadInput(_COMMAND, f"which device? {verbs.DEVICE_RUN.usage}")
    if implementation in kinds.EXTERNAL:
        raise BadInput(_COMMAND, f"{implementation} is another program's device: name it to a run")
    if vhost_user.OPTION in given:
        if others := given.keys() & {"--attach", "--hold", "--jail"}:
            raise BadInput(vhost_user.OPTION, f"goes without {min(others)}: there is no machine")
        path, settings = given[vhost_user.OPTION], given[verbs.SETTINGS]
        return vhost_user.run(_COMMAND, implementation, path, settings)
    if "--attach" not in given:
        raise BadInput(
            "--attach",
            "which device of which machine is it to be? VM/DEV; or a socket: --vhost-user PATH",
        )
    kind, device = kinds.whole(implementation), kinds.find(implementation, _COMMAND)
    name, part = client.find_part("--attach", given["--attach"], "device")
    with client.Client(name) as machine:
        enlisted = machine.ask(wire.Enlist(part, int(device.device_id)))
    asked = device_options.parse_settings(_COMMAND, given[verbs.SETTINGS])
    config = device_options.changed(
        device_options.Request(_COMMAND, kind, asked), device.config_type, enlisted.settings
    )
    place = Place(part, int(device.device_id), enlisted.queues, enlisted.settings)
    if why := place.why_too_small(device.virtqueues(config)):
        raise BadInput(_COMMAND, why)
    is_sealed = "--jail" in given
    if not is_sealed:
        _say(f"{name}/{part} runs with your rights and no seal: --jail for one")
    volunteer = Volunteer(part, kind, "--hold" in given)
    hand = _ByHand(f"{name}/{part}", device, config, is_sealed=is_sealed)
    # The interpreter's own end is not all allowed behind the seal, and would wait for libzmq.
    os._exit(hand.serve(enlisted.path, volunteer))


class _ByHand:
    def __init__(self, name: str, device: type[AnyDevice], config: Any, *, is_sealed: bool) -> None:
        self._name = name
        self._device = device
        self._config = config
        self._is_sealed = is_sealed
        self._launcher = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._end: Notice | None = None

    def serve(self, path: str, volunteer: Volunteer) -> int:
        """Until somebody ends it; the exit status."""
        try:
            self._serve(path, volunteer)
        except KeyboardInterrupt:
            return 130  # as a shell has it
        except VibeError as error:
            _say(str(error))
            return error.exit_status
        except Exception as error:
            if not self._is_sealed:
                # The collector must not take apart what a debugger lets go of: CPython 3.11 clears
                # memoryviews that a ring still has, and crashes.
                gc.freeze()
                raise  # with its places in the source, and into the debugger
            entry.report(type(error), error, error.__traceback__)
            return 1
        if self._end is not None:
            _say(f"{self._name}: {self._end.why}")
            return self._end.status
        _say(f"{self._name}: another has its place, or the machine has ended")
        return 0

    def _serve(self, path: str, volunteer: Volunteer) -> None:
        if self._is_sealed:
            # What a shell has let slip to us would not be sealed away.
            own = self._launcher.fileno()
            fds.close_all(fd for fd in fds.open_descriptors() if fd > 2 and fd != own)
        try:
            self._launcher.connect(path)
            greeting = self._launcher.recv(_MAX_PACKET)
            if greeting:
                self._launcher.send(codec.pack(codec.to_plain(volunteer)))
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from error
        handover = fds.receive(self._launcher) if greeting else None
        if handover is None:
            raise HostError(f"{self._name} was not given to this process; see the machine's log")
        if not handover.fds:
            raise HostError(f"{self._name}: {_notice(handover.payload).why}")
        spec = codec.from_plain(DeviceSpec, codec.unpack(handover.payload))
        log.set_up(spec.log)
        try:
            opened = model.opened(self._device, self._config, AskingHost(self._launcher))
        except BadInput as error:
            raise BadInput(f"{_COMMAND}: {error.where}", error.why) from error
        seal = None
        if self._is_sealed:
            seal = Seal(None)
            seal.enter([spec.endpoint], None, urings=self._device.makes_urings(self._config))
        member = entry.Member(spec, self._device, {**handover.fds, **opened}, self._config)
        entry.serve(
            [member],
            seal,
            also=(self._launcher.fileno(), self._told),
        )

    def _told(self, loop: Loop) -> None:
        packet = self._launcher.recv(_MAX_PACKET)  # recvmsg is forbidden behind the seal
        if not packet:
            self._end = Notice(False, "the machine is gone", HostError.exit_status)
            loop.stop()
            return
        notice = _notice(fds.payload(packet))
        if notice.serves:
            _say(f"{self._name}: process {os.getpid()} serves; Ctrl-C ends it")
        else:
            self._end = notice
            loop.stop()


def _notice(payload: bytes) -> Notice:
    return codec.from_plain(Notice, codec.unpack(payload))


def _say(text: str) -> None:
    print(f"vibevmm: {harmless(text)}", file=sys.stderr, flush=True)
