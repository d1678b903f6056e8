#!/usr/bin/env python3
"""Make videos, train, evaluate and profile in a few minutes; `videoattn demo` is the same program.

Its folders lie in the checkout, wherever it is started.
"""

import os
import sys
from pathlib import Path

from videoattn.cli.demo import main
from videoattn.cli.run_tool import run_tool

if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(run_tool(main))
