#!/usr/bin/env python3
"""Train a model on videos. `videoattn train` is the same program."""

import sys

from videoattn.cli.run_tool import run_tool
from videoattn.cli.train import main

if __name__ == "__main__":
    sys.exit(run_tool(main))
