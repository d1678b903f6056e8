#!/usr/bin/env python3
"""Check all videos of a data set before training. `videoattn check` is the same program."""

import sys

from videoattn.cli.check import main
from videoattn.cli.run_tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(main))
