"""One target in Python under Atheris: ``guided.py TARGET [libFuzzer's options] DIRECTORY…``."""

from __future__ import annotations

import importlib
import sys

import atheris

from tests.fuzz.targets import TARGETS, Guided


def main() -> None:
    """Fuzz, with the modules under test compiled so that what runs of them is seen."""
    name, *rest = sys.argv[1:]
    target = TARGETS[name]
    assert isinstance(target, Guided)
    with atheris.instrument_imports(
        include=["protocol", "devices", "vmm", "launcher", *target.also]
    ):
        module = importlib.import_module(target.module)
    atheris.Setup([name, *rest], getattr(module, target.function))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
