"""The pages tell the truth where a program can tell: links, commands, options, devices, map."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from devices import kinds
from devices.runtime.device import AnyDevice
from launcher import config, device_options
from launcher.verbs import ATTACK, DEVICE_RUN, EXPERIMENT, VERBS
from vmm import memory_map

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT)
    for folder in (ROOT, ROOT / "docs", ROOT / "tests")
    for page in folder.glob("*.md" if folder == ROOT else "**/*.md")
)
COMMANDS = ("vibevmm", "./run.sh")

# Options of ours that are no options of `run`, and other programs' that pages name.
OTHER_OPTIONS = {"--help", "--version", "--option", "--missing"} | {
    option.name
    for verb in (*VERBS.values(), ATTACK, DEVICE_RUN, EXPERIMENT)
    for option in verb.options
}


def text(page: Path) -> str:
    return (ROOT / page).read_text()


def ids(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def help_text() -> str:
    asked = subprocess.run(
        [sys.executable, "-m", "launcher", "run", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(found.read_text()), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_options_named_exist_in_the_help(page: Path, help_text: str) -> None:
    known = set(re.findall(r"--[a-z-]+", help_text)) | OTHER_OPTIONS
    named = {
        option
        for span in re.findall(r"`(--[^`]+|(?:vibevmm|\./run\.sh) [^`]+)`", text(page))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)
    }
    assert named <= known, f"{page} names options that do not exist"


def commands(page: Path) -> Iterator[list[str]]:
    """The options of every ``vibevmm run`` on ``page``; one with an ellipsis is none, and what
    stands in a block of the console is run by tests/test_tutorial.py."""
    shown = re.sub(r"^```console\n.*?^```$", "", text(page), flags=re.DOTALL | re.MULTILINE)
    spans = [line.strip().removeprefix("$ ") for line in code_lines(shown)]
    spans += re.findall(r"`([^`\n]+)`", without_code(text(page)))
    for span in spans:
        if span.partition(" ")[0] in COMMANDS and "…" not in span:
            words = shlex.split(span.partition(" #")[0])
            if words[1:2] == ["run"] and words[2:] and "--help" not in words:
                yield words[2:]


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_commands_shown_are_accepted(page: Path) -> None:
    for arguments in commands(page):
        options = config.read(arguments)
        for request in options.devices:
            device_options.configure(request, kinds.find(request.kind).config_type)


def test_some_commands_were_found_to_check() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 5


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_make_targets_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text(Path("Makefile")), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", text(page)))
    named |= {
        found[1] for line in code_lines(text(page)) if (found := re.match(r"make ([a-z-]+)", line))
    }
    assert named <= targets


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_page_of_a_device_names_its_keys_queues_and_system_calls(kind: str) -> None:
    device: type[AnyDevice] = kinds.find(kind)
    page = text(Path("docs", "devices", f"{kind}.md"))

    keys = table(page, "key") if "| key |" in page else []
    assert keys == [field.name for field in fields(device.config_type)]
    assert f"| device id | {int(device.device_id)} |" in page
    for queue in device.queues:
        assert f"{queue.index} `{queue.name}`" in page
        assert f"up to {queue.size} entries" in page
    calls = re.search(r"^\| system calls beyond the common set \| (.*) \|$", page, re.MULTILINE)
    assert calls is not None
    assert set(calls[1].split(", ")) == (device.jail.syscalls or {"none"})


@pytest.mark.parametrize("kind", kinds.EXTERNAL)
def test_page_of_a_device_of_others_names_its_keys_and_system_calls(kind: str) -> None:
    device: type[AnyDevice] = kinds.find(kind)
    page = text(Path("docs", "devices", f"{kind}.md"))

    assert table(page, "key") == [field.name for field in fields(device.config_type)]
    calls = ", ".join(sorted(device.jail.syscalls))
    assert f"| system calls beyond the common set | {calls} |" in page


def test_architecture_draws_the_memory_map_as_it_is() -> None:
    lines = code_lines(text(Path("docs", "architecture.md")))

    drawn = [int(found[0], 16) for line in lines if (found := re.match("0x[0-9A-F_]+", line))]

    assert drawn == [
        0,
        memory_map.VIRTIO_WINDOW,
        memory_map.VIRTIO_WINDOW + memory_map.VIRTIO_WINDOW_SIZE,
        memory_map.MMIO_CONSOLE,
        memory_map.PCI_WINDOW,
        memory_map.IOAPIC,
        memory_map.LOCAL_APIC,
        memory_map.HIGH_RAM,
    ]


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(path.name for path in folder.glob("[0-9]*.md"))

    assert re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text()) == records


def table(page: str, first: str) -> list[str]:
    """The names, in backquotes, in the first column of the table whose head begins with it."""
    rows = page.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip().strip("`") for row in rows]


def code_lines(page: str) -> list[str]:
    """The lines of fenced blocks; those that a backslash joins are one."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def without_code(page: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors that headings get: lower case, words with dashes, punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_files_of_the_tests_named_exist(page: Path) -> None:
    for path in re.findall(r"\btests/[\w/]+\.(?:py|sh|c)\b", text(page)):
        assert "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_tests_named_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text(page)):
        defined = re.search(rf"^ *def {name}\(", text(Path(path)), re.MULTILINE)
        assert defined, f"{page} names {path}::{name}"


def test_every_promise_has_a_test_or_is_pending() -> None:
    page = text(Path("docs", "guarantees.md"))
    promises = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |^## |\Z)", page, re.MULTILINE | re.DOTALL)
    hazards = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|$", page.partition("## Hazards")[2], re.MULTILINE
    )

    assert [int(number) for number, _ in promises] == list(range(1, len(promises) + 1))
    for name, words in [*promises, *hazards[1:]]:
        assert ("::test_" in words) != ("pending" in words.lower()), name
    assert len(hazards) > 20
