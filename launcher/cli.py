"""``vibevmm``: the command line. Every error ends here as one clear line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from protocol.errors import BadInput, VibeError

_USAGE = """\
usage: vibevmm run --kernel FILE [OPTION…]     run a virtual machine
       vibevmm doctor [--json]                 what this host can do, and what to do about it
       vibevmm completion bash|zsh|fish        print a completion script for a shell
       vibevmm --version | --help

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
        print(f"vibevmm: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT  # as a shell has it; while a machine runs it is no exception
    except BrokenPipeError:
        # Whoever read our output has enough. Nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _command(argv: list[str]) -> int:
    if not argv:
        print(_USAGE, file=sys.stderr)
        return 2
    word, rest = argv[0], argv[1:]
    if word in ("--help", "-h", "help"):
        return _print(f"{_USAGE}\n\n{_run_help()}")
    if word in ("--version", "-V"):
        return _print(f"vibevmm {_version()}")
    if word == "run":
        return _run(rest)
    if word == "doctor":
        from launcher import doctor

        return doctor.main(rest)
    if word == "completion":
        from launcher import completion

        return completion.main(rest)
    if word.startswith("-"):
        return _run(argv)
    from launcher.options import suggestion

    hint = suggestion(word, ("run", "doctor", "completion"))
    raise BadInput(repr(word), f"no such command{hint}")


def _run(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv:
        return _print(_run_help())
    from launcher import config

    options = config.read(argv)
    if options.help_device is not None:
        from devices import kinds
        from launcher.device_help import describe

        device = kinds.find(options.help_device, "--help-device")
        return _print(describe(options.help_device, device.config_type))
    from launcher import plan

    planned = plan.make(options)
    try:
        if options.dry_run:
            return _print(planned.text())
        from launcher import run

        return run.run(planned)
    finally:
        planned.close()


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


def _print(text: str) -> int:
    print(text, flush=True)
    return 0


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
