"""Imports point down: launcher, then vmm and devices, then protocol; read from every file,
and seen in what a sealed device, and an interpreter with all of the VMM, have loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.device_host import ROOT, DeviceHost
from tests.support.leaks import none_left
from tests.support.odd_devices import Config

# What each package may import of ours, besides itself.
BELOW = {
    "protocol": set(),
    "devices": {"protocol"},
    "vmm": {"protocol"},
    "launcher": {"vmm", "devices", "protocol"},
}

FILES = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for package in BELOW
    for path in sorted((ROOT / package).rglob("*.py"))
]


def imported(path: Path) -> Iterator[str]:
    """The full names of what the file imports, anywhere in it: modules, and all that is taken
    from one, for that can be a module too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "line",
    [
        "import protocol.ring._ring",
        "import protocol.ring._ring as engine",
        "from protocol.ring import _ring",
        "from protocol.ring import Chain, _ring as engine",
        "from protocol.ring._ring import lib",
        "def late() -> None:\n    from protocol.ring import _ring",
    ],
)
def test_a_module_is_seen_however_it_is_imported(line: str, tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text(line)

    assert "protocol.ring._ring" in set(imported(path))


def test_there_is_something_to_look_at() -> None:
    assert {path.values[0].relative_to(ROOT).parts[0] for path in FILES} == set(BELOW)  # type: ignore[union-attr]


@pytest.mark.parametrize("path", FILES)
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = {*BELOW, "tests", "tools"} - BELOW[package] - {package}

    assert [name for name in imported(path) if name.split(".")[0] in forbidden] == []


def test_a_device_does_not_know_other_devices() -> None:
    names = {f"devices.{path.stem}" for path in (ROOT / "devices").glob("*.py")} - {"devices.kinds"}
    for path in (ROOT / "devices").rglob("*.py"):
        own = f"devices.{path.stem}"
        assert not (names - {own, "devices.__init__"}) & set(imported(path)), path


@pytest.mark.parametrize(
    ("what", "only"),
    [
        ("zmq", {"protocol/channel.py", "protocol/service.py", "devices/runtime/entry.py"}),
        ("protocol.ring._ring", {"protocol/ring"}),
        ("protocol.jail._jail", {"protocol/jail"}),
        ("protocol.mapping._mapping", {"protocol/mapping"}),
        ("devices.lanes._lanes", {"devices/lanes"}),
        ("devices.lanes._lanes_faults", {"devices/lanes"}),
        ("vmm.hypervisor.kvm._kvm", {"vmm/hypervisor/kvm"}),
        ("vmm.hypervisor.software._engine", {"vmm/hypervisor/software"}),
        ("vmm.mediation._mediator", {"vmm/mediation"}),
    ],
)
def test_danger_has_an_address(what: str, only: set[str]) -> None:
    for package in BELOW:
        for path in (ROOT / package).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            if any(name == what or name.startswith(f"{what}.") for name in imported(path)):
                assert place in only or path.parent.relative_to(ROOT).as_posix() in only, place


@pytest.mark.parametrize(("package", "member"), [("protocol", "specs"), ("vmm", "entry")])
def test_a_package_loads_nothing_that_is_not_below_it(package: str, member: str) -> None:
    program = f"""
import importlib, pkgutil, sys, {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(module.name)
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    loaded = set(done.stdout.split())

    assert f"{package}.{member}" in loaded
    assert {name.split(".")[0] for name in loaded} & {*BELOW, "tests", "tools"} == {
        package,
        *BELOW[package],
    }


def test_a_live_device_holds_no_code_of_the_vmm_the_launcher_or_another_device(
    tmp_path: Path,
) -> None:
    deed = Config("vmm,launcher,devices,elftools,argparse")
    with (
        none_left(),
        DeviceHost("teller", tmp_path, deed, register="tests.support.odd_devices:Teller") as host,
    ):
        host.start()
        loaded = set(host.send([], [4096]).data.decode().split())
        maps = Path(f"/proc/{host.process.pid}/maps").read_text()

    assert "devices.runtime.queue" in loaded
    assert {name for name in loaded if name.split(".")[0] != "devices"} == set()
    assert {name for name in loaded if name.count(".") == 1} == {
        "devices.kinds",
        "devices.runtime",
    }
    assert "/_jail." in maps
    assert "/_kvm." not in maps
