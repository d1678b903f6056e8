#!/usr/bin/env python3
"""Encode videos, pack them into tar shards, list shards. `videoattn prepare` is the same program."""

import sys

from videoattn.cli.prepare import main
from videoattn.cli.run_tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(main))
