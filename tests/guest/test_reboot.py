"""Guests that reset their machine: it boots again, with the device processes that it has."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from launcher.api import VM
from protocol.control import Event
from tests.support.bare import BACKENDS, assembled, require_kvm
from tests.support.guest import DEMO, KERNELS, build, demo
from tests.support.leaks import named, started_as
from tests.support.listings import POWER_OFF
from tests.support.vibevmm import DEADLINE, Running, raw, run, started, vibevmm
from vmm.platform import ports

pytestmark = pytest.mark.slow

# KiB of the VMM that 50 lives may cost. What is collected late is 0.7 MiB on KVM and 1.6 in
# software (measured, and no more after 1000); the page tables of a software CPU alone are more.
MOST_MEMORY = 4096

# Counts its boots at 2 MiB, which no boot touches, and prints the count.
COUNT = """
    ff 04 25 00 00 20 00  # inc dword [0x200000]
    8b 04 25 00 00 20 00  # mov eax, [0x200000]
    04 30                 # add al, '0'
    66 ba f8 03           # mov dx, 0x3f8
    ee                    # out dx, al
"""
ACPI_RESET = """
    66 ba 08 06  # mov dx, 0x608     RESET_REG
    b0 01        # mov al, 1
    ee           # out dx, al
    eb fe        # jmp .
"""
KEYBOARD_RESET = """
    b0 fe        # mov al, 0xfe      pulse the reset line
    e6 64        # out 0x64, al
    66 90        # nop
    90           # nop
    eb fe        # jmp .
"""
THREE_TIMES = (
    COUNT
    + """
    3c 33        # cmp al, '3'
    73 09        # jae ------+       over the 9 bytes of a reset
"""
)
# Has the device in slot 3 (the first that is no console, disk or network) serve a queue of 8.
START_THE_DEVICE = """
    bf 00 30 a0 00                 # mov edi, 0xa03000
    c7 47 70 03 00 00 00           # mov dword [rdi + 0x70], 3         ACKNOWLEDGE, DRIVER
    c7 47 24 01 00 00 00           # mov dword [rdi + 0x24], 1         features 32 to 63:
    c7 47 20 01 00 00 00           # mov dword [rdi + 0x20], 1         VERSION_1
    c7 47 70 0b 00 00 00           # mov dword [rdi + 0x70], 0xb       FEATURES_OK
    c7 47 38 08 00 00 00           # mov dword [rdi + 0x38], 8         QueueSize
    c7 87 80 00 00 00 00 00 30 00  # mov dword [rdi + 0x80], 0x300000  QueueDescLow
    c7 87 90 00 00 00 00 10 30 00  # mov dword [rdi + 0x90], 0x301000  QueueDriverLow
    c7 87 a0 00 00 00 00 20 30 00  # mov dword [rdi + 0xa0], 0x302000  QueueDeviceLow
    c7 47 44 01 00 00 00           # mov dword [rdi + 0x44], 1         QueueReady
    c7 47 70 0f 00 00 00           # mov dword [rdi + 0x70], 0xf       DRIVER_OK
"""
THIRD_AND_53RD = "3c 65        # cmp al, 'e' |     '0' + 53"
THIRD_AND_FOURTH = "3c 34  # cmp al, '4'"
# Asks where it says "?" (the third and the 53rd time), powers off if it is told "q".
ASKS_AND_RESETS = (
    START_THE_DEVICE
    + COUNT
    + """
    3c 33        # cmp al, '3'
    74 04        # je ---------+
    """
    + THIRD_AND_53RD
    + """
    75 11        # jne --------|--+
    b0 3f        # mov al, '?' <  |
    ee           # out dx, al     |
    b2 fd        # mov dl, 0xfd   |
    ec           # in al, dx  <-+ |
    a8 01        # test al, 1   | |  received data?
    74 fb        # jz ----------+ |
    b2 f8        # mov dl, 0xf8   |
    ec           # in al, dx      |
    3c 71        # cmp al, 'q'    |
    74 09        # je ------------|--+
"""
    + ACPI_RESET
    + POWER_OFF
)
# The other processors start at 0x8000, and count themselves at 0x8ff0: on the stack that a raw
# binary is given, and which is cleared for it. The trampoline is behind POWER_OFF.
WAKE_THREE = (
    """
    48 8d 35 67 00 00 00           # lea rsi, [rip + 0x67]
    bf 00 80 00 00                 # mov edi, 0x8000
    b9 40 00 00 00                 # mov ecx, 64
    f3 a4                          # rep movsb
    bf 00 00 e0 fe                 # mov edi, 0xfee00000
    c7 87 f0 00 00 00 ff 01 00 00  # mov dword [rdi + 0xf0], 0x1ff      local APIC on
    c7 87 00 03 00 00 00 45 0c 00  # mov dword [rdi + 0x300], 0xc4500   INIT to all others
    c7 87 00 03 00 00 08 46 0c 00  # mov dword [rdi + 0x300], 0xc4608   SIPI: begin at 0x8000
    80 3c 25 f0 8f 00 00 03        # cmp byte [0x8ff0], 3   <--+
    75 f6                          # jne ----------------------+
"""
    + THREE_TIMES
    + ACPI_RESET
    + POWER_OFF
    # Real mode.
    + """
    f0 fe 06 f0 8f     # lock inc byte [0x8ff0]
    f4                 # hlt
    eb fd              # jmp back to hlt
"""
)
# Resets soon, until something is typed while it looks.
RESETS = (
    START_THE_DEVICE
    + """
    66 ba f8 03  # mov dx, 0x3f8
    b0 2e        # mov al, '.'
    ee           # out dx, al
    b2 fd        # mov dl, 0xfd
    b5 10        # mov ch, 16
    ec           # in al, dx    <-+
    a8 01        # test al, 1     |  received data?
    75 0d        # jnz -----------|--+
    fe cd        # dec ch         |
    75 f7        # jnz -----------+
"""
    + ACPI_RESET
    + POWER_OFF
)


@pytest.fixture(autouse=True)
def _kvm(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kvm"):
        require_kvm()


@pytest.mark.parametrize("how", [ACPI_RESET, KEYBOARD_RESET], ids=["acpi", "i8042"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_guest_that_resets_boots_again(tmp_path: Path, backend: str, how: str) -> None:
    code = assembled(THREE_TIMES + how + POWER_OFF)

    done = vibevmm(*raw(tmp_path, code), "--hypervisor", backend, "--log", "launcher=info")

    assert (done.returncode, done.stdout.strip()) == (0, "123"), done.stderr
    assert re.findall(r"the guest was reset \((\d)\), and booted again in", done.stderr) == [
        "1",
        "2",
    ]


@pytest.mark.kvm
def test_a_guest_that_is_to_end_ends(tmp_path: Path) -> None:
    code = assembled(THREE_TIMES + ACPI_RESET + POWER_OFF)

    done = vibevmm(*raw(tmp_path, code), "--on-reboot", "exit")

    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_an_arm64_guest_that_resets_finds_its_device_as_new() -> None:
    build()
    image = KERNELS / "arm64_reboot.raw"
    if not image.exists():
        pytest.skip(f"{image.name} is not built: that needs clang, lld and llvm")

    done = vibevmm("--binary", str(image), "--entry", "0x10000", "--device", "rng")

    assert (done.returncode, done.stdout.strip()) == (0, "102030"), done.stderr


@pytest.mark.kvm
def test_other_processors_wait_again_and_the_stack_is_cleared(tmp_path: Path) -> None:
    done = vibevmm(*raw(tmp_path, assembled(WAKE_THREE)), "--cpus", "4")

    assert (done.returncode, done.stdout.strip()) == (0, "123"), done.stderr


@pytest.mark.parametrize("sleep", [False, True], ids=["looking", "interrupts"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_device_works_in_each_life_and_is_the_same_process(
    tmp_path: Path, backend: str, isolation: str, sleep: bool
) -> None:
    image = demo(DEMO, sleep=sleep, boots=3)

    said, stats = run(tmp_path, image, "--hypervisor", backend, "--isolation", isolation)

    for words in ("blk0 wrote 64 sectors", "console0 took", "rng0 gave 2 times", "demo: done"):
        assert said.count(words) == 3
    assert said.count("Hello from the demo guest") == 3
    counters = {device["name"]: device["counters"] for device in stats["devices"]}
    assert counters["rng0"]["requestq.chains"] == 3 * 2
    assert counters["blk0"]["writes"] == 3 * 64
    # What earlier lives did is in the statistics.
    exits = {row["address"]: row["count"] for row in stats["exits"] if row["device"] == "pm"}
    assert (exits[ports.ACPI_RESET], exits[ports.PM1A_CONTROL]) == (2, 1)
    assert stats["run_returns"] >= sum(row["count"] for row in stats["exits"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fifty_reboots_leave_nothing_behind(tmp_path: Path, backend: str, isolation: str) -> None:
    code = assembled(ASKS_AND_RESETS)
    options = ["--device", "rng", "--hypervisor", backend, "--isolation", isolation]
    with started(*raw(tmp_path, code), *options) as running:
        running.wait_for("?")
        before, memory_before = held(running)

        running.type(b"g")
        running.wait_for("e?")

        after, memory_after = held(running)
        assert after == before
        assert memory_after - memory_before < MOST_MEMORY
        running.type(b"q")
        assert running.process.wait(DEADLINE) == 0


def held(machine: Running) -> tuple[dict[str, tuple[int, int]], int]:
    """Descriptors and threads of the VMM and of its device, and the VMM's anonymous memory in KiB.
    (The others have more when a spare process is there, which comes when it comes.)"""
    (vmm,) = started_as("vmm.entry", machine.process.pid)
    found = {
        name: (len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
        for name, pid in (("vmm", vmm), ("rng0", process(machine, "rng0")))
    }
    status = Path(f"/proc/{vmm}/status").read_text()
    return found, int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.kvm
def test_a_device_that_hangs_or_is_not_there_does_not_prevent_a_reboot(tmp_path: Path) -> None:
    code = assembled(ASKS_AND_RESETS.replace(THIRD_AND_53RD, THIRD_AND_FOURTH))
    log = tmp_path / "log"
    options = ("--device", "rng", "--log", "warn", "--log-file", str(log))
    with started(*raw(tmp_path, code), *options) as running:
        running.wait_for("3?")
        os.kill(process(running, "rng0"), signal.SIGSTOP)

        running.type(b"g")

        running.wait_for("4?")
        running.type(b"q")
        assert running.process.wait(DEADLINE) == 0
    assert "rng0 is killed: no answer to Stop in time" in log.read_text()


@pytest.mark.parametrize("backend", BACKENDS)
def test_devices_may_die_in_the_middle_of_reboots(
    tmp_path: Path, backend: str, isolation: str
) -> None:
    code = assembled(RESETS)
    options = ["--device", "rng", "--hypervisor", backend, "--isolation", isolation]
    with started(*raw(tmp_path, code), *options) as running:
        for _ in range(20):
            running.wait_for_more("...")
            with contextlib.suppress(StopIteration, ProcessLookupError):  # its successor's turn
                os.kill(process(running, "rng0"), signal.SIGKILL)
        running.wait_for_more("." * 20)

        while running.process.poll() is None:
            running.type(b"q")  # lost, if the machine resets before the guest has read it
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(0.1)

        assert running.process.returncode == 0, running.screen


def process(running: Running, name: str) -> int:
    """The process of that name; StopIteration if there is none."""
    return next(iter(named(name, running.process.pid)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_may_be_replaced_in_the_middle_of_reboots(
    tmp_path: Path, backend: str, isolation: str
) -> None:
    guest = tmp_path / "guest.raw"
    guest.write_bytes(assembled(RESETS))
    options = {
        "entry": "0x100000",
        "mem": "64M",
        "serial": "none",
        "hypervisor": backend,
        "isolation": isolation,
    }
    with VM(binary=str(guest), devices=["rng"], **options) as machine:
        machine.wait_ready()
        # Read as they come: of as many reboots as there may be, only the last are kept.
        kinds = (event.kind for event in machine.events() if isinstance(event, Event))

        reboots = 0
        for generation in range(2, 12):
            assert machine.restart("rng0").generation == generation
            reboots += sum(kind == "rebooted" for kind in iter(lambda: next(kinds), "swapped"))

        assert reboots > 1
        assert machine.stop(force=True) == "stopped"
        assert "swapped" not in kinds
