"""``vibevmm``: the command line. Every error ends here as one clear line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence

from protocol.errors import BadInput, HostError, VibeError

_USAGE = """\
usage: vibevmm run --kernel FILE [OPTION…]     run a virtual machine
       vibevmm ps [VM]                         machines that run, and their processes
       vibevmm pause|resume|stop [VM]          hold a guest, let it go on, end it
       vibevmm attach VM/STREAM                its console, in this terminal
       vibevmm stats|events [VM]               what it counted, and what happened to it
       vibevmm kill VM/DEV                     kill the process of a device
       vibevmm swap VM/DEV --impl …            another implementation in its place; also restart
       vibevmm inject VM/DEV FAULT             break it on purpose; inject --list
       vibevmm link VM/DEV up|down             pull a network interface's cable, or plug it in
       vibevmm device run … --attach VM/DEV    this process in its place
       vibevmm device run … --vhost-user PATH  a device for QEMU and others
       vibevmm experiment [FILE.toml]          what isolation costs and buys, measured
       vibevmm attack [NAME …]                 hostile devices and guests, and what comes of them
       vibevmm doctor [--json]                 what this host can do, and what to do about it
       vibevmm completion bash|zsh|fish        print a completion script for a shell
       vibevmm --version | --help

VM may be left out where one runs. More: vibevmm VERB --help, docs/control.md.
`run` may be left out: vibevmm --kernel FILE …"""

_RUN_NOTES = """\
Sizes end in K, M, G or a digit; addresses may be hexadecimal (0x10000).
In the terminal Ctrl-A x quits, and Ctrl-A h lists what else there is.

Exit status: 0 the guest powered off or reset, or was stopped by you; 1 it died or panicked;
2 bad input, nothing was started; 3 the host cannot; 4 timed out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv`` (default: the process's own); the exit status."""
    _keep_standard_descriptors()
    try:
        return _command(list(sys.argv[1:] if argv is None else argv))
    except VibeError as error:
        return _failed(str(error), error.exit_status)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as a shell has it; while a machine runs it is no exception
    except BrokenPipeError:
        _drop_output()
        return 0
    except OSError as error:
        # Nothing that names an option: the host has run out of something.
        hint = "; see ulimit -n" if error.errno == errno.EMFILE else ""
        return _failed(f"{error.filename or 'the host'}: {error.strerror}{hint}", 3)


def _failed(why: str, status: int) -> int:
    from launcher.logs import harmless

    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # nobody can be told
            print(f"vibevmm: {harmless(why)}", file=sys.stderr)
    return status


def _command(argv: list[str]) -> int:
    if not argv:
        print(_USAGE, file=sys.stderr)
        return 2
    word, rest = argv[0], argv[1:]
    if word in ("--help", "-h", "help"):
        return print_text(f"{_USAGE}\n\n{_run_help()}")
    if word in ("--version", "-V"):
        return print_text(f"vibevmm {_version()}")
    if word == "run":
        return _run(rest)
    if word == "doctor":
        from launcher import doctor

        return print_text(doctor.text(rest))  # a host that lacks something is no error
    if word == "completion":
        from launcher import completion

        return print_text(completion.text(rest))
    if word.startswith("-"):
        return _run(argv)
    from launcher import verbs

    if word == "device" and rest[:1] == ["run"]:
        return verbs.run_verb(verbs.DEVICE_RUN, rest[1:])
    if word == "experiment":
        return verbs.run_verb(verbs.EXPERIMENT, rest)
    if word == "attack":
        return verbs.run_verb(verbs.ATTACK, rest)
    if word in verbs.VERBS:
        return verbs.run(word, rest)
    from launcher.options import suggestion

    hint = suggestion(
        word, ("run", "device run", "experiment", "attack", "doctor", "completion", *verbs.VERBS)
    )
    raise BadInput(repr(word), f"no such command{hint}")


def _run(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        return print_text(_run_help())
    from launcher import config

    options = config.read(argv)
    if options.help_device is not None:
        from devices import kinds
        from launcher.device_help import describe

        device = kinds.find(options.help_device, "--help-device")
        return print_text(describe(options.help_device, device.config_type))
    from launcher import plan, signals
    from launcher.loop import Loop

    loop = Loop()
    # From before there are files that would be left behind.
    with signals.Signals(loop, signals.ALL) as coming:
        if owner := os.environ.pop(signals.OWNER, ""):
            coming.end_with(int(owner))
        try:
            with contextlib.closing(plan.make(options, coming.check)) as planned:
                coming.check()
                if not options.dry_run:
                    from launcher import run

                    return run.run(planned, loop, coming)
                text = planned.text()
        except signals.Interrupted as interrupted:
            return interrupted.exit_status
    return print_text(text)


def _run_help() -> str:
    from launcher.options import help_text

    return f"usage: vibevmm run --kernel FILE [OPTION…]\n\n{help_text()}\n\n{_RUN_NOTES}"


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("vibe-vmm")
    except metadata.PackageNotFoundError:
        import tomllib  # a checkout that was not installed

        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        with open(os.path.join(root, "pyproject.toml"), "rb") as file:
            return str(tomllib.load(file)["project"]["version"])


def print_text(text: str) -> int:
    """Print ``text``, for which the exit status is 0; HostError if it cannot be."""
    if sys.stdout is None:
        raise HostError("standard output is closed")
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise  # whoever read it has enough
    except OSError as error:
        _drop_output()
        raise HostError(f"standard output: {error.strerror}") from error
    return 0


def _drop_output() -> None:
    # What is left of it may not be written at exit either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _keep_standard_descriptors() -> None:
    # Closed by whoever started us, their numbers would go to the first files that we open, and a
    # message would be written into a disk.
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    sys.exit(main())
