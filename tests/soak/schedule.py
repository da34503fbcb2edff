"""What is done to the devices of a machine, and when: drawn from a seed, kept in a file.

A file has a line of JSON a step::

    {"at": 1.204, "device": "blk0", "action": "swap", "detail": "blk-mapped"}
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from protocol import faults

Action = Literal["kill", "hang", "swap", "restart", "inject"]
"""SIGKILL; SIGSTOP; another implementation, or the same with other options; a fresh process of
the same; a fault (protocol.faults) at points, which the detail names: ``FAULT POINT …``."""


@dataclass(frozen=True, slots=True)
class Step:
    """At ``at`` seconds of load, ``action`` is done to ``device``."""

    at: float
    device: str
    action: Action
    detail: str = ""


def draw(
    seed: int,
    counts: Mapping[Action, int],
    devices: Sequence[str],
    between: float,
) -> list[Step]:
    """So many steps of each kind, in an order and at moments that ``seed`` decides, ``between``
    seconds apart on average (Poisson: the next may come while the last is not over)."""
    dice = random.Random(seed)
    actions = [action for action, count in counts.items() for _ in range(count)]
    dice.shuffle(actions)
    at, steps = 0.0, []
    for action in actions:
        at += dice.expovariate(1 / between)
        device, detail = dice.choice(devices), ""
        if action == "swap":
            detail = _other(device, dice)
        steps.append(Step(round(at, 4), device, action, detail))
    return steps


NOT_REACHED = {
    **{
        point: "only a driver's first process passes it (tests/guest/test_inject.py)"
        for point in faults.POINTS
        if point.startswith("begin_")
    },
    "kicks_disable": "with EVENT_IDX, which the guest has, nothing is stored "
    "(tests/protocol/test_journal_crashes.py)",
    **dict.fromkeys(
        ("answer_stop", "answer_stop_queue", "answer_write_config"),
        "the guest asks for no such thing",
    ),
    **dict.fromkeys(
        ("answer_quiesce", "answer_quit", "answer_get_stats"), "nobody asks for it while it kills"
    ),
}
"""Points of protocol.faults where :func:`at_every_point` kills nothing, and why."""

# Those that only a successor passes.
_SUCCESSOR_S = ("attach", "answer_start", "read_config", "recover_")


def at_every_point(devices: Sequence[str]) -> list[Step]:
    """Each device is killed at each point of protocol.faults but :data:`NOT_REACHED`; at those that
    only a successor passes, after a death that leaves it something to do."""
    details = [
        f"kill {point} push_used_idx" if point.startswith(_SUCCESSOR_S) else f"kill {point}"
        for point in faults.FAULTS[faults.KILL].points
        if point not in NOT_REACHED
    ]
    return [Step(0.0, device, "inject", detail) for detail in details for device in devices]


def _other(device: str, dice: random.Random) -> str:
    # As after `vibevmm swap DEVICE`: [IMPLEMENTATION] [NAME=VALUE].
    if device.startswith("blk"):
        return dice.choice(["blk", "blk-mapped"])
    if device.startswith("console"):
        return f"cols={dice.randrange(20, 200)}"
    return f"max_bytes={dice.choice([16, 64, 4096, 65536])}"


def save(steps: Sequence[Step], path: Path) -> None:
    """Write a file of steps."""
    path.write_text("".join(json.dumps(asdict(step)) + "\n" for step in steps))


def load(path: Path) -> list[Step]:
    """The steps of a file; ValueError, with the line's number, if it is none."""
    steps = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            step = Step(**json.loads(line))
            if step.action not in get_args(Action):
                raise ValueError(f"{step.action!r} is not an action")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        steps.append(step)
    return steps
