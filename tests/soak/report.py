"""What a run did and found, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tests.soak.harness import Gap, Outcome, Took

# Of the guest's clock, which is brought to ours (arbitrary).
_SLACK = 0.005

# Problems that are told.
_MOST = 20


def text(outcome: Outcome) -> str:
    """Some lines."""
    verdict = outcome.verdict
    lines = [
        f"  steps      {_counts(outcome.done)}",
        f"  killed     {outcome.done['kill']} signals, {outcome.deaths} deaths told of them",
        f"  events     {_counts(outcome.seen)}",
        f"  requests   {_counts(verdict.requests)}",
        f"  lost {verdict.lost}, corrupted {verdict.corrupted}, "
        f"guest errors {len(verdict.errors)}, in {outcome.seconds:.1f} s",
    ]
    for kind in ("recovered", "swapped"):
        took = [each for each in outcome.took if each.kind == kind]
        lines.append(f"  {kind:<10} {_percentiles(each.seconds for each in took)}")
        stalls = [_stall(each, verdict.gaps) for each in took]
        lines.append(f"    stalls   {_percentiles(stall for stall in stalls if stall is not None)}")
    lines += [f"  PROBLEM    {problem}" for problem in outcome.problems[:_MOST]]
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items()) or "none"


def _stall(took: Took, gaps: Sequence[Gap]) -> float | None:
    # The longest time, around this, in which the guest got nothing from the device.
    begin, end = took.end - took.seconds - _SLACK, took.end + _SLACK
    around = [
        gap.end - gap.begin
        for gap in gaps
        if gap.device == took.device and gap.begin < end and gap.end > begin
    ]
    return max(around, default=None)


def _percentiles(values: Iterable[float]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "none"
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * p))] for p in (0.5, 0.99))
    return (
        f"{len(ordered)}: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, "
        f"max {ordered[-1] * 1e3:.1f} ms"
    )
