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

Action = Literal["kill", "hang", "swap", "restart", "inject"]
"""SIGKILL; SIGSTOP; another implementation, or the same with other options; a fresh process of
the same; a fault at a point of the protocol, which the detail names (``FAULT POINT``)."""


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
    points: Sequence[str] = (),
) -> list[Step]:
    """So many steps of each kind, in an order and at moments that ``seed`` decides, ``between``
    seconds apart on average (Poisson: the next may come while the last is not over). Faults are
    injected at each of ``points`` in turn, at whichever device."""
    dice = random.Random(seed)
    actions = [action for action, count in counts.items() for _ in range(count)]
    dice.shuffle(actions)
    at, steps, injected = 0.0, [], 0
    for action in actions:
        at += dice.expovariate(1 / between)
        device, detail = dice.choice(devices), ""
        if action == "swap":
            detail = _other(device, dice)
        elif action == "inject":
            detail = f"kill {points[injected % len(points)]}"
            injected += 1
        steps.append(Step(round(at, 4), device, action, detail))
    return steps


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
