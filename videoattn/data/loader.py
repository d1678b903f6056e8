"""The loader of one process: batches epoch after epoch, decoded here or by workers that may hang or crash."""

import atexit
import os
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from videoattn.data.clips.batch import Batch, collate_copies, collate_views
from videoattn.data.clips.dataset import VideoDataset, ViewDataset
from videoattn.data.clips.plan import EvaluationPlan, SamplePlan, TrainPlan
from videoattn.data.lists import VideoList
from videoattn.data.readers.open_video import DecodeError
from videoattn.data.workers.clip_workers import ClipWorkers

LIMIT_SECONDS = 120.0
STALL_SECONDS = 600.0


class Loader:
    """Batches of one process, epoch after epoch, decoded by worker processes that live until `close`.

    `num_batches` is the number of this process's batches in an epoch, `accumulate` of which make an optimizer step;
    `batch_size` is the number of videos in each batch (in evaluation, the last may be smaller); `videos` is the whole
    list with its `num_videos` and `class_names`. The clips do not depend on the number of workers; no more workers are
    started than there are videos in an epoch or processor cores. `prefetch_factor` batches are decoded ahead.

    A video that occupies a worker for more than `limit_seconds` (0: no limit), or crashes it, counts as one that cannot
    be decoded. Without workers there is no such guard. Where the system forks safely (Linux), workers are forked: they
    share the list of videos and start at once, and decoders are opened only in the worker. Workers leave Ctrl-C to the
    main process and end with it, however it ends.
    """

    def __init__(
        self,
        dataset: VideoDataset | ViewDataset,
        plan: TrainPlan | EvaluationPlan | SamplePlan,
        *,
        batch_size: int,
        accumulate: int = 1,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        pin_memory: bool = False,
        limit_seconds: float = LIMIT_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.dataset = dataset
        self.videos: VideoList = dataset.videos
        self.num_videos = len(dataset.videos)
        self.class_names = dataset.videos.class_names
        self.num_batches = len(plan)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self._plan = plan
        self._training = isinstance(dataset, VideoDataset)
        self._collate = partial(collate_copies if self._training else collate_views, pinned=pin_memory)
        self._num_begun = 0
        num_workers = min(num_workers, self.num_batches * batch_size, num_cores())
        self._workers: ClipWorkers | None = None
        if num_workers:
            atexit.register(_close_at_exit, weakref.ref(self))
            self._workers = ClipWorkers(
                dataset,
                num_workers=num_workers,
                num_slots=batch_size + prefetch_factor * max(batch_size, num_workers),
                limit_seconds=limit_seconds,
                stall_seconds=stall_seconds,
            )

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Return this process's batches of an epoch, beginning with batch `start_batch`; earlier ones are not decoded.

        Raises ValueError if `start_batch` lies beyond the epoch, and DecodeError if a training clip could not be
        replaced or nothing can be read any more; both name the videos. An epoch ends when the next one begins: asking
        it for more batches raises RuntimeError.
        """
        if not 0 <= start_batch <= self.num_batches:
            raise ValueError(f"start_batch expects 0 to {self.num_batches}, the batches of an epoch, got {start_batch}")
        return self._iterate(epoch, start_batch)

    def _iterate(self, epoch: int, start: int) -> Iterator[Batch]:
        self._num_begun += 1
        number = self._num_begun
        for batch in self._batches(epoch, start):
            if self._training and len(batch.labels) < batch.draws:
                raise DecodeError(
                    "a clip and those drawn to replace it could not be decoded: "
                    + "; ".join(f"{failure.path} ({failure.reason})" for failure in batch.failures)
                )
            yield batch
            if number != self._num_begun:
                raise RuntimeError(f"epoch {epoch} has ended: another epoch has begun on the same workers")

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        keys: Iterator[Sequence[Any]] = self._plan.batches(epoch, start)
        if self._workers is not None:
            return self._workers.batches(keys, self._collate)
        return (self._collate([self.dataset[key] for key in some]) for some in keys)

    def close(self) -> None:
        """End the worker processes; a later epoch starts new ones."""
        if self._workers is not None:
            self._workers.close()


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _close_at_exit(loader: "weakref.ref[Loader]") -> None:
    """End the workers before multiprocessing does so with a signal that they leave to the main process."""
    alive = loader()
    if alive is not None:
        alive.close()
