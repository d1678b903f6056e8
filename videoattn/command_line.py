"""How the tools meet their users: errors of a user's making in one line, and an exit status that scripts can read."""

import logging
import sys
from collections.abc import Callable, Sequence

USER_ERROR, INTERRUPTED = 2, 130


def run_tool(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a tool's `main` and return its exit status: 0, 2 after one line that says what to mend, 130 if interrupted.

    What is wrong with settings, files or data arrives as ValueError or OSError, and a run that must not go on as
    RuntimeError or ArithmeticError of the package's own; anything else is a fault of the program and keeps its
    traceback.
    """
    from videoattn.data.decode import DecodeError
    from videoattn.engine.meters import TooManyBadClipsError
    from videoattn.engine.train import Interrupted

    try:
        return main(argv) or 0
    except (ValueError, OSError, DecodeError, TooManyBadClipsError, FloatingPointError) as error:
        logging.getLogger("videoattn").debug("details", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except Interrupted as stop:
        print(f"{stop}; the same command continues from there", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
