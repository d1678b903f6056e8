"""Evaluation: combining the scores of all views of each video, and listing videos that could not be scored."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videoattn.data.clips.batch import Batch, Failure, Prepare
from videoattn.engine.distributed import Process, gather_objects, shared_errors
from videoattn.engine.log import Stopwatch, progress_bar
from videoattn.engine.results import Results
from videoattn.precision import AUTOCAST, Precision

logger = logging.getLogger("videoattn")

Method = Literal["sum", "max"]
Aggregate = Literal["logits", "probabilities"]

_LOG_SECONDS = 60.0


class _Videos(Protocol):
    def path(self, index: int) -> str: ...
    def label(self, index: int) -> int: ...


class EvaluationLoader(Protocol):
    """The loader of `evaluate`: this process's share of a numbered list of videos."""

    num_videos: int

    @property
    def videos(self) -> _Videos: ...

    def epoch(self, epoch: int) -> Iterable[Batch]: ...


class Evaluation:
    """Collects scores by (video, view) and combines a video's views once all `num_views` are there.

    A view that comes again is ignored. "sum" and "max" combine logits or their softmax. Sums are taken in float64 in
    the order of the views, so that they do not depend on the order of arrival or the number of processes.
    """

    def __init__(
        self, num_views: int, num_classes: int, method: Method = "sum", aggregate: Aggregate = "logits"
    ) -> None:
        if method not in ("sum", "max") or aggregate not in ("logits", "probabilities"):
            raise ValueError(f"expected sum or max of logits or probabilities, got {method!r} of {aggregate!r}")
        self.num_views = num_views
        self.num_classes = num_classes
        self.method = method
        self.aggregate = aggregate
        self.failures: dict[int, str] = {}
        self.num_short = 0
        self.sequential: Counter[str] = Counter()
        self._partial: dict[int, dict[int, Tensor]] = {}
        self._complete: dict[int, Tensor] = {}

    def add(self, videos: Tensor, views: Tensor, logits: Tensor) -> None:
        """Add scores [B, classes] of some `views`, from 0, of `videos`. Raises ValueError on other shapes or views."""
        if logits.shape != (len(videos), self.num_classes):
            expected = [len(videos), self.num_classes]
            raise ValueError(f"expected scores [views, classes] = {expected} from the model, got {list(logits.shape)}")
        scores = logits.detach().to("cpu", torch.float64)
        if self.aggregate == "probabilities":
            scores = scores.softmax(dim=1)
        for video, view, score in zip(videos.tolist(), views.tolist(), scores, strict=True):
            if not 0 <= view < self.num_views:
                raise ValueError(f"expected views 0..{self.num_views - 1}, got {view} of video {video}")
            self._add_view(video, view, score.clone())

    def _add_view(self, video: int, view: int, score: Tensor) -> None:
        if video in self._complete:
            return
        views = self._partial.setdefault(video, {})
        views.setdefault(view, score)
        if len(views) == self.num_views:
            stacked = torch.stack([views[i] for i in range(self.num_views)])
            self._complete[video] = stacked.sum(dim=0) if self.method == "sum" else stacked.amax(dim=0)
            del self._partial[video]

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Add videos that could not be decoded; each is excluded, whatever else arrives of it."""
        for failure in failures:
            self.failures.setdefault(failure.index, failure.reason)

    def merge(self, other: "Evaluation") -> None:
        """Add what another process collected."""
        for video, score in other._complete.items():
            self._complete.setdefault(video, score)
            self._partial.pop(video, None)
        for video, views in other._partial.items():
            for view, score in views.items():
                self._add_view(video, view, score)
        for index, reason in other.failures.items():
            self.failures.setdefault(index, reason)
        self.num_short += other.num_short
        self.sequential += other.sequential

    @property
    def num_finished(self) -> int:
        """Return the number of videos that are complete or failed."""
        return len(self._complete) + sum(video not in self._complete for video in self.failures)

    def finish(self, num_videos: int) -> tuple[dict[int, Tensor], dict[int, str]]:
        """Return scores of evaluated videos among 0..num_videos-1, and the reasons for the others; both in order."""
        scores, failures = {}, {}
        for video in range(num_videos):
            if video in self.failures:
                failures[video] = self.failures[video]
            elif video not in self._complete:
                failures[video] = f"only {len(self._partial.get(video, {}))} of {self.num_views} views arrived"
            elif not self._complete[video].isfinite().all():
                failures[video] = "the model's scores are not finite"
            else:
                scores[video] = self._complete[video]
        return scores, failures


@dataclass(frozen=True)
class EvaluationOptions:
    """Plain settings: `batch_size` counts views, and `method` combines the `aggregate` of a video's views."""

    num_classes: int
    num_views: int = 1
    batch_size: int = 8
    method: Method = "sum"
    aggregate: Aggregate = "logits"
    precision: Precision = "fp32"


def evaluate(
    model: nn.Module,
    loader: EvaluationLoader,
    prepare: Prepare,
    options: EvaluationOptions,
    process: Process | None = None,
    *,
    progress: bool = True,
) -> Results:
    """Score every view from the processes' loaders in batches, and combine them by video.

    `prepare(batch, seed)`, the same as in training, gives the model's input on the device of `process`. Every process
    returns the same results. The model is put into evaluation mode and back. A video of which a view is missing counts
    as failed. Raises ValueError on a label or an output that does not fit the number of classes.
    """
    process = process or Process()
    num_classes, precision = options.num_classes, options.precision
    labels = [loader.videos.label(i) for i in range(loader.num_videos)]
    paths = [loader.videos.path(i) for i in range(loader.num_videos)]
    for path, label in zip(paths, labels, strict=True):
        if label >= num_classes:
            raise ValueError(f"{path} has label {label}, but the model has classes 0..{num_classes - 1}")
    evaluation, everything = (
        Evaluation(options.num_views, num_classes, options.method, options.aggregate) for _ in range(2)
    )
    if isinstance(model, DistributedDataParallel):
        model = model.module  # its forward would wait for processes that have fewer views
    dtype = AUTOCAST.get(precision)
    autocast = torch.autocast(process.device.type, dtype, enabled=dtype is not None)
    watch, show = Stopwatch(), progress and process.rank == 0
    share = len(range(process.rank, loader.num_videos, process.world_size))
    bars = progress_bar(share, 0, "evaluating", show)
    with shared_errors(), evaluation_mode(model), torch.inference_mode(), bars as bar:
        next_log = time.perf_counter() + _LOG_SECONDS
        for batch in _chunks(_timed(loader.epoch(0), watch), options.batch_size, evaluation):
            clips, _ = prepare(batch, 0)
            with autocast:
                logits = model(clips)
            evaluation.add(batch.videos, batch.views, logits)
            watch.clips += len(batch.videos)
            bar.update(evaluation.num_finished - bar.n)
            bar.set_postfix(_speed(watch.clips, watch.waited, time.perf_counter() - watch.start), refresh=False)
            if show and bar.disable and time.perf_counter() > next_log:
                next_log = time.perf_counter() + _LOG_SECONDS
                logger.info("%d of %d videos evaluated on this process", evaluation.num_finished, share)
    measured = (watch.clips, watch.waited, time.perf_counter() - watch.start)
    gathered = gather_objects((evaluation, measured))
    for collected, _ in gathered:
        everything.merge(collected)
    clips_each, waited_each, seconds_each = zip(*(measured for _, measured in gathered), strict=True)
    seconds = max(seconds_each)
    scores, failures = everything.finish(loader.num_videos)
    return Results(
        paths=paths,
        labels=labels,
        videos=list(scores),
        scores=torch.stack(list(scores.values())) if scores else torch.empty(0, num_classes, dtype=torch.float64),
        failures=[Failure(video, paths[video], reason) for video, reason in failures.items()],
        num_short=everything.num_short,
        sequential=everything.sequential,
        protocol={
            "views": options.num_views,
            "method": options.method,
            "aggregate": options.aggregate,
            "precision": precision,
        },
        speed={"seconds": round(seconds, 3)} | _speed(sum(clips_each), sum(waited_each) / len(gathered), seconds),
    )


def _speed(clips: int, waited: float, seconds: float) -> dict[str, float]:
    seconds = max(seconds, 1e-9)
    return {"clips_per_second": round(clips / seconds, 2), "data_wait": round(waited / seconds, 3)}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode inside, and restore each module's own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _timed(batches: Iterable[Batch], watch: Stopwatch) -> Iterator[Batch]:
    iterator = iter(batches)
    while True:
        with watch.waiting():
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


class _Views(NamedTuple):
    """The tensors of some views, as the first fields of a batch."""

    clips: Tensor
    labels: Tensor
    videos: Tensor
    views: Tensor


def _chunks(batches: Iterable[Batch], size: int, evaluation: Evaluation) -> Iterator[Batch]:
    """Yield the views of successive batches, regrouped to `size`; failures go to `evaluation`."""
    held: _Views | None = None
    for batch in batches:
        evaluation.add_failures(batch.failures)
        evaluation.num_short += batch.num_short
        evaluation.sequential.update(batch.sequential)
        if not len(batch.videos):
            continue
        parts = _Views(batch.clips, batch.labels, batch.videos, batch.views)
        held = parts if held is None else _Views(*(torch.cat(pair) for pair in zip(held, parts, strict=True)))
        while held is not None and len(held.views) >= size:
            yield Batch(*_Views(*(part[:size] for part in held)))
            held = _Views(*(part[size:] for part in held)) if len(held.views) > size else None
    if held is not None:
        yield Batch(*held)
