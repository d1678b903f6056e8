#!/usr/bin/env python3
"""Render Motion, a small data set of moving shapes. `videoattn motion` is the same program."""

import sys

from videoattn.cli.motion import main
from videoattn.cli.run_tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(main))
