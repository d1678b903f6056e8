"""The command `videoattn`, which runs one of the programs; `python -m videoattn` is the same."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import videoattn
from videoattn.cli.programs import PROGRAMS
from videoattn.cli.run_tool import USER_ERROR, run_tool
from videoattn.cli.shell import completion


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program that the first word names, with the words after it; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and completion.is_asked():
        program = completion.find_program()
        words = [program] if program else words
    if not words:
        print(_overview(), file=sys.stderr)
        return USER_ERROR
    name, *arguments = words
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"videoattn {videoattn.__version__}")
        return 0
    if name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; videoattn --help lists all commands"
        print(f"error: videoattn has no command {name!r}{hint}", file=sys.stderr)
        return USER_ERROR
    return run_tool(importlib.import_module(f"videoattn.cli.{name}").main, arguments)


def _overview() -> str:
    lines = [f"  {name:8}  {program.summary}" for name, program in PROGRAMS.items()]
    return "\n".join(
        [
            "usage: videoattn COMMAND [ARGUMENTS ...]", "", str(videoattn.__doc__), "", "commands:", *lines, "",
            "`videoattn COMMAND --help` shows examples and options of a command; `videoattn --version` the version.",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
