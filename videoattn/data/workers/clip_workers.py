"""Worker processes of a loader: samples are made in parallel and returned in order through shared memory.

torch's DataLoader gives a whole batch to one worker, and ends the run when a worker hangs or dies. Here tasks are
single samples, so that all workers make the next batch, and a video that crashes its worker only counts as one that
cannot be decoded. Clips are written into anonymous shared memory (not /dev/shm, which containers keep small), and
collating them is the only copy that is made.
"""

import logging
import mmap
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from videoattn.data.clips.batch import ClipSample
from videoattn.data.clips.dataset import Watch
from videoattn.data.readers.open_video import DecodeError
from videoattn.data.workers.worker_pool import Failed, WorkerPool, start_clock

logger = logging.getLogger(__name__)

_NUM_RETRIES = 1  # a machine that was suspended, or short of memory, is not the video's fault
_NO_VIDEO = -1


class SampleMaker(Protocol):
    """The interface of a dataset for workers; `clips_shape` is the shape of the most clips of a sample."""

    @property
    def clips_shape(self) -> tuple[int, ...]: ...

    def sample(self, key: Any, watch: Watch) -> ClipSample:
        """Return the sample of a draw or video."""

    def path(self, key: Any) -> str:
        """Return the file of a draw or video."""


@dataclass
class _Task:
    key: Any
    slot: int
    failed: dict[int, str] = field(default_factory=dict)


class ClipWorkers:
    """Samples of a dataset, made by `num_workers` processes, at most `num_slots` of them in progress or waiting.

    A video on which a worker spends more than `limit_seconds` (0: no limit), or which crashes it, is retried, so that
    the samples are those of an undisturbed run. After the second failure in a row it counts as one that cannot be
    decoded, and `failed` has the reason. DecodeError, naming the videos, is raised if nothing arrives for
    `stall_seconds` all the same, as from a disk that is gone, and RuntimeError, with a worker's traceback, on any error
    in the dataset but DecodeError.
    """

    def __init__(
        self, dataset: SampleMaker, *, num_workers: int, num_slots: int, limit_seconds: float, stall_seconds: float
    ) -> None:
        shape = dataset.clips_shape
        self._dataset = dataset
        self._num_workers, self._limit = num_workers, limit_seconds
        self._stall = max(stall_seconds, 2 * limit_seconds) if limit_seconds else None
        self._slots: Tensor = _shared_zeros((num_slots, *shape), torch.uint8)
        self._current = _shared_zeros((num_slots,), torch.int64)  # the video that a slot's worker is at
        self._free = list(range(num_slots))
        self._pool: WorkerPool[_Task, dict[str, Any]] | None = None
        self._num_failures: Counter[int] = Counter()
        self.failed: dict[int, str] = {}

    def batches(
        self, batches: Iterable[Sequence[Any]], collate: Callable[[Sequence[ClipSample]], Any]
    ) -> Iterator[Any]:
        """Yield `collate(samples)` of each of `batches` of keys, in order; another call ends this one's work.

        The samples' clips are shared memory that is reused as soon as `collate` returns.
        """
        if len(self._free) < len(self._slots):  # of an epoch that was left, and their workers may be writing still
            self.close()
        waiting: deque[tuple[Sequence[Any], list[_Task]]] = deque()
        done: dict[int, ClipSample] = {}  # by slot
        source = iter(batches)
        self._send(source, waiting)
        while waiting:
            keys, tasks = waiting[0]
            while len(tasks) < len(keys) or not all(task.slot in done for task in tasks):
                self._receive(done, tasks)
                self._send(source, waiting)
            batch = collate([done.pop(task.slot) for task in tasks])
            self._free.extend(task.slot for task in tasks)
            waiting.popleft()
            self._send(source, waiting)
            yield batch

    def close(self) -> None:
        """End the processes; a later call of `batches` starts new ones."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
        self._free = list(range(len(self._slots)))

    def _send(self, source: Iterator[Sequence[Any]], waiting: deque[tuple[Sequence[Any], list[_Task]]]) -> None:
        """Begin as many samples as there are free slots; the last batch of `waiting` may be begun in part."""
        if self._pool is None:
            make = _Maker(self._dataset, self._slots, self._current, self._limit)
            self._pool = WorkerPool(make, self._num_workers, self._limit)
        while self._free:
            if not waiting or len(waiting[-1][1]) == len(waiting[-1][0]):
                keys = next(source, None)
                if keys is None:
                    return
                waiting.append((keys, []))
            keys, tasks = waiting[-1]
            task = _Task(keys[len(tasks)], self._free[-1], dict(self.failed))
            self._current[task.slot] = _NO_VIDEO
            if not self._pool.submit(task):
                return
            self._free.pop()
            tasks.append(task)

    def _receive(self, done: dict[int, ClipSample], needed: Sequence[_Task]) -> None:
        """Wait for an answer; a task whose worker failed is retried, in the end without the video that failed."""
        assert self._pool is not None
        answer = self._pool.next_answer(self._stall)
        if answer is None:
            paths = [self._dataset.path(task.key) for task in needed if task.slot not in done]
            raise DecodeError(
                f"no clip arrived for {self._stall:.0f} s, and a worker that reads one of these can't be ended; is "
                "the disk responding? " + ", ".join(paths)
            )
        task, result = answer
        if not isinstance(result, Failed):
            rows = result.pop("num_clips")
            done[task.slot] = sample = ClipSample(clips=self._slots[task.slot, :rows], **result)
            for video in (sample.video, _NO_VIDEO):
                self._num_failures.pop(video, None)
            return
        if result.kind == "raises":
            raise RuntimeError(f"{self._dataset.path(task.key)}: {result.reason}\n\nIn a worker:\n{result.trace}")
        video = int(self._current[task.slot])
        self._num_failures[video] += 1
        if video == _NO_VIDEO:
            if self._num_failures[video] > len(self._slots):
                raise RuntimeError(f"workers end before they open a video: {result.reason}")
        elif self._num_failures[video] > _NUM_RETRIES:
            self.failed[video] = task.failed[video] = result.reason
        else:
            path = self._dataset.path(task.key)
            logger.warning("replaced a worker and retried its clip: %s (%s)", path, result.reason)
        self._current[task.slot] = _NO_VIDEO
        self._pool.submit(task, most=len(self._slots))


class _Maker:
    """The work on one task: writes the sample's clips to its slot and returns the rest."""

    def __init__(self, dataset: SampleMaker, slots: Tensor, current: Tensor, limit_seconds: float) -> None:
        self._dataset, self._slots, self._current, self._limit = dataset, slots, current, limit_seconds

    def __call__(self, task: _Task) -> dict[str, Any]:
        def begin(video: int) -> None:
            self._current[task.slot] = video
            start_clock(self._limit)

        sample = self._dataset.sample(task.key, Watch(begin, task.failed))
        rows = len(sample.clips)
        self._slots[task.slot, :rows] = sample.clips
        return {x.name: getattr(sample, x.name) for x in fields(sample) if x.name != "clips"} | {"num_clips": rows}


def _shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that worker processes share; pages take memory once they are written.

    Where processes are spawned instead of forked, torch moves them to shared files when it sends them.
    """
    numel = torch.Size(shape).numel()
    return torch.frombuffer(mmap.mmap(-1, max(1, numel * dtype.itemsize)), dtype=dtype, count=numel).view(shape)
