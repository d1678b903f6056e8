"""The error of videos that cannot be decoded, and a context that turns errors of decoding libraries into it."""

from collections.abc import Callable
from types import TracebackType


class DecodeError(RuntimeError):
    """A video, or a frame of it, cannot be decoded; the message names the file and the reason.

    `kind` classifies the problem for programs: missing, unreadable, not_a_video, no_video_stream, cut_short,
    odd_rotation, wrong_backend (another backend might read the file), or else damaged.
    """

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())  # names may not be UTF-8; results are
        self.kind = kind


class LibraryCalls:
    """A context that turns any error of a decoding library into DecodeError: `failure`, and the library's reason.

    Damaged files make libraries raise errors of any type, MemoryError included. The body only calls the library, so
    that a mistake in this project's own code is not taken for a damaged file. One object may be entered repeatedly;
    `failure` may be a function, which is called only on an error.
    """

    __slots__ = ("_failure", "_kind")

    def __init__(self, failure: str | Callable[[], str], kind: str = "damaged") -> None:
        self._failure, self._kind = failure, kind

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, DecodeError):
            failure = self._failure if isinstance(self._failure, str) else self._failure()
            raise DecodeError(f"{failure}: {reason_of(error)}", self._kind) from error


def reason_of(error: Exception) -> str:
    """Return a library's error in one line."""
    text = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
    return f"{text} ({type(error).__name__})" if text else type(error).__name__
