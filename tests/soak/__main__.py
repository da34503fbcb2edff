"""``make soak``: devices killed, stopped and replaced under load, and the guest notices nothing.

Without arguments, the full form, in the jail and at bounce: the bare guest on each hypervisor that
is here, at random moments and at each point by name, then with a disk of qemu-storage-daemon, which
is killed, too, then Linux on the processor in software. A run that failed prints the command that
repeats it: the same steps, as far apart. What a processor does between two of them nobody repeats.
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from protocol.specs import LEVELS, Level
from tests.soak import report, schedule
from tests.soak.bare import Bare
from tests.soak.external import External
from tests.soak.harness import Guest, run
from tests.soak.linux import Linux
from tests.support.bare import usable_kvm
from tests.support.daemons import STORAGE_DAEMON, lacks

ROOT = Path(__file__).parents[2]
DEVICES = ("blk0", "rng0", "console0")

# Steps of a full run, and seconds between two of them on average (arbitrary, but for the kills and
# swaps): about as soon as a device has come back another one is gone.
COUNTS: dict[str, dict[schedule.Action, int]] = {
    "bare": {"kill": 1000, "swap": 300, "hang": 50, "restart": 50},
    "external": {"kill": 100, "swap": 0, "hang": 5, "restart": 20},
    "linux": {"kill": 50, "swap": 20, "hang": 5, "restart": 5},
}
BETWEEN = {"bare": 0.06, "external": 0.3, "linux": 0.4}


@dataclass(frozen=True)
class Soak:
    """One run: which guest, where, and what is done to it."""

    guest: str
    hypervisor: str
    isolation: Level
    name: str
    steps: Sequence[schedule.Step]


def main(words: Sequence[str]) -> int:
    """0 if nothing was lost, corrupted, or left behind."""
    options = _parser().parse_args(words)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    try:
        soaks = _soaks(options)
    except (OSError, ValueError) as error:
        print(f"--schedule: {error}", file=sys.stderr)
        return 2
    # Every one of them, whatever the first finds.
    failed = [soak for soak in soaks if not _carry_out(soak, options)]
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="decides everything; drawn if left out, and said")
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="the steps of another run")
    parser.add_argument("--guest", choices=list(COUNTS), help="only this one")
    parser.add_argument("--hypervisor", choices=["kvm", "software"], help="only this one")
    parser.add_argument(
        "--isolation", choices=LEVELS, help="of all devices; else jail, then bounce"
    )
    parser.add_argument("--fio", type=Path, help="a static fio, for Linux to load its disk with")
    for action in COUNTS["bare"]:
        parser.add_argument(f"--{action}s", type=_count, help="so many")
    parser.add_argument("--between", type=_seconds, help="mean seconds between steps")
    parser.add_argument("--no-points", action="store_true", help="inject no kills at named points")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of steps")
    return count


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time between steps")
    return seconds


def _soaks(options: argparse.Namespace) -> list[Soak]:
    if options.schedule is not None:
        if options.hypervisor is None:
            raise ValueError("say --hypervisor kvm or software, too")
        steps = schedule.load(options.schedule)
        guest, isolation = options.guest or "bare", options.isolation or "jail"
        return [Soak(guest, options.hypervisor, isolation, "again", steps)]
    soaks = []
    for guest, usual in COUNTS.items():
        if guest != (options.guest or guest):
            continue
        given = {action: getattr(options, f"{action}s") for action in usual}
        counts = usual | {action: n for action, n in given.items() if n is not None}
        if guest == "external" and lacks(STORAGE_DAEMON):
            continue
        steps = schedule.draw(options.seed, counts, DEVICES, options.between or BETWEEN[guest])
        levels: Sequence[Level] = [options.isolation] if options.isolation else ["jail", "bounce"]
        for hypervisor, isolation in product(_hypervisors(guest, options), levels):
            soaks.append(Soak(guest, hypervisor, isolation, "random", steps))
            if guest == "bare" and not options.no_points:
                points = schedule.at_every_point(DEVICES)
                soaks.append(Soak(guest, hypervisor, isolation, "points", points))
    return soaks


def _hypervisors(guest: str, options: argparse.Namespace) -> list[str]:
    if options.hypervisor:
        return [options.hypervisor]
    found = ["software"] if find_spec("unicorn") else []
    # Where KVM is software, no kernel boots on it.
    return found if usable_kvm() or guest == "linux" else ["kvm", *found]


def _carry_out(soak: Soak, options: argparse.Namespace) -> bool:
    what = f"{soak.guest}-{soak.hypervisor}-{soak.isolation}"
    name = f"{what}-{options.seed}-{soak.name}"
    folder = ROOT / ".cache" / "soak" / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "schedule.jsonl"
    schedule.save(soak.steps, file)
    print(f"{what}, {soak.name}: seed {options.seed}, ", end="")
    print(f"{len(soak.steps)} steps in {file}", flush=True)
    may_inject = any(step.action == "inject" for step in soak.steps)
    outcome = run(_guest(soak, options), soak.steps, folder, allow_inject=may_inject)
    print(report.text(outcome))
    if outcome.problems:
        again = ["--seed", str(options.seed), "--guest", soak.guest]
        again += ["--hypervisor", soak.hypervisor, "--schedule", str(file)]
        again += ["--isolation", soak.isolation]
        again += ["--fio", str(options.fio)] if options.fio else []
        print(f"repeat it with: {sys.executable} -m tests.soak {shlex.join(again)}")
    print(flush=True)
    return not outcome.problems


def _guest(soak: Soak, options: argparse.Namespace) -> Guest:
    if soak.guest == "bare":
        return Bare(options.seed, soak.hypervisor, isolation=soak.isolation)
    if soak.guest == "external":
        return External(options.seed, soak.hypervisor, isolation=soak.isolation)
    # fio ends by itself: some time after the last step, which a slow machine is late with.
    last = max((step.at for step in soak.steps), default=0)
    return Linux(soak.hypervisor, options.fio, int(2 * last) + 10, soak.isolation)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
