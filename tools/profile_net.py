#!/usr/bin/env python3
"""Count and measure what a model costs. `videoattn profile` is the same program."""

import sys

from videoattn.cli.profile import main
from videoattn.cli.run_tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(main))
