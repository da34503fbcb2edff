"""The command line of the control interface: ``vibevmm ps``, ``pause``, ``attach`` and the others.

One table, which the command line, the help and shell completion read.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from devices import kinds
from launcher import device_options, rundir
from launcher.options import Option, help_text, suggestion
from protocol.errors import BadInput, HostError

_OPTIONS = "Options"
_JSON = Option("--json", None, "print JSON, for programs", _OPTIONS)
_FORCE = Option("--force", None, "stop it at once, without asking the guest", _OPTIONS)
_TIMEOUT = Option(
    "--timeout", "SECONDS", "how long the guest may take to power off; default: 30", _OPTIONS
)
_IMPL = Option(
    "--impl", "MODULE[:CLASS]", "a kind of device, or a module with a class of your own", _OPTIONS
)
_FAULT = "FAULT"
_UP_OR_DOWN = "up|down"
_INJECT_OPTIONS = (
    Option("--at", "POINT", "where it strikes; default: the first of its points", _OPTIONS),
    Option("--after", "N", "let that point be passed N times first", _OPTIONS),
    Option("--every", "N", "strike again, at each N-th pass from there", _OPTIONS),
    Option("--for", "SECONDS", "be over after so long; without --every: each pass", _OPTIONS),
    Option(
        "--seed", "N", "what decides what is left to chance; default: drawn, and said", _OPTIONS
    ),
    Option("--list", None, "print all faults and points; needs no machine", _OPTIONS),
    _JSON,
)
_ATTACH_TO = Option("--attach", "VM/DEV", "which device of which machine it is to be", _OPTIONS)
_VHOST_USER = Option(
    "--vhost-user",
    "PATH",
    "or serve it at a socket that is made there, to QEMU and others that speak vhost-user, jailed",
    _OPTIONS,
    completes="files",
)
_HOLD = Option(
    "--hold",
    None,
    "when it has ended, let the guest wait until somebody else is told to serve",
    _OPTIONS,
)
_JAIL = Option("--jail", None, "seal it, as the machine seals its own devices", _OPTIONS)
_EXPERIMENT_OPTIONS = (
    Option("--out", "DIR", "where everything goes; default: results", _OPTIONS, completes="files"),
    Option("--resume", None, "go on with what is there, from where it was ended", _OPTIONS),
    Option("--seed", "N", "what decides the order; default: drawn, and said", _OPTIONS),
    Option(
        "--plot", "DIR", "make tables and plots of what is there again", _OPTIONS, completes="files"
    ),
    Option("--default", None, "print the file that is taken if none is named", _OPTIONS),
)
_ATTACK_OPTIONS = (
    Option(
        "--level", "LEVEL,…", "how devices are held; default: each of none, jail, bounce", _OPTIONS
    ),
    Option("--hypervisor", "BACKEND", "auto (default), kvm or software", _OPTIONS),
    Option("--list", None, "print all attacks, and what should come of them", _OPTIONS),
    _JSON,
)
_FOLLOW = Option("--follow", None, "go on with what happens, until the machine ends", _OPTIONS)

# Seconds that `ps` waits for one machine (arbitrary), and `stop` for a machine that has ended to be
# gone: longer than its launcher waits for a VMM that does not answer.
_PS_DEADLINE, _GONE_DEADLINE = 2.0, 45.0
_STOP_TIMEOUT = 30.0

# Options of inject that are numbers.
_COUNTS = ("--after", "--every", "--seed")

Arguments = Mapping[str, str]

SETTINGS = "key=value"
"""The name under which a verb that takes settings gets them, as a device string has them."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A command. ``target`` is what it is about, in the usage (in brackets: may be left out), and
    ``word`` what may stand behind that; ``run`` gets the target, or None, and the word and the
    options that were given, by name, and returns the exit status. Where it ``takes_names``, the
    target is all of them, with commas between."""

    name: str
    target: str
    help: str
    options: tuple[Option, ...]
    word: str = field(default="", kw_only=True)
    takes_settings: bool = field(default=False, kw_only=True)
    takes_names: bool = field(default=False, kw_only=True)
    run: Callable[[str | None, Arguments], int]

    @property
    def usage(self) -> str:
        """One line of how it is called."""
        words = "".join(
            f" [{option.name}{f' {option.value}' if option.value else ''}]"
            for option in self.options
        )
        settings = f" [{SETTINGS} …]" if self.takes_settings else ""
        word = f" [{self.word}]" if self.word else ""
        return f"vibevmm {self.name} {self.target}{word}{words}{settings}"


def run(word: str, argv: Sequence[str]) -> int:
    """Run verb ``word`` with its arguments; the exit status."""
    return run_verb(VERBS[word], argv)


def run_verb(verb: Verb, argv: Sequence[str]) -> int:
    """The same of ``verb``."""
    if "--help" in argv or "-h" in argv:
        return _print(f"usage: {verb.usage}\n\n{verb.help}\n\n{help_text(verb.options)}")
    return verb.run(*_parse(verb, argv))


def _parse(verb: Verb, argv: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    known = {option.name: option for option in verb.options}
    target, given, rest = None, {}, list(argv)
    settings: list[str] = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if target is not None and verb.takes_settings and "=" in word:
                settings.append(device_options.quoted(word))
                continue
            if target is not None and verb.takes_names:
                target = f"{target},{word}"
                continue
            if target is not None and verb.word and verb.word not in given:
                given[verb.word] = word
                continue
            if target is not None:
                raise BadInput(repr(word), f"one target is enough: {verb.usage}")
            target = word
            continue
        name, equals, value = word.partition("=")
        if (option := known.get(name)) is None:
            raise BadInput(name, f"no such option{suggestion(name, known)}")
        if option.value is None and equals:
            raise BadInput(name, "takes no value")
        if option.value is not None and not equals:
            if not rest:
                raise BadInput(name, f"needs a value: {option.value}")
            value = rest.pop(0)
        given[name] = value
    if verb.takes_settings:
        given[SETTINGS] = ",".join(settings)
    return target, given


# ── ps ────────────────────────────────────────────────────────────────────────────────────


def _ps(target: str | None, given: Arguments) -> int:
    from launcher import client
    from protocol import control as wire

    names = rundir.running() if target is None else [client.find("ps", target)]
    found: list[dict[str, Any]] = []
    for name in names:
        try:
            with client.Client(name, _PS_DEADLINE) as machine:
                told = machine.ask(wire.Describe(), _PS_DEADLINE)
        except client.Gone:
            continue
        except client.Silent:
            found.append({"name": name, "state": "no answer", "processes": []})
            continue
        plain = asdict(told)
        plain["uptime_ms"] = plain.pop("uptime") / 1e6
        for process in plain["processes"]:
            process["uptime_ms"] = process.pop("uptime") / 1e6
            process |= _memory(process["pid"]) if process["state"] != "dead" else {}
        found.append(plain)
    if "--json" in given:
        return _print(json.dumps(found, indent=2))
    if not found:
        return _print("no machine runs")
    from launcher import tables

    tables.machines(found)
    return 0


def _memory(pid: int) -> dict[str, int]:
    # Bytes, as far as the kernel tells us: a device that has dropped its privileges may not be
    # looked at by everybody who may kill it.
    found = {}
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            found["rss"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            pss = next(line for line in file if line.startswith("Pss:"))
        found["pss"] = int(pss.split()[1]) * 1024
    return found


# ── what a machine is asked for ───────────────────────────────────────────────────────────


def _stats(target: str | None, given: Arguments) -> int:
    from launcher import client, stats
    from protocol import control as wire

    with client.Client(client.find("stats", target)) as machine:
        measured = machine.ask(wire.Measure())
    if "--json" in given:
        return _print(json.dumps({"vm": machine.name, **stats.as_plain(measured)}, indent=2))
    return _print(stats.as_text(measured))


def _pause(target: str | None, given: Arguments) -> int:
    from protocol import control as wire

    return _hold("pause", wire.Pause(), "paused", target, given)


def _resume(target: str | None, given: Arguments) -> int:
    from protocol import control as wire

    return _hold("resume", wire.Resume(), "running", target, given)


def _hold(verb: str, request: object, state: str, target: str | None, given: Arguments) -> int:
    from launcher import client

    with client.Client(client.find(verb, target)) as machine:
        machine.ask(request)
    return _say(given, f"{machine.name} is {state}", vm=machine.name, state=state)


def _stop(target: str | None, given: Arguments) -> int:
    from launcher import client
    from protocol import control as wire

    timeout = _seconds(given["--timeout"], "--timeout") if "--timeout" in given else _STOP_TIMEOUT
    request = wire.Shutdown("--force" in given, int(timeout * 1e9))
    reason, forced = "gone", ""
    with client.Client(client.find("stop", target)) as machine:
        with contextlib.suppress(client.Gone):  # that was the aim
            stopped = machine.ask(request, None)
            reason, forced = stopped.reason, stopped.forced
        if not machine.wait_gone(_GONE_DEADLINE):
            raise HostError(f"{machine.name} has ended ({reason}) and is not gone yet")
    how = f", by force: {forced}" if forced and "--force" not in given else ""
    return _say(
        given,
        f"{machine.name} has ended: {reason}{how}",
        vm=machine.name,
        ended=reason,
        forced=forced,
    )


def _seconds(text: str, option: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) <= 1e9:
            return seconds
    raise BadInput(option, f"{text!r} is no number of seconds")


def _kill(target: str | None, given: Arguments) -> int:
    from launcher import client
    from protocol import control as wire

    name, device = client.find_part("kill", target, "device")
    with client.Client(name) as machine:
        killed = machine.ask(wire.Kill(device))
    text = f"{name}/{device}: killed process {killed.pid}"
    if killed.others:
        text += f", and with it {', '.join(killed.others)}"
    values = {"vm": name, "device": device, "pid": killed.pid, "others": killed.others}
    return _say(given, text, **values)


def _restart(target: str | None, given: Arguments) -> int:
    from launcher import client
    from protocol import control as wire

    name, device = client.find_part("restart", target, "device")
    with client.Client(name) as machine:
        served = machine.ask(wire.Restart(device))
    return _say_serving(given, name, device, served)


def _swap(target: str | None, given: Arguments) -> int:
    from launcher import client
    from protocol import control as wire

    name, device = client.find_part("swap", target, "device")
    if not given.get("--impl") and not given[SETTINGS]:
        raise BadInput("swap", "to what? Give --impl, or options of the device as key=value")
    with client.Client(name) as machine:
        impl = kinds.whole(given.get("--impl", ""))
        served = machine.ask(wire.Swap(device, impl, given[SETTINGS]))
    return _say_serving(given, name, device, served)


def _say_serving(given: Arguments, name: str, device: str, served: Any) -> int:
    took = served.took / 1e6
    text = f"{name}/{device}: process {served.pid} serves, after {took:.1f} ms"
    return _say(
        given,
        text,
        vm=name,
        device=device,
        pid=served.pid,
        generation=served.generation,
        took_ms=took,
    )


# ── inject ────────────────────────────────────────────────────────────────────────────────


def _inject(target: str | None, given: Arguments) -> int:
    if "--list" in given:
        return _list_faults(given)
    from launcher import client

    name, device = client.find_part("inject", target, "device")
    request = _injection(device, given)
    with client.Client(name) as machine:
        found = machine.ask(request).faults
    plain = [_armed_as_plain(fault) for fault in found]
    text = "\n".join(f"{name}/{device}: {_armed_as_text(fault)}" for fault in plain)
    text = text or f"{name}/{device}: nothing is armed"
    return _say(given, text, vm=name, device=device, faults=plain)


def _injection(device: str, given: Arguments) -> Any:
    from protocol import control as wire
    from protocol import faults

    fault, _, seconds = given.get(_FAULT, "").partition("=")
    needless = [name for name in given if name not in (_FAULT, "--json")]
    if needless and fault in ("", faults.NONE):
        raise BadInput(needless[0], "goes with a fault")
    if seconds and fault != faults.DELAY:
        raise BadInput(repr(given[_FAULT]), f"only {faults.DELAY} takes a value")
    delay = _seconds(seconds, faults.DELAY) * 1e9 if seconds else faults.DEFAULT_DELAY
    if fault and fault != faults.NONE:
        faults.check(fault, given.get("--at", ""))
    counts = {name: device_options.number(name, given.get(name, "0")) for name in _COUNTS}
    lasts = int(_seconds(given.get("--for", "0"), "--for") * 1e9)
    for name, value in (("--every", counts["--every"]), ("--for", lasts)):
        if name in given and not value:
            raise BadInput(name, "0 is never; leave it out for once")
    return wire.Inject(
        device,
        fault,
        given.get("--at", ""),
        counts["--after"],
        counts["--every"],
        lasts,
        counts["--seed"] if "--seed" in given else None,
        int(delay),
    )


def _list_faults(given: Arguments) -> int:
    from protocol import faults

    if "--json" in given:
        kinds = {name: asdict(kind) for name, kind in faults.FAULTS.items()}
        return _print(json.dumps({"faults": kinds, "points": faults.POINTS}, indent=2))
    lines = ["faults:"]
    for name, kind in faults.FAULTS.items():
        everywhere = len(kind.points) == len(faults.POINTS)
        where = f"any point, usually {kind.points[0]}" if everywhere else ", ".join(kind.points)
        lines.append(f"  {name:<20}{kind.help} (at {where})")
    lines += ["", "points:", *(f"  {name:<20}{text}" for name, text in faults.POINTS.items())]
    return _print("\n".join(lines))


def _armed_as_plain(fault: Any) -> dict[str, Any]:
    plain = asdict(fault)
    left = plain.pop("left")
    plain["delay"] /= 1e9
    return plain if left is None else {**plain, "left": left / 1e9}


def _armed_as_text(fault: Mapping[str, Any]) -> str:
    words = f"{fault['fault']} at {fault['point']}"
    words += f", after {fault['after']}" if fault["after"] else ""
    words += f", every {fault['every']}" if fault["every"] else ", once"
    words += f", for {fault['left']:.1f} s more" if "left" in fault else ""
    return f"{words}, seed {fault['seed']}: passed {fault['passes']}, struck {fault['strikes']}"


def _link(target: str | None, given: Arguments) -> int:
    from launcher import client
    from protocol import control as wire

    name, device = client.find_part("link", target, "device")
    state = given.get(_UP_OR_DOWN)
    if state not in ("up", "down"):
        raise BadInput("link", f"up or down? {VERBS['link'].usage}")
    with client.Client(name) as machine:
        machine.ask(wire.SetLink(device, state == "up"))
    return _say(given, f"{name}/{device}: the link is {state}", vm=name, device=device, link=state)


# ── consoles and events ───────────────────────────────────────────────────────────────────


def _attach(target: str | None, given: Arguments) -> int:
    from launcher import attach, client
    from protocol import control as wire

    name, stream = client.find_part("attach", target, "stream")
    with client.Client(name) as machine:
        path = machine.ask(wire.Attach(stream)).path
    if "--json" in given:
        return _say(given, "", vm=name, stream=stream, socket=path)
    if os.isatty(0):
        print(f"vibevmm: {name}/{stream}; Ctrl-A d detaches, Ctrl-A h helps", file=sys.stderr)
    return attach.attach(path)


def _events(target: str | None, given: Arguments) -> int:
    from launcher import client

    with client.Client(client.find("events", target)) as machine:
        for event in machine.events("--follow" in given):
            _print(json.dumps({"vm": machine.name, **event_as_plain(event)}))
    return 0


def event_as_plain(event: Any) -> dict[str, Any]:
    """An Event or Lost of protocol.control as what JSON knows: ``time``, the seconds
    of CLOCK_MONOTONIC, ``took_ms`` and ``steps_ms``. What does not apply is left out."""
    from protocol import control as wire

    if isinstance(event, wire.Lost):
        return {"event": "lost", "count": event.count}
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(event.wall // 10**9))
    plain: dict[str, Any] = {
        "number": event.number,
        "event": event.kind,
        "time": f"{clock}.{event.wall // 1000 % 10**6:06}Z",
        "monotonic": event.monotonic / 1e9,
    }
    if event.device:
        plain |= {"device": event.device, "generation": event.generation, "pid": event.pid}
    if event.took is not None:
        plain["took_ms"] = event.took / 1e6
    if event.steps:
        plain["steps_ms"] = {step: took / 1e6 for step, took in event.steps.items()}
    if event.detail:
        plain["detail"] = event.detail
    return plain


def _say(given: Arguments, text: str, **facts: object) -> int:
    return _print(json.dumps(facts) if "--json" in given else text)


def _print(text: str) -> int:
    from launcher.cli import print_text

    return print_text(text)


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "ps",
            "[VM]",
            "Lists this user's machines, each with its processes.",
            (_JSON,),
            _ps,
        ),
        Verb(
            "stats",
            "[VM]",
            "Prints exits (of a machine started with --stats) and what each device counted.",
            (_JSON,),
            _stats,
        ),
        Verb(
            "pause",
            "[VM]",
            "Takes every CPU out of the guest and holds it. The guest's clocks are the host's,\n"
            "and go on; devices finish what they were asked for.",
            (_JSON,),
            _pause,
        ),
        Verb("resume", "[VM]", "Lets a paused guest go on.", (_JSON,), _resume),
        Verb(
            "stop",
            "[VM]",
            "Presses the power button, and stops the machine by force when the guest has not\n"
            "powered off in time; an arm64 machine, which has no button, at once. One that is\n"
            "paused is resumed first. Returns when the machine is gone.",
            (_FORCE, _TIMEOUT, _JSON),
            _stop,
        ),
        Verb("kill", "VM/DEV", "Kills the process of a device, with SIGKILL.", (_JSON,), _kill),
        Verb(
            "restart",
            "VM/DEV",
            "Puts a fresh process of the same device in its place, while the guest runs.",
            (_JSON,),
            _restart,
        ),
        Verb(
            "swap",
            "VM/DEV",
            "Puts another implementation in a device's place, while the guest runs: another\n"
            "class, another version of it, or the same with other options. What is not said\n"
            "stays as it is. Where it does not fit or does not start, what served goes on.",
            (_IMPL, _JSON),
            _swap,
            takes_settings=True,
        ),
        Verb(
            "inject",
            "VM/DEV",
            "Arms a fault for a device of a machine that was started with --allow-inject; the\n"
            "fault none takes back all that are armed. Prints what is armed. A fault strikes\n"
            "whichever process serves, and once, unless --every or --for says otherwise.",
            _INJECT_OPTIONS,
            _inject,
            word=_FAULT,
        ),
        Verb(
            "link",
            "VM/DEV",
            "Takes the link of a network interface down, or up again. The guest notices; while it\n"
            "is down packets are dropped, both ways.",
            (_JSON,),
            _link,
            word=_UP_OR_DOWN,
        ),
        Verb(
            "attach",
            "VM/STREAM",
            "Joins a console, or the serial port (VM/serial), in this terminal. All who are\n"
            "attached see what the guest writes, and all may type. Ctrl-A d detaches.\n"
            "With --json: says where the stream's socket is, and attaches nothing.",
            (_JSON,),
            _attach,
        ),
        Verb(
            "events",
            "[VM]",
            "Prints what happened to the machine: a line of JSON each.",
            (_FOLLOW, _JSON),
            _events,
        ),
    )
}


def _device_run(target: str | None, given: Arguments) -> int:
    from launcher import by_hand

    return by_hand.run(target, given)


DEVICE_RUN = Verb(
    "device run",
    "MODULE[:CLASS]",
    "Makes this process a device of a machine that runs, in the place of what serves now. It has\n"
    "your rights and no seal, and may be stopped in a debugger for as long as you like:\n"
    "python -m pdb -m launcher device run …\n"
    "Options of the device that are not given stay as they are. When it ends, what the machine\n"
    "has of its own takes its place again.\n"
    "With --vhost-user there is no machine: the device is served at a socket, in a process of its\n"
    "own and jailed, to one front-end after the other, until Ctrl-C.",
    (_ATTACH_TO, _VHOST_USER, _HOLD, _JAIL),
    _device_run,
    takes_settings=True,
)
"""The one command of two words, which is about no machine but about this process."""


def _experiment(target: str | None, given: Arguments) -> int:
    from launcher.experiment import command

    return command.run(target, given)


EXPERIMENT = Verb(
    "experiment",
    "[FILE.toml]",
    "Measures what holding a device costs and what it buys: each device, at each level of\n"
    "isolation, under each load, fault and attack that FILE names, again and again, in an order\n"
    "by chance. Samples, tables and plots go to one directory. docs/experiments.md tells the rest.",
    _EXPERIMENT_OPTIONS,
    _experiment,
)
"""It is about no machine that runs: it starts its own."""


def _attack(target: str | None, given: Arguments) -> int:
    from launcher.attack import command

    return command.run([] if target is None else target.split(","), given)


ATTACK = Verb(
    "attack",
    "[NAME …]",
    "Attacks machines of its own, from within: hostile devices that each try one thing, and a\n"
    "hostile guest; at each level of isolation. Says what each came to: it succeeded, was\n"
    "contained, or contained and reported, with the evidence. All attacks, if none is named.\n"
    "Exit status 1 if one succeeded where its level is to contain it. docs/attacks.md.",
    _ATTACK_OPTIONS,
    _attack,
    takes_names=True,
)
"""It is about no machine that runs, either."""
