"""Devices that are started by hand, in machines whose guest asks them the same thing for ever
(tests/kernels/ask.c) and fails if it loses an answer."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.api import VM
from protocol import control as wire
from tests.support import guest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runtime")]

ROOT = Path(__file__).parents[2]
SHOUT = ROOT / "tests" / "support" / "shout.py"
DEADLINE = 30.0


class Asked:
    """A machine of which ``said`` is what its guest has printed."""

    def __init__(self, machine: VM, output: Path) -> None:
        self.machine = machine
        self._output = output

    @property
    def said(self) -> str:
        return self._output.read_text()

    def says(self, *answers: str) -> None:
        """Wait until the guest has heard these, in this order, and nothing else."""
        wanted = "".join(f"guest: {answer}\n" for answer in answers)
        self.until(lambda: len(self.said) >= len(wanted), f"{wanted!r} in {self.said!r}")
        assert self.said == wanted

    def until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < until, f"no {what}"
            time.sleep(0.01)

    def state(self, device: str = "shout0") -> str:
        return next(p.state for p in self.machine.describe().processes if p.name == device)

    def comes_to(self, state: str) -> None:
        self.until(lambda: self.state() == state, f"{state}, but {self.state()}")


@pytest.fixture
def asked(backend: str, tmp_path: Path) -> Iterator[Asked]:
    with machine(tmp_path, backend) as made:
        yield made


@contextlib.contextmanager
def machine(
    folder: Path, backend: str = "auto", *devices: str, **options: object
) -> Iterator[Asked]:
    guest.build()
    output = folder / "screen"
    base = {"binary": guest.KERNELS / "x86_64_ask.raw", "entry": "0x100000", "mem": "64M"}
    with (
        output.open("wb") as screen,
        VM(
            name="m",
            devices=[str(SHOUT), *devices],
            stdout=screen,
            **{**base, "hypervisor": backend, "timeout": 90, **options},  # type: ignore[arg-type]
        ) as made,
    ):
        made.wait_ready()
        asked = Asked(made, output)
        asked.says("HELLO!")
        yield asked


class Hand:
    """`vibevmm device run` in a process of its own; ``said`` is what it prints."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def said(self) -> str:
        return self._output.read_text()

    def waits_for(self, words: str) -> None:
        until = time.monotonic() + DEADLINE
        while words not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.01)

    def end(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE)


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Callable[..., Hand]]:
    with contextlib.ExitStack() as started:

        def start(*words: object, before: tuple[str, ...] = ()) -> Hand:
            output = tmp_path / f"hand{time.monotonic_ns()}"
            with output.open("wb") as file:
                process = subprocess.Popen(
                    [sys.executable, *before, "-m", "launcher", "device", "run", *map(str, words)],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            started.enter_context(process)
            started.callback(process.kill)
            return Hand(process, output)

        yield start


def variant(folder: Path, old: str, new: str, name: str = "variant.py") -> Path:
    """The device, with ``new`` where ``old`` stands in it."""
    text = SHOUT.read_text()
    assert text.count(old) == 1
    path = folder / name
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_takes_the_place_and_when_it_ends_the_machines_own_comes_back(
    asked: Asked, by_hand: Callable[..., Hand], tmp_path: Path, number: signal.Signals
) -> None:
    softly = variant(tmp_path, "text.upper()", "text.title()")
    hand = by_hand(softly, "--attach", "m/shout0", "mark=?")
    hand.waits_for("serves; Ctrl-C ends it")
    assert "m/shout0 runs with your rights and no seal" in hand.said
    asked.says("HELLO!", "Hello?")
    assert asked.state() == "by hand"
    assert status("Seccomp", hand.process.pid) == "0"

    assert hand.end(number) == (130 if number is signal.SIGINT else -signal.SIGKILL)

    asked.says("HELLO!", "Hello?", "HELLO!")
    asked.comes_to("running")  # which is told when it answers already
    kinds = [e.kind for e in asked.machine.events(follow=False) if isinstance(e, wire.Event)]
    assert kinds[-3:] == ["swapped", "died", "recovered"]


def status(field: str, pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def test_with_hold_the_guest_waits_until_somebody_comes(
    asked: Asked, by_hand: Callable[..., Hand], tmp_path: Path
) -> None:
    first = by_hand(SHOUT, "--attach", "m/shout0", "mark=1", "--hold")
    first.waits_for("serves")
    asked.says("HELLO!", "HELLO1")
    first.end(signal.SIGKILL)
    asked.comes_to("dead")

    by_hand(SHOUT, "--attach", "m/shout0", "mark=2").waits_for("serves")
    asked.says("HELLO!", "HELLO1", "HELLO2")
    third = by_hand(SHOUT, "--attach", "m/shout0", "mark=3", "--hold")
    third.waits_for("serves")
    asked.says("HELLO!", "HELLO1", "HELLO2", "HELLO3")
    third.end(signal.SIGKILL)
    asked.comes_to("dead")
    asked.machine.restart("shout0")

    asked.says("HELLO!", "HELLO1", "HELLO2", "HELLO3", "HELLO!")


def test_one_that_was_replaced_ends_and_so_does_one_whose_machine_ends(
    asked: Asked, by_hand: Callable[..., Hand]
) -> None:
    first = by_hand(SHOUT, "--attach", "m/shout0", "mark=1")
    first.waits_for("serves")
    asked.says("HELLO!", "HELLO1")
    second = by_hand(SHOUT, "--attach", "m/shout0", "mark=2")
    second.waits_for("serves")

    assert first.end() == 0
    assert "another has its place" in first.said
    asked.says("HELLO!", "HELLO1", "HELLO2")
    asked.machine.stop(force=True)
    # By itself; one that takes its time is not waited for for ever.
    assert second.end() in (0, -signal.SIGKILL)


def test_launcher_that_was_killed_takes_it_along(
    asked: Asked, by_hand: Callable[..., Hand]
) -> None:
    hand = by_hand(SHOUT, "--attach", "m/shout0")
    hand.waits_for("serves")
    os.kill(asked.machine.describe().pid, signal.SIGKILL)

    assert hand.end() == 3
    assert "m/shout0: the machine is gone" in hand.said


def test_with_jail_it_is_sealed(asked: Asked, by_hand: Callable[..., Hand], tmp_path: Path) -> None:
    hand = by_hand(SHOUT, "--attach", "m/shout0", "mark=?", "--jail")
    hand.waits_for("serves")
    asked.says("HELLO!", "HELLO?")

    assert status("Seccomp", hand.process.pid) == "2"
    assert status("NoNewPrivs", hand.process.pid) == "1"
    assert "no seal" not in hand.said
    assert hand.end(signal.SIGINT) == 130


def test_in_a_debugger_it_is_not_taken_for_hung(
    by_hand: Callable[..., Hand], tmp_path: Path
) -> None:
    with machine(tmp_path, "auto", "rng", hang_after=0.4) as asked:
        hand = by_hand(SHOUT, "--attach", "m/shout0", "mark=?", before=("-m", "pdb"))
        assert hand.process.stdin is not None
        line = (
            SHOUT.read_text()
            .splitlines()
            .index(
                "        return chain.writable.write((text.upper() + self.config.mark).encode())"
            )
        )
        hand.process.stdin.write(f"b {SHOUT}:{line + 1}\nc\np text\n".encode())
        hand.process.stdin.flush()
        hand.waits_for("'hello'")

        # The watchdog has time for one that hangs too, and later.
        rng = next(p.pid for p in asked.machine.describe().processes if p.name == "rng0")
        os.kill(rng, signal.SIGSTOP)
        for event in asked.machine.events():
            # On a busy host the machine's own may have seemed to hang before.
            if isinstance(event, wire.Event) and (event.kind, event.device) == ("hung", "rng0"):
                break
        asked.machine.stats()  # which it does not answer

        assert hand.process.poll() is None
        assert asked.state() == "by hand"
        hand.process.stdin.write(b"clear 1\nc\n")
        hand.process.stdin.flush()
        asked.says("HELLO!", "HELLO?")


@pytest.mark.parametrize("bug", [False, True], ids=["breakpoint", "post mortem"])
def test_debugger_is_left_without_a_crash(
    shouting: Asked, by_hand: Callable[..., Hand], tmp_path: Path, bug: bool
) -> None:
    device = SHOUT
    if bug:
        device = variant(tmp_path, "text.upper() + self.config.mark", "text.upper() + 'no' / 0")
    hand = by_hand(device, "--attach", "m/shout0", before=("-m", "pdb"))
    assert hand.process.stdin is not None
    line = SHOUT.read_text().partition("text.upper()")[0].count("\n") + 1
    ends = b"c\nq\nq\n" if bug else f"b {SHOUT}:{line}\nc\nq\n".encode()

    hand.process.stdin.write(ends)
    hand.process.stdin.close()

    assert hand.end() == 0, hand.said
    assert "Exception ignored" not in hand.said
    shouting.says("HELLO!")


def test_its_files_are_locked_by_the_launcher_and_options_that_are_not_given_stay(
    by_hand: Callable[..., Hand], tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with machine(tmp_path, "auto", f"blk,{disk}") as asked:
        hand = by_hand("blk", "--attach", "m/blk0")
        hand.waits_for("serves")
        assert asked.state("blk0") == "by hand"
        hand.end(signal.SIGKILL)
        asked.until(lambda: asked.state("blk0") == "running", "blk0")

        taken = VM(binary=guest.KERNELS / "x86_64_ask.raw", entry="0x100000", disk=str(disk))
        with taken, pytest.raises(Exception, match="disk.img"):
            taken.wait_ready()


@pytest.mark.parametrize(
    ("old", "new", "words", "error"),
    [
        ("class Shout(Device[Config]):", "class Shout:", "", "has not one device class but none"),
        ("DeviceId.NULL", "DeviceId.ENTROPY", "", "a device of type 4, not 65535"),
        ("size=64)", "size=128)", "", "queue 0 has 128 entries, and there is room for 64"),
        ("\n    @virtqueue(0, size=64)", "\n", "", "it has 0 queues, and shout0 has 1"),
        ("import annotations", "import oddities", "", "cannot be imported: SyntaxError"),
        ("!", "!", "colour=red", "has no key 'colour'"),
        ("!", "!", "mark=", "mark: needs a value"),
        ("!", "!", "id=other", "id stays what it is"),
    ],
)
def test_what_is_no_such_device_is_bad_input_and_the_machine_runs_on(
    by_hand: Callable[..., Hand],
    tmp_path: Path,
    shouting: Asked,
    old: str,
    new: str,
    words: str,
    error: str,
) -> None:
    hand = by_hand(variant(tmp_path, old, new), "--attach", "m/shout0", *words.split())

    assert hand.end() == 2, hand.said
    assert error in hand.said
    process = next(p for p in shouting.machine.describe().processes if p.name == "shout0")
    assert (process.state, process.generation) == ("running", 1)


@pytest.fixture
def shouting(tmp_path: Path) -> Iterator[Asked]:
    with machine(tmp_path) as made:
        yield made


def test_one_without_what_was_negotiated_is_told_so(
    by_hand: Callable[..., Hand], tmp_path: Path, shouting: Asked
) -> None:
    # Another number of entries than the driver has set up.
    fewer = variant(tmp_path, "size=64)", "size=2)")
    hand = by_hand(fewer, "--attach", "m/shout0")

    assert hand.end() == 2
    assert re.search(r"m/shout0: queue 0 has \d+ entries, and it takes fewer", hand.said)
    assert shouting.state() == "running"


def test_one_whose_open_fails_or_init_raises_leaves_the_old_one(
    by_hand: Callable[..., Hand], tmp_path: Path, shouting: Asked
) -> None:
    init = (
        "    def __init__(self, *arguments: object) -> None:\n        raise RuntimeError('no')\n\n"
    )
    broken = variant(tmp_path, "    @virtqueue(0", f"{init}    @virtqueue(0")
    hand = by_hand(broken, "--attach", "m/shout0")

    assert hand.end() == 1
    assert "RuntimeError: no" in hand.said
    shouting.comes_to("running")
    by_hand(SHOUT, "--attach", "m/shout0", "mark=?").waits_for("serves")
    shouting.says("HELLO!", "HELLO?")


def test_file_that_is_changed_is_swapped_in(tmp_path: Path, shouting: Asked) -> None:
    heard = ["HELLO!"]
    for mark in "123":  # within the same second, and of the same size
        changed = variant(tmp_path, "text.upper()", f"text[:4] + '{mark}'")
        shouting.machine.swap("shout0", str(changed))
        heard.append(f"hell{mark}!")
        shouting.says(*heard)


def test_an_overlay_that_it_makes_stays_if_it_serves(
    tmp_path: Path, by_hand: Callable[..., Hand]
) -> None:
    image, wanted, unwanted = (tmp_path / name for name in ("image", "x.cow", "y.cow"))
    image.write_bytes(bytes(1 << 16))
    with machine(tmp_path, "auto", f"blk,{image}"):
        asked = ("blk", "--attach", "m/blk0")
        assert by_hand(*asked, f"overlay={unwanted}", "block_size=4096").end() == 2
        hand = by_hand(*asked, f"overlay={wanted}")
        hand.waits_for("serves")
        assert hand.end(signal.SIGINT) == 130

    assert wanted.exists()
    assert not unwanted.exists()
