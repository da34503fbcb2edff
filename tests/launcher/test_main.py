"""The way into the program, before there is a command line."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from tests.support.vibevmm import ROOT

# Whatever is imported of the launcher's, it is then that Ctrl-C comes.
PROGRAM = """
import sys
class Impatient:
    def find_spec(self, name, *_):
        if name == "launcher.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
from launcher.__main__ import main
sys.exit(main())
"""


def test_ctrl_c_while_the_command_line_is_imported_is_no_news_of_pythons() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=30
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_that_is_the_way_in() -> None:
    with open(f"{ROOT}/pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["scripts"]["vibevmm"] == "launcher.__main__:main"
