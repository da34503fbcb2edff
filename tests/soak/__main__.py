"""``make soak``: devices killed, stopped and replaced under load, and the guest notices nothing.

Without arguments, the full form, on each hypervisor that is here. A run that failed prints the
command that repeats it: the same steps, in the same order and as far apart. What a processor does
between two of them nobody repeats.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.soak import report, schedule
from tests.soak.bare import Bare
from tests.soak.harness import run
from tests.support.bare import usable_kvm

ROOT = Path(__file__).parents[2]

# Steps of a full run, and seconds between two of them on average (arbitrary, but for the kills and
# swaps): about as soon as a device has come back another one is gone.
COUNTS: dict[schedule.Action, int] = {"kill": 1000, "swap": 300, "hang": 50, "restart": 50}
BETWEEN = 0.06


def main(words: Sequence[str]) -> int:
    """0 if nothing was lost, corrupted, or left behind."""
    options = _parser().parse_args(words)
    if options.schedule is not None and options.hypervisor is None:
        print("--schedule: say --hypervisor kvm or software, too", file=sys.stderr)
        return 2
    try:
        given = None if options.schedule is None else schedule.load(options.schedule)
    except (OSError, ValueError) as error:
        print(f"--schedule: {error}", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    hypervisors = [options.hypervisor] if options.hypervisor else _hypervisors()
    is_right = True
    for hypervisor in hypervisors:
        if given is not None:
            is_right &= _soak("again", hypervisor, seed, given)
            continue
        counts = {action: getattr(options, f"{action}s") for action in COUNTS}
        steps = schedule.draw(seed, counts, Bare.devices, options.between)
        is_right &= _soak("random", hypervisor, seed, steps)
        if not options.no_points:
            is_right &= _soak("points", hypervisor, seed, schedule.at_every_point(Bare.devices))
    return 0 if is_right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="decides everything; drawn if left out, and said")
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="the steps of another run")
    parser.add_argument("--hypervisor", choices=["kvm", "software"], help="only this one")
    for action, count in COUNTS.items():
        parser.add_argument(f"--{action}s", type=int, default=count, help=f"{count} if left out")
    parser.add_argument("--between", type=float, default=BETWEEN, help="mean seconds, two steps")
    parser.add_argument("--no-points", action="store_true", help="inject no kills at named points")
    return parser


def _hypervisors() -> list[str]:
    found = [] if usable_kvm() else ["kvm"]
    return [*found, "software"] if find_spec("unicorn") else found


def _soak(name: str, hypervisor: str, seed: int, steps: Sequence[schedule.Step]) -> bool:
    folder = ROOT / ".cache" / "soak" / f"{hypervisor}-{seed}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "schedule.jsonl"
    schedule.save(steps, file)
    print(f"{hypervisor}, {name}: seed {seed}, {len(steps)} steps in {file}", flush=True)
    may_inject = any(step.action == "inject" for step in steps)
    outcome = run(Bare(seed, hypervisor), steps, folder, allow_inject=may_inject)
    print(report.text(outcome), flush=True)
    if outcome.problems:
        again = ["--seed", str(seed), "--hypervisor", hypervisor, "--schedule", str(file)]
        print(f"repeat it with: {sys.executable} -m tests.soak {shlex.join(again)}")
    print(flush=True)
    return not outcome.problems


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
