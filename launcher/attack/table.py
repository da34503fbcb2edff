"""Every attack: one table, which the command lists, the tests go through and experiments use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from protocol.specs import LEVELS

Verdict = Literal["succeeded", "contained", "reported"]
"""What came of an attack: it did what it wanted; it did not; it did not, and somebody was told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The ``verdict``, and the ``evidence``: an errno, a signal, the bytes of a canary."""

    verdict: Verdict
    evidence: str


@dataclass(frozen=True, slots=True)
class Attack:
    """``name`` is also that of the deed (devices.hostile) or of the guest's (``by``). ``row`` is
    the kind of mistake, as docs/attacks.md numbers them, or 0. ``expected`` is what it comes to at
    each of LEVELS; ``mediated``, if that is another one, what it comes to where the VMM stands
    between guest and device anyhow, on the CPU in software; ``shared``, where the victim is in the
    same process."""

    name: str
    what: str
    row: int
    expected: Mapping[str, Verdict]
    by: Literal["device", "guest"] = "device"
    mediated: Mapping[str, Verdict] | None = None
    shared: Verdict | None = None

    def expects(self, level: str, *, mediated: bool = False, shared: bool = False) -> Verdict:
        """What should come of it."""
        if shared and self.shared is not None:
            return self.shared
        return (self.mediated if mediated and self.mediated else self.expected)[level]

    @property
    def told(self) -> str:
        """What a report of it has to say (a regular expression), for it to be one of this attack:
        where no level permits one, nothing else shows that it is contained by what is meant to."""
        return _TOLD.get(self.name, "")


_TOLD = {
    "write-late": "is killed: it does not answer",
    "corrupt-used": "virtqueue broken by its device: USED_JUMP",
    "corrupt-journal": "virtqueue has a bad journal: JOURNAL_VERSION",
    "forge-hello": "hello makes no sense while running",
    "forge-reply": "Done answers nothing",
    # Where the VMM reads each as it comes, each wakes it, and is counted for that.
    "forge-generation": "messages of another generation|more than 500 messages a second",
    "send-malformed": "not msgpack",
    "send-deep": "not msgpack",
    "send-huge": "message of 65537 bytes is over 65536",
    "send-long": r"not msgpack: \d+ exceeds max_array_len",
    # On a host too busy for 500 a second it is at it until the machine ends.
    "send-crumbs": "more than 500 messages a second|is killed: it does not answer",
    "send-unending": "not msgpack: .*extra data",
    "send-endless": "more than 500 messages a second",
    "flood-log": "lines were held back",
    "hang-on-config": "no answer to WriteConfig in time",
}


def _levels(*verdicts: Verdict) -> dict[str, Verdict]:
    return dict(zip(LEVELS, verdicts, strict=True))


_S: Verdict = "succeeded"
_C: Verdict = "contained"
_R: Verdict = "reported"

# What holds a process in tells of it; what an empty root or a limit lacks only is not there.
_SEAL = _levels(_S, _R, _R)
_ROOT = _levels(_S, _C, _C)
_BOUNCE = _levels(_S, _S, _C)
_ALWAYS_TOLD = _levels(_R, _R, _R)
_ALWAYS = _levels(_C, _C, _C)
# Such a socket has no name any more; the filter tells of who looks for it.
_NAMELESS = _levels(_C, _R, _R)

_ROWS = (
    Attack("read-canary", "reads guest memory outside its buffers", 0, _BOUNCE),
    Attack("write-canary", "writes guest memory outside its buffers", 0, _BOUNCE),
    Attack("write-given-back", "writes to a buffer that it has given back", 0, _BOUNCE),
    Attack("write-late", "writes for ever, and is killed while it does", 27, _ALWAYS_TOLD),
    Attack(
        "corrupt-used",
        "claims completions that never were",
        0,
        _levels(_S, _S, _R),
        mediated=_ALWAYS_TOLD,
    ),
    Attack("corrupt-journal", "fills its journal with ones, and dies", 25, _ALWAYS_TOLD),
    Attack("shrink-memory", "truncates guest memory under everybody", 36, _levels(_C, _R, _R)),
    Attack("exhaust-memory", "takes a GiB of memory", 0, _ROOT),
    Attack("exhaust-shared-memory", "the same, of memory that can be shared", 0, _SEAL),
    Attack("grow-stack", "the same, of memory that passes for a stack", 0, _SEAL),
    Attack("exhaust-page-tables", "maps 128 GiB, for page tables", 0, _ROOT),
    Attack("exhaust-descriptors", "opens descriptors until it cannot", 30, _SEAL),
    Attack("map-executable", "maps memory in which it could put code", 0, _SEAL),
    Attack(
        "read-neighbour",
        "reads another device in its process",
        0,
        _ALWAYS,
        shared=_S,
    ),
    Attack("read-file", "opens a file of the user's", 0, _SEAL),
    Attack("early-read-file", "the same, before seccomp", 0, _ROOT),
    Attack("read-passwd", "opens /etc/passwd", 0, _SEAL),
    Attack("read-proc", "opens a file of the launcher's in /proc", 0, _SEAL),
    Attack("open-kvm", "opens /dev/kvm", 0, _SEAL),
    Attack("list-machine", "lists the run directory", 0, _SEAL),
    Attack("reopen-descriptor", "opens its memory again, through /proc/self/fd", 0, _SEAL),
    Attack("connect-tcp", "connects to a port of this host", 0, _SEAL),
    Attack("early-connect-tcp", "the same, before seccomp", 0, _ROOT),
    Attack("connect-abstract", "connects to an abstract socket", 0, _SEAL),
    Attack("early-connect-abstract", "the same, before seccomp", 0, _ROOT),
    Attack("connect-path", "connects to a socket by its path", 0, _SEAL),
    Attack("connect-control", "connects to the control interface", 0, _SEAL),
    Attack("connect-neighbour", "connects to another device's channel", 0, _NAMELESS),
    Attack("connect-vmm", "connects to the VMM's own channel", 0, _NAMELESS),
    Attack("send-descriptor", "sends guest memory to somebody outside", 0, _SEAL),
    Attack("receive-descriptor", "is sent a file from outside", 0, _SEAL),
    Attack("trace-neighbour", "ptraces another device", 0, _SEAL),
    Attack("trace-vmm", "ptraces the VMM", 0, _SEAL),
    Attack("signal-neighbour", "signals another device", 0, _SEAL),
    Attack("signal-vmm", "signals the VMM", 0, _SEAL),
    Attack("signal-launcher", "signals the launcher", 0, _SEAL),
    Attack("kill-neighbour", "has another device killed by the control interface", 0, _SEAL),
    Attack("fork-bomb", "starts processes until it cannot", 0, _SEAL),
    Attack("execute", "starts another program", 0, _ROOT),
    Attack("early-outlive", "is not to die with the launcher, before seccomp's list", 0, _ROOT),
    Attack("early-read-keyring", "reads the launcher's keyring, before that", 0, _ROOT),
    Attack("io-uring", "makes an io_uring, whose operations no filter sees", 41, _SEAL),
    Attack("forge-hello", "says that it is another device", 0, _ALWAYS_TOLD),
    Attack("forge-reply", "answers what another one was asked", 0, _ALWAYS_TOLD),
    Attack("forge-generation", "speaks for its own successor", 0, _ALWAYS_TOLD),
    Attack("send-malformed", "sends what is no message", 35, _ALWAYS_TOLD),
    Attack("send-deep", "sends a message of 50,000 levels", 35, _ALWAYS_TOLD),
    Attack("send-huge", "sends a message one byte too large", 35, _ALWAYS_TOLD),
    Attack("send-long", "sends a message of 65,000 parts", 35, _ALWAYS_TOLD),
    Attack("send-crumbs", "sends messages byte by byte", 35, _ALWAYS_TOLD),
    Attack("send-unending", "sends bytes that never come to a message", 35, _ALWAYS_TOLD),
    Attack("send-endless", "sends events as fast as it can", 35, _ALWAYS_TOLD),
    Attack("flood-log", "writes 5,000 lines of log, and clears the screen", 20, _ALWAYS_TOLD),
    Attack("interrupt-storm", "interrupts as fast as it can", 35, _ALWAYS),
    Attack("hang-on-config", "never answers a change of its configuration", 31, _ALWAYS_TOLD),
    *(
        Attack(name, what, row, _ALWAYS, "guest")
        for name, what, row in (
            ("descriptor-loop", "a chain without an end", 1),
            ("bad-indirection", "indirect tables: nested, odd, too large, elsewhere", 2),
            ("index-jump", "an index that jumps over the whole queue", 3),
            ("entry-out-of-range", "an entry that names no descriptor", 4),
            ("double-fetch", "a chain that changes while it is read", 5),
            ("address-overflow", "buffers over the end of memory, of a region, of 64 bits", 6),
            ("huge-length", "buffers of four GiB", 7),
            ("sector-overflow", "sectors beyond any disk", 8),
            ("much-of-little", "one page, named a gigabyte long", 9),
            ("selector-out-of-range", "queues and features that are not there", 10),
            ("rings-moved", "a ring that moves while it is served", 11),
            ("status-backwards", "status bits taken back, features added late", 12),
            ("reset-in-flight", "a reset with twenty requests under way", 13),
            ("misordered-chain", "a verdict before the request, or none", 14),
            ("empty-descriptor", "buffers of no bytes, headers of three", 15),
            ("small-answer", "less room than an answer needs", 16),
            ("odd-access", "registers by bytes, askew and beyond the last", 17),
            ("torn-configuration", "a configuration that is read while it changes", 18),
            ("register-descriptor", "buffers in the registers of devices", 19),
            ("many-errors", "2,500 wrong chains, each of which could be logged", 20),
            ("guessed-format", "a raw disk that turns into qcow2", 21),
            ("kick-storm", "20,000 kicks for nothing", 40),
        )
    ),
)

ATTACKS: Mapping[str, Attack] = {attack.name: attack for attack in _ROWS}
"""Every attack by its name."""
