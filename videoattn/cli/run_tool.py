"""Errors of a user's making in one line, and an exit status that scripts can read."""

import logging
import os
import select
import sys
from collections.abc import Callable, Sequence

USER_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def run_tool(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a program's `main` and return its exit status: 0, 2 after one line on what to change, 130 if interrupted.

    141 says that the reader of the output has closed it, as `head` does.

    Wrong settings, files or data are reported by ValueError or OSError, and a run that must not go on by RuntimeError
    or ArithmeticError of the package's own; any other exception is a fault of the program and keeps its traceback. What
    ended the program is also written to its run.log, where it has set up one. Where several processes run, the one that
    failed reports the error, and the others end with the same status.
    """
    from videoattn.data.readers.open_video import DecodeError
    from videoattn.engine.distributed import OtherProcessError
    from videoattn.engine.log import close_log_file, log_to_file
    from videoattn.engine.meters import TooManyBadClipsError
    from videoattn.engine.stop import Interrupted

    try:
        return main(argv) or 0
    except (ValueError, OSError, DecodeError, TooManyBadClipsError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
            return PIPE_CLOSED
        logging.getLogger("videoattn").debug("details", exc_info=True)
        log_to_file(f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OtherProcessError as error:
        log_to_file(f"error: {error}")
        return USER_ERROR
    except Interrupted as stop:
        log_to_file(f"{stop}; the same command continues from there")
        print(f"{stop}; the same command continues from there", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        log_to_file("interrupted")
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        log_to_file("error in the program:", trace=True)
        raise
    finally:
        close_log_file()


def _output_is_closed() -> bool:
    """Return whether nobody reads what the program prints any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
