"""``vibevmm experiment``: from a file to a directory of samples, tables and plots."""

from __future__ import annotations

import os
import platform
import random
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from launcher import device_options, guardian
from launcher.experiment import file, plots, report
from launcher.experiment.guest import program
from launcher.experiment.matrix import Cell, ordered
from launcher.experiment.results import Found, Results
from launcher.experiment.trials import TRIALS, Setting
from launcher.signals import all_interrupt
from protocol.errors import BadInput, VibeError
from protocol.virtio import DeviceId
from vmm.hypervisor import detect

DEFAULT_OUT = "results"


def run(path: str | None, given: Mapping[str, str]) -> int:
    """The verb with its options; the exit status."""
    _check(path, given)
    if "--default" in given:
        return _say(file.default().rstrip("\n"))
    if "--plot" in given:
        results = Results.open(Path(given["--plot"]), "--plot")
        report.write(results)
        return _say(_made(results, plots.draw(results)))
    results = _results(path, given)
    try:
        with all_interrupt():
            _measure(results)
    except KeyboardInterrupt:
        again = f"vibevmm experiment --resume --out {results.path}"
        print(f"vibevmm: what is done is kept; go on with: {again}", file=sys.stderr)
        raise
    report.write(results)
    plotted: list[Path] = []
    if find_spec("matplotlib"):
        plotted = plots.draw(results)
    else:
        print(f"vibevmm: no plots: they need matplotlib: {plots.INSTALL}", file=sys.stderr)
    status = _say(_made(results, plotted))
    errors = [found.error for found in results.all()]
    if failed := len([error for error in errors if error]):
        why = f"failed cells: {failed} of {len(errors)}; --resume tries them again"
        print(f"vibevmm: {why}", file=sys.stderr)
        return status or 1
    return status


def _check(path: str | None, given: Mapping[str, str]) -> None:
    # Options that do not go together.
    for alone in ("--default", "--plot"):
        if alone in given and (path is not None or len(given) > 1):
            raise BadInput(alone, "goes without a file and without other options")


def _results(path: str | None, given: Mapping[str, str]) -> Results:
    out = Path(given.get("--out", DEFAULT_OUT))
    seed = device_options.number("--seed", given["--seed"]) if "--seed" in given else None
    wanted = None if path is None and "--resume" in given else file.read(path)
    if "--resume" not in given:
        assert wanted is not None
        program(file.Load(), DeviceId.BLOCK)  # that there is one
        seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
        return Results.create(out, wanted, seed, host())
    results = Results.open(out, "--resume")
    if wanted not in (None, results.experiment):
        raise BadInput("--resume", f"{out} has the results of another experiment than {path}")
    if seed not in (None, results.seed):
        raise BadInput("--seed", f"{out} was begun with seed {results.seed}")
    return results


def _measure(results: Results) -> None:
    from launcher.experiment import progress  # rich takes its time, and most need none

    cells = ordered(results.experiment, results.seed)
    left = [cell for cell in cells if not results.has(cell)]
    print(f"seed {results.seed}, {len(cells)} cells, {len(left)} to do", file=sys.stderr)
    busy, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if busy > cpus / 2:
        why = f"this host has other work: a load of {busy:.1f} on {cpus} CPUs"
        print(f"vibevmm: {why}; intervals will be wide", file=sys.stderr)
    with progress.shown(cells, len(cells) - len(left)) as bar:
        for cell in left:
            bar.begins(cell)
            found = carry_out(cell, results)
            results.keep(found)
            bar.ended(cell, found.error)


def carry_out(cell: Cell, results: Results) -> Found:
    """What comes of ``cell``; an error is kept, and the next one has its turn."""
    # In memory, where there is such a place: devices are measured, and not what holds their images.
    shared = os.environ.get("TMPDIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    with guardian.folder("vibevmm-", shared) as folder:
        setting = Setting(results.experiment, folder, results.seed)
        try:
            return Found(cell, TRIALS[cell.trial](cell, setting))
        except VibeError as error:
            return Found(cell, {}, str(error))
        except Exception as error:  # an attack, say, is anybody's code
            return Found(cell, {}, f"{type(error).__name__}: {error}")


def host() -> dict[str, str]:
    """What the figures were measured on."""
    kvm = "no KVM"
    if detect.kvm_opens():
        kvm = "software KVM" if detect.kvm_is_software() else "hardware KVM"
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpus": f"{os.cpu_count()} CPUs",
        "kvm": kvm,
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
    }


def _made(results: Results, plotted: list[Path]) -> str:
    tables = results.path / "tables"
    lines = [(tables / "results.md").read_text()]
    lines.append(f"tables: {tables}/results.md, .json, .csv")
    if plotted:
        names = sorted({path.stem for path in plotted})
        lines.append(f"plots: {results.path / 'plots'}/{{{','.join(names)}}}.{{png,svg}}")
    return "\n".join(lines)


def _say(text: str) -> int:
    from launcher.cli import print_text

    return print_text(text)
