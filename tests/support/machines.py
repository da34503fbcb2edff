"""Machines that a test starts through launcher.api, and that pretend."""

from __future__ import annotations

from collections.abc import Callable

from launcher.api import VM

Start = Callable[..., VM]
"""``start(behaviour, *devices, **options)``: a machine whose VMM behaves so (fake_vmm.BEHAVIOURS),
with options of VM. Behaviour is also its name, up to a dash (tests/launcher/conftest.py)."""
