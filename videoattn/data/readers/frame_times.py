"""Frame rates from the times of frames, and their contradictions with the rate that a file states."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

NO_TIME = -(2**63)  # below all others
_LONGEST_SECONDS = 10  # a longer pause is taken for a splice, where containers do not keep times well
_CLEARLY = 0.1


def known_time(time: int | None) -> int:
    """Return a packet's or frame's time, or a number below all others if it has none."""
    return NO_TIME if time is None else time


def mean_interval(times: Sequence[int]) -> float:
    """Return the mean time from a frame to the next; 0 for a single frame."""
    return (times[-1] - times[0]) / max(1, len(times) - 1)


def is_uneven(times: Sequence[int], interval: float) -> bool:
    """Return True if a frame is half an interval or more off an even spacing by `interval`.

    Smaller deviations, such as times rounded to milliseconds, are not counted: no other choice of frames would be
    closer.
    """
    return interval > 0 and any(
        abs(time - times[0] - index * interval) >= interval / 2 for index, time in enumerate(times)
    )


def frame_rate(times: Sequence[int], unit: Fraction | None, stated: float, *, are_exact: bool) -> float:
    """Return the frames per second that the file states, unless the rising times of frames, in `unit`, contradict it.

    Exact times, which differ from frame to frame, contradict it if some frame is half an interval or more off a spacing
    at the stated rate; other times, if the rates differ by more than a tenth. Returns 0 if neither is known.
    """
    if not unit or times[0] == NO_TIME or times[-1] == times[0]:
        return stated
    if are_exact:
        measured = float(1 / (Fraction(times[-1] - times[0], len(times) - 1) * unit))
        return stated if stated and not is_uneven(times, float(1 / (Fraction(stated) * unit))) else measured
    longest = _LONGEST_SECONDS / unit
    intervals = [later - earlier for earlier, later in pairwise(times) if later - earlier <= longest]
    if not sum(intervals):
        return stated
    measured = float(len(intervals) / (sum(intervals) * unit))
    return stated if stated and abs(measured / stated - 1) <= _CLEARLY else measured
