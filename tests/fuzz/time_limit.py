"""A limit on the time of a call, so that a call that hangs is found instead of waited for."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hang(BaseException):
    """Raised where a call takes longer than its limit; no `except Exception` of the package swallows it."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise Hang in the body once it has run for `seconds`."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
