#!/usr/bin/env python3
"""Rewrite a checkpoint in another project's layout, or in ours. `videoattn convert` is the same program."""

import sys

from videoattn.cli.convert import main
from videoattn.cli.run_tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(main))
