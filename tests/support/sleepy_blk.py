"""A disk whose lane sleeps at once."""

from __future__ import annotations

from devices.blk import Blk
from devices.lanes import Build, Lane


class SleepyBlk(Blk):
    """The same device, whose lane never looks out for work before it sleeps."""

    lanes = Blk.lanes

    def lane(self, index: int, build: Build) -> Lane:
        """See Blk."""
        lane = super().lane(index, build)
        lane.native.outlook.skip = (1 << 32) - 1
        return lane
