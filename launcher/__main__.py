"""``python -m launcher``: the same as ``vibevmm``."""

import sys

from launcher.cli import main

sys.exit(main())
