"""Timing that several benchmarks share: everything takes turns, so that what slows the machine slows all alike.

On a CPU one thread is timed by its own processor time, which waiting for other programs does not lengthen, though their
use of the caches does; several threads, and GPUs, by the clock.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from tqdm import tqdm

Step = Callable[[], object]
Key = TypeVar("Key")
BRIEF = 0.5  # seconds


def seconds_of(step: Step, device: torch.device) -> float:
    """Return the seconds of one call, a GPU's work included."""
    own_time = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if own_time else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def take_turns(
    steps: Mapping[Key, Step], device: torch.device, rounds: int, limit: float, title: str
) -> dict[Key, list[float]]:
    """Seconds of every step in each round, after a round that warms up; each round begins with another step.

    A step of less than half a second runs once more before it is timed, so that it finds caches and heap as it leaves
    them itself, not as another does.

    There are fewer than `rounds` of them, but three, where they take longer than `limit` seconds in all.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in steps}
    started, keys, brief = time.perf_counter(), list(steps), dict.fromkeys(steps, True)
    for number in tqdm(range(1 + rounds), desc=title, leave=False, disable=None):
        for key in (*keys[number % len(keys) :], *keys[: number % len(keys)]):
            if number and brief[key]:
                steps[key]()
            took = seconds_of(steps[key], device)
            brief[key] = took < BRIEF
            if number:
                seconds[key].append(took)
        if number >= 3 and time.perf_counter() - started > limit:
            break
    return seconds


def median_ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of how many times as long the others took."""
    return statistics.median(other / own for own, other in zip(seconds, others, strict=True))


def quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else [values[0]] * 2


def release_memory() -> None:
    """Hand what the C library keeps of freed memory back, so that a peak shows all that a step needs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def round_to(value: Any) -> Any:
    """Four digits are more than a timing has."""
    if isinstance(value, list):
        return [round_to(x) for x in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
