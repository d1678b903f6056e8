#!/usr/bin/env python3
"""Evaluate a model on videos. `videoattn test` is the same program."""

import sys

from videoattn.cli.run_tool import run_tool
from videoattn.cli.test import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
