"""Reports of a training run about its videos and epochs, to people and in log.jsonl."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from videoattn.data.clips.batch import Batch, Failure
from videoattn.engine.distributed import gather_objects, is_main, share_error, shared_errors
from videoattn.engine.log import RunLog, logger
from videoattn.engine.meters import Meters
from videoattn.engine.results import Results

_MOST_NAMED = 3


class ClipReports:
    """Clips that could not be decoded, and reasons for sequential decoding, from all processes of a run.

    Each process notes what its batches say. `flush`, which all processes call together, hands that to the main process,
    which logs every clip, and each reason the first time that it is met.
    """

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._failures: list[Failure] = []
        self._reasons: set[str] = set()
        self._logged: set[str] = set()

    def note(self, batches: Sequence[Batch]) -> None:
        """Keep what `batches` say until the next `flush`."""
        for batch in batches:
            self._failures += batch.failures
            self._reasons.update(batch.sequential)

    def flush(self) -> None:
        """Log what the processes have noted since the last time, in the order of ranks."""
        gathered = gather_objects((self._failures, sorted(self._reasons - self._logged)))
        self._failures = []
        with shared_errors():
            for rank, (failures, reasons) in enumerate(gathered):
                self._log_all(rank, failures, reasons)

    def _log_all(self, rank: int, failures: Sequence[Failure], reasons: Sequence[str]) -> None:
        for reason in reasons:
            if reason not in self._logged and is_main():
                logger.info("some videos are decoded sequentially, since frames cannot be sought: %s", reason)
            self._logged.add(reason)
        for failure in failures if is_main() else ():
            logger.warning("replaced a clip that can't be decoded: %s", failure.reason)
            self._log.write("bad_clip", path=failure.path, reason=failure.reason, rank=rank)


def shared_batches(batches: Iterator[Batch], accumulate: int, before_raising: Callable[[], None]) -> Iterator[Batch]:
    """Yield the batches of one process, as long as every process gets its own.

    Where one fails, all raise (see `share_error`) before the step in which the others would wait for its gradients;
    they look once per `accumulate` batches. Every process calls `before_raising` first.
    """
    for number in itertools.count(1):
        error: Exception | None = None
        try:
            batch = next(batches)
        except Exception as raised:
            error = raised
        if error is not None or number % accumulate == 0:
            try:
                share_error(error)
            except Exception:
                before_raising()
                raise
        yield batch


class ValidationReports:
    """Videos that could not be evaluated during training: counted in every epoch, listed when one fails first."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._listed: set[Failure] = set()

    def figures(self, results: Results, epoch: int) -> dict[str, Any]:
        """Log the failed videos of an evaluation, and return its entries in the line of `epoch`."""
        new = [failure for failure in results.failures if failure not in self._listed]
        self._listed.update(new)
        for failure in new:
            self._log.write("failed_video", path=failure.path, reason=failure.reason, epoch=epoch)
        if new and is_main():
            named = "; ".join(failure.reason for failure in new[:_MOST_NAMED])
            more = f"; and {len(new) - _MOST_NAMED} more, see failed_video in log.jsonl" if new[_MOST_NAMED:] else ""
            logger.warning("%d validation videos could not be evaluated: %s%s", len(new), named, more)
        counts = {"val_videos": len(results.paths), "val_evaluated": len(results.videos)}
        return {"top1": results.top_k(1), "top5": results.top_k(5), **counts, "val_failed": len(results.failures)}


def report_epoch(meters: Meters, epoch: int, max_epoch: int, figures: dict[str, Any], log: RunLog) -> None:
    """Log the end of an epoch (from 0); `figures` are its loss, minutes and those of `ValidationReports`, if any."""
    counts = {
        "clips": meters.draws,
        "bad_clips": meters.bad,
        "short_clips": meters.short,
        "sequential": meters.in_order,
    }
    log.write("epoch", step=epoch + 1, **counts, **figures)
    if not is_main():
        return
    shown = {name: value for name, value in figures.items() if not name.startswith("val_") and value is not None}
    text = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    if figures.get("val_failed"):
        evaluated, listed = figures["val_evaluated"], figures["val_videos"]
        text += f", {evaluated} of {listed} validation videos evaluated, {figures['val_failed']} failed"
        text += "" if evaluated else ", so there is no validation figure"
    text += f", {meters.bad} of {meters.tried} clips bad" if meters.bad else ""
    text += f", {meters.short} clips longer than their video" if meters.short else ""
    text += f", {meters.in_order} videos decoded sequentially" if meters.in_order else ""
    logger.info("epoch %d/%d: %s", epoch + 1, max_epoch, text)
