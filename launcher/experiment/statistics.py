"""The few statistics that tables and plots need. All that is left to chance has a seed."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

CONFIDENCE = 0.95

# Arbitrary: more move an end of an interval by less than its width's hundredth.
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of ``count`` values, and where the true one is with CONFIDENCE; one value alone
    has no such interval."""

    count: int
    median: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float], seed: object) -> Estimate:
    """The median of ``values``, of which there is one at least, with a percentile bootstrap (Efron
    1979): as many values are drawn from them, with putting back, again and again."""
    median = statistics.median(values)
    if len(values) < 2:
        return Estimate(len(values), median, None, None)
    chance = random.Random(str(seed))
    medians = sorted(
        statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES)
    )
    tail = (1 - CONFIDENCE) / 2
    return Estimate(len(values), median, quantile(medians, tail), quantile(medians, 1 - tail))


def quantile(ordered: Sequence[float], part: float) -> float:
    """Below which ``part`` of the values lie, which are in order: between two of them, linearly."""
    at = part * (len(ordered) - 1)
    below, above = math.floor(at), math.ceil(at)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def ecdf(values: Iterable[float]) -> list[tuple[float, float]]:
    """The values in order, each with the part of them that is no larger."""
    ordered = sorted(values)
    return [(value, number / len(ordered)) for number, value in enumerate(ordered, 1)]


def bins(times: Iterable[float], begin: float, end: float, width: float) -> list[int]:
    """How many of ``times`` fall into each bin of ``width`` from ``begin`` up to ``end``."""
    counts = [0] * round((end - begin) / width)
    for time in times:
        if 0 <= (number := math.floor((time - begin) / width)) < len(counts):
            counts[number] += 1
    return counts


def longest_gap(times: Sequence[float], begin: float, end: float) -> tuple[float, float]:
    """Of ``times``, in order, the two neighbours that are furthest apart and have some of what is
    between ``begin`` and ``end`` between them; ``begin`` twice if there are none."""
    around = [(a, b) for a, b in pairwise(times) if b > begin and a < end]
    return max(around, key=lambda pair: pair[1] - pair[0], default=(begin, begin))
