"""Coverage-guided fuzzing: ``python -m tests.fuzz [TARGET…] [--seconds N | --runs N]``.

Each target begins with its seeds, and with what earlier runs found worth keeping, in
``.cache/fuzz/TARGET``. It ends with a line: executions, edges or features covered. A finding prints
the last of the log and the command that does it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import ROOT, TARGETS, write_seeds

# Of one execution: a second is far more than any takes. Megabytes: what Atheris itself takes is a
# few hundred.
_HANG_SECONDS, _MOST_MEGABYTES = 30, 2048
_LONGEST_INPUT = 4096
_LOG_LINES = 40


def main() -> int:
    """Fuzz what is asked for, one target after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=_count, default=60, help="for each target")
    length.add_argument("--runs", type=_count, help="executions, always the same ones")
    length.add_argument("--input", type=Path, help="one input, such as a finding, once")
    parser.add_argument("--into", type=Path, default=ROOT / ".cache/fuzz", help="what is kept")
    told = parser.parse_args()
    for name in told.targets:
        if name not in TARGETS:
            parser.error(f"{name!r} is none of {', '.join(TARGETS)}")
    if told.input and (len(told.targets) != 1 or not told.input.is_file()):
        parser.error("--input: one TARGET, and a file that is there")
    failed = [name for name in told.targets or TARGETS if not _fuzz(name, told)]
    return 1 if failed else 0


def _count(text: str) -> int:
    if (count := int(text)) < 1:  # to libFuzzer, no limit at all
        raise argparse.ArgumentTypeError(f"{text} is none")
    return count


def _fuzz(name: str, told: argparse.Namespace) -> bool:
    into = told.into.resolve() / name
    corpus, seeds = into / "corpus", into / "seeds"
    corpus.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name]
    command = target.command(name, into)
    if told.input:
        return not subprocess.run([*command, told.input.resolve()], cwd=ROOT).returncode
    write_seeds(target, seeds)
    amount = f"-max_total_time={told.seconds}"
    if told.runs is not None:
        # Nothing of an earlier run is used, and nothing is kept for a later one.
        amount = f"-runs={told.runs}"
        command += ["-seed=1", "-reload=0"]
    command += [amount, f"-timeout={_HANG_SECONDS}", f"-rss_limit_mb={_MOST_MEGABYTES}"]
    command += [f"-max_len={_LONGEST_INPUT}", f"-artifact_prefix={into}/finding-"]
    command += ["-print_final_stats=1", *([] if told.runs is not None else [str(corpus)])]
    with (into / "log").open("w+", errors="replace") as log:
        env = os.environ | {"ASAN_OPTIONS": "quarantine_size_mb=16"}
        status = subprocess.run(
            [*command, str(seeds)], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
        ).returncode
        log.seek(0)
        text = log.read()
    if status:
        _report(name, into, text)
        return False
    executions = re.search(r"^stat::number_of_executed_units: *(\d+)", text, re.MULTILINE)
    covered = re.findall(r" cov: (\d+) ", text)
    assert executions is not None, text
    print(f"{name}: {executions[1]} executions, {covered[-1]} edges, no finding", flush=True)
    return True


def _report(name: str, into: Path, text: str) -> None:
    print("\n".join(text.splitlines()[-_LOG_LINES:]))
    print(f"{name}: a finding, or no start; the log is {into}/log")
    if found := re.search(r"Test unit written to (\S+)", text):
        again = [sys.executable, "-m", "tests.fuzz", name, "--input", found[1]]
        print(f"again: {shlex.join(again)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
