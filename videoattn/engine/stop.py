"""Stopping a run between two steps when a signal asks for it."""

import os
import signal
import time
from types import FrameType
from typing import Any

# Programs that end others send the signal to the process and to its group (timeout), or through each parent (torchrun).
_ONE_REQUEST_SECONDS = 1.0


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and has saved its state."""


class StopRequest:
    """Note a SIGINT or SIGTERM, so that a run can stop between two steps.

    A signal that follows within a second belongs to the same request. A later one has its usual effect, at once.
    """

    def __init__(self, announce: bool = True) -> None:
        self.requested = False
        self._announce = announce
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
            if self._announce:  # not by the logger: the signal may have come while it writes
                os.write(2, b"\nstopping after this step; once more, after a second, to stop at once\n")
        elif now - self._first > _ONE_REQUEST_SECONDS:
            self.__exit__()
            signal.raise_signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
