"""``make soak``: devices killed, stopped and replaced under load, and the guest notices nothing.

Without arguments, the full form. A run that failed prints the command that repeats it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.soak import report, schedule
from tests.soak.bare import Bare
from tests.soak.harness import Guest, run
from tests.soak.linux import Linux

DEVICES = ("blk0", "rng0", "console0")
ROOT = Path(__file__).parents[2]


def main(words: list[str]) -> int:
    """0 if nothing was lost, corrupted, or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--seed", type=int, help="decides everything; drawn and printed if left out"
    )
    parser.add_argument("--schedule", type=Path, metavar="FILE", help="the steps of an earlier run")
    parser.add_argument("--guest", default="bare", choices=["bare", "linux"])
    parser.add_argument("--fio", type=Path, help="a static fio, for Linux to load its disk with")
    parser.add_argument("--hypervisor", default="kvm", choices=["kvm", "software"])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--swaps", type=int, default=300)
    parser.add_argument("--hangs", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=30)
    parser.add_argument("--between", type=float, default=0.06, help="mean seconds between steps")
    options = parser.parse_args(words)

    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    folder = ROOT / ".cache" / "soak" / f"{options.guest}-{options.hypervisor}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "schedule.jsonl"
    if options.schedule is not None:
        steps = schedule.load(options.schedule)
    else:
        counts: dict[schedule.Action, int] = {
            "kill": options.kills,
            "swap": options.swaps,
            "hang": options.hangs,
            "restart": options.restarts,
        }
        steps = schedule.draw(seed, counts, DEVICES, options.between)
    schedule.save(steps, file)
    print(f"soak: seed {seed}, {len(steps)} steps in {file.relative_to(ROOT)}", flush=True)
    guest = _guest(options, seed, steps)
    (folder / "console").unlink(missing_ok=True)
    outcome = run(guest, steps, folder)
    print(report.text(outcome))
    if outcome.problems:
        print(
            f"\nto repeat it: {sys.executable} -m tests.soak --seed {seed} "
            f"--hypervisor {options.hypervisor} --schedule {file} --guest {options.guest}"
            + (f" --fio {options.fio}" if options.fio else "")
        )
    return 1 if outcome.problems else 0


def _guest(options: argparse.Namespace, seed: int, steps: Sequence[schedule.Step]) -> Guest:
    if options.guest == "bare":
        return Bare(seed, options.hypervisor)
    # fio ends by itself: some time after the last step, which a slow machine is late with.
    return Linux(options.hypervisor, options.fio, int(2 * max(step.at for step in steps)) + 10)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
