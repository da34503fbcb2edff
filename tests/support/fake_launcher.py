"""``python -m tests.support.fake_launcher …``: vibevmm with children that pretend.

The real launcher in every part, but that its children are fake_vmm and fake_zygote, so
that no KVM is needed.
"""

from __future__ import annotations

import sys

from launcher import cli, run


def pretend() -> None:
    """Let the launcher of this process start fakes."""
    run._VMM_MODULE = "tests.support.fake_vmm"
    run.ZYGOTE_MODULE = "tests.support.fake_zygote"
    run.check_kvm = lambda: None


if __name__ == "__main__":
    pretend()
    sys.exit(cli.main())
