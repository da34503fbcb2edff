"""``vibevmm``, and ``python -m launcher``."""

import sys


def main() -> int:
    """Run the command; the exit status. Ctrl-C is none of Python's from here on: what the command
    line is made of has to be imported yet."""
    try:
        from launcher import cli

        return cli.main()
    except KeyboardInterrupt:
        return 130  # as a shell has it


if __name__ == "__main__":
    sys.exit(main())
