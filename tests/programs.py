"""Run a program of the project in the process of the test, which spares it the start of another Python."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from videoattn.cli.run_tool import run_tool

ROOT = Path(__file__).parents[1]


def run_program(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `script`, named from the root of the project, as from a terminal there.

    Return its exit status and the text that it printed. A program that starts processes of its own needs a Python of
    its own, since these import its functions.
    """
    given = [str(argument) for argument in arguments]
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as said,
        contextlib.chdir(ROOT),
        patch.object(sys, "argv", [script, *given]),
        patch.object(sys, "path", [str((ROOT / script).parent), *sys.path]),
    ):
        try:
            status = run_tool(runpy.run_path(script)["main"], given)
        except SystemExit as end:  # of argparse: after --help, or because an option is unknown
            status = end.code if isinstance(end.code, int) else 0
    return subprocess.CompletedProcess([script, *given], status, printed.getvalue(), said.getvalue())
