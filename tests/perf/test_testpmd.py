"""A driver that nobody here wrote sends and receives on our interface, and what is measured is
told of both."""

from __future__ import annotations

import pytest

from tests.perf import testpmd
from tests.support.netns import needs_root


@pytest.mark.slow
@needs_root
def test_packets_of_both_sizes_go_both_ways_through_both() -> None:
    found = testpmd.measure(rounds=2, seconds=0.05)

    if reason := found.get("not measured"):
        pytest.skip(str(reason))
    for what in ("packets/s", "CPU of who serves a packet, µs"):
        for way in ("sent, 64", "received, 64", "sent, 1500", "received, 1500"):
            sides = found[f"{way} bytes, {what}"]
            assert isinstance(sides, dict)
            assert len(sides) == 2
            assert all(sides.values())
